"""How well a design measures: energies reconstructed from sums of layers, one figure of them, and its bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from calolife.detector.layers import LayeredCalorimeter
from calolife.energy.features import EnergySample
from calolife.energy.linear import fit_linear
from calolife.energy.resolution import shortest_half
from calolife.simulation.particles import PDG

__all__ = ["OBJECTIVES", "WORST", "Figure", "Measured", "bootstrap_scores", "compare_designs", "reconstruct", "score"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

OBJECTIVES = {"mean-sigma-eff": "%", "all-sigma-eff": "%", "sigma-rel": "%", "rel-loss": "GeV"}
"""What a search may minimise, and its unit; see `score`."""

_TIED = 4  # chosen: neighbours of one kind share a weight; more and fewer reconstruct Geant4's published stacks no better
_FEWEST_VISIBLE = 20  # what `fit_linear` needs
WORST = 1000.0  # percent; that of a detector that sees nothing
_N_BOOTSTRAP = 400  # chosen: a standard error to 4 %
_AT_ONCE = 1 << 22  # chosen: numbers of a bootstrap held at once, 32 MB


@dataclass(frozen=True, eq=False)
class Measured:
    """Reconstructed energies of one detector's showers.

    Parameters
    ----------
    predicted_gev, energy_gev : float array, (shower,) [GeV]
        Each prediction by weights that were fitted without the shower.
    pdg_id : int array, (shower,)
    """

    predicted_gev: FloatArray
    energy_gev: FloatArray
    pdg_id: NDArray[np.int32]


def reconstruct(detector: LayeredCalorimeter, layer_energy_mev: FloatArray, energy_gev: FloatArray, pdg_id: NDArray[np.int32]) -> Measured:
    """Energies by a weight per group of layers, each shower's by weights fitted without it.

    Parameters
    ----------
    detector : LayeredCalorimeter
    layer_energy_mev : float array, (shower, layer) [MeV]
    energy_gev : float array, (shower,) [GeV]
    pdg_id : int array, (shower,)

    Returns
    -------
    Measured

    Notes
    -----
    `fit_linear` on sums over up to four neighbours of one kind: same thickness of the same materials since the layer before.
    Showers whose detector saw hardly any of them are given no energy at all.
    """
    group = _groups(detector)
    grouped = np.zeros((layer_energy_mev.shape[0], int(group[-1]) + 1))
    np.add.at(grouped.T, group, layer_energy_mev.T)  # (layer, shower) -> (group, shower)
    if np.count_nonzero(grouped.sum(axis=1)) < _FEWEST_VISIBLE:
        return Measured(np.zeros(energy_gev.size), energy_gev, pdg_id)
    return Measured(fit_linear(EnergySample(grouped, energy_gev, pdg_id)).left_out_gev, energy_gev, pdg_id)


def _groups(detector: LayeredCalorimeter) -> IntArray:
    """Group of each active layer, rising from 0, (layer,)."""
    kinds: list[tuple[tuple[str, float], ...]] = []
    since: list[tuple[str, float]] = []
    for layer in detector.layers:
        since.append((layer.material.name, layer.thickness_mm))
        if layer.is_active:
            kinds.append(tuple(since))
            since = []
    group, size = [0], 1
    for before, here in pairwise(kinds):
        is_joined = before == here and size < _TIED
        size = size + 1 if is_joined else 1
        group.append(group[-1] + (not is_joined))
    return np.array(group, dtype=np.int64)


def score(measured: Measured, objective: str) -> float:
    """One figure of how well energies are measured, less being better.

    Parameters
    ----------
    measured : Measured
    objective : str
        ``mean-sigma-eff``: half of the shortest interval that holds 68.3 % of E'/E over the median of E'/E, in percent, mean over
        the kinds of particles. ``all-sigma-eff``: the same of all particles together. ``sigma-rel``: standard deviation of E'/E
        over its mean, in percent, all particles together. ``rel-loss``: mean (E' - E)^2 / E [GeV]. A particle's name in place
        of ``mean`` (``gamma-sigma-eff``) is its own effective sigma.

    Returns
    -------
    float

    Notes
    -----
    Widths are relative to the response: a detector cannot win by giving all showers too little energy.
    """
    order = np.argsort(measured.pdg_id, kind="stable")
    return float(_scores([measured], objective, order[None])[0, 0])


def bootstrap_scores(measured: Sequence[Measured], objective: str, *, n: int = _N_BOOTSTRAP, seed: int = 0) -> FloatArray:
    """Scores of bootstrap replicas, the same showers in each replica for all detectors, (detector, replica).

    Parameters
    ----------
    measured : sequence of Measured
        Of the same particles.
    objective : str
    n : int
        Replicas.
    seed : int

    Raises
    ------
    ValueError
        Detectors that were hit by different particles.
    """
    first = measured[0]
    if any(not np.array_equal(m.energy_gev, first.energy_gev) or not np.array_equal(m.pdg_id, first.pdg_id) for m in measured):
        raise ValueError("detectors that were hit by different particles cannot be compared in pairs; take the same seed and number")
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(first.pdg_id == code) for code in np.unique(first.pdg_id)]
    at_once = max(1, _AT_ONCE // first.energy_gev.size)
    found = []
    for start in range(0, n, at_once):
        rows = min(at_once, n - start)
        # as many of each particle in every replica
        drawn = np.concatenate([kind[rng.integers(0, kind.size, (rows, kind.size))] for kind in kinds], axis=1)
        found.append(_scores(measured, objective, drawn))
    return np.concatenate(found, axis=1)


def _scores(measured: Sequence[Measured], objective: str, drawn: IntArray) -> FloatArray:
    """Scores of drawn showers, (detector, replica); `drawn` (replica, shower) has the kinds of particles one after the other."""
    pdg_id = measured[0].pdg_id[drawn[0]]
    ends = [0, *(np.flatnonzero(np.diff(pdg_id)) + 1).tolist(), pdg_id.size]
    parts = {int(pdg_id[a]): slice(a, b) for a, b in pairwise(ends)}
    found = np.empty((len(measured), drawn.shape[0]))
    for i, m in enumerate(measured):
        if objective == "rel-loss":
            loss = (m.predicted_gev - m.energy_gev) ** 2 / m.energy_gev
            found[i] = loss[drawn].mean(axis=1)
            continue
        ratio = (m.predicted_gev / m.energy_gev)[drawn]
        if objective == "sigma-rel":
            found[i] = _relative(ratio.std(axis=1), ratio.mean(axis=1))
        elif objective == "all-sigma-eff":
            found[i] = _effective(ratio)
        elif objective == "mean-sigma-eff":
            found[i] = np.mean([_effective(ratio[:, part]) for part in parts.values()], axis=0)
        else:
            found[i] = _effective(ratio[:, parts[PDG[objective.removesuffix("-sigma-eff")]]])
    return found


def _effective(ratio: FloatArray) -> FloatArray:
    ordered = np.sort(ratio, axis=1)
    n = ordered.shape[1]
    return _relative(shortest_half(ordered), 0.5 * (ordered[:, (n - 1) // 2] + ordered[:, n // 2]))


def _relative(width: FloatArray, response: FloatArray) -> FloatArray:
    """Percent; where the response is not > 0 nothing is measured."""
    percent = 100 * width / np.where(response > 0, response, 1.0)
    return np.where(response > 0, np.minimum(percent, WORST), WORST)


@dataclass(frozen=True)
class Figure:
    """One figure of one detector, and how it compares with the same figure of another.

    Parameters
    ----------
    detector : str
    figure : str
        As `score` names them.
    value, error : float
        And its bootstrap standard error.
    unit : str
    n : int
        Showers.
    ratio, ratio_low, ratio_high : float
        To the detector compared with, and the 95 % interval of a bootstrap that draws the same showers of both; NaN without one.
    """

    detector: str
    figure: str
    value: float
    error: float
    unit: str
    n: int
    ratio: float
    ratio_low: float
    ratio_high: float


def compare_designs(measured: Mapping[str, Measured], *, reference: str | None, seed: int = 0) -> tuple[Figure, ...]:
    """All figures of several detectors, hit by the same particles.

    Parameters
    ----------
    measured : mapping of str to Measured
        By name of the detector.
    reference : str, optional
        Detector that the others are compared with.
    seed : int
        Of the bootstrap.

    Returns
    -------
    tuple of Figure
        Detector by detector: those of `OBJECTIVES`, and the effective sigma of each kind of particle.

    Raises
    ------
    ValueError
        As `bootstrap_scores`.
    """
    names, every = list(measured), list(measured.values())
    name_of = {code: name for name, code in PDG.items()}
    own = {f"{name_of[int(code)]}-sigma-eff": "%" for code in np.unique(every[0].pdg_id)}
    figures = {**OBJECTIVES, **own}
    replicas = {figure: bootstrap_scores(every, figure, seed=seed) for figure in figures}  # (detector, replica)
    found = []
    for i, name in enumerate(names):
        for figure, unit in figures.items():
            value, ratio, low, high = score(every[i], figure), np.nan, np.nan, np.nan
            if reference is not None:
                at = names.index(reference)
                ratio = value / score(every[at], figure)
                low, high = np.quantile(replicas[figure][i] / replicas[figure][at], [0.025, 0.975])
            error = float(replicas[figure][i].std(ddof=1))
            found.append(Figure(name, figure, value, error, unit, every[i].energy_gev.size, float(ratio), float(low), float(high)))
    return tuple(found)
