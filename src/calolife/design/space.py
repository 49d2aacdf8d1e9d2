"""What can be built: points of a search space, and detectors within a budget and a length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material

if TYPE_CHECKING:
    import optuna

__all__ = ["TEXTBOOK_POINT", "DesignLimits", "Parameters", "build_detector", "suggest_point", "with_cells"]

Parameters = Mapping[str, float | int | str]

# what the price list of the published stacks has
_ABSORBERS = ("G4_Pb", "G4_Fe", "G4_W", "G4_Cu", "G4_BRASS")
_PLASTIC, _CRYSTAL = "G4_POLYSTYRENE", "G4_PbWO4"
# absorber and active medium of the first section; chosen: crystals only where photons end, deeper they would take the money and see
# little; nothing between plates only where they are crystals
_FRONT = (*(f"{absorber} {active}" for absorber in _ABSORBERS for active in (_PLASTIC, _CRYSTAL)), f"none {_CRYSTAL}")
_SECTIONS = (2, 4)  # chosen: one to see photons and one to three behind; the published stacks have four
# ranges [mm] of the first section and of those behind; chosen: around the published stacks (1.5 to 2 mm, 3 to 15 mm of absorber);
# behind, less than 4 mm would use up all layers before the length
_ABSORBER_MM = ((1.0, 8.0), (4.0, 30.0))
_ACTIVE_MM = ((1.0, 8.0), (1.0, 10.0))
_SHARE = ((0.04, 0.3), (0.1, 0.9))  # of the length that is left
_MOST_SPENT = 0.9  # chosen: of the money left, so that a dear section leaves a tenth for iron behind it
_MOST_X0 = 3.7  # the fast engine is tuned on stacks of up to 3.7 X0 a layer, see `simulate_fast`
_STEP_MM = 0.1  # chosen: what can be machined
_ROUNDING = 1e-9  # chosen: three layers of 0.1 mm fit into 0.3 mm

TEXTBOOK_POINT: Parameters = {
    "sections": 2, "absorber_0": "G4_Pb", "absorber_mm_0": 2.0, "active_0": "G4_POLYSTYRENE", "active_mm_0": 2.0, "share_0": 0.12,
    "absorber_1": "G4_Fe", "absorber_mm_1": 15.0, "active_1": "G4_POLYSTYRENE", "active_mm_1": 5.0,
}  # fmt: skip
"""Lead and then iron between plates of plastic, as one would draw it: what is clearly worse need not be looked at for long."""


@dataclass(frozen=True)
class DesignLimits:
    """What no design may break.

    Parameters
    ----------
    budget_chf : float [CHF]
        Price of the materials.
    max_length_cm : float [cm]
    size_cm : (float, float) [cm]
        Width and height; every design fills them.
    max_active : int
        Active layers.
    min_layer_mm : float [mm]

    Raises
    ------
    ValueError
        A limit that is not finite and > 0, or no room for one layer.

    Examples
    --------
    >>> DesignLimits(50_000, 200, (50, 50)).max_active
    200
    """

    budget_chf: float
    max_length_cm: float
    size_cm: tuple[float, float]
    max_active: int = 200
    min_layer_mm: float = 1.0

    def __post_init__(self) -> None:
        named = (("budget_chf", self.budget_chf), ("max_length_cm", self.max_length_cm), *(("size_cm", side) for side in self.size_cm))
        for name, limit in (*named, ("max_active", self.max_active), ("min_layer_mm", self.min_layer_mm)):
            if not (math.isfinite(limit) and limit > 0):
                raise ValueError(f"{name} = {limit:g} must be finite and > 0; nothing could be built")
        if len(self.size_cm) != 2:
            raise ValueError(f"size_cm = {self.size_cm} must be a width and a height")
        if 10 * self.max_length_cm < self.min_layer_mm:
            raise ValueError(
                f"max_length_cm = {self.max_length_cm:g} has no room for one layer of {self.min_layer_mm:g} mm; nothing could be built"
            )


def build_detector(parameters: Parameters, limits: DesignLimits, *, name: str) -> LayeredCalorimeter:
    """The detector that a point of the search space stands for: within the limits whatever the point.

    Parameters
    ----------
    parameters : mapping
        ``sections``, and for each section k ``absorber_k``, ``active_k`` (materials), ``absorber_mm_k``, ``active_mm_k``, and
        ``share_k`` for all but the last.
    limits : DesignLimits
    name : str

    Returns
    -------
    LayeredCalorimeter
        One cell a layer: the search looks at sums of layers.

    Notes
    -----
    From the beam on, each section repeats its period as often as its share of the length left, nine tenths of the money left and
    the layers left allow; the last section takes all. A section too long or too dear for one period is left out. Where none is
    left, one plate of polystyrene, which costs nothing, is what can be built. Thicknesses are whole tenths of a mm; no absorber is
    thicker than 3.7 X0.

    Examples
    --------
    >>> point = {"sections": 1, "absorber_0": "G4_Pb", "absorber_mm_0": 2.0, "active_0": "G4_POLYSTYRENE", "active_mm_0": 2.04}
    >>> calo = build_detector(point, DesignLimits(300, 200, (50, 50)), name="mine")
    >>> calo.n_active, calo.length_cm, calo.cost_chf
    (20, 8.0, 300.0)
    """
    left_mm, left_chf, left_active = 10 * limits.max_length_cm, limits.budget_chf, limits.max_active
    area_m2 = limits.size_cm[0] * limits.size_cm[1] * 1e-4
    calo = LayeredCalorimeter(name, (), 10 * limits.size_cm[0], 10 * limits.size_cm[1])
    n_sections = int(parameters["sections"])
    for k in range(n_sections):
        period = _period(parameters, k, limits)
        period_mm = math.fsum(layer.thickness_mm for layer in period)
        period_chf = math.fsum(_price(layer) * layer.thickness_mm / 10 * area_m2 for layer in period)
        is_last = k == n_sections - 1
        share, spent = (1.0, 1.0) if is_last else (float(parameters[f"share_{k}"]), _MOST_SPENT)
        n = min(math.floor(share * left_mm / period_mm + _ROUNDING), left_active)
        if period_chf > 0:
            n = min(n, math.floor(spent * left_chf / period_chf + _ROUNDING))
        if n >= 1:
            calo = calo.add_period(n, *period)
            left_mm, left_chf, left_active = left_mm - n * period_mm, left_chf - n * period_chf, left_active - n
    if calo.layers:
        return calo
    thickness_mm = max(min(float(parameters["active_mm_0"]), 10 * limits.max_length_cm), limits.min_layer_mm)
    return calo.add_layer(_PLASTIC, _whole_steps(thickness_mm), is_active=True, section=_section_name(0))


def with_cells(detector: LayeredCalorimeter, cells: tuple[int, int]) -> LayeredCalorimeter:
    """The detector with every active layer divided into so many cells along x and y."""
    layers = tuple(replace(layer, cells=cells) if layer.is_active else layer for layer in detector.layers)
    return replace(detector, layers=layers)


def _section_name(k: int) -> str:
    return "em" if k == 0 else f"had-{k}"


def _price(layer: Layer) -> float:
    price = layer.material.price_chf_per_cm_m2
    assert price is not None
    return price


def _whole_steps(thickness_mm: float) -> float:
    return round(math.floor(thickness_mm / _STEP_MM + _ROUNDING) * _STEP_MM, 1)


def _period(parameters: Parameters, k: int, limits: DesignLimits) -> list[Layer]:
    def thickness(value: float) -> float:
        return max(round(value, 1), limits.min_layer_mm)

    section = _section_name(k)
    active = Layer(material(str(parameters[f"active_{k}"])), thickness(float(parameters[f"active_mm_{k}"])), True, (1, 1), section)
    if parameters[f"absorber_{k}"] == "none":
        return [active]
    absorber = material(str(parameters[f"absorber_{k}"]))
    most_mm = _whole_steps(_MOST_X0 * 10 * absorber.x0_cm)
    return [Layer(absorber, thickness(min(float(parameters[f"absorber_mm_{k}"]), most_mm)), section=section), active]


def suggest_point(trial: optuna.trial.Trial) -> dict[str, float | int | str]:
    """A point of the search space; a section that is not there has no parameters."""
    n_sections = trial.suggest_int("sections", *_SECTIONS)
    point: dict[str, float | int | str] = {"sections": n_sections}
    for k in range(n_sections):
        behind = min(k, 1)
        if behind:
            point[f"absorber_{k}"], point[f"active_{k}"] = trial.suggest_categorical(f"absorber_{k}", _ABSORBERS), _PLASTIC
        else:
            point["absorber_0"], point["active_0"] = trial.suggest_categorical("front", _FRONT).split()
        point[f"absorber_mm_{k}"] = trial.suggest_float(f"absorber_mm_{k}", *_ABSORBER_MM[behind], log=True)
        point[f"active_mm_{k}"] = trial.suggest_float(f"active_mm_{k}", *_ACTIVE_MM[behind], log=True)
        if k < n_sections - 1:
            point[f"share_{k}"] = trial.suggest_float(f"share_{k}", *_SHARE[behind])
    return point
