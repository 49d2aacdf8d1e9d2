"""How close found signal fractions come to the true ones, and whether their errors are honest."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from calolife.ageing.coefficients import Ageing

__all__ = ["AgeingScore", "r_squared", "score_ageing"]

_SCORED = ("measured", "prior-dominated")


@dataclass(frozen=True)
class AgeingScore:
    """Found against true signal fraction over `n` cells; NaN where a number has no meaning.

    Parameters
    ----------
    mae : float
        Mean absolute error of the signal fraction.
    r2 : float
        1 - squared errors / squared distances of the truth from its mean; NaN if the truth is the same in all cells.
    bias : float
        Mean of found - true.
    coverage68, coverage95 : float
        Fraction of the cells whose truth lies within 1 and within 1.96 standard deviations; 0.683 and 0.950 of honest
        Gaussian errors. NaN if no cell has an uncertainty.
    pull_mean, pull_width : float
        Mean and standard deviation of (found - true) / uncertainty, over the cells with an uncertainty > 0.
    n : int
        Cells compared.
    """

    mae: float
    r2: float
    bias: float
    coverage68: float
    coverage95: float
    pull_mean: float
    pull_width: float
    n: int

    def to_json_dict(self) -> dict[str, float | int | None]:
        """The numbers by name; None for NaN, which JSON cannot tell."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def r_squared(found: ArrayLike, true: ArrayLike) -> float:
    """1 - squared errors / squared distances of the truth from its mean; NaN if the truth is the same in all cells.

    Parameters
    ----------
    found, true : float array, (cell,)

    Examples
    --------
    >>> round(r_squared([0.72, 0.79], [0.7, 0.8]), 2), r_squared([0.72, 0.79], [0.8, 0.8])
    (0.9, nan)
    """
    value, at = np.asarray(found, dtype=np.float64), np.asarray(true, dtype=np.float64)
    # asked of the truth itself: the mean of equal numbers may differ from them by a rounding error
    if not at.size or np.ptp(at) == 0:
        return math.nan
    return 1 - float(np.sum((value - at) ** 2)) / float(np.sum((at - at.mean()) ** 2))


def score_ageing(ageing: Ageing, truth: Ageing, *, own: bool = False) -> AgeingScore:
    """Compare found signal fractions with the true ones.

    Parameters
    ----------
    ageing : Ageing
        The estimate. Dead, hot and masked cells are left out: they were not estimated.
    truth : Ageing
        Cells it does not list are left out.
    own : bool
        Score what the cells' own hits say, before any prior.

    Returns
    -------
    AgeingScore

    Raises
    ------
    ValueError
        Of different detectors; no cell to compare.

    Examples
    --------
    >>> found = Ageing([1, 2, 3], [0.91, 0.78, 0.71], [0.02, 0.01, 0.01])
    >>> score = score_ageing(found, Ageing([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6]))
    >>> round(score.mae, 4), round(score.coverage68, 2), score.n
    (0.0133, 0.67, 3)
    """
    if ageing.detector_digest and truth.detector_digest and ageing.detector_digest != truth.detector_digest:
        raise ValueError(
            f"the estimate is of detector {ageing.detector_digest[:8]}, the truth of {truth.detector_digest[:8]}; give those of one"
        )
    scored = ageing.only(np.intersect1d(ageing.cell[np.isin(ageing.status, _SCORED)], truth.cell))
    if not scored.n_cells:
        raise ValueError(
            f"none of the {ageing.n_cells} cells of the estimate is both measured and among the {truth.n_cells} cells of the truth; "
            "give the truth of the cells that were estimated"
        )
    true = truth.at(scored.cell)
    found, sigma = (scored.own_fraction, scored.own_uncertainty) if own else (scored.signal_fraction, scored.uncertainty)
    error = found - true
    has_sigma = np.isfinite(sigma)
    # rounding must not put a truth that lies at the edge of its interval outside
    off = np.abs(error[has_sigma]) * (1 - 1e-12)
    pull = error[has_sigma & (sigma > 0)] / sigma[has_sigma & (sigma > 0)]
    return AgeingScore(
        mae=float(np.abs(error).mean()),
        r2=r_squared(found, true),
        bias=float(error.mean()),
        coverage68=float((off <= sigma[has_sigma]).mean()) if has_sigma.any() else math.nan,
        # 1.96: the two-sided 95 % point of a Gaussian
        coverage95=float((off <= 1.96 * sigma[has_sigma]).mean()) if has_sigma.any() else math.nan,
        pull_mean=float(pull.mean()) if pull.size else math.nan,
        pull_width=float(pull.std(ddof=1)) if pull.size > 1 else math.nan,
        n=scored.n_cells,
    )
