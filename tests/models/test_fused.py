"""The written-out gradients against those that PyTorch derives from the plain formulas, in float64."""

import pytest
import torch

from cmfah_hf.models.fused_cmfah import cosines, cosines_with_each, largest
from cmfah_hf.models.losses import cosine_matrix


def positions(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(partner_shape, dtype=torch.float64):
    """Positions and partners of which some are zero and some below the length at which a constant divides."""
    x, y = positions(3, 4, 8, dtype=dtype), positions(*partner_shape, seed=1, dtype=dtype)
    with torch.no_grad():
        x[0, 1], y[..., 2, :] = 0, 0
        x[1, 2] *= 1e-8
        y[..., 1, :] *= 1e-7
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("partner_shape", [(3, 5, 8), (5, 8)], ids=["a partner each", "one partner"])
def test_cosines_and_their_gradients_are_those_of_the_formula(partner_shape):
    x, y = drawn(partner_shape)
    gradient = positions(3, 4, 5, seed=2)
    found, expected = cosines(x, y), cosine_matrix(x, y.expand(3, 5, 8))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert not found[0, 1].any()
    for one, other in zip(*(torch.autograd.grad(z, (x, y), gradient) for z in (found, expected)), strict=True):
        assert other.abs().max() > 1e3  # a short vector turns quickly
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_several_partners_at_once_are_one_after_the_other():
    x, y = drawn((3, 5, 8))
    concepts = positions(6, 8, seed=3).requires_grad_()
    gradients = positions(3, 4, 5, seed=2), positions(3, 4, 6, seed=4)
    found, expected = cosines_with_each(x, y, concepts), (cosines(x, y), cosines(x, concepts))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(
        *(torch.autograd.grad(z, (x, y, concepts), gradients) for z in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    # One of the two may go unused.
    (only,) = torch.autograd.grad(cosines_with_each(x, y, concepts)[1].sum(), [concepts])
    torch.testing.assert_close(only, torch.autograd.grad(cosines(x, concepts).sum(), [concepts])[0])


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_side_that_needs_no_gradient_gets_none(frozen):
    sides = list(drawn((3, 5, 8)))
    expected = torch.autograd.grad(cosine_matrix(*sides).square().sum(), sides)
    sides[frozen] = sides[frozen].detach()
    cosines(*sides).square().sum().backward()
    assert sides[frozen].grad is None
    torch.testing.assert_close(sides[1 - frozen].grad, expected[1 - frozen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cosines_of_long_vectors_stay_finite_in_half_precision(dtype):
    x, y = (300 * positions(2, 3, 64, seed=seed) for seed in (0, 1))  # whose products float16 cannot hold
    expected = cosine_matrix(x, y)
    found = cosines(x.to(dtype), y.to(dtype))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)


def test_cosines_train_under_autocast():
    layer = torch.nn.Linear(8, 8)
    concepts = positions(5, 8, seed=1, dtype=torch.float32).requires_grad_()
    x = positions(3, 4, 8, dtype=torch.float32)

    def gradients(bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = cosines(layer(x), concepts).float().square().sum()
        return torch.autograd.grad(loss, [concepts, layer.weight])

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_largest_value_shares_its_gradient_among_those_that_tie():
    x = torch.randint(0, 4, (3, 6, 8), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    gradient = positions(3, 8)
    assert torch.equal(largest(x), x.amax(dim=1))
    found, expected = (torch.autograd.grad(z, x, gradient)[0] for z in (largest(x), x.amax(dim=1)))
    assert ((expected != 0).sum(dim=1) > 1).any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
