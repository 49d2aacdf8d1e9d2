"""What the dose tells about a cell: empirical Bayes on laws of the dose, averaged, with scatter from cell to cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DosePosterior", "shrink_to_dose"]

FloatArray = NDArray[np.float64]

# of ln r, 0.0005 to 1 in steps of root 2; chosen: the lowest is the floor, no two cells age quite alike
_SCATTERS = 0.0005 * 2.0 ** (0.5 * np.arange(23))
_AMPLITUDE = 1.0  # of ln r, prior width of each coefficient of a law; chosen: a loss of 60 % at the largest dose
_STRANGE = 0.01  # chosen: one cell in a hundred may follow no law
_STRANGE_WIDTH = 0.5  # of ln r; chosen: such a cell may have lost nearly anything
_ROUNDS = 4  # chosen: strange cells are set aside after two, the rest polishes
_KNOTS = 6  # of the broken line; chosen: a step in the dose is followed within a sixth of the cells
_SATURATION = 3.0  # chosen: as `calolife.ageing.damage` has it
_NO_SHARE = 1e-4  # chosen: laws that together count for less are left out


@dataclass(frozen=True, eq=False)
class DosePosterior:
    """ln r of each cell, its own hits and the dose together.

    Parameters
    ----------
    log_fraction, variance : float array, (cell,)
        Mean and variance of ln r.
    law : str
        The law with most weight and its share, the dose map it takes, and the scatter around it.
    """

    log_fraction: FloatArray
    variance: FloatArray
    law: str


@dataclass(frozen=True, eq=False)
class _Fit:
    """One law with one scatter on one dose map, fitted to the measured cells."""

    name: tuple[str, str]
    base: FloatArray  # (cell, term), all cells
    scatter: float
    coefficient: FloatArray
    covariance: FloatArray
    strange: FloatArray  # (measured cell,) probability that it follows no law
    evidence: float


def shrink_to_dose(log_fraction: FloatArray, variance: FloatArray, doses: Mapping[str, FloatArray]) -> DosePosterior:
    """Lean each cell's own ln r on a law of the dose, as far as the cells bear it out.

    Parameters
    ----------
    log_fraction : float array, (cell,)
        ln r of each cell from its own hits; anything where the variance is infinite.
    variance : float array, (cell,)
        Of it; infinite for a cell that was not measured.
    doses : mapping of name to float array, (cell,)
        Dose maps to choose from; only their shape matters, and none is negative.

    Returns
    -------
    DosePosterior

    Notes
    -----
    ln r = law(dose) + scatter + error. Laws: constant, linear, linear in the root, quadratic, cubic, a line broken at
    five doses; and, through r = 1 at no dose, linear, root, quadratic and saturating. Scatters from 0.0005 to 1. Each triple
    of law, scatter and dose map counts by its evidence (the integral over the law's coefficients, of prior width 1), and
    their posteriors are averaged: where no law holds the scatter is found large and each cell keeps its own estimate. One cell
    in a hundred is expected to follow no law, and keeps its own estimate too. A trend with anything but the dose counts as scatter.

    Examples
    --------
    >>> dose = np.linspace(0.1, 1, 400)
    >>> noise = 0.02 * np.random.default_rng(1).standard_normal(400)
    >>> found = shrink_to_dose(-0.1 * dose + noise, np.full(400, 0.02**2), {"reference": dose})
    >>> bool(np.abs(found.log_fraction + 0.1 * dose).mean() < 0.1 * np.abs(noise).mean() + 0.002)
    True
    """
    is_measured = np.isfinite(variance)
    y, v = log_fraction[is_measured], variance[is_measured]
    if not y.size:
        return DosePosterior(np.zeros(variance.size), np.full(variance.size, _AMPLITUDE**2), "none: no cell was measured")
    fits = [
        _fitted((law_name, dose_name), base, is_measured, y, v, float(scatter))
        for dose_name, dose in doses.items()
        for law_name, base in _laws(np.maximum(dose, 0.0) / max(float(dose.max()), np.finfo(np.float64).tiny)).items()
        for scatter in _SCATTERS
    ]
    share = np.exp(np.array([fit.evidence for fit in fits]) - max(fit.evidence for fit in fits))
    share /= share.sum()
    is_used = share > _NO_SHARE
    share = np.where(is_used, share, 0.0) / share[is_used].sum()
    mean, square = np.zeros(variance.size), np.zeros(variance.size)
    for fit, weight in zip(fits, share, strict=True):
        if weight > 0:
            one, spread = _posterior(fit, is_measured, y, v)
            mean += weight * one
            square += weight * (spread + one**2)
    best = fits[int(share.argmax())]
    of_law = sum(weight for fit, weight in zip(fits, share, strict=True) if fit.name[0] == best.name[0])
    scatter = float(np.sqrt(sum(weight * fit.scatter**2 for fit, weight in zip(fits, share, strict=True))))
    law = f"{best.name[0]} ({100 * of_law:.0f} % of the weight) in the dose of {best.name[1]}, scatter {scatter:.2g}"
    return DosePosterior(mean, np.maximum(square - mean**2, _SCATTERS[0] ** 2), law)


def _fitted(name: tuple[str, str], base: FloatArray, is_measured: NDArray[np.bool_], y: FloatArray, v: FloatArray, scatter: float) -> _Fit:
    measured, n_terms = base[is_measured], base.shape[1]
    total, far = v + scatter**2, v + scatter**2 + _STRANGE_WIDTH**2
    strange = np.zeros(y.size)
    for _ in range(_ROUNDS):
        weight = (1 - strange) / total + strange / far
        precision = np.eye(n_terms) / _AMPLITUDE**2 + (measured.T * weight) @ measured
        covariance = np.linalg.inv(precision)
        coefficient = covariance @ ((measured.T * weight) @ y)
        square = (y - measured @ coefficient) ** 2
        follows = np.log(1 - _STRANGE) - 0.5 * (square / total + np.log(total))
        does_not = np.log(_STRANGE) - 0.5 * (square / far + np.log(far))
        both = np.logaddexp(follows, does_not)
        strange = np.exp(does_not - both)
    # Laplace: the likelihood at the best coefficients, and the volume around them over that of their prior
    of_prior = float(coefficient @ coefficient) / _AMPLITUDE**2 + 2 * n_terms * float(np.log(_AMPLITUDE))
    evidence = float(both.sum()) - 0.5 * (of_prior + float(np.linalg.slogdet(precision)[1]))
    # every scatter from 0 to 1 is as likely as any other: on steps of a constant ratio that is a weight
    evidence += float(np.log(scatter))
    return _Fit(name, base, scatter, coefficient, np.asarray(covariance, dtype=np.float64), strange, evidence)


def _posterior(fit: _Fit, is_measured: NDArray[np.bool_], y: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of ln r of all cells, (cell,) each."""
    law = fit.base @ fit.coefficient
    of_law = np.einsum("ij,jk,ik->i", fit.base, fit.covariance, fit.base)
    mean, variance = law.copy(), fit.scatter**2 + of_law
    here, of_here = law[is_measured], of_law[is_measured]
    found, square = np.zeros(y.size), np.zeros(y.size)
    for probability, width in ((1 - fit.strange, fit.scatter), (fit.strange, np.hypot(fit.scatter, _STRANGE_WIDTH))):
        own = width**2 / (v + width**2)  # how much the cell's own estimate counts
        one = here + own * (y - here)
        found += probability * one
        square += probability * (own * v + (1 - own) ** 2 * of_here + one**2)
    mean[is_measured], variance[is_measured] = found, square - found**2
    return mean, variance


def _laws(dose: FloatArray) -> dict[str, FloatArray]:
    """Terms of each law, (cell, term); dose between 0 and 1."""
    one = np.ones_like(dose)
    knots = np.unique(np.quantile(dose, np.linspace(0, 1, _KNOTS)))
    laws = {
        "constant": [one],
        "linear": [one, dose],
        "root": [one, np.sqrt(dose)],
        "quadratic": [one, dose, dose**2],
        "cubic": [one, dose, dose**2, dose**3],
        "linear from 1": [dose],
        "root from 1": [np.sqrt(dose)],
        "quadratic from 1": [dose, dose**2],
        "saturating from 1": [(1 - np.exp(-_SATURATION * dose)) / (1 - np.exp(-_SATURATION))],
    }
    if knots.size == _KNOTS:
        laws["broken line"] = [np.interp(dose, knots, row) for row in np.eye(_KNOTS)]
    return {name: np.stack(terms, axis=1) for name, terms in laws.items()}
