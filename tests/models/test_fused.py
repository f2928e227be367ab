"""Hand-written gradients of the fused kernels against PyTorch's autograd on the plain formulas, in float64."""

import pytest
import torch

from cmfah_hf.methods.losses import cosine_matrix
from cmfah_hf.models.fused_cmfah import cosines, largest, selected, selected_by_each_other


def positions(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(partner_shape, dtype=torch.float64):
    """Positions and partners, some of them zero and some shorter than the epsilon of the division."""
    x, y = positions(3, 4, 8, dtype=dtype), positions(*partner_shape, seed=1, dtype=dtype)
    with torch.no_grad():
        x[0, 1], y[..., 2, :] = 0, 0
        x[1, 2] *= 1e-8
        y[..., 1, :] *= 1e-7
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("partner_shape", [(3, 5, 8), (5, 8)], ids=["a partner each", "one partner"])
def test_cosines_and_gradients_match_the_formula(partner_shape):
    x, y = drawn(partner_shape)
    gradient = positions(3, 4, 5, seed=2)
    found, expected = cosines(x, y), cosine_matrix(x, y.expand(3, 5, 8))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert not found[0, 1].any()
    for one, other in zip(*(torch.autograd.grad(z, (x, y), gradient) for z in (found, expected)), strict=True):
        assert other.abs().max() > 1e3  # a short vector turns quickly
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def selected_by_formula(local, mask, temperature, *asking):
    """Reference for `selected`, computed one item, partner and position at a time."""
    sums, largest_values, answers = [], [], []
    for item in range(len(local)):
        positions = local[item] if mask is None else local[item][mask[item]]
        for partner, partner_mask in asking:
            one = partner if partner.ndim == 2 else partner[item]
            cosines_PQ = cosine_matrix(positions, one)
            scores_PQ = temperature * (cosines_PQ if partner_mask is None else cosines_PQ[:, partner_mask[item]])
            weights_PQ = scores_PQ.flatten().softmax(0).view_as(scores_PQ)
            sums.append((weights_PQ.sum(dim=1, keepdim=True) * positions).sum(dim=0))
        is_empty = len(positions) == 0
        least = torch.finfo(local.dtype).min
        largest_values.append(local.new_full(local.shape[-1:], least) if is_empty else positions.amax(dim=0))
        answers.append(local.new_full((len(one),), -1.0) if is_empty else cosines_PQ.amax(dim=0))
    return torch.stack(sums).unflatten(0, (len(local), -1)), torch.stack(largest_values), torch.stack(answers)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("is_paired", [False, True])
def test_selection_and_gradients_match_the_formula(is_paired, is_masked):
    local, partner, concepts = positions(4, 5, 8), positions(4, 3, 8, seed=1), positions(6, 8, seed=2)
    local[0, 2] = local[0, 1]  # ties
    mask = partner_mask = None
    if is_masked:
        mask, partner_mask = torch.ones(4, 5, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)
        mask[1, 3:], mask[2], partner_mask[0, :2], partner_mask[3] = False, False, False, False
    inputs = [tensor.requires_grad_() for tensor in (local, partner, concepts)[:: 1 if is_paired else 2]]
    asking = [(concepts, None)]
    if is_paired:
        asking = [(partner, partner_mask), *asking]
    found, expected = (function(local, mask, 7.0, *asking) for function in (selected, selected_by_formula))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    gradients = [positions(*tensor.shape, seed=3) for tensor in found]
    if is_masked:
        gradients[1][2] = 0  # the placeholder for an empty maximum has no gradient
    for kept in ((0, 1, 2), (0,), (1,), (2,)):  # only one of the results is used
        ours, theirs = (
            torch.autograd.grad(
                [results[i] for i in kept],
                inputs,
                [gradients[i] for i in kept],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for results in (found, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_masked", [False, True])
def test_mutual_selection_matches_two_single_selections(is_masked):
    inputs = [positions(*shape, seed=seed) for seed, shape in enumerate([(4, 5, 8), (4, 3, 8), (6, 8), (2, 8)])]
    x, y, x_concepts, y_concepts = (tensor.requires_grad_() for tensor in inputs)
    x_mask, y_mask = None, torch.ones(4, 3, dtype=torch.bool)
    y_mask[0, :2], y_mask[3] = False, False
    if is_masked:
        x_mask = torch.ones(4, 5, dtype=torch.bool)
        x_mask[1, 3:], x_mask[2] = False, False
    found = selected_by_each_other((x, x_mask, x_concepts, 7.0), (y, y_mask, y_concepts, 3.0))
    expected = (
        selected(x, x_mask, 7.0, (y, y_mask), (x_concepts, None)),
        selected(y, y_mask, 3.0, (x, x_mask), (y_concepts, None)),
    )
    found, expected = ([tensor for side in sides for tensor in side] for sides in (found, expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    gradients = [positions(*tensor.shape, seed=9) for tensor in found]
    ours, theirs = (torch.autograd.grad(results, inputs, gradients) for results in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
def test_inputs_without_gradient_get_none(frozen):
    sides = list(drawn((3, 5, 8)))
    expected = torch.autograd.grad(cosine_matrix(*sides).square().sum(), sides)
    sides[frozen] = sides[frozen].detach()
    cosines(*sides).square().sum().backward()
    assert sides[frozen].grad is None
    torch.testing.assert_close(sides[1 - frozen].grad, expected[1 - frozen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cosines_of_long_vectors_stay_finite_in_half_precision(dtype):
    x, y = (300 * positions(2, 3, 64, seed=seed) for seed in (0, 1))  # products that overflow float16
    expected = cosine_matrix(x, y)
    found = cosines(x.to(dtype), y.to(dtype))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)


def test_gradients_under_autocast():
    layer = torch.nn.Linear(8, 8)
    concepts = positions(5, 8, seed=1, dtype=torch.float32).requires_grad_()
    x = positions(3, 4, 8, dtype=torch.float32)

    def gradients(bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = layer(x)
            loss = cosines(made, concepts).float().square().sum()
            for local in (made, made.float()):  # under autocast both inputs give bfloat16
                loss = loss + sum(part.float().square().sum() for part in selected(local, None, 5.0, (concepts, None)))
        return torch.autograd.grad(loss, [concepts, layer.weight])

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_ties_share_the_gradient_of_the_maximum():
    x = torch.randint(0, 4, (3, 6, 8), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    gradient = positions(3, 8)
    assert torch.equal(largest(x), x.amax(dim=1))
    found, expected = (torch.autograd.grad(z, x, gradient)[0] for z in (largest(x), x.amax(dim=1)))
    assert ((expected != 0).sum(dim=1) > 1).any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
