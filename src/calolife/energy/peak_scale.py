"""The last step of the models of crystals: brings the peak of E'/E to 1 and the width of the pulls to 1 at every energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.energy.features import FloatArray, Prediction
from calolife.energy.resolution import shortest_half
from calolife.errors import NotConvergedError

__all__ = ["AS_IS", "PeakScale", "fit_peak_scale"]

IntArray = NDArray[np.int64]

# chosen: objects in a bin; 200 know the peak to a tenth of the resolution, 1,000 the width of the pulls to 2.5 %
_LEAST_PEAK, _LEAST_WIDTH = 200, 1000


@dataclass(frozen=True, eq=False)
class PeakScale:
    """Factors of energy and uncertainty, linear in the logarithm of the energy between knots and constant outside.

    Parameters
    ----------
    energy : float array, (2, knot)
        ln of energies as the model gives them [ln GeV], rising; and ln of the factor of the energy there.
    sigma : float array, (2, knot)
        The same for the factor of sigma(E) / E.

    Raises
    ------
    ValueError
        Numbers that are not finite, knots that do not rise, no knot.

    Examples
    --------
    >>> scale = PeakScale(np.log([[10.0, 100.0], [0.99, 1.0]]), np.log([[10.0, 100.0], [1.2, 1.0]]))
    >>> found = scale.apply_to(Prediction(np.array([5.0, 200.0]), np.array([0.5, 2.0])))
    >>> found.energy_gev.round(3).tolist(), found.sigma_gev.round(3).tolist()
    ([4.95, 200.0], [0.594, 2.0])
    """

    energy: FloatArray
    sigma: FloatArray

    def __post_init__(self) -> None:
        for name in ("energy", "sigma"):
            knots = getattr(self, name)
            is_curve = knots.ndim == 2 and knots.shape[0] == 2 and knots.size and np.isfinite(knots).all() and (np.diff(knots[0]) > 0).all()
            if not is_curve:
                raise ValueError(f"the scale of {name} is no curve: give two finite rows, the first rising, or train the model again")

    def apply_to(self, prediction: Prediction) -> Prediction:
        """Energies on scale, and uncertainties as wide as the pulls say."""
        assert prediction.sigma_gev is not None
        at = _log(prediction.energy_gev)
        ratio, sigma_ratio = np.exp(np.interp(at, *self.energy)), np.exp(np.interp(at, *self.sigma))
        return Prediction(ratio * prediction.energy_gev, ratio * sigma_ratio * prediction.sigma_gev)

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays for storage."""
        return {"scale.energy": self.energy, "scale.sigma": self.sigma}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]]) -> PeakScale:
        """The scale that `state` described."""
        return cls(arrays["scale.energy"], arrays["scale.sigma"])


AS_IS = PeakScale(np.zeros((2, 1)), np.zeros((2, 1)))
"""Changes nothing."""


def fit_peak_scale(prediction: Prediction, energy_gev: ArrayLike) -> PeakScale:
    """The scale after which E'/E peaks at 1 and pulls are 1 wide, at every energy.

    Parameters
    ----------
    prediction : Prediction
        Of objects that the model was not fitted to.
    energy_gev : float array, (object,) [GeV]
        True.

    Returns
    -------
    PeakScale

    Notes
    -----
    Bins are octaves of the true energy, from the highest down, those with fewer than 200 objects joined to the next; their knots lie at
    the median of E'. (In bins of E' those below the least true energy would hold nothing but tails.) The peak is that of
    the Cruijff function fitted to E'/E: the tail to the left grows as the energy falls, and a scale on the median would let the peak
    rise by 1 % at 10 GeV. The width of the pulls, in bins of 1,000, is half of the shortest interval with 68.3 % of them; that of all
    together is 1. Of fewer than 200 objects, or where no Cruijff function fits, the median of E'/E comes to 1; a model whose
    median falls while the energy rises gets one factor for all energies.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> true = rng.uniform(10.0, 100.0, 4000)
    >>> low = Prediction(0.9 * true * rng.normal(1.0, 0.02, 4000), 0.01 * true)
    >>> found = fit_peak_scale(low, true).apply_to(low)
    >>> round(float(np.median(found.energy_gev / true)), 2), round(float(np.median(found.sigma_gev / found.energy_gev)), 2)
    (1.0, 0.02)
    """
    true, predicted = np.asarray(energy_gev, dtype=np.float64), prediction.energy_gev
    at, log_true = _log(predicted), np.log(true)
    energy = _curve(at, _bins(log_true, least=_LEAST_PEAK), lambda some: 1.0 / _peak(predicted[some] / true[some]))
    found = replace(AS_IS, energy=energy).apply_to(prediction)
    assert found.sigma_gev is not None
    pull = (found.energy_gev - true) / found.sigma_gev
    sigma = _curve(at, _bins(log_true, least=_LEAST_WIDTH), lambda some: _width(pull[some]))
    sigma[1] += np.log(_width(pull / np.exp(np.interp(at, *sigma))))
    return PeakScale(energy, sigma)


def _log(energy_gev: FloatArray) -> FloatArray:
    """ln of energies, of which one may be 0."""
    return np.log(np.maximum(energy_gev, np.finfo(float).tiny))


def _curve(at: FloatArray, bins: list[IntArray], factor: Callable[[IntArray], float]) -> FloatArray:
    """Knots of a factor that each bin knows, (2, knot)."""
    for some in (bins, [np.arange(at.size)]):
        knots = np.array([(np.median(at[one]), np.log(factor(one))) for one in some]).T
        if (np.diff(knots[0]) > 0).all():
            break
    return knots


def _peak(ratio: FloatArray) -> float:
    from calolife.energy.lineshapes import fit_cruijff  # loads iminuit

    if ratio.size >= _LEAST_PEAK:
        try:
            return fit_cruijff(ratio).mu
        except (ValueError, NotConvergedError):
            pass  # no peak: a training of hours is not to be lost for it
    return float(np.median(ratio))


def _width(pull: FloatArray) -> float:
    return float(shortest_half(np.sort(pull)[None])[0])


def _bins(log_energy: FloatArray, *, least: int) -> list[IntArray]:
    """Objects of each bin, by rising energy, (object,) [ln GeV]."""
    falling = np.argsort(-log_energy, kind="stable")
    octave = np.floor((log_energy[falling[0]] - log_energy[falling]) / np.log(2.0))
    ends = [0]
    for end in np.flatnonzero(np.diff(octave)) + 1:
        if end - ends[-1] >= least:
            ends.append(int(end))
    if len(ends) > 1 and log_energy.size - ends[-1] < least:
        ends.pop()  # too few at the low end go with those above
    return np.split(falling, ends[1:])[::-1]
