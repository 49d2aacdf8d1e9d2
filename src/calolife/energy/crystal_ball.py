"""The double-sided Crystal Ball as a likelihood that networks are fitted by; `calolife.energy.ball` has it in NumPy.

Loads torch: import it inside the function that needs it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CrystalBall", "crystal_ball_nll"]


class CrystalBall(NamedTuple):
    """Parameters of double-sided Crystal Balls, one per object."""

    mu: Tensor  # (object,) the peak
    sigma: Tensor  # (object,) width of the core, > 0
    alpha_left: Tensor  # (object,) where the tail begins, > 0, in sigma
    n_left: Tensor  # (object,) power of the tail, > 1
    alpha_right: Tensor  # (object,)
    n_right: Tensor  # (object,)


def crystal_ball_nll(shape: CrystalBall, values: Tensor) -> Tensor:
    """-ln of the density at one value an object, (object,); gradients reach every parameter.

    Parameters
    ----------
    shape : CrystalBall
    values : float tensor, (object,)

    Notes
    -----
    The logarithm of the tail is computed as it is, never that of a density that has become 0: an outlier keeps its gradient.
    Written with log1p, as the usual form [(a/n) (n/a - a + t)]^-n cancels for large n. Source: M. Oreglia, SLAC-R-236 (1980), with a
    tail on both sides.

    Examples
    --------
    >>> one = torch.ones(1)
    >>> shape = CrystalBall(0 * one, 0.1 * one, 2 * one, 3 * one, 2 * one, 3 * one)
    >>> round(crystal_ball_nll(shape, 0.0 * one).item(), 2)
    -1.35
    """
    t = (values - shape.mu) / shape.sigma
    is_left = t < 0
    alpha = torch.where(is_left, shape.alpha_left, shape.alpha_right)
    n = torch.where(is_left, shape.n_left, shape.n_right)
    beyond = (t.abs() - alpha).clamp(min=0.0)
    within = torch.minimum(t.abs(), alpha)
    log = -0.5 * within.square() - n * torch.log1p(alpha * beyond / n)
    area = _side(shape.alpha_left, shape.n_left) + _side(shape.alpha_right, shape.n_right)
    return torch.log(shape.sigma * area) - log


def _side(alpha: Tensor, n: Tensor) -> Tensor:
    """Integral of one side, in sigma."""
    tail = n * torch.exp(-0.5 * alpha.square()) / (alpha * (n - 1.0))
    return tail + math.sqrt(0.5 * math.pi) * torch.erf(alpha * math.sqrt(0.5))
