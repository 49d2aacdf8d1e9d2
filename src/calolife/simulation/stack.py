"""What the compiled engine sees of a calorimeter: flat arrays, one entry a slab or an active layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.materials import Material
from calolife.simulation.constants import Constants

__all__ = ["Cells", "Stack", "build_stack"]

_LOOK_AHEAD_X0 = 12.0  # chosen: an electromagnetic shower leaves most of its energy within 12 X0
_AROUND_MM = 60.0  # chosen: some sampling periods; slow neutrals do not know in which one they were born
_PART_X0 = 1.0  # chosen: the spread across the axis is taken constant over a part of a thick active layer


class Cells(NamedTuple):
    """Where the cells of each active layer are: apart from the rest, since compiled code hands it over with every deposit."""

    offset: np.ndarray  # (active + 1,) first cell
    n_x: np.ndarray  # (active,)
    n_y: np.ndarray  # (active,)
    half_x: float  # [mm]
    half_y: float
    is_wrapped: bool  # y is periodic


# one record a slab; what is a property of "the medium" is that of the next 12 X0
_SLAB = {
    "dedx": "f8",  # minimum ionisation [MeV / mm]
    "lambda_mm": "f8",
    "birks": "f8",  # kB [mm / MeV], 0 without quenching
    "a": "f8",  # effective A
    "xi": "f8",  # Landau width of 1 mm [MeV / mm]
    "density": "f8",  # [g / cm3]
    "active": "i8",  # number of the active layer, -1 for passive slabs
    "active_share": "f8",  # active part of the volume around
    "active_near": "i8",  # the active slab nearest to it, -1 if none is around
    "organic_share": "f8",  # the same of active slabs with hydrogen
    "organic_near": "i8",
    "critical": "f8",  # critical energy of the medium [MeV]
    "charge": "f8",  # its effective Z
    "moliere": "f8",  # its Moliere radius [mm]
    "frequency": "f8",  # its F_S = X0 / sampling period; 0: homogeneous
    "contrast": "f8",  # Z of its passive less Z of its active part
}
# one record an active slab; an active layer thicker than 1 X0 is several
_PART = {
    "layer": "i8",  # the active layer it belongs to
    "t_start": "f8",  # depth [X0] where its sampling period starts
    "t_front": "f8",  # its own front and
    "t_back": "f8",  # back
    "fraction": "f8",  # active / all minimum ionisation of its period
    "emip": "f8",  # signal of an electromagnetic shower over that of minimum ionisation, before quenching
    "spot": "f8",  # mean deposit of one sampled track [MeV]
    "spot_shape": "f8",  # order of the gamma distribution it scatters by
}


class Stack(NamedTuple):
    """A calorimeter as few arrays: compiled functions hand it on at every call.

    Slabs run along z, active layers are numbered among the active slabs; lengths in mm, depths in X0.
    """

    z: np.ndarray  # (slab + 1,) [mm]
    depth_x0: np.ndarray  # (slab + 1,)
    slab: np.ndarray  # (part,) slab of each part of an active layer
    slabs: np.ndarray  # (slab,) records of `_SLAB`
    parts: np.ndarray  # (part,) records of `_PART`
    cells: Cells
    before_x: np.ndarray  # (n_x + 1,) [mm] free way before each row of crystals, all gaps last; one 0 without gaps
    before_y: np.ndarray  # (n_y + 1,) the same of columns, with the gap of the seam in the last


class _Mix(NamedTuple):
    """Effective medium of consecutive slabs."""

    critical: float
    charge: float
    x0_mm: float
    moliere: float
    a: float


def _mix(materials: list[Material], thickness_mm: np.ndarray) -> _Mix:
    # mass fractions weight Z and A; X0 and Ec/X0 add as Grindhammer and Peters, hep-ex/0001020, section 2, write them
    mass = np.array([m.density_g_cm3 for m in materials]) * thickness_mm
    w = mass / mass.sum()
    x0_g = np.array([m.x0_g_cm2 for m in materials])
    critical = np.array([m.critical_energy_mev for m in materials])
    moliere_g = np.array([m.moliere_cm * m.density_g_cm3 for m in materials])
    mean_x0 = 1.0 / np.sum(w / x0_g)
    mean_critical = mean_x0 * np.sum(w * critical / x0_g)
    density = mass.sum() / thickness_mm.sum()
    return _Mix(
        float(mean_critical),
        float(np.sum(w * np.array([m.z_eff for m in materials]))),
        float(10.0 * mean_x0 / density),
        float(10.0 / np.sum(w / moliere_g) / density),
        float(np.sum(w * np.array([m.a_eff for m in materials]))),
    )


def _surroundings(z: np.ndarray, is_wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the wanted slabs in the length around each slab, and the wanted slab nearest to it."""
    middle, thickness = 0.5 * (z[1:] + z[:-1]), np.diff(z)
    share, near = np.zeros(len(middle)), np.full(len(middle), -1)
    wanted = np.flatnonzero(is_wanted)
    for i in range(len(middle)):
        around = np.abs(middle - middle[i]) < _AROUND_MM + 0.5 * thickness[i]
        share[i] = thickness[around & is_wanted].sum() / thickness[around].sum()
        if share[i] > 0:
            near[i] = wanted[np.argmin(np.abs(middle[wanted] - middle[i]))]
    return share, near


def build_stack(detector: LayeredCalorimeter | CrystalCalorimeter, constants: Constants, *, birks: bool) -> Stack:
    """Arrays of a calorimeter for the compiled engine.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    constants : Constants
    birks : bool
        Quench by Birks' law with each material's constant.

    Returns
    -------
    Stack
    """
    if isinstance(detector, CrystalCalorimeter):
        materials, is_active, thickness = [detector.material], [True], np.array([float(detector.length_mm)])
        n_x, n_y, offset = np.array([len(detector.ieta)]), np.array([detector.n_phi]), np.array([0, detector.n_cells])
        # cells stand side by side: the gaps between them are taken out, and a shower meets them as `before_x` and `before_y`
        half_x, half_y = 0.5 * detector.crystal_size_mm * len(detector.ieta), 0.5 * detector.crystal_size_mm * detector.n_phi
        is_wrapped = bool(detector.is_phi_periodic)
        before_x, before_y = _gaps(detector)
    else:
        before_x = before_y = np.zeros(1)
        materials = [layer.material for layer in detector.layers]
        is_active = [layer.is_active for layer in detector.layers]
        thickness = np.array([layer.thickness_mm for layer in detector.layers], float)
        cells = [layer.cells for layer in detector.layers if layer.is_active]
        n_x, n_y = np.array([c[0] for c in cells]), np.array([c[1] for c in cells])
        offset = np.array(detector.cell_offset, np.int64)
        half_x, half_y, is_wrapped = detector.size_x_mm / 2, detector.size_y_mm / 2, False

    number = np.cumsum(is_active) - 1
    parts = [max(1, round(t / (10.0 * m.x0_cm) / _PART_X0)) if on else 1 for m, on, t in zip(materials, is_active, thickness, strict=True)]
    materials = [m for m, k in zip(materials, parts, strict=True) for _ in range(k)]
    layer_of = np.repeat(number, parts)
    is_active = [on for on, k in zip(is_active, parts, strict=True) for _ in range(k)]
    thickness = np.repeat(thickness / parts, parts)

    n = len(materials)
    x0_mm = np.array([10.0 * m.x0_cm for m in materials])
    dedx = np.array([0.1 * m.min_dedx_mev_cm for m in materials])
    z = np.concatenate([[0.0], np.cumsum(thickness)])
    depth = np.concatenate([[0.0], np.cumsum(thickness / x0_mm)])
    slab = np.flatnonzero(is_active)
    active = np.full(n, -1)
    active[slab] = layer_of[slab]
    part_of = np.full(n, -1)
    part_of[slab] = np.arange(len(slab))

    first = np.concatenate([[0], slab[:-1] + 1])  # a period: all since the last active layer, and the active layer
    passive_x0 = np.array([depth[s] - depth[f] for f, s in zip(first, slab, strict=True)])
    period_mip = np.array([np.sum((dedx * thickness)[f : s + 1]) for f, s in zip(first, slab, strict=True)])
    mip = (dedx * thickness)[slab]

    ahead: dict[str, Any] = {name: np.zeros(n) for name in ("critical", "charge", "moliere", "frequency", "contrast")}
    for i in range(n):
        last = int(np.searchsorted(depth, depth[i] + _LOOK_AHEAD_X0))
        # near the end the medium is what lies before
        start = min(i, max(int(np.searchsorted(depth, depth[n] - _LOOK_AHEAD_X0)) - 1, 0))
        part = slice(start, min(max(last, i + 1), n))
        mixed = _mix(materials[part], thickness[part])
        ahead["critical"][i], ahead["charge"][i] = mixed.critical, mixed.charge
        ahead["moliere"][i] = mixed.moliere
        inside = [k for k in range(part.start, part.stop) if is_active[k]]
        outside = [k for k in range(part.start, part.stop) if not is_active[k]]
        if inside and outside and passive_x0[part_of[inside]].max() > 1e-9:
            period_mm = np.mean([z[k + 1] - z[first[part_of[k]]] for k in inside])
            ahead["frequency"][i] = mixed.x0_mm / period_mm
            ahead["contrast"][i] = (
                _mix([materials[k] for k in outside], thickness[outside]).charge
                - _mix([materials[k] for k in inside], thickness[inside]).charge
            )
    # what an absorber keeps of the soft electrons grows with its Z and thickness, and less of a thick active layer sees them
    contrast, thick = np.maximum(ahead["contrast"][slab], 0.0), np.maximum(passive_x0, 1e-9)
    kept = constants.em_emip * contrast**constants.em_emip_z * thick / (thick + constants.em_emip_x0)
    kept *= thickness[slab] ** constants.em_emip_mm
    spot = constants.em_spot * mip**constants.em_spot_mip * thick**constants.em_spot_x0 * np.maximum(contrast, 1.0) ** constants.em_spot_z
    spot_shape = constants.em_spot_shape / mip
    spot *= 2.0 / (1.0 + 1.0 / spot_shape)  # the same sampling fluctuation for any shape
    is_organic = np.array([m.z_eff / m.a_eff > 0.5005 for m in materials])  # only hydrogen lifts Z/A above one half
    active_share, active_near = _surroundings(z, np.asarray(is_active))
    organic_share, organic_near = _surroundings(z, is_organic & np.asarray(is_active))
    of_slabs = {
        "dedx": dedx,
        "lambda_mm": np.array([10.0 * m.lambda_cm for m in materials]),
        "birks": np.array([m.birks_mm_per_mev if birks else 0.0 for m in materials]),
        "a": np.array([m.a_eff for m in materials]),
        # xi = 0.1535 MeV cm2/g Z/A rho x at beta = 1: PDG Review, "Passage of particles through matter"
        # hydrogen has twice the electrons a gram: 7 % more in polystyrene than its mean Z over its mean A says
        "xi": np.array([0.01535 * m.z_eff / m.a_eff * m.density_g_cm3 for m in materials]) * np.where(is_organic, 1.07, 1.0),
        "density": np.array([m.density_g_cm3 for m in materials]),
        "active": active,
        "active_share": active_share,
        "active_near": active_near,
        "organic_share": organic_share,
        "organic_near": organic_near,
        **ahead,
    }
    of_parts = {
        "layer": layer_of[slab],
        "t_start": depth[first],
        "t_front": depth[slab],
        "t_back": depth[slab + 1],
        "fraction": mip / period_mip,
        "emip": 1.0 / (1.0 + kept),
        "spot": spot,
        "spot_shape": spot_shape,
    }
    of_cells = Cells(offset, n_x, n_y, half_x, half_y, is_wrapped)
    return Stack(
        z=z, depth_x0=depth, slab=slab, slabs=_records(_SLAB, of_slabs), parts=_records(_PART, of_parts), cells=of_cells,
        before_x=before_x, before_y=before_y,
    )  # fmt: skip


def _gaps(detector: CrystalCalorimeter) -> tuple[np.ndarray, np.ndarray]:
    """Free way before each row and each column of crystals [mm], and before what would follow the last."""
    if not detector.has_gaps:
        return np.zeros(1), np.zeros(1)
    x_edges, y_edges = detector.x_edges_mm, detector.y_edges_mm
    seam = detector.period_y_mm - (y_edges[-1, 1] - y_edges[0, 0]) if detector.is_phi_periodic else 0.0
    gaps = (np.append(x_edges[1:, 0] - x_edges[:-1, 1], 0.0), np.append(y_edges[1:, 0] - y_edges[:-1, 1], seam))
    return np.concatenate([[0.0], np.cumsum(gaps[0])]), np.concatenate([[0.0], np.cumsum(gaps[1])])


def _records(fields: dict[str, str], columns: dict[str, np.ndarray]) -> np.ndarray:
    table = np.zeros(len(columns[next(iter(fields))]), np.dtype(list(fields.items())))
    for name in fields:
        table[name] = columns[name]
    return table
