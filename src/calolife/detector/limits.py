"""Is a detector within its budget and its space, and does it contain showers?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from calolife.detector.presets import Detector
from calolife.detector.shower_shapes import em_containment, hadronic_containment

__all__ = ["DetectorCheck", "check_limits"]

_LENGTH_TOLERANCE_CM = 1e-6  # chosen: thicknesses add up with rounding errors of 1e-13
_COST_TOLERANCE_CHF = 0.005  # chosen: half of the smallest coin in the books
_ADVISED_X0 = 25.0  # source: CMS, JINST 3 (2008) S08004, chose 25.8 X0 for < 1 % leakage at 100 GeV
_ADVISED_LAMBDA = (7.0, 10.0)  # chosen: hadron calorimeters at the LHC are 7 to 10 lambda_I deep without and with what stands before
_ADVICE_GEV = 50.0  # chosen: between a test beam and the LHC


@dataclass(frozen=True)
class DetectorCheck:
    """What a detector is, which limits it breaks, and what is advised.

    Parameters
    ----------
    name : str
    cost_chf : float or None [CHF]
        None where a price is not known.
    length_cm, size_x_cm, size_y_cm : float [cm]
    depth_x0, depth_lambda : float
    sampling_fraction : float
    violations : tuple of str
        One text for each broken limit.
    advice : tuple of str
        What no limit forbids.
    """

    name: str
    cost_chf: float | None
    length_cm: float
    size_x_cm: float
    size_y_cm: float
    depth_x0: float
    depth_lambda: float
    sampling_fraction: float
    violations: tuple[str, ...]
    advice: tuple[str, ...]


def check_limits(
    detector: Detector,
    *,
    budget_chf: float | None = None,
    max_length_cm: float | None = None,
    size_cm: tuple[float, float] | None = None,
) -> DetectorCheck:
    """Hold a detector against limits; those left out are not checked.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    budget_chf : float [CHF], optional
    max_length_cm : float [cm], optional
    size_cm : (float, float) [cm], optional
        Room along x and along y.

    Returns
    -------
    DetectorCheck

    Raises
    ------
    ValueError
        A limit that is negative, zero (lengths) or not a number; a detector without an active layer.

    Notes
    -----
    Advised are 25 X0, and 7 to 10 lambda_I for hadrons; the leakage named is that of the mean shower, see `shower_shapes`.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> check_limits(load_detector("pbwo4-fe-v1"), budget_chf=50000, max_length_cm=200).violations
    ('cost 175071.25 CHF is over the budget of 50000 CHF', 'length 200.34 cm is over the 200 cm allowed')
    """
    for name, limit, is_length in (
        ("budget_chf", budget_chf, False),
        ("max_length_cm", max_length_cm, True),
        *(("size_cm", side, True) for side in size_cm or ()),
    ):
        if limit is not None and not (math.isfinite(limit) and (limit > 0 or (limit == 0 and not is_length))):
            raise ValueError(f"{name} = {limit:g} must be finite and {'> 0' if is_length else '>= 0'}; leave it out to have no such limit")
    detector.require_active()
    total = detector.total
    size = (detector.size_x_mm / 10, detector.size_y_mm / 10)
    broken: list[str] = []
    advice: list[str] = []
    if total.cost_chf is None:
        unknown = f"cost is not known: there is no price of {', '.join(detector.unpriced)}"
        (advice if budget_chf is None else broken).append(unknown)
    elif budget_chf is not None and total.cost_chf > budget_chf + _COST_TOLERANCE_CHF:
        broken.append(f"cost {_plain(total.cost_chf)} CHF is over the budget of {_plain(budget_chf)} CHF")
    if max_length_cm is not None and total.length_cm > max_length_cm + _LENGTH_TOLERANCE_CM:
        broken.append(f"length {_plain(total.length_cm)} cm is over the {_plain(max_length_cm)} cm allowed")
    for axis, side, room in zip("xy", size, size_cm or (), strict=False):
        if side > room + _LENGTH_TOLERANCE_CM:
            broken.append(f"size {_plain(side)} cm along {axis} is over the {_plain(room)} cm allowed")
    return DetectorCheck(
        name=detector.name,
        cost_chf=total.cost_chf,
        length_cm=total.length_cm,
        size_x_cm=size[0],
        size_y_cm=size[1],
        depth_x0=total.depth_x0,
        depth_lambda=total.depth_lambda,
        sampling_fraction=total.sampling_fraction,
        violations=tuple(broken),
        advice=(*advice, *_containment_advice(detector)),
    )


def _containment_advice(detector: Detector) -> list[str]:
    of, total = detector.effective_material(), detector.total
    advice = []
    if total.depth_x0 < _ADVISED_X0 - 0.05:  # chosen: what is printed as 25.0 is 25
        leak = 1 - float(em_containment(_ADVICE_GEV, of, depth_x0=total.depth_x0))
        advice.append(
            f"electrons: {total.depth_x0:.1f} X0; {_ADVISED_X0:g} X0 or more are advised ({_ADVICE_GEV:g} GeV leak {100 * leak:.2g} %)"
        )
    low, high = _ADVISED_LAMBDA
    if total.depth_lambda < low:
        leak = 1 - float(hadronic_containment(_ADVICE_GEV, of, depth_lambda=total.depth_lambda))
        advice.append(
            f"hadrons: {total.depth_lambda:.1f} lambda_I; {low:g} to {high:g} are advised ({_ADVICE_GEV:g} GeV leak {100 * leak:.2g} %)"
        )
    elif total.depth_lambda > high:
        advice.append(f"hadrons: {total.depth_lambda:.1f} lambda_I; {low:g} to {high:g} are advised: length can be saved")
    return advice


def _plain(value: float) -> str:
    """Ten digits at most, none for show."""
    return f"{value:.10g}"
