"""Ageing coefficients from two unpaired samples: checks, a method, errors from replicas, and what the dose adds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.ageing import cuts
from calolife.ageing.checks import Checks, check_samples
from calolife.ageing.coefficients import Ageing
from calolife.ageing.cuts import Samples
from calolife.ageing.estimators import SIMPLE_METHODS
from calolife.ageing.hits import brightest_cells, first_half
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
_CANDIDATES = ("likelihood", "cramer", "trimmed", "ratio")  # of auto; chosen: one of each kind
_REPLICAS = {"ratio": 100, "trimmed": 100, "cramer": 30, "wasserstein": 30, "sinkhorn": 6, "likelihood": 100, "wgan": 4}  # chosen: seconds
_TOO_WIDE = 0.1  # chosen: a cell whose limit of ln r is wider cannot tell one peak of the spectrum from the next
_FEW_HITS = 20  # in each sample; chosen: fewer make no spectrum
_UNKNOWN = 0.5  # chosen: uncertainty of the signal fraction 1 that a cell has about which nothing is known
_SHAPE_WORTH = 20.0  # replicas; chosen: as much as 20 replicas counts that errors go with the number of hits
_MANY_REPLICAS = 20  # chosen: from here on a spread is told by its quantiles
_JUDGED = 300  # cells; chosen: methods are compared on the brightest
_BIN = 0.005 / math.sqrt(12)  # of ln E; chosen: what the bins of the spectra leave open
_GAIN = 4.0  # standard deviations; chosen: a detector that gained light by more may be two samples in the wrong order


@dataclass(frozen=True, eq=False, repr=False)
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
        without hits, NaN where cells of a kind do not share a spectrum.
    dose_mev : float array, (cell,) [MeV]
        Summed energy of the reference.
    n_hits : float array, (cell, 2)
        Hits used, in the reference and today.
    law : str
        What the dose prior leaned on; empty without.
    epochs : tuple of WganEpoch
        Of the adversarial method; empty otherwise.
    choice : dict of str to float
        Mean error of ln r between two halves of the reference, by method: what ``auto`` chose by; empty otherwise.
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
    choice: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"AgeingEstimate({self.ageing!r}, {self.method}, prior {self.prior}, {self.seconds:.1f} s)"


def default_replicas(method: str) -> int:
    """Bootstrap replicas that a method is given when none are asked for."""
    return _REPLICAS["likelihood" if method == "auto" else method]


def estimate_ageing(
    reference: Showers,
    today: Showers,
    *,
    method: str = "auto",
    prior: str = "dose",
    cells: int | ArrayLike | None = None,
    masked: ArrayLike = (),
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
        One of `METHODS`; ``auto`` takes the likelihood, or the simple method that does best between two halves of the
        reference, whose signal fractions are 1.
    prior : {"dose", "none"}
        Whether cells may lean on a law of the dose. With ``none`` nothing about r passes from cell to cell.
    cells : int or int array, optional
        The cells with most energy in the reference, this many; or cell numbers; all when left out.
    masked : int array
        Cells to leave out of everything, as dead ones are.
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
    Rechits are used above the threshold of the readout, four standard deviations of its noise and three photo-electrons,
    raised so that an aged cell is complete there as well. Only the likelihood knows of photo-statistics and noise; the other
    methods take the energies as they are.

    ``measured`` is a cell with 20 hits in each sample whose limit is below 0.1, and whose likelihood has its largest value
    inside what is tried, above a cut that suits it. Any other is ``prior-dominated``: it takes what the dose says, or 1 +- 0.5
    without a prior. So do dead, hot and masked cells, which are also taken out of the neighbourhoods of the others.

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
    left_out = np.unique(np.asarray(masked, dtype=np.int64))
    if left_out.size and not (left_out[0] >= 0 and left_out[-1] < reference.detector.n_cells):
        raise ValueError(f"masked cells {left_out[0]} to {left_out[-1]}: the detector has cells 0 to {reference.detector.n_cells - 1}")
    tell("checks", 0, 1)
    rough = cuts.rough_fraction(reference, today)
    checks = check_samples(reference, today, signal_fraction=rough)
    silent = np.unique(np.concatenate([checks.dead, checks.hot, left_out]))
    samples = cuts.prepare(reference, today, chosen, rough=rough, masked=silent)
    tell("checks", 1, 1)

    limit = cuts.limit(samples)
    has_hits = np.minimum(samples.reference.n_hits, samples.today.n_hits) >= _FEW_HITS
    can_measure = has_hits & ~np.isin(chosen, silent)
    choice = _compare_halves(samples, can_measure, cuts.floor_mev(reference.readout or Readout())) if method == "auto" else {}
    ran = min(choice, key=lambda name: choice[name]) if choice else "likelihood" if method == "auto" else method
    is_shared = method != "auto" or ran == "likelihood"  # the spectrum, by cells of a kind
    is_measured = can_measure & (limit < _TOO_WIDE) if is_shared else can_measure
    if ran == "likelihood":
        is_measured &= samples.is_settled
    remarks = [*checks.remarks]
    if not is_shared:
        remarks.append(
            f"{ran} is used: it errs by {choice[ran]:.3f} between halves of the reference, the likelihood by {choice['likelihood']:.3f}; "
            "cells of a kind do not share a spectrum here, or a threshold cuts off too much of it, and no statistical limit is known"
        )
        limit = np.full(chosen.size, np.nan)
    if not is_measured.any():
        remarks.append(f"none of the {chosen.size} cells has enough hits to be measured; more showers are needed")

    if ran == "wgan":
        own, replicas, epochs = _adversarial(
            samples, n_bootstrap, wgan, seed=seed, device=device, tell=tell, checkpoint_dir=checkpoint_dir
        )  # fmt: skip
    else:
        n_replicas = default_replicas(ran) if n_bootstrap is None else n_bootstrap
        own, replicas, epochs = *_with_replicas(samples, ran, n_replicas, is_measured=is_measured, seed=seed, tell=tell), ()
    is_measured &= np.isfinite(own)
    shape = limit if is_shared else np.sqrt(1 / np.maximum(samples.reference.n_hits, 1) + 1 / np.maximum(samples.today.n_hits, 1))
    error, common = _errors(replicas, shape, is_measured)
    if len(replicas) == 0:
        remarks.append("no replicas: the uncertainties are a lower limit, with few hits by far; ask for replicas")
    elif ran == "likelihood":
        is_measured &= error < 1.5 * _TOO_WIDE
    if is_measured.any() and ran != "wgan":
        remarks += _bias_of_the_beam(samples, own, error, ran, checks, is_measured)
        mean, width = float(own[is_measured].mean()), math.hypot(common, float(error[is_measured].mean()) / math.sqrt(is_measured.sum()))
        if len(replicas) and mean > _GAIN * width:
            remarks.append(
                f"today's sample has MORE signal than the reference, {100 * mean:.2g} % on average; were the two given in this order?"
            )

    own_log, own_error = np.where(is_measured, own, 0.0), np.where(is_measured, error, _UNKNOWN)
    log_fraction, width_of_cell, law = own_log, own_error, ""
    if prior == "dose":
        tell("dose", 0, 1)
        variance = np.where(is_measured, error**2, np.inf)
        log_fraction, width_of_cell, law = _lean_on_dose(reference, today, chosen, own_log, variance)
        width_of_cell = np.hypot(width_of_cell, common)
        tell("dose", 1, 1)
    fraction, own_fraction = np.exp(log_fraction), np.exp(own_log)
    status = np.where(is_measured, "measured", "prior-dominated")
    for name, cells_of in (("dead", checks.dead), ("hot", checks.hot), ("masked", left_out)):
        status[np.isin(chosen, cells_of)] = name
    ageing = Ageing(
        chosen, fraction, fraction * width_of_cell, status, own_fraction, own_fraction * own_error,
        label=f"{ran}, prior {prior}", detector_digest=reference.detector.digest,
    )  # fmt: skip
    if (n_few := int((status == "prior-dominated").sum())) > 0:
        value = "what the dose says" if prior == "dose" else f"1 +- {_UNKNOWN:g}"
        remarks.append(f"{n_few} of {chosen.size} cells are not measured by their own hits: they are prior-dominated and read {value}")
    dose = np.bincount(reference.cell, weights=reference.energy_mev, minlength=reference.detector.n_cells)[chosen].astype(np.float64)
    n_hits = np.stack([samples.reference.n_hits, samples.today.n_hits], axis=1)
    seconds = time.perf_counter() - started
    return AgeingEstimate(ageing, ran, prior, seconds, checks, tuple(remarks), fraction * limit, dose, n_hits, law, epochs, choice)


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


def _log_fraction(samples: Samples, method: str) -> FloatArray:
    if method == "likelihood":
        return cuts.likelihood_fraction(samples)
    return np.log(SIMPLE_METHODS[method](samples.reference, samples.today, seed=0))


def _compare_halves(samples: Samples, can_measure: NDArray[np.bool_], floor_mev: float) -> dict[str, float]:
    """Mean error of ln r of the brightest cells between two halves of the reference; by method.

    Nothing has aged between them. Where the readout has a threshold, the second half loses what the cells seem to have lost, and the hits
    that fall below it: what a threshold does to a method shows only there.
    """
    n_hits = np.where(can_measure, samples.reference.n_hits, 0)
    judged = n_hits >= max(2 * _FEW_HITS, np.sort(n_hits)[-min(_JUDGED, n_hits.size)])
    if not judged.any():
        return {}
    is_first = first_half(samples.reference)
    judged_samples = samples.of_cells(judged)
    before = judged_samples.reference
    after, lost = before, np.zeros(before.n_cells)
    if floor_mev > 0:
        seen = cuts.likelihood_fraction(judged_samples)
        lost = np.where(np.isfinite(seen), seen, 0.0)
        after = before.scaled(np.exp(lost), above_mev=floor_mev)
    halves = replace(judged_samples, today=after).reweighted(is_first.astype(np.float64), (~is_first).astype(np.float64))
    # a cell without an answer is as wrong as can be
    return {name: float(np.nan_to_num(np.abs(_log_fraction(halves, name) - lost), nan=1.0).mean()) for name in _CANDIDATES}


def _with_replicas(
    samples: Samples,
    method: str,
    n_replicas: int,
    *,
    is_measured: NDArray[np.bool_],
    seed: int,
    tell: Callable[[str, float, float], None],
) -> tuple[FloatArray, FloatArray]:
    """ln r of each cell, and of the measured ones in each replica of both samples, (replica, cell)."""
    own = _log_fraction(samples, method)
    replicas = np.full((n_replicas, own.size), np.nan)
    if not is_measured.any():
        return own, replicas
    drawn_from = samples.of_cells(is_measured)
    rng = np.random.default_rng([seed, 1])
    for k in range(n_replicas):
        tell("replicas", k, n_replicas)
        drawn = samples.reference.resampled(rng).shower_weight, samples.today.resampled(rng).shower_weight
        replicas[k, is_measured] = _log_fraction(drawn_from.reweighted(*drawn), method)
    tell("replicas", n_replicas, max(n_replicas, 1))
    return own, replicas


def _adversarial(
    samples: Samples,
    n_bootstrap: int | None,
    settings: WganSettings | None,
    *,
    seed: int,
    device: str,
    tell: Callable[[str, float, float], None],
    checkpoint_dir: Path | None,
) -> tuple[FloatArray, FloatArray, tuple[WganEpoch, ...]]:
    """ln r, of replicas too, and the epochs: the networks are trained again for each replica, and each takes up where it was."""
    from calolife.ageing.wgan import WganSettings, fit_wgan

    used = settings or WganSettings()
    n_replicas = default_replicas("wgan") if n_bootstrap is None else n_bootstrap
    rng = np.random.default_rng([seed, 1])
    found, epochs = np.empty((n_replicas + 1, samples.reference.n_cells)), []
    for k in range(n_replicas + 1):
        reference, today = (samples.reference, samples.today) if k == 0 else (s.resampled(rng) for s in (samples.reference, samples.today))
        what = "epochs" if k == 0 else f"epochs of replica {k} of {n_replicas}"
        fit = fit_wgan(
            reference, today, settings=used, seed=seed, device=device,
            checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / f"training-{k}",
            progress=lambda epoch, what=what: tell(what, epoch.number, used.epochs),  # type: ignore[misc]
        )  # fmt: skip
        found[k] = np.log(fit.signal_fraction)
        epochs.append(fit.epochs)
    return found[0], found[1:], epochs[0]


def _errors(replicas: FloatArray, shape: FloatArray, is_measured: NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """Standard deviation of ln r of each cell, and the part of it that all cells share.

    The spread of a few replicas is itself uncertain: each cell's variance leans on `shape` squared times a common factor. Where
    there are enough, it is told by quantiles: with few hits some replicas jump to another peak of the spectrum.
    """
    if replicas.shape[0] == 0 or not is_measured.any():
        return np.hypot(shape, _BIN), 0.0
    n_finite = np.isfinite(replicas).sum(axis=0)
    is_used = is_measured & (n_finite >= 2)
    if not is_used.any():
        return np.hypot(shape, _BIN), 0.0
    here, n = replicas[:, is_used], n_finite[is_used]
    if replicas.shape[0] >= _MANY_REPLICAS:
        low, high = np.nanquantile(here, [0.1587, 0.8413], axis=0, method="median_unbiased")
        variance = (0.5 * (high - low)) ** 2
    else:
        variance = np.nanvar(here, axis=0, ddof=1)
    factor = float(np.median(variance / shape[is_used] ** 2))
    error = math.sqrt(factor) * shape
    error[is_used] = np.sqrt((n * variance + _SHAPE_WORTH * factor * shape[is_used] ** 2) / (n + _SHAPE_WORTH))
    error = np.hypot(error, _BIN)
    weight = 1 / error[is_used] ** 2
    mean = np.nansum(here * weight, axis=1) / np.sum(np.isfinite(here) * weight, axis=1)
    return error, math.sqrt(max(0.0, float(mean.var(ddof=1)) - 1 / float(weight.sum())))


def _bias_of_the_beam(
    samples: Samples, own: FloatArray, error: FloatArray, method: str, checks: Checks, is_measured: NDArray[np.bool_]
) -> list[str]:
    """What the estimate does when the reference is given the beam of today, or showers with more or fewer hits."""
    remarks = []

    def judged(moved: FloatArray, said: str) -> str:
        share = abs(moved.mean()) / error[is_measured].mean()
        verdict = "less than half its error" if share < 0.5 else "MORE than half its error"
        return f"{said} the signal fractions move by {100 * moved.mean():+.2g} % on average, {verdict} ({share:.2g})"

    if checks.reference_weight is not None:
        weighted = samples.reweighted(checks.reference_weight, samples.today.shower_weight)
        moved = (own - _log_fraction(weighted, method))[is_measured]
        if np.isfinite(moved).any():
            remarks.append(judged(moved[np.isfinite(moved)], "because the beam is another one,"))
    energy = [shift for shift in checks.shifts if shift.is_seen and "energy" in shift.quantity]
    if energy:
        # the reference's own showers with more and with fewer hits stand for a beam of another energy
        n_hits = np.bincount(samples.reference.shower, minlength=samples.reference.n_showers)
        is_high = n_hits > np.median(n_hits)
        if is_high.any() and not is_high.all():
            apart = n_hits[is_high].mean() / n_hits[~is_high].mean() - 1
            both = Samples(samples.reference, samples.reference, samples.parts, samples.is_settled)
            between = _log_fraction(both.reweighted((~is_high).astype(np.float64), is_high.astype(np.float64)), method)[is_measured]
            moved = between[np.isfinite(between)] * (energy[0].difference / 100) / apart
            if moved.size:
                remarks.append(judged(moved, "as far as showers with more hits stand for a higher energy, because of it"))
    return remarks


def _lean_on_dose(
    reference: Showers, today: Showers, cells: IntArray, own: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray, str]:
    """ln r of each cell with the dose prior, its standard deviation, and the law.

    Either sample tells the dose, with its own statistics; today's in undamaged energy, once a first round has told r.
    """
    n_all = reference.detector.n_cells
    before, after = (np.bincount(s.cell, weights=s.energy_mev, minlength=n_all)[cells] / s.n_showers for s in (reference, today))
    posterior = shrink_to_dose(own, variance, {"the reference": before})
    for _ in range(2):
        undamaged = after / np.exp(posterior.log_fraction)
        doses = {"the reference": before, "today's sample": undamaged, "both samples": before + undamaged}
        posterior = shrink_to_dose(own, variance, doses)
    return posterior.log_fraction, np.sqrt(posterior.variance), posterior.law
