"""Long simulations in parts: over processes, stopped at any moment, taken up again, always with the same showers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.errors import FileFormatError
from calolife.showers.events import Showers
from calolife.simulation.collisions import MINBIAS, sample_collisions
from calolife.simulation.engines import check_request, simulate_showers
from calolife.simulation.particles import PDG, Particles, parse_particle, sample_particles

__all__ = ["Production", "Summary", "n_cores", "read_part", "simulate_parts", "start_worker", "summarise"]

FloatArray = NDArray[np.float64]
Report = Callable[[str, float, float], None]

# energy simulated between two looks at the clock, and the most showers in it; chosen: seconds of work, some 100 MB at most
_PART_GEV = {"fast": 20_000.0, "geant4": 2_000.0}
_PART_SHOWERS = {"fast": 2_000, "geant4": 500}
_MOST_SHOWERS = 10**9  # chosen: parts are numbered with nine digits; terabytes of pions
_COLLISION_GEV = 10.0  # chosen: about what one of pileup brings into the CMS barrel
_MUON_GEV = 3.0  # chosen: a muon of any energy mostly costs what it loses on its way through


class _Sample(Protocol):
    """A sample that `simulate_parts` can make: `Production`, and what is shot by other rules than the gun's."""

    @property
    def n(self) -> int: ...
    @property
    def part_size(self) -> int: ...
    def simulate(self, start: int, stop: int) -> Showers: ...


@dataclass(frozen=True)
class Production:
    """A sample to simulate: arguments of `sample_particles` or `sample_collisions`, and of `simulate_showers`.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    n : int
        Showers.
    particle : str
        ``minbias`` stands for collisions: without energy, transverse momentum, position and spot.
    energy_gev, pt_gev : float or (float, float), optional [GeV]
        Exactly one of them for particles.
    position_mm : (float, float), optional [mm]
    beam_spot_mm : float, optional [mm]
    angle_deg : float or (float, float) [degrees]
    engine : {"fast", "geant4"}
    seed : int
    birks : bool
    physics : {"FTFP_BERT", "QGSP_BERT"}
    cut_mm : float [mm]

    Raises
    ------
    ValueError
        No showers or too many, a detector without active layers, collisions with what belongs to a beam, or what
        `check_request`, `sample_particles` and `sample_collisions` refuse.
    """

    detector: LayeredCalorimeter | CrystalCalorimeter
    n: int
    particle: str
    energy_gev: float | tuple[float, float] | None = None
    pt_gev: float | tuple[float, float] | None = None
    position_mm: tuple[float, float] | None = None
    beam_spot_mm: float | None = None
    angle_deg: float | tuple[float, float] = 0.0
    engine: str = "fast"
    seed: int = 0
    birks: bool = True
    physics: str = "FTFP_BERT"
    cut_mm: float = 0.7

    def __post_init__(self) -> None:
        check_request(engine=self.engine, physics=self.physics, cut_mm=self.cut_mm, seed=self.seed)
        if not 1 <= self.n <= _MOST_SHOWERS:
            raise ValueError(f"n = {self.n} showers; ask for at least one and at most {_MOST_SHOWERS} a run")
        self.detector.require_active()
        if self.particle == MINBIAS:
            for name in ("energy_gev", "pt_gev", "position_mm", "beam_spot_mm"):
                if (given := getattr(self, name)) is not None:
                    raise ValueError(f"{name} = {given} belongs to a beam, and {MINBIAS} is collisions; leave it out")
        self._particles(0, 1)

    @property
    def part_size(self) -> int:
        """Showers in a part; it does not depend on who simulates them."""
        if self.particle == MINBIAS:
            return int(min(_PART_GEV[self.engine] / _COLLISION_GEV, _PART_SHOWERS[self.engine]))
        highest_gev = self._highest_gev()
        codes, fractions = parse_particle(self.particle)
        is_muon = np.abs(codes) == PDG["mu-"]
        cost_gev = float(np.sum(fractions * np.where(is_muon, min(highest_gev, _MUON_GEV), highest_gev)))
        return int(max(1, min(_PART_GEV[self.engine] / cost_gev, _PART_SHOWERS[self.engine])))

    def simulate(self, start: int, stop: int) -> Showers:
        """Showers ``start`` to ``stop - 1`` of the sample."""
        return simulate_showers(
            self.detector, self._particles(start, stop), engine=self.engine, seed=self.seed, birks=self.birks, first=start,
            physics=self.physics, cut_mm=self.cut_mm,
        )  # fmt: skip

    def _highest_gev(self) -> float:
        if self.energy_gev is not None:
            return float(np.max(self.energy_gev))
        assert self.pt_gev is not None
        assert isinstance(self.detector, CrystalCalorimeter)
        eta, _ = self.detector.eta_phi_at(self.detector.x_edges_mm[[0, -1], [0, 1]], 0.0)
        return float(np.max(self.pt_gev) * np.cosh(np.abs(eta).max()))

    def _particles(self, start: int, stop: int) -> Particles:
        if self.particle == MINBIAS:
            return sample_collisions(self.detector, stop - start, angle_deg=self.angle_deg, seed=self.seed, first=start)
        return sample_particles(
            self.detector, stop - start, particle=self.particle, energy_gev=self.energy_gev, pt_gev=self.pt_gev,
            position_mm=self.position_mm, beam_spot_mm=self.beam_spot_mm, angle_deg=self.angle_deg, seed=self.seed, first=start,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Summary:
    """What a sample comes to.

    Parameters
    ----------
    n : int
        Showers.
    visible_mev : float array, (shower,) [MeV]
    energy_gev : float array, (shower,) [GeV]
        Incident kinetic energy.
    pdg_id : int array, (shower,)
    visible_mev_mean, n_hits_mean : (float, float)
        Mean and its standard error.
    visible_fraction : (float, float)
        Mean of visible over incident kinetic energy, and its standard error.
    resolution : (float, float)
        Standard deviation of visible over incident energy, relative to its mean, and its standard error.
    layer_mean_mev, layer_error_mev : float array, (layer,) [MeV]
        Mean visible energy of each active layer, and its standard error.
    """

    n: int
    visible_mev: FloatArray
    energy_gev: FloatArray
    pdg_id: NDArray[np.int32]
    visible_mev_mean: tuple[float, float]
    n_hits_mean: tuple[float, float]
    visible_fraction: tuple[float, float]
    resolution: tuple[float, float]
    layer_mean_mev: FloatArray
    layer_error_mev: FloatArray


def summarise(chunks: Iterable[Showers]) -> Summary:
    """Means, resolution and layer profile of a sample read in chunks.

    Notes
    -----
    The standard error of the resolution is that of a standard deviation, sqrt((kurtosis - 1) / 4n), with the sample's kurtosis;
    the error of the mean is small beside it and left out. Errors of a single shower are NaN.
    """
    visible, energy, particle, hits = [], [], [], []
    layer_sum, layer_square = np.zeros(1), np.zeros(1)
    for showers in chunks:
        visible.append(showers.visible_mev)
        energy.append(showers.energy_gev)
        particle.append(showers.pdg_id)
        hits.append(np.diff(showers.offsets))
        layer = showers.layer_energy_mev()
        layer_sum, layer_square = layer_sum + layer.sum(axis=0), layer_square + (layer**2).sum(axis=0)
    visible_mev = np.concatenate(visible)
    energy_gev = np.concatenate(energy)
    n, fraction = visible_mev.size, visible_mev / (1e3 * energy_gev)
    mean, resolution, error = float(fraction.mean()), np.nan, np.nan
    if n > 1 and fraction.std() > 0:
        resolution = float(fraction.std(ddof=1)) / mean
        kurtosis = float(np.mean((fraction - mean) ** 4) / fraction.var() ** 2)
        error = resolution * float(np.sqrt(max(kurtosis - 1, 0) / (4 * n)))
    spread = np.sqrt(np.maximum(layer_square / n - (layer_sum / n) ** 2, 0.0))
    return Summary(
        n, visible_mev, energy_gev, np.concatenate(particle),
        _mean(visible_mev), _mean(np.concatenate(hits)), _mean(fraction), (resolution, error),
        layer_sum / n, spread / np.sqrt(n - 1) if n > 1 else np.full(layer_sum.size, np.nan),
    )  # fmt: skip


def _mean(x: NDArray[Any]) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(x.size)) if x.size > 1 else float("nan")


def simulate_parts(production: _Sample, folder: Path, *, workers: int, tell: Report) -> list[Path]:
    """Simulate a sample into one file a part; parts that are there already are kept.

    Parameters
    ----------
    production : Production
        Or another sample with its `n`, `part_size` and `simulate`; pickled for the workers.
    folder : Path
        Where the parts are, or go.
    workers : int
        Processes; 1: this one.
    tell : callable
        Called with ("showers", done, wanted).

    Returns
    -------
    list of Path
        The parts in order. What is in them does not depend on `workers`, nor on how often the work was stopped.

    Raises
    ------
    ChildProcessError
        A worker process died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [(start, min(start + production.part_size, production.n)) for start in range(0, production.n, production.part_size)]
    paths = [folder / f"{start:09d}.h5" for start, _ in ranges]
    missing = [(path, *r) for path, r in zip(paths, ranges, strict=True) if not path.exists()]
    n_done = production.n - sum(stop - start for _, start, stop in missing)
    tell("showers", n_done, production.n)
    workers = min(workers, len(missing))
    for n in _simulate_beside(production, missing, workers=workers) if workers > 1 else _simulate_here(production, missing):
        n_done += n
        tell("showers", n_done, production.n)
    return paths


def read_part(path: Path) -> Showers:
    """Showers of one finished part.

    Raises
    ------
    FileFormatError
        A part that a crash of the machine or the disk has damaged: it is removed, so that the same call simulates it again.
    """
    from calolife.showers.files import read_showers

    try:
        return read_showers(path)
    except FileFormatError:
        path.unlink(missing_ok=True)
        raise FileFormatError(f"{path} was damaged and is removed; repeat the command to make it again") from None


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _simulate_part(production: _Sample, path: Path, start: int, stop: int) -> int:
    from calolife.showers.files import write_showers

    # a name of its own: a worker that outlives its parent may still write when another run takes up the work
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        write_showers(beside, production.simulate(start, stop))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return stop - start


def _simulate_here(production: _Sample, missing: Sequence[tuple[Path, int, int]]) -> Iterator[int]:
    for part in missing:
        yield _simulate_part(production, *part)


def _simulate_beside(production: _Sample, missing: Sequence[tuple[Path, int, int]], *, workers: int) -> Iterator[int]:
    before = set(multiprocessing.active_children())
    # spawned, not forked: a copy of a process with compiled threads or with Geant4 in it may hang
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        running: set[Future[int]] = set()
        waiting = iter(missing)
        while True:
            # one more than there are workers: none waits, and little is in hand when the work is stopped
            running |= {pool.submit(_simulate_part, production, *part) for part in islice(waiting, workers + 1 - len(running))}
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise ChildProcessError("a worker process died: it was killed, or had no memory left; use fewer --workers") from None
    except BaseException:
        # nobody waits for what the workers have in hand
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Initialise a spawned process: it leaves Ctrl-C to its parent and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the parent was killed: nobody would ever collect this process
