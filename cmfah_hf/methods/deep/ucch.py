"""UCCH: contrasts with the binary codes of a memory of all training pairs, and a smooth cross-modal ranking loss.

Shape suffixes: N training pairs, B pairs of a batch, M compared pairs of each item, K hash bits. Equations are cited by
their tags in `docs/method.md`.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch.nn.functional import normalize

from cmfah_hf.methods.base import Batch, Losses, ObjectiveConfig, Paper, TrainingState
from cmfah_hf.methods.deep.epochs import EpochObjective
from cmfah_hf.methods.losses import added
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.codes import sign
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.fused_cmfah import EPSILON
from cmfah_hf.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_OR_ALL

# The table of `TrainingState`: the mean codes of the pairs, of length 1.
MEMORY = "memory"


@strict
@dataclass
class UCCHObjectiveConfig(ObjectiveConfig):
    """Settings of UCCH's objective.

    Args:
        alpha (`float`, defaults to 0.7):
            Share of the contrast in the loss, from 0 to 1; the rest is the ranking loss.
        negatives (`int`, defaults to 4096):
            Other pairs that are drawn from the memory for each item, at most `N - 1`.
        temperature (`float`, defaults to 0.9):
            T of `[ucch]`, above 0. Inner products are divided by `T sqrt(K)`.
        momentum (`float`, defaults to 0.4):
            Share of the old row in the new row of the memory, from 0 to below 1.
        warmup_epochs (`int`, defaults to 1):
            First epochs, in which the pairs of the batch replace the memory.
        margin (`float`, defaults to 0.2):
            Cosine by which an item's partner should exceed all others in the ranking loss, 0 or more.
        shift (`float`, defaults to 0.1):
            Subtracted from the cosines of those that it already exceeds.
    """

    alpha: float | int = 0.7
    negatives: int = 4096
    temperature: float | int = 0.9
    momentum: float | int = 0.4
    warmup_epochs: int = 1
    margin: float | int = 0.2
    shift: float | int = 0.1

    ranges = {
        **{"alpha": SHARE_OR_ALL, "momentum": SHARE, "temperature": POSITIVE, "negatives": COUNT},
        **dict.fromkeys(("warmup_epochs", "margin"), NOT_NEGATIVE),
    }


def contrast_loss(
    codes_BK: torch.Tensor, binary_NK: torch.Tensor, compared_BM: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The mean negative log-probability of an item's own pair among the compared ones: a scalar, `[ucch]`.

    The codes have length 1, `binary_NK` is -1 and +1, and `compared_BM` are its rows, the first that of the own pair.
    """
    # All products cost less than copies of the drawn rows.
    scores_BM = (codes_BK @ binary_NK.mT).gather(1, compared_BM) / temperature
    return -scores_BM.log_softmax(dim=1)[:, 0].mean()


def ranking_loss(cosines_BB: torch.Tensor, margin: float, shift: float) -> torch.Tensor:
    """The smooth maximum of a row above its diagonal, a mean over rows: a scalar, `[ucch]`.

    Cosines more than `margin` below the diagonal are lowered by `shift`.
    """
    own_B1 = cosines_BB.diagonal()[:, None]
    lowered_BB = torch.where(cosines_BB >= own_B1 - margin, cosines_BB, cosines_BB - shift)
    return (lowered_BB.logsumexp(dim=1, keepdim=True) - own_B1).mean() + margin


@register_method("ucch")
class UCCHObjective(EpochObjective):
    """UCCH's objective, `[ucch]`, with terms `contrast` and `ranking`. It reads no labels.

    The memory changes with each batch. Without numbered pairs and in the first epochs, the pairs of the batch replace
    it.
    """

    settings_class = UCCHObjectiveConfig
    settings: UCCHObjectiveConfig
    labels = "refuses"
    needs_tables = True
    paper = Paper.from_bibtex("""@article{hu2023ucch,
  title   = {Unsupervised Contrastive Cross-Modal Hashing},
  author  = {Hu, Peng and Zhu, Hongyuan and Lin, Jie and Peng, Dezhong and Zhao, Yin-Ping and Peng, Xi},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume  = {45},
  number  = {3},
  pages   = {3877--3889},
  year    = {2023},
  doi     = {10.1109/TPAMI.2022.3177356}
}""")

    def __init__(self, config: CMFAHConfig, settings: UCCHObjectiveConfig):
        super().__init__(config, settings)
        self.post_init()

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """`alpha` times the contrasts of both modalities, and `1 - alpha` times the rankings in both directions."""
        settings = self.settings
        views = outputs.unimodal
        image_BK, text_BK = (normalize(view.hash_values, dim=1, eps=EPSILON) for view in views)
        mean_BK = normalize((image_BK + text_BK).detach(), dim=1, eps=EPSILON)
        rows_B, memory_NK = batch.get("row"), state.tables.get(MEMORY)
        warms_up = int(self.epochs) < settings.warmup_epochs
        if rows_B is None or memory_NK is None or warms_up:
            binary_NK, compared_BM = sign(mean_BK), _own_and_all_others(len(mean_BK), mean_BK.device)
        else:
            binary_NK = sign(memory_NK.to(mean_BK))
            compared_BM = _own_and_drawn(rows_B, len(memory_NK), settings.negatives)
        temperature = settings.temperature * mean_BK.shape[1] ** 0.5
        cosines_BB = image_BK @ text_BK.mT
        terms = {
            "contrast": added(
                contrast_loss(own_BK, binary_NK, compared_BM, temperature) for own_BK in (image_BK, text_BK)
            ),
            "ranking": added(
                ranking_loss(each_BB, settings.margin, settings.shift) for each_BB in (cosines_BB, cosines_BB.mT)
            ),
        }
        if self.training and rows_B is not None and memory_NK is not None:
            self._remember(state, rows_B.cpu(), mean_BK.float().cpu(), 0.0 if warms_up else settings.momentum)
        return Losses.weighted(terms, {"contrast": settings.alpha, "ranking": 1 - settings.alpha})

    def _remember(self, state: TrainingState, rows_B: torch.Tensor, mean_BK: torch.Tensor, momentum: float) -> None:
        """Moves the batch's rows of the memory towards its mean codes, in a new table."""
        memory_NK = state.tables[MEMORY]
        moved_BK = normalize(momentum * memory_NK[rows_B] + (1 - momentum) * mean_BK, dim=1, eps=EPSILON)
        state.tables[MEMORY] = memory_NK.index_copy(0, rows_B, moved_BK)

    def on_train_begin(self, state: TrainingState) -> None:
        """A memory of random codes, from PyTorch's global generator."""
        if state.num_pairs:
            random_NK = sign(torch.randn(state.num_pairs, self.config.hash_bits))
            state.tables[MEMORY] = normalize(random_NK, dim=1)


def _own_and_all_others(count: int, device: torch.device) -> torch.Tensor:
    """`(B, B)`: for each of `count` rows, itself and then all others."""
    rows_B = torch.arange(count, device=device)
    return (rows_B[:, None] + rows_B[None, :]) % count


def _own_and_drawn(rows_B: torch.Tensor, count: int, negatives: int) -> torch.Tensor:
    """`(B, M)`: each row, and then others that are drawn from `count` rows with replacement."""
    # On the CPU, whose generator is the same in all processes.
    shifts_BM = torch.randint(1, max(2, count), (len(rows_B), min(negatives, count - 1))).to(rows_B.device)
    return torch.cat([rows_B[:, None], (rows_B[:, None] + shifts_BM) % count], dim=1)
