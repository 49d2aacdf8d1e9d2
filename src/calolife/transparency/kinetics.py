"""Colour-centre kinetics: damage created by luminosity, saturating, recovering in time.

    ln R = ln R0 - sum_j a_j F_j        dF_j/dt = -F_j/tau_j + l (1 - s b_j F_j)

tau and b are shared by all crystals, s (the dose per luminosity) is one number per ring, a >= 0 and R0 are each
crystal's own. One year of readings does not determine the slowest component, so the fit keeps every slow
component that describes the training span about equally well and averages over them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.intervals import IntervalTable, interval_table, time_at_fraction
from calolife.transparency.statefilter import DEFAULT_SETTINGS, FilterInput, filter_forecast, tune_settings

__all__ = [
    "Kinetics", "check_origins", "fit_kinetics", "fit_with_probe", "nonnegative_least_squares", "occupancy", "sample_history",
]  # fmt: skip

_DAY_S = 86400.0
# chosen: start of the search; one fill, days, weeks, a year (the orders of magnitude of CMS DP-2013/016)
_START_TAU_D = np.array([0.025, 3.0, 15.0, 300.0])
_START_B = np.array([0.8, 9.0, 0.5, 0.03])
# chosen: slow components considered equally likely before the fit, from one summer to no recovery, and
# saturating between 20 and 200 /fb
_SLOW_TAU_D = (100.0, 200.0, 400.0, 800.0, 1600.0)
_SLOW_B = (0.005, 0.01, 0.02, 0.05)
_MIN_RESIDUAL = 2e-4  # chosen: below the noise of one reading (3e-4), where |.| weighting must stop growing


def occupancy(
    time_s: ArrayLike,
    lumi_ifb: ArrayLike,
    *,
    tau_d: ArrayLike,
    b_per_ifb: ArrayLike,
    start: ArrayLike | None = None,
) -> FloatArray:
    """Effective dose F held by each kind of colour centre at each reading.

    Parameters
    ----------
    time_s : float array, (reading,) [s]
        Non-decreasing.
    lumi_ifb : float array, (reading,) [1/fb]
        Delivered between reading i and reading i + 1; the last entry is not used.
    tau_d : float array, (component,) [d]
        Recovery time constant; inf for centres that never recover.
    b_per_ifb : float array, (component,) [fb]
        Saturation: F never exceeds 1/b; 0 for centres that do not saturate.
    start : float array, (component,) [1/fb], optional
        F at the first reading; 0 when left out.

    Returns
    -------
    float array, (component, reading) [1/fb]

    Notes
    -----
    dF/dt = -F/tau + l (1 - b F) with l the luminosity rate, constant between two readings, has the exact
    solution F' = F exp(-x) + L (1 - exp(-x))/x with x = dt/tau + b L and L the luminosity of the interval:
    no step size, and a split interval gives the same F. Model: colour centres created in proportion to the
    dose rate, filling a finite number of precursors, recovering spontaneously (R. Y. Zhu, NIM A 413 (1998)
    297; CMS DP-2013/016). All intervals are solved at once by a prefix scan, O(n log n).

    Examples
    --------
    >>> day = 86400.0
    >>> F = occupancy([0, day, 2 * day], [1.0, 0.0, 0.0], tau_d=[10.0], b_per_ifb=[0.0])
    >>> F.round(4).tolist()                     # created while decaying, then recovery alone
    [[0.0, 0.9516, 0.8611]]
    """
    t = np.asarray(time_s, dtype=np.float64)
    lumi = np.asarray(lumi_ifb, dtype=np.float64)[:-1]
    tau = np.atleast_1d(np.asarray(tau_d, dtype=np.float64))[:, None]
    b = np.atleast_1d(np.asarray(b_per_ifb, dtype=np.float64))[:, None]
    x = np.diff(t) / (tau * _DAY_S) + b * lumi
    keep = np.exp(-x)
    with np.errstate(invalid="ignore", divide="ignore"):
        fill = np.where(x > 1e-9, -np.expm1(-x) / x, 1.0 - x / 2)
    n = t.size
    factor = np.ones((tau.shape[0], n))
    F = np.zeros((tau.shape[0], n))
    factor[:, 1:] = keep
    F[:, 1:] = lumi * fill
    if start is not None:
        F[:, 0] = np.asarray(start, dtype=np.float64)
    step = 1
    while step < n:  # prefix scan of F' = factor F + source
        F[:, step:] += factor[:, step:] * F[:, :-step]
        factor[:, step:] = factor[:, step:] * factor[:, :-step]
        step *= 2
    return F


def nonnegative_least_squares(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """Minimise x'Gx/2 - m'x over x >= 0, for many small problems at once.

    Parameters
    ----------
    gram : float array, (..., component, component)
        Positive semi-definite.
    moment : float array, (..., component)

    Returns
    -------
    float array, (..., component)

    Notes
    -----
    Every subset of active components is solved and the best feasible one kept: exact, and for the 4 or 5
    components of the kinetics faster than an active-set walk per crystal. Cost 2^component solves.

    Examples
    --------
    >>> nonnegative_least_squares(np.eye(2), np.array([1.0, -1.0])).tolist()
    [1.0, 0.0]
    """
    n = gram.shape[-1]
    scale = np.sqrt(np.maximum(np.einsum("...ii->...i", gram), 1e-300))
    G = gram / (scale[..., :, None] * scale[..., None, :])
    m = moment / scale
    on = (np.arange(1, 2**n)[:, None] >> np.arange(n) & 1).astype(np.float64)  # (subset, component)
    on = on.reshape(on.shape[0], *(1,) * (m.ndim - 1), n)
    # components outside the subset decouple: identity in the matrix, zero on the right
    sub = G * on[..., :, None] * on[..., None, :] + (1 - on + 1e-10)[..., :, None] * np.eye(n)
    x = np.linalg.solve(sub, (m * on)[..., None])[..., 0]
    value = np.where((x >= 0).all(axis=-1), -0.5 * (x * m).sum(axis=-1), 0.0)
    best = value.argmin(axis=0)
    found = np.take_along_axis(x, best[None, ..., None], axis=0)[0]
    is_damage = np.take_along_axis(value, best[None], axis=0)[0] < 0
    kept: FloatArray = np.where(is_damage[..., None], found, 0.0) / scale
    return kept


@dataclass(frozen=True, eq=False)
class _Strand:
    """Crystals followed through the training years on one chain of time grids: what the fit works on."""

    ieta: int
    xtal_id: IntArray  # (crystal,)
    time_s: FloatArray  # (reading,)
    lumi_ifb: FloatArray  # (reading,)
    year: IntArray  # (reading,)
    log_r: FloatArray  # (crystal, reading)

    def thinned(self, step: int, most: int) -> _Strand:
        """Every step-th reading of at most so many crystals; the luminosity between them is summed, so F stays exact."""
        rows = np.arange(0, self.time_s.size, step)
        lumi = np.add.reduceat(self.lumi_ifb, rows)
        crystal = np.unique(np.linspace(0, self.xtal_id.size - 1, most).astype(int))
        return replace(
            self, time_s=self.time_s[rows], lumi_ifb=lumi, year=self.year[rows],
            xtal_id=self.xtal_id[crystal], log_r=self.log_r[crystal][:, rows],
        )  # fmt: skip

    def until(self, time_s: float) -> _Strand:
        n = int(np.searchsorted(self.time_s, time_s))
        return replace(
            self, time_s=self.time_s[:n], lumi_ifb=self.lumi_ifb[:n], year=self.year[:n], log_r=self.log_r[:, :n]
        )  # fmt: skip


def _strands(history: TransparencyHistory) -> list[_Strand]:
    """Chain the blocks of each crystal through the years; crystals with the same chain and ring stay together."""
    chain: dict[int, list[tuple[int, int]]] = {}
    for k, block in enumerate(history.blocks):
        for c, xtal in enumerate(block.xtal_id.tolist()):
            chain.setdefault(xtal, []).append((k, c))
    groups: dict[tuple[int, ...], list[list[tuple[int, int]]]] = {}
    for places in chain.values():
        k, c = places[0]
        groups.setdefault((int(history.blocks[k].ieta[c]), *(k for k, _ in places)), []).append(places)
    strands = []
    for (ieta, *ks), members in groups.items():
        blocks = [history.blocks[k] for k in ks]
        columns = [[places[j][1] for places in members] for j in range(len(ks))]
        lumi = [b.lumi_ifb.copy() for b in blocks]
        for one in lumi[:-1]:
            one[-1] = 0.0  # no beam between the last reading of a year and the first of the next
        strands.append(
            _Strand(
                ieta=ieta,
                xtal_id=blocks[0].xtal_id[columns[0]],
                time_s=np.concatenate([b.time_s for b in blocks]),
                lumi_ifb=np.concatenate(lumi),
                year=np.repeat([b.year for b in blocks], [b.n_readings for b in blocks]),
                log_r=np.concatenate([np.log(b.transparency[c]) for b, c in zip(blocks, columns, strict=True)], axis=1),
            )
        )
    return strands


def _amplitudes(F: FloatArray, strand: _Strand, *, n_pass: int = 3) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Amplitudes (crystal, component) >= 0, ln R0 (crystal, year) and residuals (crystal, reading), least |.| by reweighting."""
    n_crystal = strand.log_r.shape[0]
    _, starts, period = np.unique(strand.year, return_index=True, return_inverse=True)
    weight = np.ones_like(strand.log_r)
    products = F[:, None, :] * F[None, :, :]
    n_component = F.shape[0]
    for _ in range(n_pass):
        # the free ln R0 of each year drops out by centring on the weighted mean of that year
        total = np.add.reduceat(weight, starts, axis=1)
        mean_y = np.add.reduceat(weight * strand.log_r, starts, axis=1) / total
        mean_F = np.stack([np.add.reduceat(weight * f, starts, axis=1) / total for f in F])  # (component, crystal, year)
        gram = (weight @ products.reshape(-1, F.shape[1]).T).reshape(n_crystal, n_component, n_component)
        gram = gram - np.einsum("cp,icp,jcp->cij", total, mean_F, mean_F)
        moment = -((weight * strand.log_r) @ F.T) + np.einsum("cp,icp,cp->ci", total, mean_F, mean_y)
        a = nonnegative_least_squares(gram, moment)
        log_r0 = mean_y + np.einsum("ci,icp->cp", a, mean_F)
        residual = strand.log_r - (log_r0[:, period] - a @ F)
        weight = 1.0 / np.maximum(np.abs(residual), _MIN_RESIDUAL)
    return a, log_r0, residual


def _search(
    strands: list[_Strand], scale: FloatArray, start: FloatArray, *, slow: tuple[float, float] | None, n_try: int = 800
) -> tuple[FloatArray, float]:
    """Best ln(tau), ln(b) by variable projection; `slow` holds the last component fixed. Returns (2, component) and mean |residual|."""
    n = start.shape[1]
    free = n if slow is None else n - 1

    def full(p: FloatArray) -> FloatArray:
        both = p.reshape(2, free)
        return both if slow is None else np.column_stack([both, np.log(slow)])

    def cost(p: FloatArray) -> float:
        if np.abs(p).max() > 12:
            return 1e3
        tau, b = np.exp(full(p))
        total = count = 0.0
        for strand, s in zip(strands, scale, strict=True):
            F = occupancy(strand.time_s, strand.lumi_ifb, tau_d=tau, b_per_ifb=b * s)
            residual = _amplitudes(F, strand)[2]
            total += float(np.abs(residual).sum())
            count += residual.size
        return 100 * total / count

    found = minimize(
        cost, start[:, :free].ravel(), method="Nelder-Mead",
        options={"maxfev": n_try, "adaptive": True, "xatol": 1e-2, "fatol": 1e-5},
    )  # fmt: skip
    return full(found.x), float(found.fun)


def _n_independent(residual: FloatArray) -> float:
    """Independent residuals in a series (crystal, reading): n over the integrated autocorrelation, first crossing of zero."""
    y = residual.mean(axis=0) - residual.mean()
    n = y.size
    spectrum = np.abs(np.fft.rfft(y, 2 * n)) ** 2
    acf = np.fft.irfft(spectrum)[:n]
    acf = acf / acf[0]
    below = np.flatnonzero(acf < 0)
    last = int(below[0]) if below.size else n
    return float(n / (1 + 2 * acf[1:last].sum()))


def _log_error(strands: list[_Strand], scale: FloatArray, log_tau_b: FloatArray) -> FloatArray:
    """Standard errors of ln tau and ln b, (2, component), amplitudes and ln R0 left free.

    Notes
    -----
    Sandwich formula of an M-estimator with psi = r/max(|r|, floor), n/n_independent for correlated noise. Derivatives
    are taken of the residuals after the amplitudes are fitted again, so what they can absorb does not count.
    """

    def residual(p: FloatArray) -> list[FloatArray]:
        tau, b = np.exp(p)
        return [
            _amplitudes(occupancy(s.time_s, s.lumi_ifb, tau_d=tau, b_per_ifb=b * d), s)[2] for s, d in zip(strands, scale, strict=True)
        ]

    here = residual(log_tau_b)
    r = np.concatenate([x.ravel() for x in here])
    n_independent = sum(_n_independent(x) for x in here)
    n_reading = sum(x.shape[1] for x in here)
    columns = []
    step = 0.05  # chosen: residuals move by less than the noise, rounding by far less
    for k in range(log_tau_b.size):
        move = np.zeros(log_tau_b.size)
        move[k] = step
        up, down = (residual(log_tau_b + sign * move.reshape(log_tau_b.shape)) for sign in (1, -1))
        columns.append(np.concatenate([(u - d).ravel() for u, d in zip(up, down, strict=True)]) / (2 * step))
    J = np.stack(columns)
    psi2 = np.mean((r / np.maximum(np.abs(r), _MIN_RESIDUAL)) ** 2)
    slope = np.mean(np.abs(r) < _MIN_RESIDUAL) / _MIN_RESIDUAL
    information = J @ J.T
    determined = np.diag(information) > 1e-6 * np.diag(information).max()
    variance = np.full(log_tau_b.size, np.inf)
    inverse = np.linalg.pinv(information[np.ix_(determined, determined)], hermitian=True)
    variance[determined] = np.diag(inverse) * psi2 / max(slope, 1e-12) ** 2 * n_reading / n_independent
    error: FloatArray = np.sqrt(variance)
    return error.reshape(log_tau_b.shape)


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
        origins = check_origins(block, origins, horizon)
        curve, deviation, components = self.curves(block)
        made = np.empty((block.n_crystals, origins.size, horizon))
        row = origins[:, None] + np.arange(horizon)
        residual = np.log(block.transparency) - curve
        inputs, members = [], []
        for ieta in np.unique(block.ieta):
            here = np.flatnonzero(block.ieta == ieta)
            inputs.append(FilterInput(block.time_s, block.lumi_ifb, residual[here], components[here].mean(axis=0), origins))
            members.append(here)
        for here, ahead in zip(members, filter_forecast(inputs, self.settings, horizon=horizon), strict=True):
            made[here] = np.exp(curve[here][:, row] + ahead)
        horizon_s = block.time_s[row] - block.time_s[origins - 1][:, None]
        half68, half95 = self.interval.at(horizon_s)
        # hypotheses part company over months: that spread is not in the table, which saw the training span alone
        moved = deviation[:, :, row] - deviation[:, :, origins - 1][..., None]
        spread = made * np.sqrt(np.einsum("h,hcwk->cwk", self.weight, moved**2))
        return Forecast(
            model=self.name, train_years=self.train_years, year=block.year, xtal_id=block.xtal_id, row=row,
            horizon_s=horizon_s, transparency=made,
            half68=np.hypot(half68, spread), half95=np.hypot(half95, 1.96 * spread),
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
    if min(b.n_readings for b in history.blocks) < 240:
        raise ValueError(
            f"{min(b.n_readings for b in history.blocks)} readings of a crystal are too few to fit kinetics; give at least 240"
        )
    if sum(float(b.lumi_ifb.sum()) for b in history.blocks) <= 0:
        raise ValueError("no luminosity in the training span; damage cannot be learned without it")
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
    strands = _strands(history)
    split = time_at_fraction(history, 0.6)
    # a coarser grid: the probe only has to err like the model
    probe = _fit(_cut(strands, split), history.years, seed=seed, slow_b=_SLOW_B[1::2])
    table = interval_table(probe, sample_history(history), start_s=split)
    return replace(_fit(strands, history.years, seed=seed), interval=table), probe, split


def _cut(strands: list[_Strand], time_s: float) -> list[_Strand]:
    return [s.until(time_s) for s in strands if s.time_s[0] < time_s]


def _spaced(n: int, most: int) -> IntArray:
    return np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))


def sample_history(history: TransparencyHistory, *, most: int = 8) -> TransparencyHistory:
    """A few blocks of few crystals, spread over the detector: enough to calibrate intervals and train corrections."""
    picked = [history.blocks[k] for k in _spaced(len(history.blocks), most)]
    return TransparencyHistory(tuple(b.crystals(_spaced(b.n_crystals, 20)) for b in picked))


def _shared_fit(strands: list[_Strand], *, n_try: int = 800) -> tuple[FloatArray, FloatArray, float]:
    """ln(tau), ln(b) (2, component) with the dose scale of each strand, (strand,), and the loss."""
    start = np.log(np.array([_START_TAU_D, _START_B]))
    scale = np.ones(len(strands))
    found, loss = _search(strands, scale, start, slow=None, n_try=n_try)
    if len({s.ieta for s in strands}) > 1:
        scale = np.array([_ring_scale([s], np.exp(found)) for s in strands])
        scale /= np.median(scale)
        found, loss = _search(strands, scale, found, slow=None, n_try=n_try)
    return found, scale, loss


def _ring_scale(strands: list[_Strand], tau_b: FloatArray) -> float:
    """Dose per luminosity that fits a ring best, between 1/8 and 8 times the reference."""
    grid = np.linspace(-3, 3, 13)
    loss = np.array([_loss(strands, tau_b, np.full(len(strands), 2.0**g)) for g in grid])
    k = int(np.clip(np.argmin(loss), 1, grid.size - 2))
    left, mid, right = loss[k - 1 : k + 2]
    bend = left - 2 * mid + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(2.0 ** (grid[k] + (grid[1] - grid[0]) * np.clip(shift, -1, 1)))


def _loss(strands: list[_Strand], tau_b: FloatArray, scale: FloatArray) -> float:
    total = count = 0.0
    for strand, s in zip(strands, scale, strict=True):
        F = occupancy(strand.time_s, strand.lumi_ifb, tau_d=tau_b[0], b_per_ifb=tau_b[1] * s)
        residual = _amplitudes(F, strand)[2]
        total += float(np.abs(residual).sum())
        count += residual.size
    return 100 * total / count


def _fit(strands: list[_Strand], years: tuple[int, ...], *, seed: int, slow_b: tuple[float, ...] = _SLOW_B) -> Kinetics:
    """The fit without intervals."""
    thin = max(1, max(s.time_s.size for s in strands) // 1400)  # chosen: every third hour is enough for tau >= hours
    by_ring: dict[int, list[_Strand]] = {}
    for strand in strands:
        by_ring.setdefault(strand.ieta, []).append(strand)
    rings = sorted(by_ring)
    sample = [max(by_ring[rings[k]], key=lambda s: s.xtal_id.size) for k in _spaced(len(rings), 6)]
    small = [s.thinned(thin, 4) for s in sample]
    best, scale, best_loss = _shared_fit(small)
    hypotheses, losses = [best], [best_loss]
    for tau in _SLOW_TAU_D:
        for b in slow_b:
            found, loss = _search(small, scale, best, slow=(tau, b), n_try=160)
            hypotheses.append(found)
            losses.append(loss)
    tau_b = np.exp(np.array(hypotheses))  # (hypothesis, 2, component)
    F = occupancy(small[0].time_s, small[0].lumi_ifb, tau_d=tau_b[0, 0], b_per_ifb=tau_b[0, 1] * scale[0])
    n = _n_independent(_amplitudes(F, small[0])[2])
    weight = np.exp(-n * np.log(np.array(losses) / min(losses)))
    order = np.argsort(-weight, kind="stable")
    order = order[weight[order] > 0.02]  # chosen: lighter hypotheses cost time and move the mean by less than 2 %
    tau_b, weight = tau_b[order], weight[order] / weight[order].sum()

    if len(rings) == 1:
        ring_scale = np.ones(1)
    else:
        ring_scale = np.array([_ring_scale([by_ring[r][0].thinned(thin, 4)], tau_b[0]) for r in rings])
    settings = _tune(sample, thin, seed=seed)
    xtal, ieta, amplitude, first, end, end_time = [], [], [], [], [], []
    for strand in strands:
        s = ring_scale[rings.index(strand.ieta)]
        coarse = strand.thinned(thin, strand.xtal_id.size)
        # a strand may lack a year: its crystals' state there is that of the year's nearest reading
        begins = np.minimum(np.searchsorted(coarse.year, years), coarse.time_s.size - 1)
        a, begin, last = [], [], []
        for tau, b in tau_b:
            F = occupancy(coarse.time_s, coarse.lumi_ifb, tau_d=tau, b_per_ifb=b * s)
            a.append(_amplitudes(F, coarse)[0])
            begin.append(np.broadcast_to(F[:, begins].T[:, None, :], (len(years), *a[-1].shape)))
            last.append(np.broadcast_to(F[:, -1], a[-1].shape))
        xtal.append(strand.xtal_id)
        ieta.append(np.full(strand.xtal_id.size, strand.ieta))
        amplitude.append(np.array(a))
        first.append(np.array(begin).swapaxes(0, 1))
        end.append(np.array(last))
        end_time.append(np.full(strand.xtal_id.size, coarse.time_s[-1]))
    xtal_id = np.concatenate(xtal)
    by_id = np.argsort(xtal_id)
    return Kinetics(
        train_years=years, interval=IntervalTable.unknown(), tau_d=tau_b[:, 0], b_per_ifb=tau_b[:, 1], weight=weight,
        ring_ieta=np.array(rings), ring_scale=ring_scale, xtal_id=xtal_id[by_id], ieta=np.concatenate(ieta)[by_id],
        log_error=_log_error(small, scale, np.log(tau_b[0])), start_occupancy=np.concatenate(first, axis=2)[:, :, by_id],
        amplitude=np.concatenate(amplitude, axis=1)[:, by_id], end_occupancy=np.concatenate(end, axis=1)[:, by_id],
        end_time_s=np.concatenate(end_time)[by_id], settings=settings,
    )  # fmt: skip


def _tune(sample: list[_Strand], thin: int, *, seed: int) -> FloatArray:
    """Filter settings by rolling origin inside the training span."""
    inputs = []
    times = np.concatenate([s.time_s for s in sample])
    cuts = np.quantile(times, [0.35, 0.55, 0.75, 1.0])
    for t0, t1 in pairwise(cuts):
        part = [s for s in _cut(sample, t0) if s.time_s.size >= 120 and s.lumi_ifb[:-1].sum() > 0][:3]
        if not part:
            continue
        small = [s.thinned(thin, 4) for s in part]
        tau_b, scale, _ = _shared_fit(small, n_try=300)
        tau_b = np.exp(tau_b)
        for whole, head, s in zip([w for w in sample if any(w.ieta == p.ieta for p in part)], small, scale, strict=False):
            a = _amplitudes(occupancy(head.time_s, head.lumi_ifb, tau_d=tau_b[0], b_per_ifb=tau_b[1] * s), head)[0]
            few = replace(whole.until(t1), xtal_id=head.xtal_id)
            keep = np.isin(whole.xtal_id, head.xtal_id)
            last_year = few.year == few.year[-1]
            F = occupancy(few.time_s, few.lumi_ifb, tau_d=tau_b[0], b_per_ifb=tau_b[1] * s)[:, last_year]
            residual = few.log_r[keep][:, last_year] + a @ F
            first = max(24, int(np.searchsorted(few.time_s[last_year], t0)))
            n_window = (residual.shape[1] - first) // 24
            if n_window > 0:
                origins = first + 24 * np.arange(n_window)
                inputs.append(
                    FilterInput(few.time_s[last_year], few.lumi_ifb[last_year], residual, -(a.mean(axis=0)[:, None] * F), origins)
                )
    return tune_settings(inputs, seed=seed)[0] if inputs else DEFAULT_SETTINGS
