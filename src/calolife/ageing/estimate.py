"""Ageing coefficients from two unpaired samples: checks, a method, errors from replicas, and what the dose adds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.ageing import likelihood
from calolife.ageing.checks import Checks, check_samples
from calolife.ageing.coefficients import Ageing
from calolife.ageing.estimators import SIMPLE_METHODS
from calolife.ageing.hits import CellHits, brightest_cells, cell_hits
from calolife.ageing.priors import shrink_to_dose
from calolife.detector.layers import Readout
from calolife.showers.events import Showers

if TYPE_CHECKING:
    from calolife.ageing.wgan import WganEpoch, WganSettings

__all__ = ["METHODS", "PRIORS", "AgeingEstimate", "default_replicas", "estimate_ageing"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

METHODS = ("auto", "ratio", "trimmed", "cramer", "wasserstein", "sinkhorn", "likelihood", "wgan")
PRIORS = ("none", "dose")
_AUTO = "likelihood"  # source: benchmarks/ageing.py: nearest to the statistical limit on every sample tried
_REPLICAS = {"ratio": 100, "trimmed": 100, "cramer": 30, "wasserstein": 30, "sinkhorn": 6, "likelihood": 100, "wgan": 4}  # chosen: seconds
_TOO_FEW = 0.1  # chosen: a cell whose limit of ln r is wider cannot tell one peak of the spectrum from the next
_UNKNOWN = 0.5  # chosen: uncertainty of the signal fraction 1 that a cell has about which nothing is known
_NOISE_SIGMA = 4.0  # chosen: noise alone then fires a cell once in 30,000 showers
_LEAST_PE = 3.0  # photo-electrons; chosen: fewer are not near enough to a Gaussian
_SHAPE_WORTH = 20.0  # replicas; chosen: as much as 20 replicas counts that errors go with the number of hits
_POOL = 300  # chosen: cells whose spectrum is shared, at least; with fewer it is coarse
_MARGIN = 0.9  # chosen: the cut leaves room for a cell that lost a tenth more than it seemed to have
_CUT_STEP = 0.1  # of ln E; chosen: cells share their cut with those that lost about as much


@dataclass(frozen=True, eq=False)
class AgeingEstimate:
    """What `estimate_ageing` found.

    Parameters
    ----------
    ageing : Ageing
        Every cell asked for, with finite numbers.
    method, prior : str
        What ran.
    seconds : float
    checks : Checks
    remarks : tuple of str
        What to know before the numbers are used, one line each.
    limit_uncertainty : float array, (cell,)
        Smallest standard deviation of the signal fraction that the samples allow without a prior; infinite for a cell
        without hits.
    dose_mev : float array, (cell,) [MeV]
        Summed energy of the reference.
    n_hits : float array, (cell, 2)
        Hits used, in the reference and today.
    law : str
        What the dose prior leaned on; empty without.
    epochs : tuple of WganEpoch
        Of the adversarial method; empty otherwise.
    """

    ageing: Ageing
    method: str
    prior: str
    seconds: float
    checks: Checks
    remarks: tuple[str, ...]
    limit_uncertainty: FloatArray
    dose_mev: FloatArray
    n_hits: FloatArray
    law: str = ""
    epochs: tuple[WganEpoch, ...] = ()


@dataclass(frozen=True, eq=False)
class _Samples:
    """Hits of both samples in the cells asked for, those of the pool that shares its spectrum, and how they are looked at."""

    reference: CellHits
    today: CellHits
    pool: CellHits
    shapes: tuple[likelihood.Shape, ...]
    shape_of_cell: IntArray


def default_replicas(method: str) -> int:
    """Bootstrap replicas that a method is given when none are asked for."""
    return _REPLICAS[_AUTO if method == "auto" else method]


def estimate_ageing(
    reference: Showers,
    today: Showers,
    *,
    method: str = "auto",
    prior: str = "dose",
    cells: int | ArrayLike | None = None,
    seed: int = 0,
    n_bootstrap: int | None = None,
    wgan: WganSettings | None = None,
    device: str = "cpu",
    progress: Callable[[str, float, float], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> AgeingEstimate:
    """Signal fraction of each cell between two samples of showers with no common event.

    Parameters
    ----------
    reference, today : Showers
        From before and after the ageing: one detector, one readout, one kind of hits. The same beam is best; a shifted one is told.
    method : str
        One of `METHODS`; ``auto`` is the likelihood.
    prior : {"dose", "none"}
        Whether cells may lean on a law of the dose. With ``none`` nothing about r passes from cell to cell.
    cells : int or int array, optional
        The cells with most energy in the reference, this many; or cell numbers; all when left out.
    seed : int
    n_bootstrap : int, optional
        Replicas of both samples from which the uncertainties come, the shared spectrum made anew in each; 0: none, the
        uncertainty is the statistical limit.
    wgan : WganSettings, optional
        Of method ``wgan``.
    device : str
        Of the adversarial networks.
    progress : function (what, done, total), optional
    checkpoint_dir : Path, optional
        Where method ``wgan`` keeps its state, to be taken up after a kill.

    Returns
    -------
    AgeingEstimate

    Raises
    ------
    ValueError
        Another detector, readout or kind of hits; no showers; no hits in the cells; a method, a prior or cells that
        are not there.

    Notes
    -----
    Hits of rechits are used above the threshold of the readout and above five standard deviations of its noise, raised so
    that an aged cell is complete there as well. Only the likelihood knows of photo-statistics and noise; the other
    methods take the energies as they are.

    A cell with so few hits that its limit exceeds 0.1 is ``prior-dominated``: it takes what the dose says, or 1 +- 0.5
    without a prior. So do dead and hot cells, which are also taken out of the neighbourhoods of the others.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> from calolife.simulation.engines import simulate_showers
    >>> from calolife.simulation.particles import sample_particles
    >>> calo = load_detector("cu-scint-24x24")
    >>> beams = [sample_particles(calo, 300, particle="pi-", energy_gev=10.0, beam_spot_mm=30.0, seed=i) for i in (1, 2)]
    >>> young, old = (simulate_showers(calo, beam, seed=i) for i, beam in enumerate(beams))
    >>> found = estimate_ageing(young, old, cells=20, n_bootstrap=20)
    >>> bool(abs(found.ageing.signal_fraction.mean() - 1) < 0.03)
    True
    """
    started = time.perf_counter()
    _check_options(method, prior, n_bootstrap, wgan)
    _check_samples_match(reference, today)
    tell = progress or (lambda what, done, total: None)
    chosen = _cells(reference, cells)
    ran = _AUTO if method == "auto" else method
    tell("checks", 0, 1)
    rough = _rough_fraction(reference, today)
    checks = check_samples(reference, today, signal_fraction=rough)
    masked = np.union1d(checks.dead, checks.hot)
    samples = _prepare(reference, today, chosen, rough=rough, masked=masked)
    tell("checks", 1, 1)

    limit = _limit(samples)
    is_measured = (limit < _TOO_FEW) & ~np.isin(chosen, masked)
    remarks = [*checks.remarks]
    if not is_measured.any():
        remarks.append(f"none of the {chosen.size} cells has enough hits to be measured; more showers are needed")

    epochs: tuple[WganEpoch, ...] = ()
    if ran == "wgan":
        from calolife.ageing.wgan import WganSettings, fit_wgan

        folder = None if checkpoint_dir is None else checkpoint_dir / "nominal"
        fit = fit_wgan(
            samples.reference, samples.today, settings=wgan, seed=seed, device=device, checkpoint_dir=folder,
            progress=lambda epoch: tell("epochs", epoch.number, (wgan or WganSettings()).epochs),
        )  # fmt: skip
        own, epochs = np.log(fit.signal_fraction), fit.epochs
    else:
        own = _log_fraction(samples, ran, seed=seed)
    is_measured &= np.isfinite(own)

    n_replicas = default_replicas(method) if n_bootstrap is None else n_bootstrap
    replicas = np.empty((n_replicas, chosen.size))
    rng = np.random.default_rng([seed, 1])
    for k in range(n_replicas):
        tell("replicas", k, n_replicas)
        drawn = samples.reference.resampled(rng)
        pool = samples.pool.weighted(drawn.shower_weight)
        replica = replace(samples, reference=drawn, today=samples.today.resampled(rng), pool=pool)
        if ran == "wgan":
            folder = None if checkpoint_dir is None else checkpoint_dir / f"replica-{k}"
            fit = fit_wgan(replica.reference, replica.today, settings=wgan, seed=seed, device=device, checkpoint_dir=folder)
            replicas[k] = np.log(fit.signal_fraction)
        else:
            replicas[k] = _log_fraction(replica, ran, seed=seed)
    tell("replicas", n_replicas, max(n_replicas, 1))
    error, common = _errors(replicas, limit, is_measured)
    if n_replicas == 0:
        remarks.append(
            "no replicas: the uncertainties are the statistical limit, smaller than the errors by a tenth or more; ask for replicas"
        )

    if checks.reference_weight is not None and ran != "wgan":
        remarks += _bias_of_the_beam(samples, own, error, ran, checks.reference_weight, is_measured, seed)

    own_log, own_error = np.where(is_measured, own, 0.0), np.where(is_measured, error, _UNKNOWN)
    log_fraction, width, law = own_log, own_error, ""
    if prior == "dose":
        tell("dose", 0, 1)
        variance = np.where(is_measured, error**2, np.inf)
        log_fraction, width, law = _lean_on_dose(reference, today, chosen, own_log, variance)
        width = np.hypot(width, common)
        tell("dose", 1, 1)
    fraction, own_fraction = np.exp(log_fraction), np.exp(own_log)
    status = np.where(is_measured, "measured", "prior-dominated")
    status[np.isin(chosen, checks.dead)] = "dead"
    status[np.isin(chosen, checks.hot)] = "hot"
    ageing = Ageing(
        chosen, fraction, fraction * width, status, own_fraction, own_fraction * own_error,
        label=f"{ran}, prior {prior}", detector_digest=reference.detector.digest,
    )  # fmt: skip
    if (n_few := int((status == "prior-dominated").sum())) > 0:
        value = "what the dose says" if prior == "dose" else f"1 +- {_UNKNOWN:g}"
        remarks.append(f"{n_few} of {chosen.size} cells have too few hits to be measured: they are prior-dominated and read {value}")
    dose = np.bincount(reference.cell, weights=reference.energy_mev, minlength=reference.detector.n_cells)[chosen].astype(np.float64)
    n_hits = np.stack([samples.reference.n_hits, samples.today.n_hits], axis=1)
    seconds = time.perf_counter() - started
    return AgeingEstimate(ageing, ran, prior, seconds, checks, tuple(remarks), fraction * limit, dose, n_hits, law, epochs)


def _check_options(method: str, prior: str, n_bootstrap: int | None, wgan: WganSettings | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if prior not in PRIORS:
        raise ValueError(f"prior {prior!r} is not one of {', '.join(PRIORS)}")
    if n_bootstrap is not None and (n_bootstrap < 0 or n_bootstrap == 1):
        raise ValueError(f"n_bootstrap = {n_bootstrap} replicas give no spread; use 0 for none, or at least 2")
    if wgan is not None and method != "wgan":
        raise ValueError(f"settings of the adversarial networks were given, and the method is {method}; use method wgan, or drop them")


def _check_samples_match(reference: Showers, today: Showers) -> None:
    if reference.detector.digest != today.detector.digest:
        raise ValueError(
            f"the reference was made in detector {reference.detector.name!r} ({reference.detector.digest[:8]}), today's sample in "
            f"{today.detector.name!r} ({today.detector.digest[:8]}); compare showers of one detector"
        )
    for name, sample in (("the reference", reference), ("today's sample", today)):
        if sample.n_showers == 0:
            raise ValueError(f"{name} has no showers; give at least a few hundred")
        if not (sample.energy_mev > 0).any():
            raise ValueError(f"{name} has no hit with energy; give showers that were seen")
    if reference.kind != today.kind:
        raise ValueError(f"the reference holds {reference.kind}s and today's sample {today.kind}s; digitise both alike, or neither")
    if reference.readout != today.readout:
        raise ValueError(
            f"the reference was read out with {reference.readout}, today's sample with {today.readout}; compare like with like"
        )


def _cells(reference: Showers, cells: int | ArrayLike | None) -> IntArray:
    if cells is None or isinstance(cells, (int, np.integer)):
        return brightest_cells(reference, None if cells is None else int(cells))
    given = np.asarray(cells)
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
        raise ValueError(f"cells has shape {given.shape} and type {given.dtype}; give a number of cells or one row of cell numbers")
    unique = np.unique(given).astype(np.int64)
    n_all = reference.detector.n_cells
    if unique[0] < 0 or unique[-1] >= n_all:
        raise ValueError(f"cell {unique[0] if unique[0] < 0 else unique[-1]} is not in the detector; it has cells 0 to {n_all - 1}")
    return unique


def _floor_mev(readout: Readout) -> float:
    """Above it rechits are complete and are no noise."""
    least_light = _LEAST_PE / readout.light_yield_pe_per_mev if readout.light_yield_pe_per_mev > 0 else 0.0
    return max(readout.threshold_mev, _NOISE_SIGMA * readout.noise_mev, least_light)


def _top_mev(readout: Readout) -> float:
    """Below it no rechit has met the ceiling; noise comes after it."""
    return (1 - 1e-3) * readout.saturation_mev - _NOISE_SIGMA * readout.noise_mev


def _rough_fraction(reference: Showers, today: Showers) -> float:
    """Signal fraction of the whole detector as one cell, with an iterated cut."""
    everything = np.arange(reference.detector.n_cells)
    fraction = 1.0
    for _ in range(2 if _floor_mev(reference.readout or Readout()) > 0 else 1):
        samples = _look(reference, today, everything, everything, np.full(everything.size, fraction), np.zeros(0, np.int64))
        as_one = _Samples(_as_one(samples.reference), _as_one(samples.today), samples.pool, samples.shapes, np.zeros(1, np.int64))
        shift = float(_log_fraction(as_one, "likelihood", seed=0)[0])
        fraction = math.exp(shift) if math.isfinite(shift) else 1.0
    return fraction


def _as_one(hits: CellHits) -> CellHits:
    zero = np.zeros(hits.cell_index.size, np.int64)
    return CellHits(1, hits.shower, zero, hits.energy_mev, hits.topology, hits.shower_weight)


def _prepare(reference: Showers, today: Showers, cells: IntArray, *, rough: float, masked: IntArray) -> _Samples:
    """Hits of both samples; where there is a threshold, cuts follow each cell's own signal fraction, found by iteration."""
    n_all = reference.detector.n_cells
    bright = brightest_cells(reference, min(_POOL, n_all))
    pool = cells if cells.size >= bright.size else np.union1d(cells, bright)
    fraction = np.full(n_all, rough)
    samples = _look(reference, today, cells, pool, fraction, masked)
    if _floor_mev(reference.readout or Readout()) == 0:
        return samples
    for _ in range(2):
        own = _log_fraction(samples, "likelihood", seed=0)
        is_known = np.isfinite(own) & (_limit(samples) < _TOO_FEW)
        fraction[cells[is_known]] = np.exp(own[is_known])
        samples = _look(reference, today, cells, pool, fraction, masked)
    return samples


def _look(reference: Showers, today: Showers, cells: IntArray, pool: IntArray, fraction: FloatArray, masked: IntArray) -> _Samples:
    """Hits above the floor of the readout, and for each cell the cut above which both samples are complete."""
    readout = reference.readout or Readout()
    floor, top = _floor_mev(readout), _top_mev(readout)
    # cuts in steps: cells of one step share a score
    step = np.ceil(-np.log(_MARGIN * np.minimum(fraction, 1.0)) / _CUT_STEP).astype(np.int64)
    cut = floor * np.exp(_CUT_STEP * step)
    steps = np.unique(step[cells])
    seen, aged = (
        cell_hits(sample, cells, fired_above_mev=above, kept_above_mev=floor, kept_below_mev=top, masked=masked)
        for sample, above in ((reference, cut), (today, cut * fraction))
    )
    pooled = (
        seen if pool is cells else cell_hits(reference, pool, fired_above_mev=cut, kept_above_mev=floor, kept_below_mev=top, masked=masked)
    )
    if floor == 0:
        return _Samples(seen, aged, pooled, (likelihood.fit_shape(pooled, readout, top_mev=top),), np.zeros(cells.size, np.int64))
    cuts = [floor * math.exp(_CUT_STEP * k) for k in steps]
    lowest = float(fraction.min())
    first = likelihood.fit_shape(pooled, readout, complete_above_mev=cuts[0], top_mev=top, lowest_fraction=lowest)
    shapes = tuple(replace(first, threshold_mev=max(first.threshold_mev, one)) for one in cuts)
    return _Samples(seen, aged, pooled, shapes, np.searchsorted(steps, step[cells]))


def _limit(samples: _Samples) -> FloatArray:
    found = np.empty(samples.reference.n_cells)
    for k, shape in enumerate(samples.shapes):
        which = samples.shape_of_cell == k
        found[which] = likelihood.limit(samples.pool, samples.reference.of_cells(which), samples.today.of_cells(which), shape=shape)
    return found


def _log_fraction(samples: _Samples, method: str, *, seed: int) -> FloatArray:
    if method != "likelihood":
        return np.log(SIMPLE_METHODS[method](samples.reference, samples.today, seed=seed))
    found = np.empty(samples.reference.n_cells)
    spectrum = likelihood.spectra(samples.pool, samples.shapes[0])
    for k, shape in enumerate(samples.shapes):
        which = samples.shape_of_cell == k
        tables = likelihood.score_tables(spectrum, shape)
        before, now = (
            likelihood.locate(hits.of_cells(which), table, shape)
            for hits, table in zip((samples.reference, samples.today), tables, strict=True)
        )
        found[which] = now - before
    return found


def _errors(replicas: FloatArray, limit: FloatArray, is_measured: NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """Standard deviation of ln r of each cell, and the part of it that all cells share.

    The spread of a few replicas is itself uncertain: each cell's variance leans on the limit times a common factor.
    """
    if replicas.shape[0] == 0 or not is_measured.any():
        return limit.copy(), 0.0
    n_finite = np.isfinite(replicas).sum(axis=0)
    is_used = is_measured & (n_finite >= 2)
    error = np.full(limit.size, np.nan)
    variance = np.nanvar(replicas[:, is_used], axis=0, ddof=1)
    factor = float(np.mean(variance / limit[is_used] ** 2))
    n = n_finite[is_used]
    error[is_used] = np.sqrt((n * variance + _SHAPE_WORTH * factor * limit[is_used] ** 2) / (n + _SHAPE_WORTH))
    error[~is_used] = math.sqrt(factor) * limit[~is_used]
    weight = 1 / error[is_used] ** 2
    mean = np.nansum(replicas[:, is_used] * weight, axis=1) / weight.sum()
    return error, math.sqrt(max(0.0, float(mean.var(ddof=1)) - 1 / float(weight.sum())))


def _bias_of_the_beam(
    samples: _Samples, own: FloatArray, error: FloatArray, method: str, weight: FloatArray, is_measured: NDArray[np.bool_], seed: int
) -> list[str]:
    """What the estimate does when the reference is given the beam of today."""
    weighted = replace(samples, reference=samples.reference.weighted(weight), pool=samples.pool.weighted(weight))
    moved = (_log_fraction(weighted, method, seed=seed) - own)[is_measured]
    moved, of_error = moved[np.isfinite(moved)], error[is_measured][np.isfinite(moved)]
    if not moved.size:
        return []
    bias, share = -float(moved.mean()), float(np.abs(moved.mean() / of_error.mean()))
    verdict = "less than half its error" if share < 0.5 else "MORE than half its error"
    return [f"with today's beam in the reference the signal fractions move by {-100 * bias:+.2g} % on average, {verdict} ({share:.2g})"]


def _lean_on_dose(
    reference: Showers, today: Showers, cells: IntArray, own: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray, str]:
    """ln r of each cell with the dose prior, its standard deviation, and the law.

    Either sample tells the dose, with its own statistics; today's in undamaged energy, once a first round has told r.
    """
    n_all = reference.detector.n_cells
    before, after = (np.bincount(s.cell, weights=s.energy_mev, minlength=n_all)[cells] / s.n_showers for s in (reference, today))
    posterior = shrink_to_dose(own, variance, {"reference": before})
    for _ in range(2):
        undamaged = after / np.exp(posterior.log_fraction)
        doses = {"reference": before, "today's sample": undamaged, "both samples": before + undamaged}
        posterior = shrink_to_dose(own, variance, doses)
    return posterior.log_fraction, np.sqrt(posterior.variance), posterior.law
