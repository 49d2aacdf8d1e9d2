"""The Z line as an electron pair shows it: a relativistic Breit-Wigner convolved with a Crystal Ball."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.energy.peaks import checked_above, log_tail, tail_area

__all__ = [
    "Z_MASS_GEV",
    "Z_RANGE_GEV",
    "Z_WIDTH_GEV",
    "sample_z_mass",
    "z_areas",
    "z_likelihood",
    "z_line",
    "z_line_cdf",
    "z_log",
    "z_mass_at",
]

FloatArray = NDArray[np.float64]
Range = tuple[float, float]

Z_MASS_GEV = 91.1880  # +- 0.0020; source: PDG, S. Navas et al., Phys. Rev. D 110 (2024) 030001, gauge bosons summary table
Z_WIDTH_GEV = 2.4955  # +- 0.0023; source: ibid.
Z_RANGE_GEV = (60.0, 120.0)  # [GeV]; source: the Z window of CMS cross-section papers, JHEP 10 (2011) 132
_CHUNK = 128  # masses convolved at once; chosen: their 0.5 MB stay in the cache, twice as fast
_CORE_T = 8.5  # chosen: exp(-8.5^2 / 2) is the last bit of 1
_FAR_GEV = 1e5  # chosen: 1e-9 of a Z line is above
_DARK = -45.0  # chosen: ln of 3e-20, below the last bit
_POINTS = 12  # chosen: with `_STEP_GEV` local polynomials follow a Breit-Wigner to 1e-7, a smeared one to the last digits
_STEP_GEV = 0.15
# 12 points to a panel: 1e-9 with the poles half a panel off
_X12, _W12 = np.polynomial.legendre.leggauss(12)
_X6, _W6 = np.polynomial.legendre.leggauss(6)  # on 1 GeV, with poles 1.25 GeV off: 1e-9
# the two poles of the Breit-Wigner in the mass are +- _POLE and their conjugates
_POLE = np.sqrt(complex(Z_MASS_GEV**2, Z_MASS_GEV * Z_WIDTH_GEV))
_GAMMA2 = math.sqrt(Z_MASS_GEV**2 * (Z_MASS_GEV**2 + Z_WIDTH_GEV**2))
# normalised over masses > 0; source: the documentation of scipy.stats.rel_breitwigner
_BW_NORM = 2.0 * math.sqrt(2.0) * Z_MASS_GEV * Z_WIDTH_GEV * _GAMMA2 / (math.pi * math.sqrt(Z_MASS_GEV**2 + _GAMMA2))


def z_line(mass_gev: ArrayLike, mu: float, *, sigma: float, alpha: float, n: float) -> FloatArray:
    """Density of the Z mass as measured: a relativistic Breit-Wigner convolved with a Crystal Ball whose tail is on the left.

    Parameters
    ----------
    mass_gev : float array, (...) [GeV]
    mu : float [GeV]
        Peak of the Breit-Wigner: Z_MASS_GEV times the energy scale, which its width is multiplied by, too.
    sigma : float [GeV]
        Of the Crystal Ball, >= 0; 0 is the Breit-Wigner itself.
    alpha, n : float
        Its tail, from alpha > 0 sigma below the peak with the power n > 1.

    Returns
    -------
    float array, (...) [1/GeV]
        Its integral over all masses is 1.

    Raises
    ------
    ValueError
        A parameter out of range.

    Notes
    -----
    Breit-Wigner of fixed width, 1 / ((m^2 - M^2)^2 + M^2 Gamma^2): no parton luminosities, no interference with the photon, no
    radiation. PDG's mass goes with a width that grows with m^2, whose cross section peaks 17 MeV (2e-4) below M; this one at M.
    The integral over the smearing is Gauss-Legendre's on panels no wider than the natural width, to about 1e-8 of the density.

    Examples
    --------
    >>> peak, half = z_line([Z_MASS_GEV, Z_MASS_GEV + Z_WIDTH_GEV / 2], Z_MASS_GEV, sigma=0.0, alpha=1.0, n=3.0)
    >>> round(float(half / peak), 1)
    0.5
    """
    parameters = _checked_z(mu, sigma, alpha, n)
    return _z_density(parameters, np.asarray(mass_gev, dtype=np.float64))


def z_line_cdf(mass_gev: ArrayLike, mu: float, *, sigma: float, alpha: float, n: float) -> FloatArray:
    """Integral of `z_line` up to masses (...) [GeV]; arguments as there.

    Examples
    --------
    >>> at = dict(sigma=1.5, alpha=1.0, n=3.0)
    >>> 0.8 < float(z_line_cdf(120.0, 91.0, **at) - z_line_cdf(60.0, 91.0, **at)) < 1.0
    True
    """
    mu, sigma, alpha, n = _checked_z(mu, sigma, alpha, n)
    scale = mu / Z_MASS_GEV
    cdf: FloatArray = 1.0 - _smeared(np.asarray(mass_gev, dtype=np.float64) / scale, sigma / scale, alpha, n, _breit_wigner_above)
    return cdf


def sample_z_mass(n: int, *, seed: int, range: Range = Z_RANGE_GEV) -> FloatArray:
    """Masses of Z bosons from the Breit-Wigner of `z_line`, (n,) [GeV], within a range.

    Raises
    ------
    ValueError
        n < 1, or a range that does not rise from 0 or more.

    Examples
    --------
    >>> bool(abs(np.median(sample_z_mass(10_000, seed=1)) - Z_MASS_GEV) < 0.1)
    True
    """
    low, high = (float(end) for end in range)
    if n < 1 or not 0 <= low < high < math.inf:
        raise ValueError(f"n = {n} and range = ({low:g}, {high:g}) GeV must be >= 1 and rise from 0 or more; the Z is usually 60 to 120")
    return _mass_with_above(np.random.default_rng(seed).random(n), low, high)


def z_mass_at(part: ArrayLike, *, range: Range = Z_RANGE_GEV) -> FloatArray:
    """Quantiles of the Breit-Wigner of `z_line` within a range: the mass (...) [GeV] with a part (...) of the range's Z bosons below.

    Raises
    ------
    ValueError
        A part outside 0 to 1, or a range that does not rise from 0 or more.

    Examples
    --------
    >>> z_mass_at([0.0, 0.5, 1.0]).round(1).tolist()
    [60.0, 91.1, 120.0]
    """
    below = np.asarray(part, dtype=np.float64)
    low, high = (float(end) for end in range)
    if not 0 <= low < high < math.inf:
        raise ValueError(f"range = ({low:g}, {high:g}) GeV must rise from 0 or more; the Z is usually 60 to 120")
    if not ((below >= 0) & (below <= 1)).all():
        raise ValueError("part must lie in 0 to 1: it is the part of the Z bosons that are lighter")
    return _mass_with_above(1.0 - below.ravel(), low, high).reshape(below.shape)


def _mass_with_above(part: FloatArray, low: float, high: float) -> FloatArray:
    """Mass with a part (mass,) of the Z bosons between low and high above it."""
    top, bottom = _breit_wigner_above(np.array([low, high]))
    above = bottom + (top - bottom) * part
    # closest together where the line is steep; Newton from there
    first, last = (math.atan(2 * (end - Z_MASS_GEV) / Z_WIDTH_GEV) for end in (high, low))
    knots = Z_MASS_GEV + 0.5 * Z_WIDTH_GEV * np.tan(np.linspace(first, last, 4001))
    mass: FloatArray = np.asarray(np.interp(above, _breit_wigner_above(knots), knots))
    for _ in (1, 2):
        mass += (_breit_wigner_above(mass) - above) / _breit_wigner(mass)
    return np.asarray(np.clip(mass, low, high))


def _breit_wigner(mass: FloatArray) -> FloatArray:
    density = mass**2
    density -= Z_MASS_GEV**2
    density *= density
    density += (Z_MASS_GEV * Z_WIDTH_GEV) ** 2
    np.divide(_BW_NORM, density, out=density)
    if mass.size and mass.min() <= 0:
        density[mass <= 0] = 0.0
    return density


def _breit_wigner_above(mass: FloatArray) -> FloatArray:
    """Part of the Breit-Wigner above masses; precise also far out, where it goes as the cube of 1 / mass."""
    positive = np.maximum(mass, 1e-9)
    part: FloatArray = _BW_NORM / (Z_MASS_GEV * Z_WIDTH_GEV) * np.imag(np.arctanh(_POLE / positive) / _POLE)
    return np.where(mass > 0, part, 1.0)


def _smearing(sigma: float, alpha: float, n: float, lowest_gev: float) -> tuple[FloatArray, FloatArray]:
    """True less measured mass and its weight, (node,), that integrate anything as smooth as the Breit-Wigner over a Crystal Ball."""
    if sigma == 0:
        return np.zeros(1), np.ones(1)
    finest = Z_WIDTH_GEV / sigma  # the pole is half of it off the real masses
    n_core = math.ceil((_CORE_T + alpha) / min(2.0, finest))
    breaks = np.linspace(-_CORE_T, alpha, n_core + 1).tolist()
    peak = (Z_MASS_GEV - lowest_gev) / sigma  # no true Z is further from its measured mass, but for the line's own tail
    while True:
        u = breaks[-1] - alpha
        if -n * math.log1p(alpha * u / n) - 0.5 * alpha**2 < _DARK or breaks[-1] * sigma > _FAR_GEV:
            break
        steep = (n / alpha + u) * min(1.0, 4.0 / n)
        breaks.append(breaks[-1] + min(steep, max(finest, 0.5 * (breaks[-1] - peak))))
    ends = np.array(breaks)
    half = 0.5 * np.diff(ends)
    t = (ends[:-1, None] + half[:, None] * (1.0 + _X12)).ravel()
    weight = (half[:, None] * _W12).ravel()
    n_node = n_core * _X12.size
    weight[:n_node] *= np.exp(-0.5 * t[:n_node] ** 2)
    weight[n_node:] *= np.exp(log_tail(t[n_node:], alpha, n))
    norm = tail_area(alpha, n) + math.sqrt(0.5 * math.pi) * (math.erf(alpha * math.sqrt(0.5)) + 1.0)
    return sigma * t, weight / norm


def _smeared(mass: FloatArray, sigma: float, alpha: float, n: float, line: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Mean of a function of the true mass at measured masses (...), with the true Z at Z_MASS_GEV."""
    flat = np.ravel(mass)
    if flat.size == 0:
        return np.zeros_like(mass)
    shift, weight = _smearing(sigma, alpha, n, float(flat.min()))
    parts = [line(flat[first : first + _CHUNK, None] + shift) @ weight for first in range(0, flat.size, _CHUNK)]
    return np.concatenate(parts).reshape(np.shape(mass))


def _z_density(parameters: FloatArray, mass: FloatArray) -> FloatArray:
    mu, sigma, alpha, n = parameters.tolist()
    scale = mu / Z_MASS_GEV
    density: FloatArray = _smeared(mass / scale, sigma / scale, alpha, n, _breit_wigner) / scale
    return density


def z_log(parameters: FloatArray, mass: FloatArray) -> FloatArray:
    """Logarithm of the Z line with parameters mu, sigma, alpha, n at masses (...)."""
    log: FloatArray = np.log(_z_density(parameters, mass))
    return log


def z_areas(parameters: FloatArray, edges: FloatArray) -> FloatArray:
    """Integrals of the Z line with parameters mu, sigma, alpha, n between edges, (bin,), on panels of at most 1 GeV."""
    pieces = np.maximum(np.ceil(np.diff(edges)), 1).astype(np.int64)
    bin_of = np.repeat(np.arange(pieces.size), pieces)
    inside = np.arange(bin_of.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    half = 0.5 * (np.diff(edges) / pieces)[bin_of]
    node = (edges[bin_of] + half * (2 * inside + 1))[:, None] + half[:, None] * _X6
    area = half * (_z_density(parameters, node) @ _W6)
    return np.bincount(bin_of, area, minlength=pieces.size).astype(np.float64)


def z_likelihood(mass_gev: FloatArray, low: float, high: float) -> Callable[[FloatArray], float]:
    """-ln L of masses (mass,) within low to high, as a function of mu, sigma, alpha and n, for many calls.

    Notes
    -----
    The line is computed on a fixed grid; its value at each mass and its integral are fixed sums over that.
    """
    from scipy.sparse import csr_array

    n_step = 2 * max(math.ceil((high - low) / (2 * _STEP_GEV)), _POINTS)
    grid = np.linspace(low, high, n_step + 1)
    at = (mass_gev - low) / (high - low) * n_step  # in steps
    first = np.clip(np.floor(at).astype(np.int64) - _POINTS // 2 + 1, 0, n_step + 1 - _POINTS)
    # Lagrange's polynomial through the nearest points: a smeared Breit-Wigner is analytic within half its width of the real
    # masses, whatever it is smeared with
    node = np.arange(_POINTS)
    local = (at - first)[:, None]
    weight = np.column_stack([np.prod((local - np.delete(node, k)) / (k - np.delete(node, k)), axis=1) for k in node])
    row = np.repeat(np.arange(mass_gev.size), _POINTS)
    onto = csr_array((weight.ravel(), (row, (first[:, None] + node).ravel())), shape=(mass_gev.size, grid.size))
    simpson = np.full(grid.size, 2.0)
    simpson[1::2] = 4.0
    simpson[[0, -1]] = 1.0
    simpson *= (high - low) / (3 * n_step)

    def minus_log_likelihood(parameters: FloatArray) -> float:
        density = _z_density(parameters, grid)
        return float(mass_gev.size * math.log(simpson @ density) - np.log(onto @ density).sum())

    return minus_log_likelihood


def _checked_z(mu: float, sigma: float, alpha: float, n: float) -> FloatArray:
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma = {sigma} GeV must be finite and >= 0; 0 is the Breit-Wigner itself")
    for name, value, least in (("mu", mu, 0.0), ("alpha", alpha, 0.0), ("n", n, 1.0)):
        checked_above(name, value, least)
    return np.array([mu, sigma, alpha, n], dtype=np.float64)
