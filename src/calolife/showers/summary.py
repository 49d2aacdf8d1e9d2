"""What a file of showers holds, in numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.detector.presets import Detector
from calolife.showers.events import PDG
from calolife.showers.files import iter_showers, read_layer_sums

__all__ = ["Moments", "describe_layer_sums", "describe_showers"]


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares, added up over parts.

    Examples
    --------
    >>> both = Moments().add(np.array([1.0, 3.0])).add(np.array([2.0]))
    >>> both.mean, round(both.uncertainty, 3), both.n
    (2.0, 0.577, 3)
    """

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: NDArray[Any]) -> Moments:
        """The same with more values."""
        v = np.asarray(values, dtype=np.float64)
        return Moments(self.n + v.size, self.total + float(v.sum()), self.squares + float((v * v).sum()))

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else math.nan

    @property
    def uncertainty(self) -> float:
        """Standard error of the mean; NaN for fewer than two values."""
        if self.n < 2:
            return math.nan
        return math.sqrt(max(self.squares / self.n - self.mean**2, 0.0) / (self.n - 1))


def describe_showers(path: str | Path, *, detector: Detector | None = None) -> dict[str, Any]:
    """Detector, particles, energies, visible energy and occupancy of a file that `read_showers` reads.

    Parameters
    ----------
    path : path
    detector : LayeredCalorimeter or CrystalCalorimeter, optional
        As for `read_showers`.

    Returns
    -------
    dict
        What JSON can hold; NaN where there are no showers.

    Raises
    ------
    FileFormatError, ValueError, MissingExtraError
        As `read_showers`.

    Notes
    -----
    Read part by part: memory does not grow with the file.
    """
    visible, hits, first = Moments(), Moments(), None
    particles: dict[str, tuple[Moments, Moments]] = {}
    lowest, highest = math.inf, -math.inf
    for part in iter_showers(path, detector=detector):
        first = first or part.between(0, 0)
        visible, hits = visible.add(part.visible_mev), hits.add(np.diff(part.offsets))
        if part.n_showers:
            lowest, highest = min(lowest, float(part.energy_gev.min())), max(highest, float(part.energy_gev.max()))
        for code in np.unique(part.pdg_id).tolist():
            name, of_code = _named(code), part.pdg_id == code
            energy, seen = particles.get(name, (Moments(), Moments()))
            particles[name] = energy.add(part.energy_gev[of_code]), seen.add(part.visible_mev[of_code])
    assert first is not None  # iter_showers gives one part at least
    return {
        "path": str(path),
        "kind": first.kind,
        "detector": first.detector.name,
        "detector_digest": first.detector.digest,
        "n_cells": first.detector.n_cells,
        "readout": None if first.readout is None else asdict(first.readout),
        "origin": dict(first.origin),
        "n_showers": visible.n,
        "n_hits": int(hits.total),
        "energy_gev": [lowest if visible.n else math.nan, highest if visible.n else math.nan],
        "visible_mev": {"mean": visible.mean, "uncertainty": visible.uncertainty},
        "hits_per_shower": {"mean": hits.mean, "uncertainty": hits.uncertainty},
        "occupancy": hits.mean / first.detector.n_cells,
        "particles": {
            name: {"n": seen.n, "energy_gev": energy.mean, "visible_mev": seen.mean, "uncertainty_mev": seen.uncertainty}
            for name, (energy, seen) in sorted(particles.items())
        },
    }


def describe_layer_sums(path: str | Path) -> dict[str, Any]:
    """The same of a file that keeps the sums of layers only, as far as it goes.

    Raises
    ------
    FileFormatError
        As `read_layer_sums`.
    """
    sums = read_layer_sums(path)
    visible = Moments().add(sums.layer_energy_mev.sum(axis=1))
    particles = {}
    for code in np.unique(sums.pdg_id).tolist():
        of_code = sums.pdg_id == code
        seen = Moments().add(sums.layer_energy_mev[of_code].sum(axis=1))
        particles[_named(code)] = {
            "n": seen.n, "energy_gev": float(sums.energy_gev[of_code].mean()), "visible_mev": seen.mean, "uncertainty_mev": seen.uncertainty
        }  # fmt: skip
    return {
        "path": str(path),
        "kind": "layer sums",
        "n_layers": sums.layer_energy_mev.shape[1],
        "n_showers": visible.n,
        "energy_gev": [float(sums.energy_gev.min()), float(sums.energy_gev.max())] if visible.n else [math.nan, math.nan],
        "visible_mev": {"mean": visible.mean, "uncertainty": visible.uncertainty},
        "particles": dict(sorted(particles.items())),
    }


def _named(code: int) -> str:
    names = {code: name for name, code in PDG.items()}
    return names.get(code, f"pdg {code}" if code else "unknown")
