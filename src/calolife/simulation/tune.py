"""Tune the constants of the fast engine to Geant4: samples that no comparison uses, features of both, a damped fit."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.detector.layers import LayeredCalorimeter
from calolife.errors import FileFormatError
from calolife.showers.events import Showers
from calolife.simulation.compare import Sample, active_depth_x0, contained_mev, effective_sigma
from calolife.simulation.constants import Constants
from calolife.simulation.particles import Particles
from calolife.simulation.tuning_samples import TuningSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "STAGES",
    "FeatureRow",
    "Stage",
    "StageFit",
    "chi2_of",
    "fit_stage",
    "packaged_table",
    "pick_stages",
    "plot_stage",
    "read_constants",
    "shower_features",
    "tuned_names",
    "with_constants",
]

FloatArray = NDArray[np.float64]
Report = Callable[[str, float, float], None]
Features = dict[str, FloatArray]


@dataclass(frozen=True)
class Stage:
    """What one stage of the tuning moves, and how.

    Parameters
    ----------
    name : str
    kind : {"electromagnetic", "hadronic"}
        Which features are compared.
    scaled : tuple of str
        Constants > 0, moved by factors.
    shifted : tuple of str
        Constants of either sign, moved by differences.
    emip, spot : tuple of str
        Constants that are first fitted to the mean and to the spread of each stack, by `regress`.
    step : float
        Change of a constant (of its logarithm) for the derivatives.
    damping, prior : float
        Added to the diagonal of the normal equations: in units of it, and absolute. The prior holds what no feature depends on.
    """

    name: str
    kind: str
    scaled: tuple[str, ...]
    shifted: tuple[str, ...] = ()
    emip: tuple[str, ...] = ()
    spot: tuple[str, ...] = ()
    step: float = 0.12
    damping: float = 0.3
    prior: float = 0.5

    @property
    def names(self) -> tuple[str, ...]:
        """Every constant that the stage may move."""
        return tuple(dict.fromkeys((*self.scaled, *self.shifted, *self.emip, *self.spot, *(("em_quench",) if self.emip else ()))))


# which constants each stage moves; those that the table does not mark as tuned stay where they are
STAGES = (
    Stage(
        "em-homogeneous",
        "electromagnetic",
        scaled=(
            "em_t1", "em_a1", "em_st1_h", "em_sa1_h", "em_core_h", "em_tail_h", "em_radius_e_h",
            "em_loss_share", "em_loss_order", "em_loss_growth", "em_nuclear_rate",
            "em_nuclear_mev",
        ),
        shifted=("em_t0", "em_a0", "em_st0_h", "em_sa0_h", "em_t_photon", "em_a_photon"),
    ),
    Stage(
        "em-sampling",
        "electromagnetic",
        scaled=("em_emip", "em_spot", "em_spot_shape", "em_st1_s", "em_sa1_s", "em_core", "em_tail", "em_radius_e"),
        shifted=("em_t_fs", "em_t_e", "em_a_fs", "em_st0_s", "em_sa0_s"),
        emip=("em_emip", "em_emip_z", "em_emip_x0", "em_emip_mm"),
        spot=("em_spot", "em_spot_mip", "em_spot_x0", "em_spot_z"),
    ),
    Stage(
        "hadronic",
        "hadronic",
        scaled=(
            "h_exchange", "h_scatter", "h_star", "h_star_a", "h_star_shape", "h_mult", "h_lead", "h_share", "h_exchange_high", "h_pi0",
            "h_pt", "h_baryon", "h_lambda_pion", "h_lambda_nucleon", "h_a_power", "h_slow_a", "h_bind", "h_proton",
            "h_proton_mev", "h_neutron", "h_neutron_mev", "h_forward", "h_slow", "h_slow_mm", "h_slow_mev", "h_slow_quench", "h_gamma",
            "h_gamma_mm", "h_gamma_mev", "h_slow_shape", "h_gamma_shape", "h_delta", "h_delta_mm",
            "h_point_forward",
        ),
        step=0.15,
        damping=0.2,
        prior=2.0,
    ),
)  # fmt: skip

# deviation of the logarithm (True) or of the number itself that counts as one, with the statistics of both samples in quadrature;
# chosen: a fifth to a half of what the comparison with Geant4 allows, so that no feature is given up for another
_TOLERANCE = {
    "electromagnetic": {
        "mean": (0.004, True), "width": (0.05, True), "rms": (0.10, True), "tail": (0.005, False), "depth_x0": (0.06, False),
        "depth_spread": (0.08, True), "length": (0.02, True), "layers": (0.035, True), "contained": (0.01, False),
        "cells": (0.20, True), "cell_mev": (0.20, True),
    },
    "hadronic": {
        "mean": (0.01, True), "rms": (0.06, True), "width": (0.06, True), "soft_cells": (0.15, True), "radius": (0.03, True),
        "radius_spread": (0.08, True), "depth": (0.00625, False), "depth_spread": (0.05, True), "cells_spread": (0.08, True),
        "cells_correlation": (0.06, False), "layers": (0.05, True), "occupancy": (0.06, True), "layers_spread": (0.07, True),
        "cell_mev": (0.05, True), "densest_layer": (0.05, True),
    },
}  # fmt: skip
_BY_LAYER = ("layers", "occupancy", "layers_spread")
_LEAST_SHARE = 0.02  # chosen: layers below 2 % of the energy are left out, as in the comparison
_COUNTS_AS = 6  # chosen: a feature of many numbers weighs as much as six single ones
_BLOCKS = 8  # chosen: blocks of a sample tell the statistics of its features to a quarter
_MOST = 40.0  # chosen: one hopeless feature must not steer the fit
_GROUPS = 14  # chosen: depth segments of a hadron shower
_CELL_MEV, _SOFT_CELL_MEV = 0.1, 0.02  # chosen: a tenth of a minimum ionising particle in 5 mm of polystyrene, and a fifth of that
_RADII = (0.5, 1.0, 2.0)  # chosen: [Moliere radii] the core, and where the comparison looks
_TAIL = np.array([0.98, 0.95])  # chosen: of the median; beyond 5 widths of the resolution above 1 GeV
_LARGEST_STEP = 0.5  # chosen: the features are taken as linear in the constants over no more
_HARDER = (1.0, 5.0, 30.0)  # chosen: factors on the damping, tried in turn until the fit gets better


@dataclass(frozen=True)
class FeatureRow:
    """One number of one sample: by Geant4, and by the fast engine before and after; deviations in units of `tolerance`."""

    stage: str
    sample: str
    feature: str
    index: int
    geant4: float
    before: float
    after: float
    tolerance: float
    is_ratio: bool
    weight: float
    deviation_before: float
    deviation_after: float


@dataclass(frozen=True)
class StageFit:
    """What a stage came to.

    Parameters
    ----------
    stage : str
    constants : Constants
    moved : tuple of str
        Constants that were free.
    spread : tuple of float
        How far each could move (its logarithm, or itself where it is shifted) before the deviations grow by one; not an uncertainty of
        anything in nature, but it tells which constants the samples fix. NaN for those fitted stack by stack only.
    chi2 : tuple of float
        Mean squared weighted deviation per feature: before, and after each step that made it better.
    rows : tuple of FeatureRow
    """

    stage: str
    constants: Constants
    moved: tuple[str, ...]
    spread: tuple[float, ...]
    chi2: tuple[float, ...]
    rows: tuple[FeatureRow, ...]


def pick_stages(text: str) -> tuple[Stage, ...]:
    """Stages named in a list such as ``em-sampling,hadronic``, in the order in which they run.

    Raises
    ------
    ValueError
        A name that is not a stage.

    Examples
    --------
    >>> [stage.name for stage in pick_stages("hadronic,em-sampling")]
    ['em-sampling', 'hadronic']
    """
    asked = [part.strip() for part in text.split(",")]
    names = [stage.name for stage in STAGES]
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(f"stage {unknown[0]!r} is not one of {', '.join(names)}")
    return tuple(stage for stage in STAGES if stage.name in asked)


# --- features


def shower_features(showers: Showers, kind: str) -> Features:
    """What the tuning compares of a sample.

    Parameters
    ----------
    showers : Showers
        Of one particle and energy.
    kind : {"electromagnetic", "hadronic"}

    Returns
    -------
    dict of float array
        By feature; one number or several.
    """
    made = _electromagnetic(showers) if kind == "electromagnetic" else _hadronic(showers)
    return {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in made.items()}


def _electromagnetic(showers: Showers) -> dict[str, Any]:
    sample = Sample(showers)
    visible, layers = sample.visible_mev, sample.layer_mev
    total = np.maximum(layers.sum(axis=1), np.finfo(float).tiny)
    t = active_depth_x0(showers.detector)
    depth = layers @ t / total
    square = np.maximum(layers @ t**2 / total - depth**2, 0.0)
    energy = np.asarray(showers.energy_mev, np.float64)
    made = {
        "mean": visible.mean() / (1000.0 * showers.energy_gev.mean()),
        "width": effective_sigma(visible) / visible.mean(),
        "depth_x0": depth.mean(),
        "depth_spread": depth.std(),
        "length": np.sqrt(square.mean()),
        "layers": layers.mean(axis=0) / visible.mean(),
    }
    detector = showers.detector
    if isinstance(detector, LayeredCalorimeter) and len({layer.material for layer in detector.layers}) == 1:
        radius_mm = 10.0 * detector.layers[0].material.moliere_cm * np.array(_RADII)
        made["contained"] = (contained_mev(showers, radius_mm=radius_mm) / total[:, None]).mean(axis=0)
        # rare photonuclear losses: their share is steadier than the standard deviation that they make
        made["tail"] = np.mean(visible[:, None] < np.median(visible) * _TAIL, axis=0)
    else:
        made["rms"] = visible.std() / visible.mean()
        made["cells"] = np.sum(energy > _CELL_MEV) / showers.n_showers
        made["cell_mev"] = _quantiles(energy[energy > _CELL_MEV], (0.5, 0.9))
    return made


def _hadronic(showers: Showers) -> dict[str, Any]:
    sample = Sample(showers)
    n, visible, layers = showers.n_showers, sample.visible_mev, sample.layer_mev
    n_layers = layers.shape[1]
    total = np.maximum(visible, np.finfo(float).tiny)
    energy, of = np.asarray(showers.energy_mev, np.float64), showers.shower_index
    lit = energy > _CELL_MEV
    occupancy = np.bincount((of * n_layers + showers.layer)[lit], minlength=n * n_layers).reshape(n, n_layers).astype(np.float64)
    cells = occupancy.sum(axis=1)
    at = showers.detector.cell_position_mm(showers.cell)[:, :2]
    centre = np.stack([np.bincount(of, energy * at[:, k], n) / total for k in range(2)], axis=1)
    radius = np.sqrt(np.bincount(of, energy * ((at - centre[of]) ** 2).sum(axis=1), n) / total)
    depth = layers @ np.arange(n_layers) / total / n_layers
    first = np.arange(0, n_layers, max(1, n_layers // _GROUPS))
    spread = cells.std() * visible.std()
    return {
        "mean": visible.mean() / (1000.0 * showers.energy_gev.mean()),
        "rms": visible.std() / visible.mean(),
        "width": effective_sigma(visible) / visible.mean(),
        "soft_cells": np.sum(energy > _SOFT_CELL_MEV) / n,
        "radius": radius.mean(),
        "radius_spread": radius.std(),
        "depth": depth.mean(),
        "depth_spread": depth.std(),
        "cells_spread": cells.std() / max(cells.mean(), 1e-9),
        "cells_correlation": np.mean((cells - cells.mean()) * (visible - visible.mean())) / spread if spread > 0 else 0.0,
        "layers": np.add.reduceat(layers.mean(axis=0), first),
        "occupancy": np.add.reduceat(occupancy.mean(axis=0), first),
        "layers_spread": np.add.reduceat(layers.std(axis=0), first),
        "cell_mev": _quantiles(energy[lit], (0.10, 0.25, 0.50, 0.75, 0.90, 0.99)),
        "densest_layer": np.quantile(layers.max(axis=1) / total, [0.25, 0.75]),
    }


def _quantiles(values: FloatArray, at: Sequence[float]) -> FloatArray:
    return np.quantile(values, at) if values.size else np.full(len(at), _CELL_MEV)


@dataclass(frozen=True, eq=False)
class _Compared:
    """A feature of a sample: the numbers of it that count, and what counts as a deviation of one."""

    name: str
    use: NDArray[np.int64]
    geant4: FloatArray
    tolerance: FloatArray
    is_ratio: bool
    weight: float

    def deviation(self, trial: Features) -> FloatArray:
        off = (_plain(trial[self.name][self.use], self.is_ratio) - _plain(self.geant4, self.is_ratio)) / self.tolerance
        # showers that leave nothing visible have no shape
        return np.clip(np.nan_to_num(off, nan=_MOST), -_MOST, _MOST)


@dataclass(frozen=True, eq=False)
class _Reference:
    sample: TuningSample
    particles: Particles
    compared: tuple[_Compared, ...]
    active_mev: FloatArray
    visible_mev: FloatArray

    def deviation(self, trial: Features) -> FloatArray:
        """Weighted deviations of all features, one after the other."""
        return np.concatenate([c.weight * c.deviation(trial) for c in self.compared])


def _plain(values: FloatArray, is_ratio: bool) -> FloatArray:
    return np.log(np.maximum(values, 1e-12)) if is_ratio else values


def _reference(sample: TuningSample, showers: Showers, kind: str) -> _Reference:
    # the fast engine showers the particles of the reference, over again if it is to shower more
    k = np.arange(sample.n_fast) % showers.n_showers
    particles = Particles(showers.pdg_id[k], showers.energy_gev[k], showers.position_mm[k, :2], showers.direction[k])
    features = shower_features(showers, kind)
    edges = np.linspace(0, showers.n_showers, _BLOCKS + 1).astype(int).tolist()
    blocks = [shower_features(showers.between(i, j), kind) for i, j in pairwise(edges)]
    compared = []
    for name, (tolerance, is_ratio) in _TOLERANCE[kind].items():
        if name not in features:
            continue
        use = np.arange(features[name].size)
        if name in _BY_LAYER:
            use = np.flatnonzero(features["layers"] > _LEAST_SHARE * features["layers"].sum())
        spread = np.std([_plain(block[name][use], is_ratio) for block in blocks], axis=0, ddof=1)
        # statistics of both samples: those of the fast engine are the same, but for the number of showers
        noise = np.nan_to_num(spread) * math.sqrt((1.0 + showers.n_showers / sample.n_fast) / _BLOCKS)
        each = sample.weight * math.sqrt(min(use.size, _COUNTS_AS) / max(use.size, 1))
        compared.append(_Compared(name, use, features[name][use], np.hypot(tolerance, noise), is_ratio, each))
    assert showers.active_mev is not None
    return _Reference(sample, particles, tuple(compared), showers.active_mev, showers.visible_mev)


# --- the fit


def fit_stage(
    stage: Stage,
    references: Sequence[tuple[TuningSample, Showers]],
    constants: Constants,
    *,
    is_free: Callable[[str], bool],
    iterations: int = 4,
    seed: int = 0,
    workers: int = 1,
    tell: Report = lambda what, done, total: None,
    log: Callable[[str], None] = lambda text: None,
) -> StageFit:
    """Move the constants of one stage until the fast engine's features come closest to those of its samples.

    Parameters
    ----------
    stage : Stage
    references : sequence of (TuningSample, Showers)
        Samples by Geant4.
    constants : Constants
        Where to start.
    is_free : callable
        Whether a constant may move at all: `tuned_names` of a table.
    iterations : int
        At most so many steps; fewer when none improves.
    seed : int
        Of the fast engine. Every trial uses the same random numbers, so that the features change smoothly with the constants.
    workers : int
        Threads; the result does not depend on it.
    tell, log : callable

    Returns
    -------
    StageFit

    Raises
    ------
    ValueError
        No samples, or a negative number of iterations.

    Notes
    -----
    Gauss-Newton with derivatives from both sides, damped as K. Levenberg, Quart. Appl. Math. 2 (1944) 164, and with a prior
    that keeps each step short where no feature depends on a constant. What it finds is a good point, not the only one: many
    constants of hadrons do nearly the same. A deviation is measured in its tolerance and the statistics of both samples, added in
    quadrature: chi2 is near 1 where the fast engine is as close as either asks for, and below where samples are large.
    """
    if not references:
        raise ValueError(f"stage {stage.name} has no samples; name some in the tuning list")
    if iterations < 0:
        raise ValueError(f"iterations = {iterations} must be >= 0")
    known = [_reference(sample, showers, stage.kind) for sample, showers in references]
    scaled = tuple(n for n in stage.scaled if is_free(n))
    names = scaled + tuple(n for n in stage.shifted if is_free(n))
    moved = tuple(n for n in stage.names if is_free(n))
    if held := [n for n in stage.names if n not in moved]:
        log(f"{stage.name}: not marked as tuned, so held: {', '.join(held)}")
    n_done, n_calls = 0, 1 + iterations * (2 * len(names) + len(_HARDER))

    with ThreadPoolExecutor(max(1, workers)) as pool:

        def features_of(trials: Sequence[Constants]) -> list[list[Features]]:
            nonlocal n_done
            jobs = [(c, k) for c in trials for k in known]
            made = list(pool.map(lambda job: shower_features(_again(job[1], job[0], seed=seed), stage.kind), jobs))
            n_done += len(trials)
            tell(stage.name, min(n_done, n_calls), n_calls)
            return [made[i : i + len(known)] for i in range(0, len(made), len(known))]

        def together(features: Sequence[Features]) -> FloatArray:
            return np.concatenate([k.deviation(f) for k, f in zip(known, features, strict=True)])

        before = features_of([constants])[0]
        now = together(before)
        chi2 = [float(now @ now) / now.size]
        if stage.emip and iterations:
            trial = _regressed(stage, known, constants, is_free=is_free, seed=seed, pool=pool)
            new = together(features_of([trial])[0])
            if new @ new < now @ now:
                constants, now = trial, new
                chi2.append(float(now @ now) / now.size)
                log(f"{stage.name}: fitted stack by stack: chi2 per feature {chi2[0]:.3f} -> {chi2[1]:.3f}")
        jacobian = np.full((now.size, len(names)), np.nan)
        for turn in range(iterations if names else 0):
            # a pair at a time: progress is seen, and memory stays small
            for i in range(len(names)):
                up, down = (_moved(constants, names, scaled, sign * stage.step * (np.arange(len(names)) == i)) for sign in (1, -1))
                plus, minus = (together(f) for f in features_of([up, down]))
                jacobian[:, i] = (plus - minus) / (2 * stage.step)
            normal = jacobian.T @ jacobian
            for harder in _HARDER:
                matrix = normal + stage.damping * harder * np.diag(np.diag(normal)) + stage.prior * np.eye(len(names))
                step = np.clip(-np.linalg.solve(matrix, jacobian.T @ now), -_LARGEST_STEP, _LARGEST_STEP)
                trial = _moved(constants, names, scaled, step)
                new = together(features_of([trial])[0])
                if new @ new < now @ now:
                    break
            else:
                log(f"{stage.name}: iteration {turn + 1}: no step improves; done")
                break
            constants, now = trial, new
            chi2.append(float(now @ now) / now.size)
            log(f"{stage.name}: iteration {turn + 1}: chi2 per feature {chi2[-2]:.3f} -> {chi2[-1]:.3f}")
        after = features_of([constants])[0]
    spread = dict.fromkeys(names, math.nan)
    if names and np.isfinite(jacobian).all():
        width = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian + stage.prior * np.eye(len(names)))))
        spread = dict(zip(names, width.tolist(), strict=True))
    rows = tuple(row for k, b, a in zip(known, before, after, strict=True) for row in _rows(stage, k, b, a))
    return StageFit(stage.name, constants, moved, tuple(spread.get(n, math.nan) for n in moved), tuple(chi2), rows)


def _again(reference: _Reference, constants: Constants, *, seed: int) -> Showers:
    from calolife.simulation.fast import simulate_fast

    return simulate_fast(reference.sample.detector, reference.particles, seed=seed, constants=constants)


def _moved(constants: Constants, names: Sequence[str], scaled: Sequence[str], step: FloatArray) -> Constants:
    # six digits, as the table holds them: what is written is what was looked at
    new = {}
    for name, u in zip(names, step.tolist(), strict=True):
        old = getattr(constants, name)
        new[name] = float(f"{old * math.exp(u) if name in scaled else old + u:.6g}")
    return constants._replace(**new)


def _regressed(
    stage: Stage, known: Sequence[_Reference], constants: Constants, *, is_free: Callable[[str], bool], seed: int, pool: ThreadPoolExecutor
) -> Constants:
    """Constants of e/mip and of the sampled tracks, fitted to the mean and the spread that each stack of electrons asks for.

    The mean deposit is proportional to e/mip, and the variance from sampling is twice the deposit of a track times the mean: what
    each stack needs follows from one look at it, and its dependence on the stack is a fit without simulation.
    """
    from scipy.optimize import least_squares

    from calolife.simulation.stack import Stack, build_stack

    electrons = [k for k in known if k.sample.particle in ("e-", "e+") and k.sample.detector.sampling_fraction < 1]
    if not electrons or not np.isfinite(np.concatenate([k.active_mev for k in electrons])).all():
        return constants

    def middle(stack: Stack) -> tuple[float, float, float]:
        k = len(stack.slab) // 2
        # mean deposit of a track and half its relative second moment
        part = stack.parts[k]
        second = (1.0 + 1.0 / part["spot_shape"]) / 2.0
        return float(part["emip"]), float(part["spot"] * second), float(stack.slabs["birks"][stack.slab[k]])

    detectors = {k.sample.detector.name: k.sample.detector for k in electrons}
    now = {name: middle(build_stack(d, constants, birks=True)) for name, d in detectors.items()}
    wanted_emip: dict[str, list[float]] = {name: [] for name in detectors}
    wanted_spot: dict[str, list[float]] = {name: [] for name in detectors}
    quench = []
    for k, fast in zip(electrons, pool.map(lambda k: _again(k, constants, seed=seed), electrons), strict=True):
        name = k.sample.detector.name
        emip, spot, birks = now[name]
        a, b = k.active_mev, fast.active_mev
        assert b is not None
        wanted_emip[name].append(math.log(emip * a.mean() / b.mean()))
        missing = (a.std() / a.mean()) ** 2 - (b.std() / b.mean()) ** 2
        wanted_spot[name].append(math.log(max(spot + missing * a.mean() / 2, 0.2 * spot)))
        if birks > 0:
            quench.append((k.active_mev.mean() / k.visible_mev.mean() - 1) / birks)
    if quench and is_free("em_quench"):
        constants = constants._replace(em_quench=float(f"{np.mean(quench):.6g}"))
    for which, fitted, wanted, tolerance in ((0, stage.emip, wanted_emip, 0.004), (1, stage.spot, wanted_spot, 0.05)):
        names = [n for n in fitted if is_free(n)]
        if not names:
            continue
        start, ones = constants, np.zeros(len(names))

        def missed(
            u: FloatArray, *, start: Constants = start, names: list[str] = names, which: int = which, tolerance: float = tolerance,
            wanted: dict[str, list[float]] = wanted,
        ) -> FloatArray:  # fmt: skip
            trial = start._replace(**{n: getattr(start, n) * math.exp(v) for n, v in zip(names, u.tolist(), strict=True)})
            off = [
                (math.log(middle(build_stack(d, trial, birks=True))[which]) - float(np.mean(wanted[name]))) / tolerance
                for name, d in detectors.items()
            ]
            return np.concatenate([off, 0.3 * u])  # chosen: weak, for lists of fewer stacks than constants

        found = least_squares(missed, ones, bounds=(-1.5, 1.5), diff_step=1e-3, x_scale=0.1, max_nfev=15)
        constants = _moved(constants, names, names, np.asarray(found.x))
    return constants


def _rows(stage: Stage, reference: _Reference, before: Features, after: Features) -> list[FeatureRow]:
    rows = []
    for c in reference.compared:
        off = c.deviation(before), c.deviation(after)
        for k, i in enumerate(c.use.tolist()):
            rows.append(
                FeatureRow(
                    stage.name, reference.sample.name, c.name, i, float(c.geant4[k]), float(before[c.name][i]), float(after[c.name][i]),
                    float(c.tolerance[k]), c.is_ratio, c.weight, float(off[0][k]), float(off[1][k]),
                )
            )  # fmt: skip
    return rows


def chi2_of(rows: Sequence[FeatureRow], *, after: bool) -> float:
    """Mean squared weighted deviation per feature.

    Examples
    --------
    >>> row = FeatureRow("hadronic", "s", "mean", 0, 1.0, 1.02, 1.01, 0.01, False, 1.0, 2.0, 1.0)
    >>> chi2_of([row], after=False), chi2_of([row], after=True)
    (4.0, 1.0)
    """
    off = np.array([r.weight * (r.deviation_after if after else r.deviation_before) for r in rows])
    return float(np.mean(off**2))


# --- the table of constants


def packaged_table() -> str:
    """Text of the package's table of constants."""
    return resources.files("calolife.data").joinpath("shower_constants.csv").read_text(encoding="utf-8")


def _table_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def tuned_names(table: str) -> frozenset[str]:
    """Constants that a table marks as tuned to Geant4."""
    return frozenset(row["name"] for row in _table_rows(table) if row["is_tuned"] == "1")


def read_constants(table: str, *, what: str = "table") -> Constants:
    """Constants of the text of a table.

    Raises
    ------
    FileFormatError
        A column or a constant that is missing, one that the engine does not know, or a value that is not a number.
    """
    rows = _table_rows(table)
    if not rows or not {"name", "value", "is_tuned"} <= set(rows[0]):
        raise FileFormatError(f"{what} is not a table of constants; it needs the columns name, value and is_tuned")
    try:
        found = {row["name"]: float(row["value"]) for row in rows}
    except ValueError as error:
        raise FileFormatError(f"{what}: {error}; each value must be a number") from None
    if wrong := sorted(set(found) ^ set(Constants._fields)):
        raise FileFormatError(f"{what}: {wrong[0]} is {'missing' if wrong[0] in Constants._fields else 'not a constant of the engine'}")
    return Constants(**found)


def with_constants(table: str, constants: Constants) -> str:
    """A table with the values of its tuned constants replaced; the text of all other rows stays as it is."""
    tuned, lines = tuned_names(table), []
    for line, row in zip(table.splitlines()[1:], _table_rows(table), strict=True):
        value = getattr(constants, row["name"])
        if row["name"] in tuned and value != float(row["value"]):
            text = io.StringIO()
            csv.DictWriter(text, list(row), lineterminator="").writerow({**row, "value": f"{value:.6g}"})
            line = text.getvalue()
        lines.append(line)
    return "\n".join([table.splitlines()[0], *lines]) + "\n"


def plot_stage(rows: Sequence[FeatureRow], *, ax: Axes | None = None) -> Axes:
    """Fast over Geant4 for each feature of a stage, all samples, before and after.

    Parameters
    ----------
    rows : sequence of FeatureRow
        Of one stage.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    if not rows:
        raise ValueError("no features to draw; fit a stage first")
    names = list(dict.fromkeys(r.feature for r in rows))
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(6.8, 1.4 + 0.32 * len(names)), layout="constrained", dpi=130).add_subplot()
    at = np.array([names.index(r.feature) for r in rows])
    ratios = np.array([[v / r.geant4 if r.geant4 > 0 else np.nan for v in (r.before, r.after)] for r in rows])
    ratios = np.clip(ratios, 0.5, 2.0)
    ax.axvline(1.0, color="0.5", lw=0.8)
    ax.plot(ratios[:, 0], at - 0.16, "o", ms=3.5, mfc="none", color="#b35806", alpha=0.6, label="before")
    ax.plot(ratios[:, 1], at + 0.16, "o", ms=3.5, color="#2166ac", alpha=0.6, label="after")
    ax.set_xscale("log")
    ax.set_xlim(0.48, 2.1)
    ticks = [0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("Fast / Geant4 (drawn at the edge where beyond 0.5 to 2)")
    ax.set_title(f"{rows[0].stage}: {len({r.sample for r in rows})} samples", loc="left", fontsize="medium")
    ax.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    ax.tick_params(which="both", direction="in", top=True, right=True)
    return ax
