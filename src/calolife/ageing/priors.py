"""What the dose tells about a cell: empirical Bayes on laws of the dose, averaged, with scatter from cell to cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DosePosterior", "shrink_to_dose"]

FloatArray = NDArray[np.float64]

_SCATTERS = 0.0005 * 2.0 ** np.arange(9)  # of ln r, 0.0005 to 0.128; chosen: the lowest is the floor, no two cells age quite alike
_AMPLITUDE = 1.0  # of ln r, prior width of each coefficient of a law; chosen: a loss of 60 % at the largest dose


@dataclass(frozen=True, eq=False)
class DosePosterior:
    """ln r of each cell, its own hits and the dose together.

    Parameters
    ----------
    log_fraction, variance : float array, (cell,)
        Mean and variance of ln r.
    law : str
        The law with most weight, the dose map it takes, and the scatter around it.
    weight : float
        Share of that law, over all scatters and maps.
    """

    log_fraction: FloatArray
    variance: FloatArray
    law: str
    weight: float


def shrink_to_dose(log_fraction: FloatArray, variance: FloatArray, doses: Mapping[str, FloatArray]) -> DosePosterior:
    """Lean each cell's own ln r on a law of the dose, as far as the cells bear it out.

    Parameters
    ----------
    log_fraction : float array, (cell,)
        ln r of each cell from its own hits; anything where the variance is infinite.
    variance : float array, (cell,)
        Of it; infinite for a cell that was not measured.
    doses : mapping of name to float array, (cell,)
        Dose maps to choose from; only their shape matters.

    Returns
    -------
    DosePosterior

    Notes
    -----
    ln r = law(dose) + scatter + error, all Gaussian. Laws: constant, linear, linear in the root, quadratic and cubic;
    scatters from 0.0005 to 0.128. Each triple of law, scatter and dose map counts by its evidence (the integral over
    the law's coefficients, of prior width 1), and their posteriors are averaged: where no law holds the scatter is
    found large and each cell keeps its own estimate. A trend with anything but the dose counts as scatter.

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
        widest = _AMPLITUDE**2 + _SCATTERS[-1] ** 2
        return DosePosterior(np.zeros(variance.size), np.full(variance.size, widest), "no cell was measured", 0.0)
    evidence: list[float] = []
    means: list[FloatArray] = []
    variances: list[FloatArray] = []
    names: list[tuple[str, str, float]] = []
    for dose_name, dose in doses.items():
        for law_name, base in _laws(dose / max(float(dose.max()), np.finfo(np.float64).tiny)).items():
            measured = base[is_measured]
            n_terms = base.shape[1]
            for scatter in _SCATTERS:
                total = v + scatter**2
                precision = np.eye(n_terms) / _AMPLITUDE**2 + (measured.T / total) @ measured
                covariance = np.linalg.inv(precision)
                coefficient = covariance @ ((measured.T / total) @ y)
                log_det = np.linalg.slogdet(precision)[1] + 2 * n_terms * np.log(_AMPLITUDE)
                square = (y * y / total).sum() - coefficient @ precision @ coefficient
                evidence.append(-0.5 * float(np.log(total).sum() + log_det + square))
                law = base @ coefficient
                of_law = np.einsum("ij,jk,ik->i", base, covariance, base)
                own = np.zeros(variance.size)  # how much a cell's own estimate counts
                own[is_measured] = scatter**2 / total
                mean = law.copy()
                mean[is_measured] += own[is_measured] * (y - law[is_measured])
                spread = np.full(variance.size, scatter**2)
                spread[is_measured] = own[is_measured] * v
                means.append(mean)
                variances.append(spread + (1 - own) ** 2 * of_law)
                names.append((law_name, dose_name, float(scatter)))
    share = np.exp(np.asarray(evidence) - max(evidence))
    share /= share.sum()
    average = sum((w * m for w, m in zip(share, means, strict=True)), np.zeros(variance.size))
    parts = zip(share, means, variances, strict=True)
    width = sum((w * (s + (m - average) ** 2) for w, m, s in parts), np.zeros(variance.size))
    best = names[int(share.argmax())]
    weight = float(sum(w for w, name in zip(share, names, strict=True) if name[0] == best[0]))
    return DosePosterior(average, width, f"{best[0]} in the dose of the {best[1]}, scatter {best[2]:.2g}", weight)


def _laws(dose: FloatArray) -> dict[str, FloatArray]:
    """Terms of each law, (cell, term); dose between 0 and 1."""
    one = np.ones_like(dose)
    return {
        "constant": np.stack([one], axis=1),
        "linear": np.stack([one, dose], axis=1),
        "root": np.stack([one, np.sqrt(dose)], axis=1),
        "quadratic": np.stack([one, dose, dose**2], axis=1),
        "cubic": np.stack([one, dose, dose**2, dose**3], axis=1),
    }
