"""Full Geant4 through calzone: the reference that the fast engine is measured against (extra `geant4`)."""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.materials import Material
from calolife.errors import FileFormatError, MissingExtraError
from calolife.showers.events import Showers
from calolife.showers.splitmix import next_state
from calolife.simulation.engines import check_request
from calolife.simulation.particles import PDG, Particles

__all__ = ["geant4_geometry", "simulate_geant4"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Detector = LayeredCalorimeter | CrystalCalorimeter

_BATCH_GEV = 150.0  # chosen: some 1000 steps a GeV at 120 bytes keep a batch below 20 MB
_MUON_GEV = 3.0  # chosen: a muon of any energy mostly costs what it loses on its way through
_BATCH_SHOWERS = 500  # chosen: the work done once a batch and layer is then below a percent
_START_MM = 1.0  # chosen: particles start this far before the front face, so that none starts inside it
_MARGIN_MM = 500.0  # chosen: vacuum around the detector
_WRAP = 24  # chosen: crystals repeated beyond either end of a periodic matrix, 50 cm of PbWO4, 24 Moliere radii
_SHORTEST_MM = 1e-6  # chosen: a deposit on a shorter chord is quenched to nothing either way
_STREAM = 0x6734  # chosen: "g4" in ASCII; keeps the engine's numbers apart from those of the gun


@dataclass(frozen=True)
class _Volumes:
    """How active volumes map to cells: one entry a volume, in the order of the cells."""

    paths: tuple[str, ...]
    birks: FloatArray  # (volume,) [mm / MeV]
    offset: IntArray  # (volume,) first cell
    n_x: IntArray  # (volume,)
    n_y: IntArray  # (volume,)


@dataclass(frozen=True)
class _Prepared:
    """Geant4 with a geometry in it."""

    key: str
    simulation: Any
    seed: int


_own: _Prepared | None = None
_helper: tuple[str, ProcessPoolExecutor] | None = None


def simulate_geant4(
    detector: Detector,
    particles: Particles,
    *,
    seed: int,
    birks: bool = True,
    first: int = 0,
    physics: str = "FTFP_BERT",
    cut_mm: float = 0.7,
) -> Showers:
    """Shower particles with Geant4.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    particles : Particles
    seed : int
    birks : bool
        Quench the light by Birks' law, with each material's constant.
    first : int
        Number of the first shower. Shower i depends on the seed, on ``first + i`` and on its particles only.
    physics : {"FTFP_BERT", "QGSP_BERT"}
    cut_mm : float [mm]
        Production cut in range.

    Returns
    -------
    Showers
        Simhits; `active_mev` is the deposit in active material before quenching.

    Raises
    ------
    MissingExtraError
        Without calzone, or without Geant4's data.
    FileFormatError
        Geant4's data lack a part.
    ValueError
        Another physics list, a cut that is not > 0, a material that Geant4 does not know.
    ChildProcessError
        The process that ran Geant4 died.

    Notes
    -----
    A step of length L with deposit dE gives the light dE / (1 + kB dE/L), L being its chord. Where kB > 0, deposits at a
    point (nuclear recoils, shells below the production cut) give no light. There is no time gate: the light of late
    neutrons counts in full. Energy that leaks, or stays in passive material or in binding, is not followed: NaN.

    Geant4's hadronic showers depend on what materials a process has seen before. So a process simulates one geometry with
    one physics list and cut; another one goes to a process beside it, which is kept until a third is asked for. A script
    that simulates several detectors needs ``if __name__ == "__main__":`` around its work.

    Source of the quenching: J. B. Birks, Proc. Phys. Soc. A 64 (1951) 874. Geant4: S. Agostinelli et al., Nucl. Instrum.
    Meth. A 506 (2003) 250; calzone: V. Niess, github.com/niess/calzone.
    """
    check_request(physics=physics, cut_mm=cut_mm, seed=seed, first=first)
    _calzone()
    key = _key(detector, physics=physics, cut_mm=cut_mm)
    work = partial(_simulate_here, detector, particles, key=key, seed=seed, birks=birks, first=first, physics=physics, cut_mm=cut_mm)
    if _own is None or _own.key == key:
        return work()
    try:
        return _helper_for(key).submit(work).result()
    except BrokenProcessPool:
        _close_helper()
        raise ChildProcessError(
            "the process that ran Geant4 died: it was killed, had no memory left, met an error of Geant4 (see above), or the script "
            "that simulates a second detector has no 'if __name__ == \"__main__\":'"
        ) from None


def geant4_geometry(detector: Detector) -> dict[str, Any]:
    """The detector as calzone's geometry: a tree of boxes without overlap, lengths in cm.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter

    Returns
    -------
    dict
        What ``calzone.Geometry`` takes. Active volumes record their deposits. A crystal matrix is one slab of active
        material a row (same eta), cut by vacuum gaps; a periodic one is repeated beyond both of its ends.
    """
    world: dict[str, Any]
    if isinstance(detector, CrystalCalorimeter):
        world, materials = _crystal_boxes(detector), [detector.material]
        half_y_mm = float(np.abs(_columns(detector)[0]).max())
    else:
        world, materials = _layer_boxes(detector), [layer.material for layer in detector.layers]
        half_y_mm = detector.size_y_mm / 2
    # lengths from end to end, centred on 0 as the world is: twice the detector's depth
    reach_mm = (detector.size_x_mm / 2, half_y_mm, float(detector.z_mm[-1]))
    world["box"] = [0.2 * (reach + _MARGIN_MM) for reach in reach_mm]
    world["material"] = "G4_Galactic"
    geometry: dict[str, Any] = {"World": world}
    if mixed := {m.name: _mixture(m) for m in materials if not m.name.startswith("G4_")}:
        geometry["materials"] = {"mixtures": mixed}
    return geometry


def _mixture(material: Material) -> dict[str, Any]:
    if not material.fractions:
        raise ValueError(f"material {material.name!r} is not in Geant4's table; name one such as G4_Fe, or mix it with mixture()")
    return {"density": material.density_g_cm3, "state": "solid", "composition": dict(material.fractions)}


def _layer_boxes(detector: LayeredCalorimeter) -> dict[str, Any]:
    size, z_cm = [0.1 * detector.size_x_mm, 0.1 * detector.size_y_mm], 0.1 * np.asarray(detector.z_mm, np.float64)
    boxes = {}
    for i, layer in enumerate(detector.layers):
        centre = [0.0, 0.0, float(z_cm[i] + z_cm[i + 1]) / 2]
        box = {"box": [*size, 0.1 * layer.thickness_mm], "material": layer.material.name, "position": centre}
        boxes[f"L{i:04d}"] = box | ({"role": "record_deposits"} if layer.is_active else {})
    return boxes


def _crystal_boxes(detector: CrystalCalorimeter) -> dict[str, Any]:
    length_cm = 0.1 * float(detector.length_mm)
    x_cm, y_cm = 0.1 * np.asarray(detector.x_edges_mm, np.float64), 0.1 * _columns(detector)[0]
    y_centre, y_size = (y_cm[0, 0] + y_cm[-1, 1]) / 2, y_cm[-1, 1] - y_cm[0, 0]
    gaps = [(low, high) for low, high in zip(y_cm[:-1, 1], y_cm[1:, 0], strict=True) if high > low]
    rows = {}
    for i, (low, high) in enumerate(x_cm):
        row: dict[str, Any] = {
            "box": [float(high - low), float(y_size), length_cm],
            "material": detector.material.name,
            "position": [float(low + high) / 2, float(y_centre), length_cm / 2],
            "role": "record_deposits",
        }
        for j, (start, stop) in enumerate(gaps):
            size = [float(high - low), float(stop - start), length_cm]
            row[f"G{j:04d}"] = {"box": size, "material": "G4_Galactic", "position": [0.0, float((start + stop) / 2 - y_centre), 0.0]}
        rows[f"R{i:04d}"] = row
    return rows


def _columns(detector: CrystalCalorimeter) -> tuple[FloatArray, IntArray]:
    """Lower and upper y of every column of crystals that Geant4 sees, (column, 2) [mm], and the column each stands for."""
    y_mm = np.asarray(detector.y_edges_mm, np.float64)
    column = np.arange(detector.n_phi)
    if not detector.is_phi_periodic:
        return y_mm, column
    period, n = detector.period_y_mm, min(_WRAP, detector.n_phi)
    return np.concatenate([y_mm[-n:] - period, y_mm, y_mm[:n] + period]), np.concatenate([column[-n:], column, column[:n]])


def _volumes(detector: Detector) -> _Volumes:
    if isinstance(detector, CrystalCalorimeter):
        n = len(detector.ieta)
        return _Volumes(
            tuple(f"World.R{i:04d}" for i in range(n)), np.full(n, detector.material.birks_mm_per_mev),
            np.arange(n) * np.int64(detector.n_phi), np.ones(n, np.int64), np.full(n, detector.n_phi),
        )  # fmt: skip
    active = [(i, layer) for i, layer in enumerate(detector.layers) if layer.is_active]
    return _Volumes(
        tuple(f"World.L{i:04d}" for i, _ in active),
        np.array([layer.material.birks_mm_per_mev for _, layer in active]),
        np.asarray(detector.cell_offset[:-1], np.int64),
        np.array([layer.cells[0] for _, layer in active], np.int64),
        np.array([layer.cells[1] for _, layer in active], np.int64),
    )


def _key(detector: Detector, *, physics: str, cut_mm: float) -> str:
    """What fixes the state of Geant4: cells, readout and name of the detector do not."""
    text = json.dumps([geant4_geometry(detector), physics, float(cut_mm)])
    return hashlib.sha256(text.encode()).hexdigest()


def _simulate_here(
    detector: Detector, particles: Particles, *, key: str, seed: int, birks: bool, first: int, physics: str, cut_mm: float
) -> Showers:
    calzone = _calzone()
    simulation = _prepare(detector, key=key, seed=seed, physics=physics, cut_mm=cut_mm)
    volumes = _volumes(detector)
    incident = particles.incident()
    active_mev = np.zeros(particles.n_showers)
    keys, sums = [], []
    cost_gev = np.where(np.abs(incident.pdg_id) == PDG["mu-"], np.minimum(incident.energy_gev, _MUON_GEV), incident.energy_gev)
    for start, stop in _batches(cost_gev):
        batch = particles.showers(start, stop)
        deposits = _run(simulation, _primaries(calzone, batch), _random_indices(batch, first=first + start))
        where, visible_mev, deposit_mev, shower = _cells(detector, volumes, deposits, batch, birks=birks)
        found, index = np.unique(where, return_inverse=True)
        keys.append(found + start * np.int64(detector.n_cells))
        sums.append(np.bincount(index, weights=visible_mev, minlength=found.size))
        active_mev[start:stop] = np.bincount(shower, weights=deposit_mev, minlength=stop - start)
    where, energy = np.concatenate(keys), np.concatenate(sums).astype(np.float32)
    is_lit = energy > 0
    where, energy = where[is_lit], energy[is_lit]
    return Showers(
        detector,
        np.searchsorted(where, np.arange(particles.n_showers + 1) * np.int64(detector.n_cells)),
        (where % detector.n_cells).astype(np.int32),
        energy,
        incident.pdg_id,
        incident.energy_gev,
        np.concatenate([incident.position_mm, np.zeros((incident.n_particles, 1))], axis=1),
        incident.direction,
        active_mev=active_mev,
        origin={
            "engine": "geant4", "seed": seed, "birks": birks, "physics": physics, "cut_mm": float(cut_mm),
            "geant4": str(calzone.GEANT4_VERSION), "calzone": str(calzone.VERSION),
        },
    )  # fmt: skip


def _batches(cost_gev: FloatArray) -> Iterator[tuple[int, int]]:
    """Ranges of showers that fit into memory together; one shower, however energetic, at the least."""
    start, total = 0, 0.0
    for i, cost in enumerate(cost_gev.tolist()):
        if i > start and (total + cost > _BATCH_GEV or i - start >= _BATCH_SHOWERS):
            yield start, i
            start, total = i, 0.0
        total += cost
    if start < cost_gev.size:
        yield start, int(cost_gev.size)


def _primaries(calzone: Any, particles: Particles) -> NDArray[Any]:
    primaries: NDArray[Any] = calzone.particles(particles.n_particles)
    primaries["pid"] = particles.pdg_id
    primaries["energy"] = 1e3 * particles.energy_gev
    primaries["direction"] = particles.direction
    at = np.concatenate([particles.position_mm, np.zeros((particles.n_particles, 1))], axis=1)
    primaries["position"] = 0.1 * (at - _START_MM * particles.direction / particles.direction[:, 2:])
    return primaries


def _random_indices(particles: Particles, *, first: int) -> NDArray[np.uint64]:
    """Where in Geant4's stream of 2^128 numbers each particle starts, (particle, 2).

    Scattered by a hash of the shower's number and the particle's place in it: equal steps along the stream of a linear
    generator would be correlated.
    """
    assert particles.shower is not None
    begin = np.searchsorted(particles.shower, particles.shower)  # first particle of the same shower
    place = np.arange(particles.n_particles) - begin
    number = (particles.shower + first).astype(np.uint64)
    state = next_state(next_state(number + np.uint64(_STREAM)) + place.astype(np.uint64))
    return np.stack([next_state(state), next_state(~state)], axis=1)


def _cells(
    detector: Detector, volumes: _Volumes, deposits: dict[str, Any], particles: Particles, *, birks: bool
) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """Shower and cell as one number, visible energy, deposited energy and shower of every deposit of a batch.

    Volume by volume in the order of the cells, steps before points: sums in floating point must not depend on the order in
    which Geant4 hands the volumes out.
    """
    assert particles.shower is not None
    hit = [(i, deposits[path]) for i, path in enumerate(volumes.paths) if path in deposits]
    lines, points = [(i, d.line) for i, d in hit if len(d.line)], [(i, d.point) for i, d in hit if len(d.point)]
    volume = np.repeat([i for i, _ in (*lines, *points)], [len(x) for _, x in (*lines, *points)]).astype(np.int64)
    if not volume.size:
        return volume, np.empty(0), np.empty(0), volume
    deposit_mev = np.concatenate([x["value"] for _, x in (*lines, *points)])
    visible_mev = deposit_mev.copy()
    at_mm = np.empty((volume.size, 2))
    n_line = sum(len(x) for _, x in lines)
    is_quenched = birks and bool(volumes.birks.any())
    if n_line:
        n_axes = 3 if is_quenched else 2  # the chord needs z as well
        begin, end = (np.concatenate([x[name][:, :n_axes] for _, x in lines]) for name in ("start", "end"))
        at_mm[:n_line] = 5.0 * (begin[:, :2] + end[:, :2])
        if is_quenched:
            end -= begin
            chord_mm = np.maximum(10.0 * np.sqrt(np.einsum("ij,ij->i", end, end)), _SHORTEST_MM)
            step = deposit_mev[:n_line]
            visible_mev[:n_line] = step / (1.0 + volumes.birks[volume[:n_line]] * step / chord_mm)
    if points:
        at_mm[n_line:] = 10.0 * np.concatenate([x["position"][:, :2] for _, x in points])
        if is_quenched:
            visible_mev[n_line:][volumes.birks[volume[n_line:]] > 0] = 0.0
    shower = particles.shower[np.concatenate([x["event"] for _, x in (*lines, *points)]).astype(np.int64)]
    cell = volumes.offset[volume]
    if isinstance(detector, CrystalCalorimeter):
        edges, column = _columns(detector)
        cell += column[np.clip(np.searchsorted(edges[:, 0], at_mm[:, 1], side="right") - 1, 0, column.size - 1)]
    else:
        n_x, n_y = volumes.n_x[volume], volumes.n_y[volume]
        # a step along the edge of the detector may end a rounding error outside of it
        ix = np.clip(((at_mm[:, 0] / detector.size_x_mm + 0.5) * n_x).astype(np.int64), 0, n_x - 1)
        iy = np.clip(((at_mm[:, 1] / detector.size_y_mm + 0.5) * n_y).astype(np.int64), 0, n_y - 1)
        cell += ix * n_y + iy
    return shower * np.int64(detector.n_cells) + cell, visible_mev, deposit_mev, shower


def _calzone() -> Any:
    try:
        import calzone
    except ImportError:
        raise MissingExtraError(
            'engine="geant4" needs calzone, and Geant4\'s data: pip install "calolife[geant4]" and then python -m calzone download'
        ) from None
    return calzone


def _prepare(detector: Detector, *, key: str, seed: int, physics: str, cut_mm: float) -> Any:
    global _own
    calzone = _calzone()
    if _own is None:
        try:
            simulation = calzone.Simulation(
                calzone.Geometry(geant4_geometry(detector)), calzone.Physics("standard", had_model=physics, default_cut=0.1 * cut_mm)
            )
        except ValueError as error:
            raise ValueError(f"Geant4 refuses detector {detector.name!r}: {error}") from None
        simulation.sample_deposits, simulation.sample_particles = "detailed", False
        _own = _Prepared(key, simulation, -1)
    assert _own.key == key, "a process runs one geometry"
    if _own.seed != seed:
        low, high = (int(word) for word in np.random.SeedSequence([seed, _STREAM]).generate_state(2, np.uint64))
        _own.simulation.random = calzone.Random(high << 64 | low)
        _own = _Prepared(key, _own.simulation, seed)
    return _own.simulation


def _run(simulation: Any, primaries: NDArray[Any], random_indices: NDArray[np.uint64]) -> dict[str, Any]:
    global _own
    try:
        result = simulation.run(primaries, random_indices=random_indices)
    except FileNotFoundError as error:
        _own = None  # Geant4 has not started: another try may find its data
        match = re.search(r"bad (\S+) dataset \(missing (?:folder|file)?:? ?(.*)\)", str(error))
        missing = Path(match[2]) if match else Path(str(error))
        if match and missing.parent.is_dir():
            raise FileFormatError(
                f"Geant4's data in {missing.parent} lack {missing.name}; get them whole: python -m calzone download"
            ) from None
        raise MissingExtraError(
            f"Geant4's data are not in {missing.parent}: python -m calzone download, or let GEANT4_DATA_DIR name their folder"
        ) from None
    deposits: dict[str, Any] = getattr(result, "deposits", result)
    return deposits


def _helper_for(key: str) -> ProcessPoolExecutor:
    """The process beside this one that holds the geometry, a fresh one for another geometry."""
    global _helper
    if _helper is None or _helper[0] != key:
        _close_helper()
        # spawned: a forked copy would hold this process's Geant4
        _helper = (key, ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")))
    return _helper[1]


def _close_helper() -> None:
    global _helper
    if _helper is not None:
        _helper[1].shutdown(wait=True, cancel_futures=True)
        _helper = None


atexit.register(_close_helper)
