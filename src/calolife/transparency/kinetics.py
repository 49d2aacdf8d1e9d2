"""Kinetics as a forecaster: fit, the state carried from year to year, and the filter that keeps it on the readings.

One year of readings does not determine the slowest component, so the fit keeps every slow component that describes the
training span about equally well and averages over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

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

__all__ = ["Kinetics", "check_origins", "extend_kinetics", "fit_kinetics", "fit_with_probe", "forecast_blocks", "sample_history"]

_DAY_S = 86400.0
# chosen: slow components considered equally likely before the fit, from one summer to no recovery, and
# saturating between 20 and 200 /fb
_SLOW_TAU_D = (100.0, 200.0, 400.0, 800.0, 1600.0)
_SLOW_B = (0.005, 0.01, 0.02, 0.05)
_N_READING = 1400  # chosen: readings of a crystal that are fitted; every third hour is enough for tau >= hours


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
    start_occupancy : float array, (year, hypothesis, crystal, component) [1/fb]
        State at the first reading of each training year.
    end_occupancy : float array, (hypothesis, crystal, component) [1/fb]
    end_time_s : float array, (crystal,) [s]
        State at the last reading of the training span, and when that was.
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
            Readings from each origin on are not looked at; times and luminosities up to the last target are.
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
        rings = [np.flatnonzero(block.ieta == ieta) for ieta in np.unique(block.ieta)]
        parts = forecast_blocks(self, [block.crystals(here) for here in rings], origins=[origins] * len(rings), horizon=horizon)
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(rings))
        return replace(
            parts[0], xtal_id=block.xtal_id, transparency=np.concatenate([f.transparency for f in parts])[back],
            half68=np.concatenate([f.half68 for f in parts])[back], half95=np.concatenate([f.half95 for f in parts])[back],
        )  # fmt: skip

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
        known = self.xtal_id[at] == block.xtal_id
        amplitude, end_time = self.amplitude[:, at].copy(), self.end_time_s[at].copy()
        is_training = block.year in self.train_years
        held = self.start_occupancy[self.train_years.index(block.year)] if is_training else self.end_occupancy
        state = held[:, at].copy()
        for c in np.flatnonzero(~known):
            like = self.ieta == block.ieta[c]
            if not like.any():
                like = np.ones_like(like)
            amplitude[:, c] = self.amplitude[:, like].mean(axis=1)
            state[:, c] = held[:, like].mean(axis=1)
            end_time[c] = self.end_time_s[like].mean()
        if is_training:
            return amplitude, state
        # what was delivered between the training span and this year is not known here: recovery alone. A year before
        # the training span starts unirradiated, as the fit of that span did.
        gap_d = (block.time_s[0] - end_time) / _DAY_S
        left = np.where(gap_d[:, None] >= 0, np.exp(-np.maximum(gap_d, 0)[:, None] / self.tau_d[:, None, :]), 0.0)
        return amplitude, state * left

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
    # hypotheses part company over months: that spread is not in the table, which saw the training span alone
    checked = [check_origins(block, o, horizon) for block, o in zip(blocks, origins, strict=True)]
    inputs, kept = [], []
    for block, at in zip(blocks, checked, strict=True):
        if np.unique(block.ieta).size > 1:
            raise ValueError(f"a block holds crystals of rings {block.ieta.min()} to {block.ieta.max()}; give one ring a block")
        curve, deviation, components = model.curves(block)
        row = at[:, None] + np.arange(horizon)
        inputs.append(FilterInput(block.time_s, block.lumi_ifb, np.log(block.transparency) - curve, components.mean(axis=0), at))
        moved = deviation[:, :, row] - deviation[:, :, at - 1][..., None]
        kept.append((curve[:, row], np.sqrt(np.einsum("h,hcwk->cwk", model.weight, moved**2)), row))
    made = []
    ahead = filter_forecast(inputs, model.settings, horizon=horizon)
    for block, at, (curve, spread, row), rest in zip(blocks, checked, kept, ahead, strict=True):
        level = np.exp(curve + rest)
        horizon_s = block.time_s[row] - block.time_s[at - 1][:, None]
        half68, half95 = model.interval.at(horizon_s)
        made.append(
            Forecast(
                model=model.name, train_years=model.train_years, year=block.year, xtal_id=block.xtal_id, row=row,
                horizon_s=horizon_s, transparency=level,
                half68=np.hypot(half68, level * spread), half95=np.hypot(half95, 1.96 * level * spread),
            )
        )
    return made


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
    if at.min() < 1 or at.max() + horizon > block.n_readings:
        raise ValueError(
            f"forecasts from rows {at.min()} to {at.max()} + {horizon} do not fit {block.n_readings} readings; "
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
        Fewer than 240 readings, or no luminosity in the span.

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
    shortest = min(b.n_readings for b in history.blocks)
    if shortest < 240:
        raise ValueError(f"{shortest} readings of a crystal are too few to fit kinetics; give at least 240")
    if sum(float(b.lumi_ifb.sum()) for b in history.blocks) <= 0:
        raise ValueError("no luminosity in the training span; damage cannot be learned without it")
    strands = chain_strands(history)
    split = time_at_fraction(history, 0.6)
    probe = _fit(cut_strands(strands, split), history.years, seed=seed)
    table = interval_table(probe, sample_history(history), start_s=split)
    return replace(_fit(strands, history.years, seed=seed), interval=table), probe, split


def _spaced(n: int, most: int) -> IntArray:
    return np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))


def sample_history(history: TransparencyHistory, *, most: int = 8) -> TransparencyHistory:
    """A few blocks of few crystals, spread over the detector: enough to calibrate intervals and train corrections."""
    picked = [history.blocks[k] for k in _spaced(len(history.blocks), most)]
    return TransparencyHistory(tuple(b.crystals(_spaced(b.n_crystals, 20)) for b in picked))


def _fit(strands: list[Strand], years: tuple[int, ...], *, seed: int) -> Kinetics:
    """The fit without intervals."""
    thin = max(1, max(s.time_s.size for s in strands) // _N_READING)
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
    n = n_independent(amplitudes(first.occupancy(tau_b[0, 0], tau_b[0, 1], scale[0]), first.log_r, first.starts)[1])
    weight = np.exp(-n * np.log(np.array(losses) / min(losses)))
    order = np.argsort(-weight, kind="stable")
    order = order[weight[order] > 0.02]  # chosen: lighter hypotheses cost time and move the mean by less than 2 %
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
    thin = max(1, max(s.time_s.size for s in strands) // _N_READING)
    rings = np.unique([s.ieta for s in strands])
    n_hypothesis = model.weight.size
    scale = np.empty(rings.size)
    for k, ring in enumerate(rings):
        at = np.flatnonzero(model.ring_ieta == ring)
        largest = max((s for s in strands if s.ieta == ring), key=lambda s: s.xtal_id.size)
        best = np.stack([model.tau_d[0], model.b_per_ifb[0]])
        scale[k] = model.ring_scale[at[0]] if at.size else ring_dose_scale(largest.thinned(thin, 4), best)
    stacks: dict[tuple[int, ...], list[int]] = {}
    coarse = [s.thinned(thin, s.xtal_id.size) for s in strands]
    for k, c in enumerate(coarse):
        stacks.setdefault((*c.log_r.shape, *c.starts.tolist()), []).append(k)
    amplitude: dict[int, FloatArray] = {}
    begin: dict[int, FloatArray] = {}
    end: dict[int, FloatArray] = {}
    for (_, _, *starts), members in stacks.items():
        log_r = np.stack([coarse[k].log_r for k in members])
        a, first, last = np.empty((n_hypothesis, *log_r.shape[:2], model.tau_d.shape[1])), [], []
        # a strand may lack a year: its crystals' state there is that of the nearest reading
        begins = np.array([np.minimum(np.searchsorted(coarse[k].year, years), log_r.shape[2] - 1) for k in members])
        dose = [scale[np.searchsorted(rings, coarse[k].ieta)] for k in members]
        for h in range(n_hypothesis):
            tau, b = model.tau_d[h], model.b_per_ifb[h]
            F = np.stack([coarse[k].occupancy(tau, b, d) for k, d in zip(members, dose, strict=True)])
            a[h] = amplitudes(F, log_r, np.array(starts))[0]
            first.append(np.take_along_axis(F, begins[:, None, :], axis=2))  # (strand, component, year)
            last.append(F[:, :, -1])
        for i, k in enumerate(members):
            amplitude[k] = a[:, i]
            at_start = np.array(first)[:, i].transpose(2, 0, 1)[:, :, None]  # (year, hypothesis, 1, component)
            begin[k] = np.broadcast_to(at_start, (len(years), *a[:, i].shape))
            end[k] = np.broadcast_to(np.array(last)[:, i, None], a[:, i].shape)
    order = range(len(strands))
    xtal_id = np.concatenate([s.xtal_id for s in strands])
    by_id = np.argsort(xtal_id)
    return replace(
        model, train_years=tuple(years), ring_ieta=rings, ring_scale=scale, xtal_id=xtal_id[by_id],
        ieta=np.concatenate([np.full(s.xtal_id.size, s.ieta) for s in strands])[by_id],
        amplitude=np.concatenate([amplitude[k] for k in order], axis=1)[:, by_id],
        start_occupancy=np.concatenate([begin[k] for k in order], axis=2)[:, :, by_id],
        end_occupancy=np.concatenate([end[k] for k in order], axis=1)[:, by_id],
        end_time_s=np.concatenate([np.full(c.xtal_id.size, c.time_s[-1]) for c in coarse])[by_id],
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
            a = amplitudes(head.occupancy(tau, b, d), head.log_r, head.starts)[0]
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
