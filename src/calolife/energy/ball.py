"""The double-sided Crystal Ball in NumPy: density, slopes for a likelihood, quantiles; `crystal_ball` has it in torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

__all__ = ["BALL_PARAMETERS", "ONE_SIGMA", "ball_half_width", "ball_log_density", "ball_quantile", "ball_slopes"]

FloatArray = NDArray[np.float64]

BALL_PARAMETERS: tuple[str, ...] = ("mean", "log_sigma", "log_n_left_1", "log_n_right_1")
"""What `ball_slopes` differentiates by: mean, ln sigma, ln(n_left - 1), ln(n_right - 1); none of them has a border."""

ONE_SIGMA = (0.15865525393145707, 0.8413447460685429)
"""Part of a standard normal below -1 and below +1."""

_ROOT_2_PI = float(np.sqrt(2.0 * np.pi))


def ball_log_density(
    y: ArrayLike, mean: ArrayLike, *, sigma: ArrayLike, alpha_left: ArrayLike, n_left: ArrayLike, alpha_right: ArrayLike, n_right: ArrayLike
) -> FloatArray:
    """Logarithm of the density of a double-sided Crystal Ball.

    Parameters
    ----------
    y, mean : float array, (...)
    sigma : float array, (...)
        Width of the core, > 0.
    alpha_left, alpha_right : float array, (...)
        Where the tails begin, in sigma, > 0; left is y < mean.
    n_left, n_right : float array, (...)
        Powers of the tails, > 1.

    Returns
    -------
    float array, (...)

    Notes
    -----
    With t = (y - mean) / sigma the core is exp(-t^2/2) and a tail exp(-alpha^2/2) u^-n, u = 1 + alpha (abs(t) - alpha) / n: the
    usual form, written so that it neither cancels at large n nor underflows far out. Source: M. Oreglia, SLAC-R-236 (1980),
    with a tail on both sides.

    Examples
    --------
    >>> shape = {"sigma": 1.0, "alpha_left": 2.0, "n_left": 3.0, "alpha_right": 1.0, "n_right": 3.0}
    >>> ball_log_density([0.0, -100.0, 1e9], 0.0, **shape).round(3).tolist()
    [-1.119, -15.704, -60.493]
    """
    sigma, alpha_left, n_left, alpha_right, n_right = _checked(sigma, alpha_left, n_left, alpha_right, n_right)
    t = (np.asarray(y, dtype=np.float64) - np.asarray(mean, dtype=np.float64)) / sigma
    alpha, n = np.where(t < 0, alpha_left, alpha_right), np.where(t < 0, n_left, n_right)
    size = np.abs(t)
    core, beyond = np.minimum(size, alpha), np.maximum(size - alpha, 0.0)
    log = -0.5 * core**2 - n * np.log1p(alpha * beyond / n)
    found: FloatArray = log - np.log(sigma * (_area(alpha_left, n_left) + _area(alpha_right, n_right)))
    return found


def ball_slopes(
    y: FloatArray, parameters: FloatArray, *, alpha_left: float, alpha_right: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """-ln of the density with its slopes, for boosting and other searches.

    Parameters
    ----------
    y : float array, (object,)
    parameters : float array, (object, 4)
        Columns as in `BALL_PARAMETERS`.
    alpha_left, alpha_right : float
        Where the tails begin, > 0.

    Returns
    -------
    loss : float array, (object,)
    gradient : float array, (object, 4)
        First derivatives of the loss.
    curvature : float array, (object, 4)
        Expected second derivatives (the diagonal of Fisher's information), always > 0.

    Notes
    -----
    The expected curvature stands in for the second derivative, which is negative in the tails: a Newton step by it is
    one of the method of scoring. All its integrals are closed forms.

    Examples
    --------
    >>> loss, gradient, curvature = ball_slopes(np.array([0.5]), np.zeros((1, 4)), alpha_left=2.0, alpha_right=1.0)
    >>> float(gradient[0, 0])
    -0.5
    """
    mean, sigma = parameters[:, 0], np.exp(parameters[:, 1])
    t = (y - mean) / sigma
    sides = [_Side(alpha, np.exp(log)) for alpha, log in ((alpha_left, parameters[:, 2]), (alpha_right, parameters[:, 3]))]
    area = sides[0].area + sides[1].area
    is_left, size = t < 0, np.abs(t)
    alpha, n = np.where(is_left, alpha_left, alpha_right), np.where(is_left, sides[0].n, sides[1].n)
    core, beyond = np.minimum(size, alpha), np.maximum(size - alpha, 0.0)
    over = alpha * beyond / n  # u - 1
    log_u = np.log1p(over)
    loss = 0.5 * core**2 + n * log_u + np.log(area) + parameters[:, 1]
    pull = np.where(size < alpha, size, alpha / (1.0 + over))  # slope of the loss by abs(t)
    gradient, curvature = np.empty((2, y.size, 4))
    gradient[:, 0] = np.where(is_left, pull, -pull) / sigma
    gradient[:, 1] = 1.0 - size * pull
    curvature[:, 0] = (sides[0].square + sides[1].square) / area / sigma**2
    curvature[:, 1] = (sides[0].fourth + sides[1].fourth) / area - 1.0
    by_n = log_u - over / (1.0 + over)
    for k, side in enumerate(sides):
        fall = side.less / area  # -d ln(area) / dn
        gradient[:, 2 + k] = side.n_1 * (np.where(is_left == (k == 0), by_n, 0.0) - fall)
        curvature[:, 2 + k] = side.n_1**2 * (side.tail / area - fall**2)
    return loss, gradient, curvature


def ball_quantile(
    probability: ArrayLike, mean: ArrayLike, *, sigma: ArrayLike, alpha_left: ArrayLike, n_left: ArrayLike, alpha_right: ArrayLike,
    n_right: ArrayLike,
) -> FloatArray:  # fmt: skip
    """Value below which this part of a double-sided Crystal Ball lies.

    Parameters
    ----------
    probability : float array, (...)
        Between 0 and 1.
    mean, sigma, alpha_left, n_left, alpha_right, n_right : float array, (...)
        As in `ball_log_density`.

    Returns
    -------
    float array, (...)

    Examples
    --------
    >>> shape = {"sigma": 1.0, "alpha_left": 9.0, "n_left": 3.0, "alpha_right": 9.0, "n_right": 3.0}
    >>> ball_quantile([0.5, 0.8413447460685429], 0.0, **shape).round(6).tolist()
    [0.0, 1.0]
    """
    sigma, alpha_left, n_left, alpha_right, n_right = _checked(sigma, alpha_left, n_left, alpha_right, n_right)
    left, right = _tail(alpha_left, n_left), _tail(alpha_right, n_right)
    area = _area(alpha_left, n_left) + _area(alpha_right, n_right)
    below = np.asarray(probability, dtype=np.float64) * area
    above = (1.0 - np.asarray(probability, dtype=np.float64)) * area
    with np.errstate(divide="ignore", over="ignore"):  # the ends are infinitely far
        t_left = -_beyond(below / left, alpha_left, n_left)
        t_right = _beyond(above / right, alpha_right, n_right)
    t_core = ndtri(np.clip((below - left) / _ROOT_2_PI + ndtr(-alpha_left), 0.0, 1.0))
    t = np.where(below < left, t_left, np.where(above < right, t_right, t_core))
    found: FloatArray = np.asarray(mean, dtype=np.float64) + sigma * t
    return found


def ball_half_width(
    sigma: ArrayLike, alpha_left: ArrayLike, *, n_left: ArrayLike, alpha_right: ArrayLike, n_right: ArrayLike
) -> FloatArray:
    """Half the distance between the 15.87 and 84.13 % quantiles: sigma of a Gaussian that is as wide.

    Parameters
    ----------
    sigma, alpha_left, n_left, alpha_right, n_right : float array, (...)
        As in `ball_log_density`.

    Returns
    -------
    float array, (...)

    Examples
    --------
    >>> float(ball_half_width(2.0, 9.0, n_left=3.0, alpha_right=9.0, n_right=3.0).round(6))
    2.0
    """
    shape = {"sigma": sigma, "alpha_left": alpha_left, "n_left": n_left, "alpha_right": alpha_right, "n_right": n_right}
    low, high = (ball_quantile(p, 0.0, **shape) for p in ONE_SIGMA)
    return 0.5 * (high - low)


class _Side:
    """Integrals over one side of exp(-t^2/2) with its tail, all of the unnormalised density."""

    def __init__(self, alpha: float, n_1: FloatArray) -> None:
        self.n_1, self.n = n_1, 1.0 + n_1  # n - 1 by itself: n rounds it away where it is small
        n, edge = self.n, float(np.exp(-0.5 * alpha**2))
        inner = _ROOT_2_PI * float(ndtr(alpha) - 0.5)
        second = inner - alpha * edge  # of t^2 over the core
        self.area = inner + edge * n / (alpha * n_1)
        self.less = edge / (alpha * n_1**2)  # -d area / dn
        self.square = second + edge * alpha * n / (n + 1)  # of the squared slope of the loss by t
        # of that slope times t, squared: t^4 in the core, (n + (alpha^2 - n) / u)^2 in the tail
        away = alpha**2 - n
        self.fourth = 3 * second - alpha**3 * edge + edge * n / alpha * (n**2 / n_1 + 2 * away + away**2 / (n + 1))
        # of (ln u - 1 + 1/u)^2
        self.tail = edge * n / alpha * (2 / n_1**3 - 2 * (1 / n_1**2 - 1 / n**2) + 1 / n_1 - 2 / n + 1 / (n + 1))


def _area(alpha: FloatArray, n: FloatArray) -> FloatArray:
    found: FloatArray = _ROOT_2_PI * (ndtr(alpha) - 0.5) + _tail(alpha, n)
    return found


def _tail(alpha: FloatArray, n: FloatArray) -> FloatArray:
    found: FloatArray = np.exp(-0.5 * alpha**2) * n / (alpha * (n - 1.0))
    return found


def _beyond(part: FloatArray, alpha: FloatArray, n: FloatArray) -> FloatArray:
    """How far out, in sigma, only this part of a tail is left."""
    part = np.minimum(part, 1.0)
    found: FloatArray = alpha + n / alpha * np.expm1(-np.log(part) / (n - 1.0))
    return found


def _checked(*values: ArrayLike) -> list[FloatArray]:
    sigma, alpha_left, n_left, alpha_right, n_right = (np.asarray(v, dtype=np.float64) for v in values)
    for name, value, least in (
        ("sigma", sigma, 0.0), ("alpha_left", alpha_left, 0.0), ("n_left", n_left, 1.0), ("alpha_right", alpha_right, 0.0),
        ("n_right", n_right, 1.0),
    ):  # fmt: skip
        if not np.all(value > least):
            raise ValueError(f"{name} has {np.min(value)}; it must be > {least:g} everywhere, or the density has no integral")
    return [sigma, alpha_left, n_left, alpha_right, n_right]
