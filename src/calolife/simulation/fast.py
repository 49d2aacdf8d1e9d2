"""The fast engine: parametrised showers, one compiled loop over showers, one random stream a shower."""

from __future__ import annotations

import zlib
from importlib import resources

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.showers.events import Showers
from calolife.simulation.constants import Constants, load_constants
from calolife.simulation.electromagnetic import electromagnetic_shower
from calolife.simulation.hadronic import MUON, NEUTRON, PION, PROTON, WAITING, hadronic_shower
from calolife.simulation.particles import PDG, Particles
from calolife.simulation.random import landau_table, start_stream
from calolife.simulation.stack import build_stack

__all__ = ["engine_digest", "simulate_fast"]

_COMPILED = ("random", "electromagnetic", "hadronic", "fast", "stack")
_ELECTRON, _PHOTON = -1, -2
_KIND = {
    "e-": _ELECTRON, "e+": _ELECTRON, "gamma": _PHOTON, "pi-": PION, "pi+": PION, "proton": PROTON, "neutron": NEUTRON,
    "mu-": MUON, "mu+": MUON,
}  # fmt: skip


def simulate_fast(
    detector: LayeredCalorimeter | CrystalCalorimeter,
    particles: Particles,
    *,
    seed: int,
    birks: bool = True,
    first: int = 0,
    constants: Constants | None = None,
) -> Showers:
    """Shower particles with the parametrised engine.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    particles : Particles
    seed : int
    birks : bool
        Quench the light by Birks' law.
    first : int
        Number of the first shower; shower i depends on the seed, on ``first + i`` and on its own particles only.
    constants : Constants, optional
        Those of the package when left out.

    Returns
    -------
    Showers
        Simhits.

    Notes
    -----
    Electromagnetic showers: Grindhammer and Peters, hep-ex/0001020. Hadrons: `hadronic`. Not modelled: time, charge
    exchange of slow pions with hydrogen, decays in flight, muon bremsstrahlung, polarised or magnetic effects. Tuned
    between 1.5 and 60 GeV on sampling stacks of 0.3 to 3.7 X0 a layer and on PbWO4; beyond, it extrapolates.
    """
    constants = constants or load_constants()
    stack = build_stack(detector, constants, birks=birks)
    kind_of = {PDG[name]: kind for name, kind in _KIND.items()}
    kind = np.array([kind_of[int(p)] for p in particles.pdg_id], np.int64)
    n = particles.n_showers
    # one particle a shower is the rule; the offsets say where each shower's particles start
    assert particles.shower is not None
    bounds = np.searchsorted(particles.shower, np.arange(n + 1))
    position = _entry(detector, particles)
    try:
        counts, cell, energy, budget = _run(
            stack, _record(constants), landau_table(), int(detector.n_cells), bounds, kind, 1000.0 * particles.energy_gev, position,
            particles.direction, np.uint64(seed), first,
        )  # fmt: skip
    except SystemError as error:
        # numba hands results over through Python code; Ctrl-C that lands there comes out wrapped
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        if cause is None:
            raise
        raise KeyboardInterrupt from None
    incident = particles.incident()
    entered = 1000.0 * np.bincount(particles.shower, particles.energy_gev, n)
    active, passive, leaked, invisible = budget.T
    rest = entered - active - leaked - invisible
    if np.all(stack.slabs["active"] >= 0):
        passive, invisible = np.zeros(n), invisible + rest  # no passive material: what is left broke nuclei
    else:
        passive = rest
    return Showers(
        detector=detector,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        cell=cell,
        energy_mev=energy,
        pdg_id=incident.pdg_id,
        energy_gev=incident.energy_gev,
        position_mm=np.column_stack([incident.position_mm, np.zeros(n)]),
        direction=incident.direction,
        kind="simhit",
        readout=None,
        origin={"engine": "fast", "seed": int(seed), "birks": bool(birks)},
        active_mev=active,
        passive_mev=passive,
        leaked_mev=leaked,
        invisible_mev=invisible,
    )


def _record(constants: Constants) -> NDArray[np.void]:
    return np.array([tuple(constants)], np.dtype([(name, "f8") for name in constants._fields]))


def _entry(detector: LayeredCalorimeter | CrystalCalorimeter, particles: Particles) -> NDArray[np.float64]:
    """Where each particle meets material, (particle, 3) [mm]; in a crystal matrix in coordinates from which the gaps are taken out."""
    x, y, z = particles.position_mm[:, 0].copy(), particles.position_mm[:, 1].copy(), np.zeros(len(particles.pdg_id))
    if isinstance(detector, LayeredCalorimeter):
        return np.column_stack([x, y, z])
    slope_x, slope_y = (particles.direction[:, :2] / particles.direction[:, 2:]).T
    x_edges, y_edges = detector.x_edges_mm, detector.y_edges_mm
    if detector.is_phi_periodic:  # the gap of the seam counts as before the first column
        last = y_edges[-1, 1]
        y = last - (last - y) % detector.period_y_mm
    # into a gap: on along the direction to the crystal beside it, out at the back if there is none on the way
    for position, slope, edges in ((x, slope_x, x_edges), (y, slope_y, y_edges)):
        row = np.searchsorted(edges[:, 0], position, side="right") - 1
        inside = np.clip(row, 0, None)
        in_gap = (row < 0) | (position >= edges[inside, 1])
        right = np.clip(inside + (row >= 0), 0, len(edges) - 1)
        back = edges[-1, 1] - detector.period_y_mm if detector.is_phi_periodic and edges is y_edges else edges[0, 0]
        goal = np.where(slope > 0, edges[right, 0], np.where(row < 0, back, edges[inside, 1]))
        with np.errstate(divide="ignore", invalid="ignore"):
            way = np.where(in_gap, (goal - position) / slope, 0.0)
        way = np.where(np.isfinite(way) & (way >= 0), way, detector.length_mm)
        z = np.maximum(z, np.where(in_gap, way, 0.0))
    x, y = x + slope_x * z, y + slope_y * z
    if detector.is_phi_periodic:
        y = y_edges[0, 0] + (y - y_edges[0, 0]) % detector.period_y_mm
    flat = []
    for position, edges in ((x, x_edges), (y, y_edges)):
        row = np.clip(np.searchsorted(edges[:, 0], position, side="right") - 1, 0, len(edges) - 1)
        within = np.minimum(position - edges[row, 0], detector.crystal_size_mm * (1 - 1e-9))
        start = (row - 0.5 * len(edges)) * detector.crystal_size_mm
        # beside the matrix it stays as far outside
        beyond = np.where(position < edges[0, 0], position - edges[0, 0], np.maximum(position - edges[-1, 1], 0.0))
        flat.append(start + np.where(position < edges[0, 0], 0.0, within) + beyond)
    return np.column_stack([*flat, np.minimum(z, detector.length_mm)])


def engine_digest() -> str:
    """What the showers of this engine depend on besides their arguments: its source and its constants, 16 hex digits."""
    return f"{_digest_of_sources():08x}{zlib.crc32(repr(load_constants()).encode()):08x}"


def _digest_of_sources() -> int:
    # numba watches the file of a cached function only, not the files of what it calls
    text = "".join(resources.files("calolife.simulation").joinpath(f"{name}.py").read_text(encoding="utf-8") for name in _COMPILED)
    return zlib.crc32(text.encode())


def _compiled(digest: int):  # type: ignore[no-untyped-def]
    """The loop over showers; `digest` is part of the key under which numba keeps its machine code."""

    @njit(cache=True, nogil=True)
    def run(st, constants, table, n_cells, bounds, kind, energy, position, direction, seed, first):  # type: ignore[no-untyped-def]
        n = len(bounds) - 1 if digest >= 0 else 0
        c = constants[0]  # a record is handed on as one pointer
        state = np.empty(4, np.uint64)
        grid, touched, waiting = np.zeros(n_cells), np.empty(n_cells, np.int64), np.empty((WAITING, 8))
        counts, budget = np.zeros(n, np.int64), np.zeros((n, 4))
        cells, values = np.empty(1024, np.int32), np.empty(1024, np.float32)
        used = 0
        for i in range(n):
            start_stream(state, seed, first + i)
            hit = 0
            for j in range(bounds[i], bounds[i + 1]):
                x, y, z = position[j, 0], position[j, 1], position[j, 2]
                ux, uy, uz = direction[j, 0], direction[j, 1], direction[j, 2]
                if z >= st.z[-1]:
                    budget[i, 2] += energy[j]
                elif kind[j] < 0:
                    hit = electromagnetic_shower(
                        state, c, st, grid, touched, hit, energy[j], kind[j] == _PHOTON, x, y, z, ux, uy, uz, budget[i]
                    )
                else:
                    hit = hadronic_shower(
                        state, c, st, table, grid, touched, hit, waiting, kind[j], energy[j], x, y, z, ux, uy, uz, budget[i]
                    )
            if used + hit > len(cells):
                size = max(2 * len(cells), used + hit)
                more_cells, more_values = np.empty(size, np.int32), np.empty(size, np.float32)
                more_cells[:used], more_values[:used] = cells[:used], values[:used]
                cells, values = more_cells, more_values
            order = np.sort(touched[:hit])
            kept = 0
            for k in range(hit):
                value = np.float32(grid[order[k]])
                grid[order[k]] = 0.0
                if value > 0.0:
                    cells[used + kept], values[used + kept] = order[k], value
                    kept += 1
            used += kept
            counts[i] = kept
        return counts, cells[:used].copy(), values[:used].copy(), budget

    return run


_run = _compiled(_digest_of_sources())
