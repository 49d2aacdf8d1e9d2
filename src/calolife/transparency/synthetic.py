"""Synthetic transparency histories: colour centres with known parameters, read out with measured noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from calolife.transparency.centres import occupancy
from calolife.transparency.crystals import N_REGIONS, Crystals, detector_crystals, ring_eta, select_crystals
from calolife.transparency.history import FLAG_LASER_FLIP, FLAG_PRE_BEAM_STEP, Block, FloatArray, IntArray, TransparencyHistory
from calolife.transparency.schedule import LumiSchedule, beam_period, lhc_year, lumi_between
from calolife.transparency.truth import SyntheticTruth, merge_truths

__all__ = ["B_PER_IFB", "MEASURED_NOISE", "NO_NOISE", "TAU_D", "Noise", "simulate_history", "simulate_rings"]

# chosen: round numbers near a fit of four saturating components to the public CMS readings of crystals
# 54000 and 54001 in 2016 (tau .026, 3.4, 12.4, 319 d; b .73, 16.7, .57, .026 fb); the slow component is
# made slower, because these crystals recover next to nothing from one December to the next March.
# Amplitudes at ieta 66.
TAU_D = (0.03, 3.5, 12.0, 1000.0)
B_PER_IFB = (0.8, 15.0, 0.6, 0.012)
_A_PER_IFB = (0.20, 0.10, 0.011, 0.0012)

# chosen: dose relative to ieta 66 grows as exp(0.3 |eta|) in the barrel and exp(2.4 |eta|) in the endcap,
# about 40 times at |eta| = 3: the shape of dose maps of a proton collider, not a map of CMS
_DOSE_SLOPE = (0.3, 2.4)
_ETA_66 = 1.146
_B_DOSE_POWER = 0.25  # chosen: leaves .15 of the light at |eta| = 3, .5 at 2.4 and .88 in the barrel at the end of 2018
_ETA_SPLIT = 1.479  # barrel-endcap boundary, JINST 3 (2008) S08004

# chosen: the two crystals differ by a quarter (2018) to a half (2016) in the amplitude of the slow component
_SPREAD_CRYSTAL = 0.25  # lognormal width common to the components of a crystal
_SPREAD_COMPONENT = 0.15  # and of each component
# chosen: two populations of crystals, named after CMS's two producers; the second damaged 0.7 times as much
_SIC_FRACTION = (0.02, 0.25)  # barrel, endcap
_SIC_AMPLITUDE = 0.7
_LN_R0 = (-0.035, 0.015)  # chosen: mean and spread; 54000 and 54001 begin 2016 at .976 and .956

# Minutes between readings: quantiles measured on the public CMS readings of crystal 54000 in 2016 and 2017,
# with a mean rate above .05 /fb a day in the interval and below (2018 has gaps of weeks before and after the run).
_QUANTILE = (0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)
_GAP_BEAM_MIN = (3.5, 12.0, 21.9, 41.3, 44.9, 45.1, 45.4, 46.1, 48.2, 80.6, 133.7, 183.8, 246.9, 352.1, 658.9, 1158.1)
_GAP_QUIET_MIN = (3.4, 7.8, 12.7, 21.5, 30.0, 35.6, 44.5, 45.0, 48.9, 75.9, 176.5, 368.5, 693.5, 1361.7, 5404.8, 8537.3)
_DIGITS = 8  # as the release writes its readings
_SCAN_S = 1200.0  # chosen: one laser cycle visits all regions within 20 minutes

# chosen: as often as seen in three years of the public readings: one flip episode (13-16 June 2017, 2.2 %),
# two steps before beam (0.5 % in May 2017, 0.8 % in March 2018)
_FLIP = (1 / 3, 0.022, 3.0)  # probability a year, size, length [d]
_FLIP_CHANGE = 0.2  # probability that the laser changes between two readings of an episode
_STEP = (2 / 3, 0.003, 0.009)  # probability a year, smallest and largest size


@dataclass(frozen=True)
class Noise:
    """Noise of one reading, in ln R; `drift` is an AR(1) process of this standard deviation and time constant.

    Parameters
    ----------
    white, drift : float
        Of one crystal, independent of all others.
    drift_d : float [d]
    common_white, common_drift : float
        The same for all crystals of a light-monitoring region.
    common_drift_d : float [d]

    Raises
    ------
    ValueError
        A negative size or a time constant that is not positive.
    """

    white: float
    drift: float
    drift_d: float
    common_white: float
    common_drift: float
    common_drift_d: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (np.isfinite(value) and value >= 0) or (field.name.endswith("_d") and value == 0):
                raise ValueError(f"{field.name} = {value} must be {'> 0' if field.name.endswith('_d') else '>= 0'}; 0 switches a noise off")


# Measured on the public CMS readings of crystals 54000 and 54001. White: difference of the two between
# neighbouring readings / 2 (median absolute deviation) = .022-.025 %; one crystal, second differences
# without beam, .037-.048 %, so .03-.04 % is common. Drift: growth with lag of the residual of a
# four-component fit to 2016, half-difference of the crystals (.02 -> .04 % over a week) and mean (.03 -> .10 %);
# the common one is taken a little smaller because part of the residual is the fit's.
MEASURED_NOISE = Noise(white=0.00023, drift=0.0003, drift_d=3.0, common_white=0.0003, common_drift=0.0007, common_drift_d=3.0)
NO_NOISE = Noise(white=0.0, drift=0.0, drift_d=1.0, common_white=0.0, common_drift=0.0, common_drift_d=1.0)


def simulate_history(
    *,
    n_crystals: int,
    n_years: int,
    seed: int,
    first_year: int = 2016,
    ieta: Sequence[int] | None = None,
    schedules: Sequence[LumiSchedule] | None = None,
    noise: Noise = MEASURED_NOISE,
    with_steps: bool = True,
    constant_between_readings: bool = False,
    keep_noise_free: bool = False,
) -> tuple[TransparencyHistory, SyntheticTruth]:
    """Synthetic transparency of some crystals over some years, in memory.

    Parameters
    ----------
    n_crystals, n_years, seed, first_year, ieta, schedules, noise, with_steps, constant_between_readings, keep_noise_free
        As in `simulate_rings`.

    Returns
    -------
    TransparencyHistory, SyntheticTruth

    Examples
    --------
    >>> history, truth = simulate_history(n_crystals=2, n_years=1, seed=1)
    >>> history.xtal_ids.tolist(), history.years, truth.a_per_ifb.shape
    ([54000, 54001], (2016,), (2, 4))
    """
    parts = list(
        simulate_rings(
            n_crystals=n_crystals, n_years=n_years, seed=seed, first_year=first_year, ieta=ieta, schedules=schedules, noise=noise,
            with_steps=with_steps, constant_between_readings=constant_between_readings, keep_noise_free=keep_noise_free,
        )
    )  # fmt: skip
    return TransparencyHistory(tuple(b for h, _ in parts for b in h.blocks)), merge_truths([t for _, t in parts])


def simulate_rings(
    *,
    n_crystals: int,
    n_years: int,
    seed: int,
    first_year: int = 2016,
    ieta: Sequence[int] | None = None,
    schedules: Sequence[LumiSchedule] | None = None,
    noise: Noise = MEASURED_NOISE,
    with_steps: bool = True,
    constant_between_readings: bool = False,
    keep_noise_free: bool = False,
) -> Iterator[tuple[TransparencyHistory, SyntheticTruth]]:
    """Synthetic histories one ring at a time: the whole detector in the memory of one ring.

    Parameters
    ----------
    n_crystals : int
        Spread over the detector as in `select_crystals`; with `ieta`, the first so many of those rings.
    n_years : int
    seed : int
        A crystal's readings depend on the seed alone, not on which others are simulated.
    first_year : int
    ieta : sequence of int, optional
        Rings to take.
    schedules : sequence of LumiSchedule, optional
        One a year, each covering its calendar year from 1 January to 31 December; `lhc_year` with this seed
        when left out.
    noise : Noise
    with_steps : bool
        Include the rare two-laser flips and steps before beam, flagged.
    constant_between_readings : bool
        Let the luminosity rate be constant between readings, as every model assumes, instead of following
        the schedule: for closure tests.
    keep_noise_free : bool
        Keep the readings without noise in the truth.

    Yields
    ------
    TransparencyHistory, SyntheticTruth
        Of one ring, by increasing ieta; a block per light-monitoring region and year.

    Raises
    ------
    ValueError
        No years, an unknown ring, more crystals than there are, or schedules that do not fit the years.

    Notes
    -----
    ln R = ln R0 - sum_j a_j F_j with F from `occupancy`, carried from year to year. The amplitudes a are
    lognormal with a factor common to the crystal and one per component; dose D(eta) scales a by D and b by
    D^(1/4), so that saturation sets in earlier in the endcap but leaves more damage. Readings come at the
    measured intervals, drawn independently. Not modelled: the anneal by temperature, changes of the
    response other than the flagged ones, errors of the luminosity.
    """
    if n_years < 1:
        raise ValueError(f"n_years = {n_years} must be at least 1")
    if n_crystals < 1:
        raise ValueError(f"n_crystals = {n_crystals} must be at least 1")
    if ieta is None:
        crystals = select_crystals(n_crystals)
    else:
        crystals = detector_crystals(ieta=ieta)
        if n_crystals > crystals.xtal_id.size:
            raise ValueError(f"n_crystals = {n_crystals}, but the rings asked for have {crystals.xtal_id.size}")
        crystals = crystals.at(np.arange(n_crystals))
    years = range(first_year, first_year + n_years)
    plans = [lhc_year(year, seed=seed) for year in years] if schedules is None else list(schedules)
    if len(plans) != n_years:
        raise ValueError(f"{len(plans)} schedules for {n_years} years; give one a year")
    shared, standing = [], 0.0
    for year, plan in zip(years, plans, strict=True):
        cycle_s = _cycles(year, plan, seed)
        offset, flag, stays = _flips_and_steps(year, cycle_s, seed)
        region = {
            int(r): _region_year(cycle_s, plan, year, int(r), seed=seed, noise=noise, exact=constant_between_readings)
            for r in np.unique(crystals.region)
        }
        shared.append(_Year(year, cycle_s, with_steps * (offset + standing), flag if with_steps else np.zeros_like(flag), region))
        standing += stays
    return _rings(crystals, shared, seed=seed, noise=noise, keep_noise_free=keep_noise_free)


def _rings(
    crystals: Crystals, years: list[_Year], *, seed: int, noise: Noise, keep_noise_free: bool
) -> Iterator[tuple[TransparencyHistory, SyntheticTruth]]:
    for ring in np.unique(crystals.ieta):
        yield _one_ring(crystals.at(crystals.ieta == ring), years, seed=seed, noise=noise, keep_noise_free=keep_noise_free)


@dataclass(frozen=True, eq=False)
class _RegionYear:
    time_s: FloatArray
    lumi_ifb: FloatArray
    common_mode: FloatArray
    # where the kinetics is solved, times and luminosity, and which of the points are the readings
    grid: tuple[FloatArray, FloatArray, IntArray]


@dataclass(frozen=True, eq=False)
class _Year:
    """What the rings share in one year."""

    year: int
    cycle_s: FloatArray
    offset: FloatArray
    flag: NDArray[np.uint8]
    region: dict[int, _RegionYear]


def _region_year(cycle_s: FloatArray, plan: LumiSchedule, year: int, region: int, *, seed: int, noise: Noise, exact: bool) -> _RegionYear:
    # regions take turns within a cycle; 37 is coprime to 92, so that neighbours are not read one after the other
    time_s = cycle_s + round(_SCAN_S * (region * 37 % N_REGIONS) / N_REGIONS)
    ends = np.concatenate([plan.time_s[:1], time_s, plan.time_s[-1:]])
    grid_s = ends if exact else np.union1d(plan.time_s, time_s)
    rng = np.random.default_rng([seed, 1, year, region])
    common = noise.common_white * rng.standard_normal(time_s.size)
    common += _drift(rng.standard_normal((time_s.size, 1)), time_s, noise.common_drift, noise.common_drift_d)[:, 0]
    grid = (grid_s, np.append(lumi_between(plan, grid_s), 0.0), np.searchsorted(grid_s, time_s))
    return _RegionYear(time_s, lumi_between(plan, ends)[1:], common, grid)


def _one_ring(
    crystals: Crystals, years: list[_Year], *, seed: int, noise: Noise, keep_noise_free: bool
) -> tuple[TransparencyHistory, SyntheticTruth]:
    ring = int(crystals.ieta[0])
    eta = float(ring_eta(ring))
    dose = _dose(abs(eta))
    tau_d, b = np.array(TAU_D), np.array(B_PER_IFB) * dose**_B_DOSE_POWER
    regions = np.unique(crystals.region)
    members = [np.flatnonzero(crystals.region == r) for r in regions]
    n = crystals.xtal_id.size
    is_sic, ln_r0, a = np.zeros(n, dtype=bool), np.zeros(n), np.zeros((n, tau_d.size))
    for region, i in zip(regions, members, strict=True):
        # drawn by iphi, so that a crystal does not depend on which of its neighbours are simulated
        rng = np.random.default_rng([seed, 2, ring + 200, int(region)])
        at = crystals.iphi[i] - 1
        is_sic[i] = rng.random(360)[at] < _SIC_FRACTION[int(abs(ring) > 85)]
        ln_r0[i] = rng.normal(*_LN_R0, size=360)[at]
        spread = _SPREAD_CRYSTAL * rng.standard_normal((360, 1)) + _SPREAD_COMPONENT * rng.standard_normal((360, tau_d.size))
        a[i] = np.exp(spread)[at] * np.array(_A_PER_IFB) * dose
    a[is_sic] *= _SIC_AMPLITUDE

    blocks, clean, common = list[Block](), list[Block](), dict[tuple[int, int], FloatArray]()
    state: list[FloatArray | None] = [None] * regions.size
    for year in years:
        own_noise = _own_noise(crystals, year, seed=seed, noise=noise)
        for r, (region, i) in enumerate(zip(regions, members, strict=True)):
            here = year.region[int(region)]
            time_s, lumi_ifb, at = here.grid
            F = occupancy(time_s, lumi_ifb, tau_d=tau_d, b_per_ifb=b, start=state[r])
            state[r] = F[:, -1]
            ln_r = ln_r0[i, None] - a[i] @ F[:, at]
            seen: FloatArray = np.exp(ln_r + own_noise[:, i].T + (here.common_mode + year.offset))
            block = Block(
                year.year, crystals.xtal_id[i], crystals.ieta[i], crystals.iphi[i], here.time_s, here.lumi_ifb,
                seen.round(_DIGITS), np.broadcast_to(year.flag, (i.size, at.size)),
            )  # fmt: skip
            blocks.append(block)
            common[year.year, int(region)] = here.common_mode
            if keep_noise_free:
                clean.append(replace(block, transparency=np.exp(ln_r), flag=None))
    noise_free = TransparencyHistory(tuple(clean)) if clean else None
    truth = SyntheticTruth(crystals, is_sic, ln_r0, tau_d, np.tile(b, (n, 1)), a, common, noise_free)
    return TransparencyHistory(tuple(blocks)), truth


def _own_noise(crystals: Crystals, year: _Year, *, seed: int, noise: Noise) -> NDArray[np.float32]:
    """Noise of each crystal's own, (reading, crystal)."""
    white = np.empty((year.cycle_s.size, crystals.xtal_id.size), dtype=np.float32)
    drift = np.empty_like(white)
    for k, xtal_id in enumerate(crystals.xtal_id):
        rng = np.random.default_rng([seed, 3, year.year, int(xtal_id)])
        white[:, k] = rng.standard_normal(white.shape[0], dtype=np.float32)
        drift[:, k] = rng.standard_normal(white.shape[0], dtype=np.float32)
    white *= np.float32(noise.white)
    # a region is read at a constant delay, so all share the cycles' intervals
    white += _drift(drift, year.cycle_s, noise.drift, noise.drift_d)
    return white


def _drift(normal: NDArray[np.floating], time_s: FloatArray, size: float, tau_d: float) -> NDArray[np.floating]:
    """AR(1) process at irregular times from unit normals, (reading, series); in place."""
    keep = np.exp(-np.diff(time_s, prepend=-np.inf) / (86400.0 * tau_d))
    fresh = (size * np.sqrt(1 - keep**2)).astype(normal.dtype)
    normal *= fresh[:, None]
    factor = keep.astype(normal.dtype)
    for i in range(1, time_s.size):
        normal[i] += factor[i] * normal[i - 1]
    return normal


def _dose(eta: float) -> float:
    """Dose relative to ieta 66."""
    inner, outer = min(eta, _ETA_SPLIT), max(eta - _ETA_SPLIT, 0.0)
    return float(np.exp(_DOSE_SLOPE[0] * (inner - _ETA_66) + _DOSE_SLOPE[1] * outer))


def _cycles(year: int, plan: LumiSchedule, seed: int) -> FloatArray:
    """Start of each laser cycle of a year, whole seconds."""
    rng = np.random.default_rng([seed, 4, year])
    first_s, _, _, last_s = beam_period(year)
    is_beam = plan.lumi_ifb > 0
    fill_s = np.append(plan.time_s[:-1][is_beam & ~np.append(False, is_beam[:-1])], np.inf)
    beam_min, quiet_min = np.log(_GAP_BEAM_MIN), np.log(_GAP_QUIET_MIN)
    t, times = first_s + 60.0 * rng.uniform(0.0, 60.0), []
    while t < last_s:
        times.append(float(round(t)))
        now = np.searchsorted(plan.time_s, t, side="right") - 1
        gap_s = 60.0 * np.exp(np.interp(rng.random(), _QUANTILE, beam_min if is_beam[now] else quiet_min))
        # no gap of the readings that is longer than a day has a fill in it
        t = min(t + gap_s, fill_s[np.searchsorted(fill_s, t, side="right")]) if gap_s > 86400.0 else t + gap_s
    return np.array(times)


def _flips_and_steps(year: int, cycle_s: FloatArray, seed: int) -> tuple[FloatArray, NDArray[np.uint8], float]:
    """Offset of ln R and flag of each cycle, and the part of the offset that stays."""
    rng = np.random.default_rng([seed, 5, year])
    offset, flag, stays = np.zeros(cycle_s.size), np.zeros(cycle_s.size, dtype=np.uint8), 0.0
    _, beam_s, end_s, _ = beam_period(year)
    if rng.random() < _STEP[0]:
        after = np.flatnonzero(cycle_s > beam_s - 86400.0 * rng.uniform(5.0, 25.0))
        stays = rng.uniform(*_STEP[1:])
        offset[after] += stays
        flag[after[0]] |= FLAG_PRE_BEAM_STEP
    if rng.random() < _FLIP[0]:
        start_s = rng.uniform(beam_s, beam_s + (end_s - beam_s) / 3)
        during = np.flatnonzero((cycle_s >= start_s) & (cycle_s < start_s + 86400.0 * _FLIP[2]))
        other = during[np.cumsum(rng.random(during.size) < _FLIP_CHANGE) % 2 == 1]
        offset[other] += _FLIP[1]
        flag[other] |= FLAG_LASER_FLIP
    return offset, flag, stays
