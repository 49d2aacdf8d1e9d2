"""Colour centres: damage created by luminosity, saturating, recovering in time; and the fit of what crystals share.

    ln R = ln R0 - sum_j a_j F_j        dF_j/dt = -F_j/tau_j + l (1 - s b_j F_j)

tau and b are shared by all crystals, s (the dose per luminosity) is one number per ring, a >= 0 and R0 are each
crystal's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from calolife.transparency.history import FloatArray, IntArray, TransparencyHistory

__all__ = [
    "Strand",
    "amplitudes",
    "chain_strands",
    "cut_strands",
    "fit_shared",
    "log_errors",
    "n_independent",
    "nonnegative_least_squares",
    "occupancy",
    "ring_dose_scale",
    "search_shared",
]

_DAY_S = 86400.0
# chosen: start of the search; one fill, days, weeks, a year (the orders of magnitude of CMS DP-2013/016)
_START_TAU_D = np.array([0.025, 3.0, 15.0, 300.0])
_START_B = np.array([0.8, 9.0, 0.5, 0.03])
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
class Strand:
    """Crystals of a ring followed through the training years on one chain of time grids: what the fit works on.

    Parameters
    ----------
    ieta : int
    xtal_id : int array, (crystal,)
    time_s : float array, (reading,) [s]
    lumi_ifb : float array, (reading,) [1/fb]
        Between reading i and i + 1; 0 from one year to the next.
    year : int array, (reading,)
    row : int array, (fitted,)
        Readings that the fit looks at.
    log_r : float array, (crystal, fitted)
        ln R at these.
    """

    ieta: int
    xtal_id: IntArray
    time_s: FloatArray
    lumi_ifb: FloatArray
    year: IntArray
    row: IntArray
    log_r: FloatArray

    @property
    def starts(self) -> IntArray:
        """First fitted reading of each year, (year,)."""
        first: IntArray = np.unique(self.year[self.row], return_index=True)[1]
        return first

    def occupancy(self, tau_d: FloatArray, b_per_ifb: FloatArray, dose_scale: float) -> FloatArray:
        """F of each component at every reading, (component, reading) [1/fb]."""
        return occupancy(self.time_s, self.lumi_ifb, tau_d=tau_d, b_per_ifb=b_per_ifb * dose_scale)

    def thinned(self, step: int, most: int) -> Strand:
        """Every step-th fitted reading of at most so many crystals; time and luminosity stay whole, and F with them."""
        crystal = np.unique(np.linspace(0, self.xtal_id.size - 1, most).astype(int))
        return replace(self, xtal_id=self.xtal_id[crystal], row=self.row[::step], log_r=self.log_r[crystal][:, ::step])

    def until(self, time_s: float) -> Strand:
        """Readings before a time [s]."""
        n = int(np.searchsorted(self.time_s, time_s))
        m = int(np.searchsorted(self.row, n))
        return replace(
            self, time_s=self.time_s[:n], lumi_ifb=self.lumi_ifb[:n], year=self.year[:n], row=self.row[:m], log_r=self.log_r[:, :m]
        )  # fmt: skip


def chain_strands(history: TransparencyHistory) -> list[Strand]:
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
        time_s = np.concatenate([b.time_s for b in blocks])
        strands.append(
            Strand(
                ieta=ieta,
                xtal_id=blocks[0].xtal_id[columns[0]],
                time_s=time_s,
                lumi_ifb=np.concatenate(lumi),
                year=np.repeat([b.year for b in blocks], [b.n_readings for b in blocks]),
                row=np.arange(time_s.size),
                log_r=np.concatenate([np.log(b.transparency[c]) for b, c in zip(blocks, columns, strict=True)], axis=1),
            )
        )
    return strands


def amplitudes(F: FloatArray, log_r: FloatArray, starts: IntArray, *, n_pass: int = 3) -> tuple[FloatArray, FloatArray]:
    """Amplitudes of many crystals, >= 0, of least absolute deviation; ln R0 is free in each year.

    Parameters
    ----------
    F : float array, (..., component, reading) [1/fb]
        Leading axes: strands of one shape.
    log_r : float array, (..., crystal, reading)
    starts : int array, (year,)
        First reading of each year.
    n_pass : int
        Reweighted least-squares passes.

    Returns
    -------
    float array, (..., crystal, component) [fb]
    float array, (..., crystal, reading)
        Residuals of ln R.
    """
    n_component, n_reading = F.shape[-2:]
    years = [slice(a, b) for a, b in zip(starts, [*starts[1:], n_reading], strict=True)]
    transposed = F.swapaxes(-1, -2)
    products = (F[..., :, None, :] * F[..., None, :, :]).reshape(*F.shape[:-2], n_component**2, n_reading).swapaxes(-1, -2)
    weight = np.ones_like(log_r)
    residual = log_r
    for _ in range(n_pass):
        weighted = weight * log_r
        gram = (weight @ products).reshape(*log_r.shape[:-1], n_component, n_component)
        moment = -(weighted @ transposed)
        means = []
        for year in years:  # the free ln R0 of a year drops out by centring on its weighted mean
            total = weight[..., year].sum(axis=-1)
            mean_y = weighted[..., year].sum(axis=-1) / total
            mean_F = (weight[..., year] @ transposed[..., year, :]) / total[..., None]
            gram -= total[..., None, None] * mean_F[..., :, None] * mean_F[..., None, :]
            moment += (total * mean_y)[..., None] * mean_F
            means.append((mean_y, mean_F))
        a = nonnegative_least_squares(gram, moment)
        residual = log_r + a @ F
        for year, (mean_y, mean_F) in zip(years, means, strict=True):
            residual[..., year] -= (mean_y + (a * mean_F).sum(axis=-1))[..., None]
        weight = 1.0 / np.maximum(np.abs(residual), _MIN_RESIDUAL)
    return a, residual


def cut_strands(strands: list[Strand], time_s: float) -> list[Strand]:
    """What was read before a time [s]."""
    return [s.until(time_s) for s in strands if s.time_s[0] < time_s]


def _residuals(strands: list[Strand], scale: FloatArray, tau_b: FloatArray) -> list[FloatArray]:
    """Residuals of each strand with its amplitudes fitted, tau_b (2, component)."""
    return [amplitudes(s.occupancy(tau_b[0], tau_b[1], d)[:, s.row], s.log_r, s.starts)[1] for s, d in zip(strands, scale, strict=True)]


def _loss(strands: list[Strand], scale: FloatArray, tau_b: FloatArray) -> float:
    """Mean absolute residual of ln R, in percent."""
    parts = _residuals(strands, scale, tau_b)
    return 100 * sum(float(np.abs(r).sum()) for r in parts) / sum(r.size for r in parts)


def search_shared(
    strands: list[Strand], scale: FloatArray, start: FloatArray, *, slow: tuple[float, float] | None = None, n_try: int = 800
) -> tuple[FloatArray, float]:
    """Best ln tau and ln b by variable projection.

    Parameters
    ----------
    strands : list of Strand
    scale : float array, (strand,)
        Dose per luminosity of each.
    start : float array, (2, component)
        ln tau [d] and ln b [fb] to start from.
    slow : tuple of float, optional
        tau and b that the last component is held at.
    n_try : int
        Most evaluations of the simplex.

    Returns
    -------
    float array, (2, component)
    float
        Mean absolute residual of ln R reached, in percent.
    """
    n = start.shape[1]
    free = n if slow is None else n - 1

    def full(p: FloatArray) -> FloatArray:
        both = p.reshape(2, free)
        return both if slow is None else np.column_stack([both, np.log(slow)])

    def cost(p: FloatArray) -> float:
        if np.abs(p).max() > 12:
            return 1e3
        return _loss(strands, scale, np.exp(full(p)))

    found = minimize(
        cost, start[:, :free].ravel(), method="Nelder-Mead",
        options={"maxfev": n_try, "adaptive": True, "xatol": 1e-2, "fatol": 1e-5},
    )  # fmt: skip
    return full(found.x), float(found.fun)


def fit_shared(strands: list[Strand], *, n_try: int = 800) -> tuple[FloatArray, FloatArray, float]:
    """ln tau and ln b, (2, component), with the dose scale of each strand, (strand,), and the loss [%]."""
    start = np.log(np.array([_START_TAU_D, _START_B]))
    scale = np.ones(len(strands))
    found, loss = search_shared(strands, scale, start, n_try=n_try)
    if len({s.ieta for s in strands}) > 1:
        scale = np.array([ring_dose_scale(s, np.exp(found)) for s in strands])
        scale /= np.median(scale)
        found, loss = search_shared(strands, scale, found, n_try=n_try)
    return found, scale, loss


def ring_dose_scale(strand: Strand, tau_b: FloatArray) -> float:
    """Dose per luminosity that fits a ring best, between 1/8 and 8 times the reference; tau_b (2, component)."""
    grid = np.linspace(-3, 3, 13)
    loss = np.array([_loss([strand], np.array([2.0**g]), tau_b) for g in grid])
    k = int(np.clip(np.argmin(loss), 1, grid.size - 2))
    left, mid, right = loss[k - 1 : k + 2]
    bend = left - 2 * mid + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(2.0 ** (grid[k] + (grid[1] - grid[0]) * np.clip(shift, -1, 1)))


def n_independent(residual: FloatArray) -> float:
    """Independent residuals in a series (crystal, reading): n over the integrated autocorrelation, first crossing of zero."""
    y = residual.mean(axis=0) - residual.mean()
    n = y.size
    spectrum = np.abs(np.fft.rfft(y, 2 * n)) ** 2
    acf = np.fft.irfft(spectrum)[:n]
    acf = acf / acf[0]
    below = np.flatnonzero(acf < 0)
    last = int(below[0]) if below.size else n
    return float(n / (1 + 2 * acf[1:last].sum()))


def log_errors(strands: list[Strand], scale: FloatArray, log_tau_b: FloatArray) -> FloatArray:
    """Standard errors of ln tau and ln b, (2, component), amplitudes and ln R0 left free.

    Notes
    -----
    Least absolute deviations: variance (J'J)^-1 / (2 f(0))^2 with f(0) the density of residuals at 0, times
    n/n_independent for correlated noise. Derivatives are taken of the residuals after the amplitudes are fitted
    again, so what they can absorb does not count.
    """

    here = _residuals(strands, scale, np.exp(log_tau_b))
    r = np.concatenate([x.ravel() for x in here])
    n_free = sum(n_independent(x) for x in here)
    n_reading = sum(x.shape[1] for x in here)
    columns = []
    step = 0.05  # chosen: residuals move by less than the noise, rounding by far less
    for k in range(log_tau_b.size):
        move = np.zeros(log_tau_b.size)
        move[k] = step
        up, down = (_residuals(strands, scale, np.exp(log_tau_b + sign * move.reshape(log_tau_b.shape))) for sign in (1, -1))
        columns.append(np.concatenate([(u - d).ravel() for u, d in zip(up, down, strict=True)]) / (2 * step))
    J = np.stack(columns)
    slope = np.mean(np.abs(r) < _MIN_RESIDUAL) / _MIN_RESIDUAL  # twice the density of residuals at 0
    information = J @ J.T
    determined = np.diag(information) > 1e-6 * np.diag(information).max()
    variance = np.full(log_tau_b.size, np.inf)
    inverse = np.linalg.pinv(information[np.ix_(determined, determined)], hermitian=True)
    variance[determined] = np.diag(inverse) / max(slope, 1e-12) ** 2 * n_reading / n_free
    error: FloatArray = np.sqrt(variance)
    return error.reshape(log_tau_b.shape)
