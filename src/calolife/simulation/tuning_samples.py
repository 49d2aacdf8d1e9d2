"""The Geant4 samples that the fast engine is tuned to: the list of them, how they are made, and read."""

from __future__ import annotations

import math
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.detector.materials import material
from calolife.detector.presets import Detector, load_detector
from calolife.errors import FileFormatError
from calolife.showers.events import Showers
from calolife.simulation.particles import parse_particle
from calolife.simulation.production import Production, simulate_parts

__all__ = ["TuningSample", "load_tuning", "make_sample", "read_sample"]

Report = Callable[[str, float, float], None]

_LEAST_SHOWERS = 20  # chosen: fewer have no spread to speak of


@dataclass(frozen=True)
class TuningSample:
    """A sample of the tuning list.

    Parameters
    ----------
    stage : str
    detector : LayeredCalorimeter or CrystalCalorimeter
    particle : str
    energy_gev : float [GeV]
    n, n_fast : int
        Showers by Geant4, and by the fast engine for each trial of constants.
    weight : float
    beam_spot_mm : float [mm]
    seed : int
    """

    stage: str
    detector: Detector
    particle: str
    energy_gev: float
    n: int
    n_fast: int
    weight: float
    beam_spot_mm: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.detector.name}_{self.particle}_{self.energy_gev:g}"

    def production(self, *, engine: str) -> Production:
        """What makes it."""
        return Production(
            self.detector, self.n, particle=self.particle, energy_gev=self.energy_gev, beam_spot_mm=self.beam_spot_mm, engine=engine,
            seed=self.seed,
        )  # fmt: skip


def load_tuning(path: str | Path | None = None, *, events_scale: float = 1.0) -> tuple[TuningSample, ...]:
    """Samples of the packaged tuning list, or of another one.

    Parameters
    ----------
    path : str or Path, optional
        A TOML file written like the packaged ``data/tuning.toml``.
    events_scale : float
        Factor on all numbers of showers, for a quick look; no sample gets fewer than 20.

    Returns
    -------
    tuple of TuningSample

    Raises
    ------
    FileFormatError
        Not TOML, a key that is missing or not known, lists of different lengths, the same sample twice.
    ValueError
        A scale that is not > 0; what detectors and particles refuse.

    Examples
    --------
    >>> sorted({s.stage for s in load_tuning()})
    ['em-homogeneous', 'em-sampling', 'hadronic']
    """
    if not (math.isfinite(events_scale) and events_scale > 0):
        raise ValueError(f"events scale {events_scale:g} must be finite and > 0")
    what = "the packaged tuning list" if path is None else str(path)
    source = resources.files("calolife.data").joinpath("tuning.toml") if path is None else Path(path)
    try:
        given = tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{what} is not TOML: {error}") from None
    stacks = {name: _stack(name, values, what=what) for name, values in given.get("stack", {}).items()}
    samples: list[TuningSample] = []
    for entry in given.get("sample", []):
        samples.extend(_samples(entry, stacks, what=what, events_scale=events_scale))
    if not samples:
        raise FileFormatError(f"{what} names no samples; give [[sample]] tables")
    names = [s.name for s in samples]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise FileFormatError(f"{what} has the sample {twice[0]} twice; give each detector, particle and energy once")
    return tuple(samples)


def _stack(name: str, values: Mapping[str, Any], *, what: str) -> LayeredCalorimeter:
    wanted = {"n", "absorber", "absorber_mm", "active", "active_mm", "cells", "size_mm"}
    if unknown := sorted(set(values) - wanted):
        raise FileFormatError(f"{what}: stack {name} has a key {unknown[0]!r}; allowed: {', '.join(sorted(wanted))}")
    try:
        active = Layer(material(values.get("active", "G4_POLYSTYRENE")), values["active_mm"], True, (values["cells"],) * 2)
        period = [Layer(material(values["absorber"]), values["absorber_mm"]), active] if "absorber" in values else [active]
        return LayeredCalorimeter(name, (), values["size_mm"], values["size_mm"]).add_period(values["n"], *period)
    except KeyError as error:
        raise FileFormatError(f"{what}: stack {name} has no {error.args[0]}") from None


def _samples(entry: Mapping[str, Any], stacks: Mapping[str, LayeredCalorimeter], *, what: str, events_scale: float) -> list[TuningSample]:
    try:
        stage, detector, seed = entry["stage"], entry["detector"], int(entry["seed"])
        energies, counts, trials = entry["energy_gev"], entry["n"], entry["n_fast"]
        particles, spot = entry["particles"], float(entry["beam_spot_mm"])
    except KeyError as error:
        raise FileFormatError(f"{what}: a sample has no {error.args[0]}") from None
    weights = entry.get("weight", [1.0] * len(energies))
    if not len(energies) == len(counts) == len(trials) == len(weights):
        raise FileFormatError(f"{what}: samples of {detector}: energy_gev, n, n_fast and weight must be lists of one length")
    calo = stacks[detector] if detector in stacks else load_detector(detector)
    made = []
    for particle in particles:
        parse_particle(particle)
        for energy, n, n_fast, weight in zip(energies, counts, trials, weights, strict=True):
            here, fast = (max(_LEAST_SHOWERS, round(events_scale * k)) for k in (n, n_fast))
            made.append(TuningSample(stage, calo, particle, float(energy), here, fast, float(weight), spot, seed))
    return made


def make_sample(sample: TuningSample, folder: Path, *, engine: str = "geant4", workers: int, tell: Report) -> Path:
    """The file of a sample, simulated if the folder lacks it; a stopped simulation is taken up.

    Parameters
    ----------
    sample : TuningSample
    folder : Path
    engine : {"geant4", "fast"}
        ``fast`` stands in for Geant4 to see the fit close.
    workers : int
        Processes; what they make does not depend on it.
    tell : callable
        Called with (sample, done, wanted).

    Returns
    -------
    Path
    """
    from calolife.showers.files import write_showers

    path = folder / f"{sample.name}.h5"
    if path.exists():
        return path
    # other numbers of showers end in other parts: they must not meet
    parts = folder / f"{sample.name}_{engine}_{sample.seed}_{sample.n}.parts"
    made = simulate_parts(
        sample.production(engine=engine), parts, workers=workers, tell=lambda _, done, total: tell(f"{engine} {sample.name}", done, total)
    )
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    write_showers(beside, _read_all(made))
    os.replace(beside, path)
    shutil.rmtree(parts)
    return path


def _read_all(paths: Sequence[Path]) -> Iterator[Showers]:
    from calolife.showers.files import read_showers

    return (read_showers(path) for path in paths)


def read_sample(sample: TuningSample, folder: Path, *, engine: str = "geant4") -> Showers:
    """A sample that is there, checked to be what the list asks for; of a longer one, the first showers.

    Raises
    ------
    FileFormatError
        Another engine, detector, particle, energy or seed, or too few showers.
    """
    from calolife.showers.files import read_showers

    path = folder / f"{sample.name}.h5"
    showers = read_showers(path)
    origin = showers.origin
    code = int(parse_particle(sample.particle)[0][0])
    found = {
        "engine": origin.get("engine") == engine,
        "detector": showers.detector.digest == sample.detector.digest,
        "particle": bool(np.all(showers.pdg_id == code)),
        "energy": bool(np.allclose(showers.energy_gev, sample.energy_gev)),
        "seed": origin.get("seed") == sample.seed,
        "number of showers": showers.n_showers >= sample.n,
    }
    if wrong := [name for name, is_right in found.items() if not is_right]:
        raise FileFormatError(f"{path} has another {wrong[0]} than the tuning list; remove it to make it again, or give another folder")
    return showers.between(0, sample.n)
