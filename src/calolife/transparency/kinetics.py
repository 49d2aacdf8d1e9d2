"""Kinetics as a forecaster: fit, the state carried from year to year, and the filter that keeps it on the readings.

One year of readings does not determine the slowest component, so the fit keeps every slow component that describes the
training span about equally well and averages over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar
from warnings import warn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.transparency.centres import (
    Strand,
    amplitudes,
    chain_strands,
    cut_strands,
    fit_shared,
    log_errors,
    n_independent,
    occupancy,
    ring_dose_scale,
    search_shared,
)
from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.intervals import IntervalTable, interval_table, time_at_fraction
from calolife.transparency.statefilter import DEFAULT_SETTINGS, FilterInput, filter_forecast, tune_settings

__all__ = [
    "Kinetics",
    "check_origins",
    "extend_kinetics",
    "fit_kinetics",
    "fit_with_probe",
    "forecast_blocks",
    "join_rings",
    "sample_history",
    "split_rings",
]

_DAY_S = 86400.0
# chosen: slow components considered equally likely before the fit, from one summer to no recovery, and
# saturating between 20 and 200 /fb
_SLOW_TAU_D = (100.0, 200.0, 400.0, 800.0, 1600.0)
_SLOW_B = (0.005, 0.01, 0.02, 0.05)
_FEWEST = 240  # chosen: readings of a crystal, about ten days, below which its amplitudes mean nothing
_N_READING = 1400  # chosen: readings of a crystal that are fitted, so that the search takes seconds; F itself is computed on all of them


@dataclass(frozen=True, eq=False)
class Kinetics:
    """Colour-centre kinetics fitted to a training span; `fit_kinetics` makes it.

    Parameters
    ----------
    train_years : tuple of int
    interval : IntervalTable
    tau_d : float array, (hypothesis, component) [d]
    b_per_ifb : float array, (hypothesis, component) [fb]
        Hypotheses agree with the training span about equally well; the first is the best.
    weight : float array, (hypothesis,)
        Sums to 1.
    log_error : float array, (2, component)
        Standard error of ln tau and of ln b, best hypothesis; inf where the span does not determine them.
    ring_ieta : int array, (ring,)
    ring_scale : float array, (ring,)
        Dose per luminosity of each ring, multiplying b.
    xtal_id, ieta : int array, (crystal,)
        Crystals of the training span, sorted by xtal_id.
    amplitude : float array, (hypothesis, crystal, component) [fb]
    start_occupancy, end_occupancy : float array, (year, hypothesis, crystal, component) [1/fb]
        State at the first and the last reading of each training year.
    end_time_s : float array, (year, crystal) [s]
        When that last reading was; NaN in a year that the crystal was not read in.
    settings : float array, (8,)
        Of the state filter, see `statefilter.SETTINGS`.
    """

    name: ClassVar[str] = "kinetics"

    train_years: tuple[int, ...]
    interval: IntervalTable
    tau_d: FloatArray
    b_per_ifb: FloatArray
    weight: FloatArray
    log_error: FloatArray
    ring_ieta: IntArray
    ring_scale: FloatArray
    xtal_id: IntArray
    ieta: IntArray
    amplitude: FloatArray
    start_occupancy: FloatArray
    end_occupancy: FloatArray
    end_time_s: FloatArray
    settings: FloatArray

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """Forecast rows o ... o + horizon - 1 of every crystal from each origin o.

        Parameters
        ----------
        block : Block
            Begins with the year: luminosity before its first reading is not known. Readings from each origin on
        are not looked at; times and luminosities up to the last target are.
        origins : int array, (window,)
        horizon : int

        Returns
        -------
        Forecast

        Raises
        ------
        ValueError
            An origin without a reading before it, or a window that runs past the block.

        Notes
        -----
        A crystal the model was not fitted to takes the mean amplitudes of its ring, or of all crystals.
        """
        rings = split_rings(block)
        return join_rings(block, forecast_blocks(self, rings, origins=[origins] * len(rings), horizon=horizon))

    def curves(self, block: Block) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Damage curves of a block's crystals, from luminosity alone.

        Returns
        -------
        float array, (crystal, reading)
            -sum_j a_j F_j averaged over the hypotheses, in ln R.
        float array, (hypothesis, crystal, reading)
            Each hypothesis minus that average.
        float array, (crystal, component, reading)
            -a_j F_j of the best hypothesis.
        """
        amplitude, start = self._of_crystals(block)
        each = np.empty((self.weight.size, block.n_crystals, block.n_readings))
        components = np.empty((block.n_crystals, self.tau_d.shape[1], block.n_readings))
        for ieta in np.unique(block.ieta):
            here = np.flatnonzero(block.ieta == ieta)
            at = np.flatnonzero(self.ring_ieta == ieta)
            scale = float(self.ring_scale[at[0]] if at.size else np.median(self.ring_scale))
            for h in range(self.weight.size):
                F = occupancy(
                    block.time_s, block.lumi_ifb, tau_d=self.tau_d[h], b_per_ifb=self.b_per_ifb[h] * scale,
                    start=start[h, here].mean(axis=0),
                )  # fmt: skip
                each[h, here] = -(amplitude[h, here] @ F)
                if h == 0:
                    components[here] = -amplitude[0, here][:, :, None] * F
        mean = np.einsum("h,hcr->cr", self.weight, each)
        each -= mean
        return mean, each, components

    def _of_crystals(self, block: Block) -> tuple[FloatArray, FloatArray]:
        """Amplitude and occupancy at the block's first reading, (hypothesis, crystal, component) each."""
        at = np.minimum(np.searchsorted(self.xtal_id, block.xtal_id), self.xtal_id.size - 1)
        is_strange = self.xtal_id[at] != block.xtal_id
        # a crystal that was not fitted is like the mean of its ring, or of the ring nearest in |ieta|
        rings, kind = np.unique(block.ieta[is_strange], return_inverse=True)
        apart = [np.abs(np.abs(self.ieta) - abs(r)) + 0.5 * (self.ieta != r) for r in rings]
        alike = [np.flatnonzero(self.ieta == self.ieta[a.argmin()]) for a in apart]
        at[is_strange] = self.xtal_id.size + kind

        def of_block(values: FloatArray, axis: int) -> FloatArray:
            if alike:
                means = [np.take(values, crystals, axis).mean(axis, keepdims=True) for crystals in alike]
                values = np.concatenate([values, *means], axis)
            return np.take(values, at, axis)

        amplitude = of_block(self.amplitude, 1)
        state = np.zeros_like(amplitude)
        for year, start, end, end_time in zip(
            self.train_years, of_block(self.start_occupancy, 2), of_block(self.end_occupancy, 2), of_block(self.end_time_s, 1), strict=True
        ):
            was_read = np.isfinite(end_time)
            if year == block.year:
                state = np.where(was_read[:, None], start, state)
                break
            # what was delivered between a training year and this one is not known here: recovery alone. Before the
            # training span crystals count as unirradiated, as they do in the fit.
            gap_d = (block.time_s[0] - end_time) / _DAY_S
            is_past = was_read & (gap_d >= 0)
            left = np.exp(-np.where(is_past, gap_d, 0.0)[:, None] / self.tau_d[:, None, :])
            state = np.where(is_past[:, None], end * left, state)
        return amplitude, state

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("train_years", "interval")}
        return own | self.interval.state(), {"train_years": list(self.train_years)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Kinetics:
        """The model that `state` described."""
        own = {k: v for k, v in arrays.items() if not k.startswith("interval_")}
        return cls(train_years=tuple(meta["train_years"]), interval=IntervalTable.from_state(arrays), **own)


def forecast_blocks(model: Kinetics, blocks: Sequence[Block], *, origins: Sequence[IntArray], horizon: int) -> list[Forecast]:
    """`Kinetics.forecast` for many blocks at once: the filter steps through their readings side by side.

    Parameters
    ----------
    model : Kinetics
    blocks : sequence of Block
        Each of one ring.
    origins : sequence of int array, (window,)
        Of each block.
    horizon : int

    Returns
    -------
    list of Forecast
        The same numbers as block by block.
    """
    checked = [check_origins(block, o, horizon) for block, o in zip(blocks, origins, strict=True)]
    inputs: list[FilterInput] = []
    kept = []
    for block, at in zip(blocks, checked, strict=True):
        if np.unique(block.ieta).size > 1:
            raise ValueError(f"a block holds crystals of rings {block.ieta.min()} to {block.ieta.max()}; give one ring a block")
        curve, deviation, components = model.curves(block)
        residual, shape = np.log(block.transparency) - curve, components.mean(axis=0)
        known = np.isfinite(residual[:, : at.min()])
        if not known.any(axis=1).all():
            lost = block.xtal_id[~known.any(axis=1)][0]
            raise ValueError(f"crystal {lost} has no reading before reading {at.min()} of {block.year}; forecast it from a later one")
        # crystals that were first read together share the covariance of the filter
        first = known.argmax(axis=1)
        groups = [np.flatnonzero(first == f) for f in np.unique(first)]
        inputs += [FilterInput(block.time_s, block.lumi_ifb, residual[here], shape, at) for here in groups]
        row = at[:, None] + np.arange(horizon)
        # hypotheses part company over months: that spread is not in the table, which saw the training span alone
        moved = deviation[:, :, row] - deviation[:, :, at - 1][..., None]
        kept.append((curve[:, row], np.sqrt(np.einsum("h,hcwk->cwk", model.weight, moved**2)), row, groups))
    made = []
    ahead = iter(filter_forecast(inputs, model.settings, horizon=horizon))
    for block, at, (level, spread, row, groups) in zip(blocks, checked, kept, strict=True):
        for here in groups:
            level[here] += next(ahead)
        level = np.exp(level)
        horizon_s = block.time_s[row] - block.time_s[at - 1][:, None]
        half68, half95 = model.interval.at(horizon_s, ieta=block.ieta)
        made.append(
            Forecast(
                model=model.name, train_years=model.train_years, year=block.year, xtal_id=block.xtal_id, row=row,
                horizon_s=horizon_s, transparency=level,
                half68=np.hypot(half68, level * spread), half95=np.hypot(half95, 1.96 * level * spread),
            )
        )  # fmt: skip
    return made


def split_rings(block: Block) -> list[Block]:
    """One block per ring of a block, in the order of ieta; `join_rings` undoes it."""
    rings = np.unique(block.ieta)
    return [block] if rings.size == 1 else [block.crystals(block.ieta == ieta) for ieta in rings]


def join_rings(block: Block, parts: list[Forecast]) -> Forecast:
    """The forecast of a block from those of its rings."""
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.argsort(block.ieta, kind="stable"), kind="stable")
    return replace(
        parts[0], xtal_id=block.xtal_id, transparency=np.concatenate([f.transparency for f in parts])[back],
        half68=np.concatenate([f.half68 for f in parts])[back], half95=np.concatenate([f.half95 for f in parts])[back],
    )  # fmt: skip


def check_origins(block: Block, origins: ArrayLike, horizon: int) -> IntArray:
    """The origins as an int array, after checking that every window lies inside the block.

    Raises
    ------
    ValueError
        No reading before an origin, a window past the end, or a horizon below 1.
    """
    at = np.atleast_1d(np.asarray(origins, dtype=np.int64))
    if horizon < 1:
        raise ValueError(f"horizon = {horizon} must be >= 1 reading")
    if not at.size or at.min() < 1 or at.max() + horizon > block.n_readings:
        raise ValueError(
            f"forecasts of {horizon} readings from rows {at.tolist()[:3]} do not fit {block.n_readings} readings; "
            "origins start at 1 and times and luminosities are needed to the last target"
        )
    return at


def fit_kinetics(history: TransparencyHistory, *, seed: int = 0) -> Kinetics:
    """Fit the kinetics to a training span.

    Parameters
    ----------
    history : TransparencyHistory
        The training span, nothing else.
    seed : int
        Of the search for the filter's settings.

    Returns
    -------
    Kinetics

    Raises
    ------
    ValueError
        No crystal with 240 readings, a NaN reading, or no luminosity in the span.

    Warns
    -----
    UserWarning
        Crystals with fewer readings; they take the kinetics of their ring.

    Notes
    -----
    tau and b: variable projection (outer simplex over ln tau, ln b; inner amplitudes by non-negative least
    absolute deviations) on up to 6 rings x 4 crystals, thinned in time; then one dose scale per ring, then the
    amplitudes of every crystal. Slow components: the search is repeated with the slowest fixed to each point of a
    grid, and a point weighs exp(-n ln(loss / best loss)) with n the independent residuals of the span.
    Filter settings: rolling origin, from fits to the first 35, 55 and 75 % of the span, each judged on what
    follows. Intervals: split conformal on the last 40 % of the span, from a fit to the first 60 %. Cost grows
    linearly with crystals and readings.
    """
    return fit_with_probe(history, seed=seed)[0]


def fit_with_probe(history: TransparencyHistory, *, seed: int = 0) -> tuple[Kinetics, Kinetics, float]:
    """The kinetics of a span, those of its first 60 % (without intervals), and the time where these end [s].

    Raises
    ------
    ValueError
        As `fit_kinetics`.
    """
    if sum(float(b.lumi_ifb.sum()) for b in history.blocks) <= 0:
        raise ValueError("no luminosity in the training span; damage cannot be learned without it")
    for block in history.blocks:
        if (bad := ~np.isfinite(block.transparency).all(axis=1)).any():
            raise ValueError(f"crystal {block.xtal_id[bad][0]} has NaN readings in {block.year}; leave them out of the training span")
    strands = chain_strands(history)
    longest = max(s.time_s.size for s in strands)
    if longest < _FEWEST:
        raise ValueError(f"{longest} readings of a crystal are too few to fit kinetics; give at least {_FEWEST}")
    if short := [s for s in strands if s.time_s.size < _FEWEST]:
        named = ", ".join(str(x) for s in short for x in s.xtal_id[:3])
        warn(f"fewer than {_FEWEST} readings of crystals {named}: they take the kinetics of their ring", stacklevel=2)
        strands = [s for s in strands if s.time_s.size >= _FEWEST]
    split = time_at_fraction(history, 0.6)
    head = cut_strands(strands, split)
    probe = _fit(head, seed=seed)
    table = interval_table(probe, sample_history(history), start_s=split)
    return replace(_fit(strands, seed=seed), interval=table), probe, split


def _spaced(n: int, most: int) -> IntArray:
    return np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))


def sample_history(history: TransparencyHistory, *, most: int = 8) -> TransparencyHistory:
    """A few blocks of few crystals, spread over the detector: enough to calibrate intervals and train corrections."""
    picked = [history.blocks[k] for k in _spaced(len(history.blocks), most)]
    return TransparencyHistory(tuple(b.crystals(_spaced(b.n_crystals, 20)) for b in picked))


def _fit(strands: list[Strand], *, seed: int) -> Kinetics:
    """The fit without intervals."""
    years = tuple(sorted({int(y) for s in strands for y in np.unique(s.year)}))
    thin = max(1, max(s.row.size for s in strands) // _N_READING)
    by_ring: dict[int, list[Strand]] = {}
    for strand in strands:
        by_ring.setdefault(strand.ieta, []).append(strand)
    rings = sorted(by_ring)
    sample = [max(by_ring[rings[k]], key=lambda s: s.xtal_id.size) for k in _spaced(len(rings), 6)]
    small = [s.thinned(thin, 4) for s in sample]
    best, scale, best_loss = fit_shared(small)
    hypotheses, losses = [best], [best_loss]
    for tau in _SLOW_TAU_D:
        for b in _SLOW_B:
            found, loss = search_shared(small, scale, best, slow=(tau, b), n_try=160)
            hypotheses.append(found)
            losses.append(loss)
    tau_b = np.exp(np.array(hypotheses))  # (hypothesis, 2, component)
    first = small[0]
    F = first.occupancy(tau_b[0, 0], tau_b[0, 1], scale[0])[:, first.row]
    n = n_independent(amplitudes(F, first.log_r, first.starts)[1])
    weight = np.exp(-n * np.log(np.array(losses) / min(losses)))
    order = np.argsort(-weight, kind="stable")
    order = order[weight[order] > 0.02]  # chosen: lighter hypotheses cost more time than they move the mean
    tau_b, weight = tau_b[order], weight[order] / weight[order].sum()
    none = np.empty(0)
    shared = Kinetics(
        train_years=years, interval=IntervalTable.unknown(), tau_d=tau_b[:, 0], b_per_ifb=tau_b[:, 1], weight=weight,
        log_error=log_errors(small, scale, np.log(tau_b[0])), settings=_tune(sample, thin, seed=seed),
        # one ring is its own reference
        ring_ieta=np.array(rings if len(rings) == 1 else [], dtype=np.int64), ring_scale=np.ones(int(len(rings) == 1)),
        xtal_id=none.astype(np.int64), ieta=none.astype(np.int64),
        amplitude=none, start_occupancy=none, end_occupancy=none, end_time_s=none,
    )  # fmt: skip
    return _with_crystals(shared, strands, years)


def extend_kinetics(model: Kinetics, history: TransparencyHistory) -> Kinetics:
    """The same kinetics for other crystals: their dose scale and amplitudes are fitted, nothing else.

    Parameters
    ----------
    model : Kinetics
        tau, b, weights of the hypotheses, filter settings and intervals are kept.
    history : TransparencyHistory
        Training span of the other crystals, some rings of the detector.

    Returns
    -------
    Kinetics
        Of the crystals in `history` alone.

    Notes
    -----
    A ring that the model knows keeps its dose scale. Fitting a sample of rings and extending the model to
    each of the others takes the memory of one ring.
    """
    strands = chain_strands(history)
    return _with_crystals(model, strands, history.years)


def _with_crystals(model: Kinetics, strands: list[Strand], years: tuple[int, ...]) -> Kinetics:
    """The model with dose scales, amplitudes and states of these strands' crystals."""
    thin = max(1, max(s.row.size for s in strands) // _N_READING)
    coarse = [s.thinned(thin, s.xtal_id.size) for s in strands]
    rings = np.unique([s.ieta for s in strands])
    best = np.stack([model.tau_d[0], model.b_per_ifb[0]])
    scale = np.empty(rings.size)
    for k, ring in enumerate(rings):
        at = np.flatnonzero(model.ring_ieta == ring)
        largest = max((s for s in coarse if s.ieta == ring), key=lambda s: s.xtal_id.size)
        scale[k] = model.ring_scale[at[0]] if at.size else ring_dose_scale(largest.thinned(1, 4), best)
    stacks: dict[tuple[int, ...], list[int]] = {}
    for k, c in enumerate(coarse):
        stacks.setdefault((*c.log_r.shape, *c.starts.tolist()), []).append(k)
    n_hypothesis, n_component = model.tau_d.shape
    parts: list[tuple[FloatArray, FloatArray, FloatArray, FloatArray]] = [(np.empty(0),) * 4] * len(strands)
    for members in stacks.values():
        log_r = np.stack([coarse[k].log_r for k in members])
        a = np.empty((n_hypothesis, *log_r.shape[:2], n_component))
        state = np.full((2, len(members), len(years), n_hypothesis, n_component), np.nan)
        end_time = np.full((len(members), len(years)), np.nan)
        for h in range(n_hypothesis):
            F = []
            for i, k in enumerate(members):
                c = coarse[k]
                whole = c.occupancy(model.tau_d[h], model.b_per_ifb[h], float(scale[np.searchsorted(rings, c.ieta)]))
                F.append(whole[:, c.row])
                for y, year in enumerate(years):
                    first, last = np.searchsorted(c.year, [year, year + 1])
                    if last > first:
                        state[:, i, y, h] = whole[:, [first, last - 1]].T
                        end_time[i, y] = c.time_s[last - 1]
            a[h] = amplitudes(np.stack(F), log_r, coarse[members[0]].starts)[0]
        for i, k in enumerate(members):
            n_crystal = coarse[k].xtal_id.size
            start, end = (np.broadcast_to(s[i][:, :, None], (len(years), n_hypothesis, n_crystal, n_component)) for s in state)
            parts[k] = (a[:, i], start, end, np.broadcast_to(end_time[i][:, None], (len(years), n_crystal)))
    amplitude, start, end, end_time = (np.concatenate([p[i] for p in parts], axis=axis) for i, axis in enumerate((1, 2, 2, 1)))
    xtal_id = np.concatenate([s.xtal_id for s in strands])
    by_id = np.argsort(xtal_id)
    return replace(
        model, train_years=years, ring_ieta=rings, ring_scale=scale, xtal_id=xtal_id[by_id],
        ieta=np.concatenate([np.full(s.xtal_id.size, s.ieta) for s in strands])[by_id], amplitude=amplitude[:, by_id],
        start_occupancy=start[:, :, by_id], end_occupancy=end[:, :, by_id], end_time_s=end_time[:, by_id],
    )  # fmt: skip


def _tune(sample: list[Strand], thin: int, *, seed: int) -> FloatArray:
    """Filter settings by rolling origin inside the training span."""
    inputs = []
    times = np.concatenate([s.time_s for s in sample])
    cuts = np.quantile(times, [0.35, 0.55, 0.75, 1.0])
    for t0, t1 in pairwise(cuts):
        part = [s for s in cut_strands(sample, t0) if s.time_s.size >= 120 and s.lumi_ifb[:-1].sum() > 0][:3]
        if not part:
            continue
        small = [s.thinned(thin, 4) for s in part]
        log_tau_b, scale, _ = fit_shared(small, n_try=300)
        tau, b = np.exp(log_tau_b)
        whole = {(s.ieta, int(s.xtal_id[0])): s for s in sample}
        for head, d in zip(small, scale, strict=True):
            a = amplitudes(head.occupancy(tau, b, d)[:, head.row], head.log_r, head.starts)[0]
            strand = whole[head.ieta, int(head.xtal_id[0])].until(t1)
            here = strand.year == strand.year[-1]
            F = strand.occupancy(tau, b, d)[:, here]
            residual = strand.log_r[np.isin(strand.xtal_id, head.xtal_id)][:, here] + a @ F
            time_s = strand.time_s[here]
            first = max(24, int(np.searchsorted(time_s, t0)))
            origins = first + 24 * np.arange((residual.shape[1] - first) // 24)
            if origins.size:
                curve = -(a.mean(axis=0)[:, None] * F)
                inputs.append(FilterInput(time_s, strand.lumi_ifb[here], residual, curve, origins))
    return tune_settings(inputs, seed=seed)[0] if inputs else DEFAULT_SETTINGS
