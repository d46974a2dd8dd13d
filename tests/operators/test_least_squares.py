"""A layer's least squares against numpy, and when nothing is to be changed."""

import numpy as np
import pytest
import torch

from paretune.operators.least_squares import LeastSquares, second_moments

IMAGES, PLACES, WIDE, OUT = 24, 8, 40, 3


def problem(small: float) -> tuple[LeastSquares, torch.Tensor, torch.Tensor]:
    """Three chunks of patches, as small as said, with a mean; the weights before the fit."""
    torch.manual_seed(0)
    x = small * (torch.randn(IMAGES, PLACES, WIDE) + 0.5)
    patches = [(slice(i, i + 8), x[i : i + 8].flatten(0, 1)) for i in (0, 8, 16)]
    weight = torch.randn(OUT, WIDE).double()
    return LeastSquares(x, weight, patches, centred=True, ridge=1e-6), x, weight


def test_the_moments_are_numpys() -> None:
    fitted, x, _ = problem(1.0)
    rows = x.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(fitted.second, np.cov(rows.T, bias=True), atol=1e-6)
    raw, mean = second_moments([(slice(0, IMAGES), x.flatten(0, 1))], centred=False)
    np.testing.assert_allclose(raw, rows.T @ rows / len(rows), atol=1e-6)
    assert not mean.any()


@pytest.mark.parametrize("small", [1.0, 1e-3])
def test_outputs_that_the_inputs_tell_are_fitted(small: float) -> None:
    fitted, x, before = problem(small)
    true = torch.randn(OUT, WIDE)
    target = x @ true.T + 0.1 * small * torch.randn(IMAGES, PLACES, OUT)
    rows = np.c_[x.flatten(0, 1).double().numpy(), np.ones(IMAGES * PLACES)]
    best, *_ = np.linalg.lstsq(rows, target.flatten(0, 1).double().numpy(), rcond=None)
    fitted.fit(target)
    np.testing.assert_allclose(fitted.weight, best[:-1].T, atol=1e-3)
    fitted.add(x @ (before.float() - true).T)
    np.testing.assert_allclose(fitted.weight, best[:-1].T + (before - true).numpy(), atol=1e-3)


def test_outputs_that_the_inputs_do_not_tell_are_left_alone() -> None:
    """Least squares would take up noise with weights that grow as the inputs shrink."""
    fitted, x, before = problem(1e-3)
    noise = torch.randn(IMAGES, PLACES, OUT)
    rows = x.flatten(0, 1) - x.mean((0, 1))
    naive, *_ = np.linalg.lstsq(rows.numpy(), noise.flatten(0, 1).numpy(), rcond=None)
    assert np.abs(naive).max() > 50 * float(before.abs().max())
    fitted.add(noise)
    fitted.fit(noise + x @ before.float().T)
    assert torch.equal(fitted.weight, before)


def test_a_single_patch_is_fitted() -> None:
    x = torch.ones(1, 1, 2)
    patches = [(slice(0, 1), x[0])]
    fitted = LeastSquares(x, torch.zeros(1, 2).double(), patches, centred=False)
    fitted.fit(torch.full((1, 1, 1), 3.0))
    assert float(fitted.weight.sum()) == pytest.approx(3.0, rel=1e-2)
