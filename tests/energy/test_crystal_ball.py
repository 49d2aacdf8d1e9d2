"""Crystal Balls of many objects: the density of the line shapes, gradients far out, quantiles that invert the integral."""

import math

import numpy as np
import pytest
import torch

from calolife.energy.ball import ball_quantile
from calolife.energy.crystal_ball import CrystalBall, crystal_ball_nll
from calolife.energy.peaks import crystal_ball_log, double_crystal_ball_cdf

# mu, sigma, alpha and n on the left, alpha and n on the right: usual, nearly all tail, nearly exponential and nearly without integral
SHAPES = [(0.1, 0.02, 1.0, 2.0, 2.0, 3.0), (-0.3, 0.5, 0.2, 1.5, 3.0, 50.0), (0.0, 0.01, 1.5, 120.0, 0.5, 1.2)]
NAMES = ("mu", "sigma", "alpha_left", "n_left", "alpha_right", "n_right")


def tensors(values: tuple[float, ...], dtype: torch.dtype = torch.float64) -> CrystalBall:
    return CrystalBall(*(torch.tensor([v], dtype=dtype, requires_grad=True) for v in values))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("away", [-1e4, -30.0, -0.7, 0.3, 2.6, 1e4])
def test_gradient_of_the_likelihood_is_the_finite_difference(shape, away) -> None:
    y = torch.tensor([shape[0] + away * shape[1]], dtype=torch.float64)
    made = tensors(shape)
    grads = torch.autograd.grad(crystal_ball_nll(made, y).sum(), list(made))
    for k, grad in enumerate(grads):
        step = 1e-6 * max(abs(shape[k]), 0.01) if k else 1e-6 * shape[1]
        up, down = (tensors(tuple(v + s * step * (i == k) for i, v in enumerate(shape))) for s in (1, -1))
        finite = (crystal_ball_nll(up, y) - crystal_ball_nll(down, y)).item() / (2 * step)
        assert grad.item() == pytest.approx(finite, rel=1e-4, abs=1e-4)  # of a central difference in double precision
    assert grads[0].item() != 0  # an outlier pulls, wherever it is


@pytest.mark.parametrize("shape", SHAPES)
def test_density_integrates_to_one(shape) -> None:
    # 1e60 sigma out: the heaviest tail, n = 1.2, has 1e-12 beyond
    t = np.concatenate([-np.geomspace(1e60, 1e-6, 200001), [0.0], np.geomspace(1e-6, 1e60, 200001)])
    y = shape[0] + shape[1] * t
    with torch.no_grad():
        density = torch.exp(-crystal_ball_nll(tensors(shape), torch.from_numpy(y))).numpy()
    # trapezoids of 0.07 % in t: second order
    assert np.trapezoid(density, y) == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_density_is_that_of_the_line_shapes(shape) -> None:
    y = np.linspace(-2, 2, 101)
    with torch.no_grad():
        log = -crystal_ball_nll(tensors(shape), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(log, crystal_ball_log(np.array(shape), y), rtol=1e-12)


def test_single_precision_stays_finite_far_out() -> None:
    made = tensors(SHAPES[0], torch.float32)
    loss = crystal_ball_nll(made, torch.tensor([1e4])).sum()
    assert math.isfinite(loss.item())
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(made)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.001, 0.1587, 0.4, 0.5, 0.8413, 0.999])
def test_quantiles_invert_the_integral(shape, share: float) -> None:
    at = ball_quantile(share, shape[0], **dict(zip(NAMES[1:], shape[1:], strict=True)))
    assert double_crystal_ball_cdf(at, **dict(zip(NAMES, shape, strict=True))) == pytest.approx(share, rel=1e-9)
