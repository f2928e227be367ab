"""An LSTM layer that exported and compiled programs hold as one operator, so that their length stays open.

PyTorch unrolls `nn.LSTM` in an exported program, which then has a fixed length, and breaks a compiled one at it.

Shape suffixes: B items, P positions, D width of the input and of the hidden state, G = 4 D gates.
"""

from typing import Any

import torch
from torch import nn


def _lstm(
    x_BPD: torch.Tensor,
    input_weight_GD: torch.Tensor,
    hidden_weight_GD: torch.Tensor,
    input_bias_G: torch.Tensor,
    hidden_bias_G: torch.Tensor,
) -> torch.Tensor:
    zeros_1BD = x_BPD.new_zeros(1, x_BPD.shape[0], hidden_weight_GD.shape[1])
    weights = [input_weight_GD, hidden_weight_GD, input_bias_G, hidden_bias_G]
    return torch.lstm(x_BPD, [zeros_1BD, zeros_1BD], weights, True, 1, 0.0, False, False, True)[0].contiguous()


def _lstm_shape(
    x_BPD: torch.Tensor,
    input_weight_GD: torch.Tensor,
    hidden_weight_GD: torch.Tensor,
    input_bias_G: torch.Tensor,
    hidden_bias_G: torch.Tensor,
) -> torch.Tensor:
    return x_BPD.new_empty(x_BPD.shape[0], x_BPD.shape[1], hidden_weight_GD.shape[1])


if not hasattr(torch.ops.cmfah, "lstm"):  # a copy of this file that came with a model may have registered it
    torch.library.custom_op("cmfah::lstm", _lstm, mutates_args=()).register_fake(_lstm_shape)


class CMFAHLSTM(nn.RNNBase):
    """An LSTM of one layer, with the parameters of `nn.LSTM`.

    The operator `cmfah::lstm` replaces it in exports, and in compiled code without gradients; it has none, so compiled
    training breaks at the layer.
    """

    def __init__(self, width: int):
        super().__init__("LSTM", width, width, batch_first=True)

    def forward(self, x_BPD: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The outputs at all positions, `(B, P, D)`, and the last states, None of the operator."""
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting() or not torch.is_grad_enabled():
                return torch.ops.cmfah.lstm(x_BPD, *weights), None
            torch._dynamo.graph_break()
        zeros_1BD = x_BPD.new_zeros(1, x_BPD.shape[0], self.hidden_size)
        flat: list[torch.Tensor] = self._flat_weights  # type: ignore[assignment]  # none of them is missing
        found = torch.lstm(x_BPD, [zeros_1BD, zeros_1BD], flat, True, 1, 0.0, self.training, False, True)
        return found[0], found[1:]
