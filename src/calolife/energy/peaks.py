"""Peaks with tails: the Cruijff function and the double-sided Crystal Ball, densities and integrals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, ndtr

__all__ = [
    "checked_above",
    "cruijff",
    "cruijff_areas",
    "cruijff_cdf",
    "cruijff_log",
    "crystal_ball_areas",
    "crystal_ball_log",
    "double_crystal_ball",
    "double_crystal_ball_cdf",
    "log_tail",
    "tail_area",
]

FloatArray = NDArray[np.float64]
Range = tuple[float, float]

_LINE = (-math.inf, math.inf)
# 16 points to a panel: 1e-12 where the nearest singularity is half a panel off or more
_X16, _W16 = np.polynomial.legendre.leggauss(16)
# where a Cruijff is cut into panels, in sigma: half a sigma about the peak, growing by a quarter in the tails
_PANELS = np.concatenate([np.arange(0.0, 4.0, 0.5), 4.0 * 1.25 ** np.arange(60)])


def cruijff(
    values: ArrayLike,
    mu: float,
    *,
    sigma_left: float,
    sigma_right: float,
    alpha_left: float = 0.0,
    alpha_right: float = 0.0,
    range: Range = _LINE,
    is_log: bool = False,
) -> FloatArray:
    """Density of a Cruijff function, exp(-d^2 / (2 sigma^2 + alpha d^2)) with d = x - mu, each side with its own sigma and alpha.

    Parameters
    ----------
    values : float array, (...)
    mu : float
        The peak.
    sigma_left, sigma_right : float
        Widths below and above the peak, > 0, in the unit of the values.
    alpha_left, alpha_right : float
        Tails, >= 0, in the convention of CMS; numba-stats has 2 sigma^2 + 2 beta d^2: alpha = 2 beta.
    range : (float, float)
        Where its integral is 1. It must end on a side with a tail: the function levels off at exp(-1/alpha) there.
    is_log : bool
        Natural logarithm of the density, also where the density is too small for a float.

    Returns
    -------
    float array, (...)
        Not cut at the ends of the range.

    Raises
    ------
    ValueError
        A width <= 0, a tail < 0, a range that does not rise, or an endless one with a tail.

    Notes
    -----
    With alpha = 0 a Gaussian of two widths. Source of the convention: CMS software, CruijffPdf in TrackingTools/TrackAssociator.

    Examples
    --------
    >>> round(float(cruijff(0.0, 0.0, sigma_left=1.0, sigma_right=1.0)), 4)
    0.3989
    """
    parameters, low, high = _checked_cruijff(mu, sigma_left, sigma_right, alpha_left, alpha_right, range)
    at = np.asarray(values, dtype=np.float64)
    log = cruijff_log(parameters, at) - math.log(cruijff_areas(parameters, np.array([low, high]))[0])
    return log if is_log else np.exp(log)


def cruijff_cdf(
    values: ArrayLike,
    mu: float,
    *,
    sigma_left: float,
    sigma_right: float,
    alpha_left: float = 0.0,
    alpha_right: float = 0.0,
    range: Range = _LINE,
) -> FloatArray:
    """Integral of `cruijff` from the lower end of the range to values (...), 0 below and 1 above it; arguments as there.

    Examples
    --------
    >>> float(cruijff_cdf(0.0, 0.0, sigma_left=1.0, sigma_right=3.0))   # a quarter is on the narrow side
    0.25
    """
    parameters, low, high = _checked_cruijff(mu, sigma_left, sigma_right, alpha_left, alpha_right, range)
    at = np.clip(np.asarray(values, dtype=np.float64), low, high)
    distance, of = np.unique(at, return_inverse=True)
    areas = cruijff_areas(parameters, np.concatenate([[low], distance, [high]]))
    cdf: FloatArray = (np.cumsum(areas)[:-1] / areas.sum())[of].reshape(at.shape)
    return cdf


def double_crystal_ball(
    values: ArrayLike,
    mu: float,
    *,
    sigma: float,
    alpha_left: float,
    n_left: float,
    alpha_right: float,
    n_right: float,
    is_log: bool = False,
) -> FloatArray:
    """Density of a double-sided Crystal Ball: exp(-t^2 / 2) with t = (x - mu) / sigma, and a power law beyond alpha on each side.

    Parameters
    ----------
    values : float array, (...)
    mu : float
        The peak.
    sigma : float
        > 0, in the unit of the values.
    alpha_left, alpha_right : float
        Where the tails begin, > 0, in sigma.
    n_left, n_right : float
        Powers of the tails, > 1.
    is_log : bool
        Natural logarithm of the density, also where the density is too small for a float.

    Returns
    -------
    float array, (...)
        Its integral over all numbers is 1.

    Raises
    ------
    ValueError
        A parameter out of range.

    Notes
    -----
    Tail: exp(-alpha^2 / 2) [1 + alpha (|t| - alpha) / n]^-n, value and slope continuous at alpha; n to infinity is exponential.
    Source: J. Gaiser, SLAC-R-255 (1982), appendix F, there with a tail on one side.

    Examples
    --------
    >>> tails = dict(alpha_left=1.0, n_left=2.0, alpha_right=2.0, n_right=5.0)
    >>> round(float(double_crystal_ball(-1e200, 0.0, sigma=1.0, **tails, is_log=True)), 1)   # its density is no float
    -921.4
    """
    parameters = _checked_crystal_ball(mu, sigma, alpha_left, n_left, alpha_right, n_right)
    log = crystal_ball_log(parameters, np.asarray(values, dtype=np.float64))
    return log if is_log else np.exp(log)


def double_crystal_ball_cdf(
    values: ArrayLike, mu: float, *, sigma: float, alpha_left: float, n_left: float, alpha_right: float, n_right: float
) -> FloatArray:
    """Integral of `double_crystal_ball` from minus infinity to values (...); arguments as there.

    Examples
    --------
    >>> tails = dict(alpha_left=1.0, n_left=2.0, alpha_right=1.0, n_right=2.0)
    >>> round(float(double_crystal_ball_cdf(7.0, 7.0, sigma=2.0, **tails)), 12)
    0.5
    """
    parameters = _checked_crystal_ball(mu, sigma, alpha_left, n_left, alpha_right, n_right)
    return _crystal_ball_cdf(parameters, np.asarray(values, dtype=np.float64))


def cruijff_log(parameters: FloatArray, x: FloatArray) -> FloatArray:
    """Logarithm of the Cruijff function, 0 at its peak, with parameters mu, sigma (left, right), alpha (left, right) at values (...)."""
    mu, sigma_left, sigma_right, alpha_left, alpha_right = parameters
    d = x - mu
    is_left = d < 0
    t = d / np.where(is_left, sigma_left, sigma_right)
    with np.errstate(divide="ignore", over="ignore"):  # written so that the peak and the far tails come out right
        log: FloatArray = -1.0 / (2.0 / t**2 + np.where(is_left, alpha_left, alpha_right))
    return log


def cruijff_areas(parameters: FloatArray, edges: FloatArray) -> FloatArray:
    """Integrals of exp of `cruijff_log` between edges that rise, (bin,)."""
    mu, sigma_left, sigma_right, alpha_left, alpha_right = parameters
    d = edges - mu
    is_left = d < 0
    area = np.empty_like(d)
    area[is_left] = -sigma_left * _cruijff_half(-d[is_left] / sigma_left, alpha_left)
    area[~is_left] = sigma_right * _cruijff_half(d[~is_left] / sigma_right, alpha_right)
    between: FloatArray = np.diff(area)
    return between


def _cruijff_half(t: FloatArray, alpha: float) -> FloatArray:
    """Integral of exp(-u^2 / (2 + alpha u^2)) from 0 to each t >= 0, (edge,)."""
    if t.size == 0:
        return t
    if alpha == 0:
        gaussian: FloatArray = math.sqrt(0.5 * math.pi) * erf(t * math.sqrt(0.5))
        return gaussian
    mesh = np.unique(np.concatenate([t, _PANELS[t.max() > _PANELS]]))
    half = 0.5 * np.diff(mesh)
    u2 = (mesh[:-1, None] + half[:, None] * (1.0 + _X16)) ** 2  # (panel, node)
    area = np.concatenate([[0.0], np.cumsum(half * (np.exp(-u2 / (2.0 + alpha * u2)) @ _W16))])
    found: FloatArray = area[np.searchsorted(mesh, t)]
    return found


def crystal_ball_log(parameters: FloatArray, x: FloatArray) -> FloatArray:
    """Logarithm of the density with parameters mu, sigma, alpha and n (left), alpha and n (right) at values (...)."""
    mu, sigma, alpha_left, n_left, alpha_right, n_right = parameters
    t = np.atleast_1d((x - mu) / sigma)
    log = np.empty_like(t)
    left, right = t < -alpha_left, t > alpha_right
    core = ~(left | right)
    log[core] = -0.5 * t[core] ** 2
    log[left] = log_tail(-t[left], alpha_left, n_left)
    log[right] = log_tail(t[right], alpha_right, n_right)
    log -= math.log(sigma * _crystal_ball_norm(alpha_left, n_left, alpha_right, n_right))
    return log.reshape(np.shape(x))


def log_tail(t: FloatArray, alpha: float, n: float) -> FloatArray:
    """Logarithm of a power-law tail at t > alpha sigma, (...); that of the core at its peak is 0."""
    # [(a/n) (n/a - a + t)]^-n as it is written in most places cancels for large n
    log: FloatArray = -0.5 * alpha**2 - n * np.log1p(alpha * (t - alpha) / n)
    return log


def tail_area(alpha: float, n: float) -> float:
    """Integral of that tail, in sigma."""
    return math.exp(-0.5 * alpha**2) * n / (alpha * (n - 1.0))


def _crystal_ball_norm(alpha_left: float, n_left: float, alpha_right: float, n_right: float) -> float:
    core = math.sqrt(0.5 * math.pi) * (math.erf(alpha_left * math.sqrt(0.5)) + math.erf(alpha_right * math.sqrt(0.5)))
    return tail_area(alpha_left, n_left) + core + tail_area(alpha_right, n_right)


def _crystal_ball_cdf(parameters: FloatArray, x: FloatArray) -> FloatArray:
    mu, sigma, alpha_left, n_left, alpha_right, n_right = parameters
    t = (x - mu) / sigma
    left = tail_area(alpha_left, n_left)
    below = left * np.exp((1.0 - n_left) * np.log1p(alpha_left * np.maximum(-t - alpha_left, 0.0) / n_left))
    core = math.sqrt(2.0 * math.pi) * (ndtr(np.clip(t, -alpha_left, alpha_right)) - ndtr(-alpha_left))
    right = tail_area(alpha_right, n_right)
    above = -right * np.expm1((1.0 - n_right) * np.log1p(alpha_right * np.maximum(t - alpha_right, 0.0) / n_right))
    cdf: FloatArray = (below + core + above) / _crystal_ball_norm(alpha_left, n_left, alpha_right, n_right)
    return cdf


def crystal_ball_areas(parameters: FloatArray, edges: FloatArray) -> FloatArray:
    """Integrals of exp of `crystal_ball_log` between edges that rise, (bin,)."""
    areas: FloatArray = np.diff(_crystal_ball_cdf(parameters, edges))
    return areas


def _checked_cruijff(
    mu: float, sigma_left: float, sigma_right: float, alpha_left: float, alpha_right: float, range: Range
) -> tuple[FloatArray, float, float]:
    low, high = float(range[0]), float(range[1])
    checked_above("mu", mu, -math.inf)
    for name, width in (("sigma_left", sigma_left), ("sigma_right", sigma_right)):
        checked_above(name, width, 0.0)
    for name, alpha, end in (("alpha_left", alpha_left, low), ("alpha_right", alpha_right, high)):
        if not 0 <= alpha < math.inf:
            raise ValueError(f"{name} = {alpha} must be finite and >= 0; 0 is a Gaussian side")
        if alpha > 0 and not math.isfinite(end):
            raise ValueError(f"{name} = {alpha:g} levels off and has no integral over an endless side; give a range that ends there")
    if not low < high:
        raise ValueError(f"range = ({low:g}, {high:g}) must rise")
    return np.array([mu, sigma_left, sigma_right, alpha_left, alpha_right], dtype=np.float64), low, high


def _checked_crystal_ball(mu: float, sigma: float, alpha_left: float, n_left: float, alpha_right: float, n_right: float) -> FloatArray:
    for name, value, least in (
        ("mu", mu, -math.inf), ("sigma", sigma, 0.0), ("alpha_left", alpha_left, 0.0), ("alpha_right", alpha_right, 0.0),
        ("n_left", n_left, 1.0), ("n_right", n_right, 1.0),
    ):  # fmt: skip
        checked_above(name, value, least)
    return np.array([mu, sigma, alpha_left, n_left, alpha_right, n_right], dtype=np.float64)


def checked_above(name: str, value: float, least: float) -> None:
    """Complain of a number that is not finite and above the least."""
    if not least < value < math.inf:
        raise ValueError(f"{name} = {value} must be finite and > {least:g}")
