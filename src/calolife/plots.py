"""Figures from results: each function takes results and an optional ``ax`` and returns the Axes; nothing is saved or shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calolife.transparency.history import Block, FloatArray, Forecast, TransparencyHistory
    from calolife.transparency.scores import HorizonScore, Score

__all__ = [
    "COLOURS",
    "MARKERS",
    "new_axes",
    "plain_text",
    "plain_ticks",
    "plot_coverage",
    "plot_forecast",
    "plot_horizon",
    "plot_layer_profile",
    "plot_lengths",
    "plot_mape",
    "plot_response",
    "plot_visible",
    "visible_histogram",
]

# ten colours apart for every reader; source: M. Petroff, "Accessible Color Sequences for Data Visualization" (2021)
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
MARKERS = "osD^vP*X<>"
_DAY_S = 86400.0
_GAP_S = 4 * _DAY_S  # chosen: a line over a longer gap would show readings that nobody took
_ETA_PER_IETA = 0.0174  # barrel crystals in eta; source: CMS ECAL TDR (1997), 360 crystals in phi, 2 x 85 in eta up to 1.479
_BARREL_IETA = 85
_ETA_EDGES = (0.0, 0.4, 0.8, 1.2, 1.5)


def plot_response(history: TransparencyHistory, *, ax: Axes | None = None) -> Axes:
    """Relative response to laser light against time, one line per eta region, over the luminosity of each day.

    Parameters
    ----------
    history : TransparencyHistory
        Any crystals and years; each region is the mean over its crystals, day by day, relative to its first day.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = new_axes(ax, width=9.0)
    regions: dict[str, list[Block]] = {}
    for block in history.blocks:
        names = np.array([_region(int(i)) for i in block.ieta])
        for name in np.unique(names):
            regions.setdefault(str(name), []).append(block.crystals(names == name))
    for k, name in enumerate(sorted(regions)):
        day, response = _daily_response(regions[name])
        n = np.unique(np.concatenate([b.xtal_id for b in regions[name]])).size
        label = f"{name} ({n} crystal{'s' * (n != 1)})"
        ax.plot(*_with_gaps(day * _DAY_S, response / response[0]), "-", marker=".", ms=2.5, color=COLOURS[k % 10], lw=1.4, label=label)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.45 * (high - low), high)  # the luminosity stands below the lines
    lumi_ax = ax.twinx()
    day, lumi_ifb = _daily_luminosity(history)
    lumi_ax.bar(_dates(day * _DAY_S), lumi_ifb, width=1.0, color="0.8", align="edge")
    lumi_ax.set_ylim(0, 3.6 * max(lumi_ifb.max(), 1e-12))
    lumi_ax.set_ylabel(r"Luminosity $L$ [fb$^{-1}$ / day]", color="0.35", loc="bottom")
    lumi_ax.set_yticks([t for t in lumi_ax.get_yticks() if t <= lumi_ifb.max()])
    lumi_ax.tick_params(axis="y", colors="0.35", which="both")
    lumi_ax.minorticks_off()
    ax.set_zorder(lumi_ax.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.set_ylabel(r"Relative response $R/R_0$")
    _date_axis(ax)
    ax.legend(loc="upper right", frameon=False)
    return ax


def plot_forecast(
    block: Block, forecast: Forecast, *, xtal_id: int, start_s: float = -np.inf, stop_s: float = np.inf, ax: Axes | None = None
) -> Axes:
    """Readings of one crystal, and what was forecast for them with 68 % and 95 % intervals.

    Parameters
    ----------
    block : Block
        The readings; those still to come (NaN) are not drawn.
    forecast : Forecast
        Of the same block; one window (free run) or many.
    xtal_id : int
    start_s, stop_s : float [s]
        Part of the year to draw.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        A crystal that the block or the forecast does not have, or nothing to draw between the times.
    """
    in_block, in_forecast = np.flatnonzero(block.xtal_id == xtal_id), np.flatnonzero(forecast.xtal_id == xtal_id)
    if not in_block.size or not in_forecast.size:
        raise ValueError(f"crystal {xtal_id} is not in both the readings and the forecast; pick one of {forecast.xtal_id[:5].tolist()}")
    row = forecast.row.ravel()
    order = np.argsort(row, kind="stable")
    order = order[(block.time_s[row[order]] >= start_s) & (block.time_s[row[order]] <= stop_s)]
    if not order.size:
        raise ValueError("no forecast between start_s and stop_s; widen them")
    ax = new_axes(ax, width=9.0)
    time_s = block.time_s[row[order]]
    made, half68, half95 = (
        getattr(forecast, name)[in_forecast[0]].ravel()[order] for name in ("transparency", "half68", "half95")
    )  # (window, step) -> (target,)
    first_s = start_s if np.isfinite(start_s) else time_s[0] - _DAY_S  # the readings that the first window knew
    seen = (block.time_s >= first_s) & (block.time_s <= time_s[-1])
    for half, alpha, label in ((half95, 0.22, "95 % interval"), (half68, 0.40, "68 % interval")):
        if np.isfinite(half).all():
            when, low = _with_gaps(time_s, made - half)
            _, high = _with_gaps(time_s, made + half)
            ax.fill_between(when, low, high, color=COLOURS[0], alpha=alpha, lw=0, label=label)
    few = order.size < 400
    ax.plot(_dates(block.time_s[seen]), block.transparency[in_block[0], seen], "k.", ms=4.5 if few else 1.4, label="Readings", zorder=3)
    ax.plot(*_with_gaps(time_s, made), color=COLOURS[2], lw=1.4 if few else 1.1, label=f"Forecast, {forecast.model}", zorder=4)
    ax.set_ylabel(r"Transparency $R$ (APD/PN)")
    ax.set_title(
        f"Crystal {xtal_id}, {forecast.year}; fitted on {', '.join(map(str, forecast.train_years))}", loc="left", fontsize="medium"
    )
    _date_axis(ax)
    ax.legend(frameon=False, ncols=2, markerscale=1.0 if few else 4.0)
    return ax


def plot_mape(scores: Sequence[Score], *, ax: Axes | None = None) -> Axes:
    """Histogram over crystals of the MAPE, one per score; the legend gives the mean.

    Parameters
    ----------
    scores : sequence of Score
        Usually one mode and year, several models.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        Nothing to draw.
    """
    if not scores:
        raise ValueError("no scores to draw; give at least one")
    from matplotlib.ticker import MaxNLocator

    ax = new_axes(ax)
    every = np.concatenate([s.mape_percent for s in scores])
    low, high = every.min() * 0.9, every.max() * 1.1
    most = max(s.xtal_id.size for s in scores)
    edges = np.geomspace(low, max(high, low * 1.2), int(np.clip(2.5 * most**0.5, 24, 60)) + 1).tolist()
    one_year, one_mode = len({s.year for s in scores}) == 1, len({s.mode for s in scores}) == 1
    for k, score in enumerate(scores):
        label = f"{_called(score, year=not one_year, mode=not one_mode)}: mean {score.mean_mape_percent:.3f} %"
        ax.hist(score.mape_percent, edges, histtype="step", lw=1.8, color=COLOURS[k % 10], label=label)
        ax.hist(score.mape_percent, edges, histtype="stepfilled", alpha=0.15, color=COLOURS[k % 10])
    ax.set_xscale("log")
    plain_ticks(ax.xaxis)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.1)
    ax.set_ylim(0, ax.get_ylim()[1] * (1 + 0.09 * len(scores)))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("MAPE [%]")
    ax.set_ylabel("Crystals / bin")
    if one_year or one_mode:
        ax.set_title(
            ", ".join(([scores[0].mode] if one_mode else []) + ([str(scores[0].year)] if one_year else [])), loc="left", fontsize="medium"
        )
    ax.legend(frameon=False, loc="upper left")
    return ax


def plot_horizon(horizons: Sequence[HorizonScore], *, ax: Axes | None = None) -> Axes:
    """Error against how far ahead the forecast looks, one line per model (and year).

    Parameters
    ----------
    horizons : sequence of HorizonScore
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        Nothing to draw.
    """
    if not horizons:
        raise ValueError("no horizons to draw; run the backtest with horizons")
    ax = new_axes(ax)
    models, years = list(dict.fromkeys(h.model for h in horizons)), sorted({h.year for h in horizons})
    for h in horizons:
        k = models.index(h.model) % 10
        label = h.model if len(years) == 1 else f"{h.model}, {h.year}"
        has = h.n_targets > 0
        style = ("-", "--", ":", "-.")[years.index(h.year) % 4]
        ax.plot(h.horizon_s[has], h.mape_percent[has], style, marker=MARKERS[k], ms=5, color=COLOURS[k], label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = [6, 12, 24, 72, 168, 336, 720, 2160]
    ax.set_xticks([3600.0 * t for t in ticks], [f"{t} h" if t < 24 else f"{t // 24} d" for t in ticks])
    ax.minorticks_off()
    plain_ticks(ax.yaxis)
    ax.set_xlabel("Horizon $t - t_0$")
    ax.set_ylabel("MAPE [%]")
    ax.grid(alpha=0.25)
    # beside the axes: with several models and years the curves leave no corner free
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)
    return ax


def plot_lengths(mape_percent: Mapping[str, Mapping[int, float]], *, ax: Axes | None = None) -> Axes:
    """Error against the sequence length of the network, one line per series.

    Parameters
    ----------
    mape_percent : mapping of series name to {length in readings: mean MAPE [%]}
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        Nothing to draw.
    """
    if not mape_percent or not all(mape_percent.values()):
        raise ValueError("a scan needs at least one series with one length; run the scan first")
    ax = new_axes(ax)
    for k, (name, series) in enumerate(mape_percent.items()):
        length = sorted(series)
        ax.plot(length, [series[n] for n in length], marker=MARKERS[k % 10], ms=6, color=COLOURS[k % 10], label=name)
    every = sorted({n for series in mape_percent.values() for n in series})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(every, [str(n) for n in every])
    ax.minorticks_off()
    plain_ticks(ax.yaxis)
    ax.set_xlabel("Sequence length $L_E = L_D$ [readings]")
    ax.set_ylabel("Mean MAPE [%]")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return ax


def plot_coverage(scores: Sequence[Score], *, ax: Axes | None = None) -> Axes:
    """Fraction of the readings inside the 68 % and 95 % intervals, mean and range over crystals.

    Parameters
    ----------
    scores : sequence of Score
        Those without intervals are left out.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No score has intervals.
    """
    known = [s for s in scores if np.isfinite(s.coverage95).all()]
    if not known:
        raise ValueError("none of the scores has intervals; fit the models with them")
    ax = new_axes(ax, height=0.9 + 0.42 * len(known) + 0.9)
    one_year, one_mode = len({s.year for s in known}) == 1, len({s.mode for s in known}) == 1
    y = np.arange(len(known))[::-1]
    for nominal, name, marker, colour in ((68.0, "coverage68", "o", COLOURS[0]), (95.0, "coverage95", "s", COLOURS[2])):
        values = [100 * getattr(s, name) for s in known]
        centre = np.array([v.mean() for v in values])
        spread = np.array([[c - v.min(), v.max() - c] for v, c in zip(values, centre, strict=True)]).T
        ax.errorbar(centre, y, xerr=np.maximum(spread, 0), fmt=marker, color=colour, ms=6, capsize=3, label=f"{nominal:.0f} % interval")
        ax.axvline(nominal, color=colour, lw=1, ls="--")
    ax.set_yticks(y, [_called(s, year=not one_year, mode=not one_mode) for s in known])
    ax.set_ylim(-0.7, len(known) - 0.3)
    ax.set_xlim(min(40.0, *(100 * s.coverage68.min() - 4 for s in known)), 102)
    ax.set_xlabel("Readings inside the interval [%]")
    if one_year or one_mode:
        ax.set_title(
            ", ".join(([known[0].mode] if one_mode else []) + ([str(known[0].year)] if one_year else [])), loc="left", fontsize="medium"
        )
    ax.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    return ax


def plot_visible(
    visible_mev: NDArray[np.float64],
    *,
    energy_gev: NDArray[np.float64] | None = None,
    of_particle: Mapping[str, NDArray[np.bool_]] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Histogram of the visible energy of showers, or of its part of the incident energy.

    Parameters
    ----------
    visible_mev : float array, (shower,) [MeV]
    energy_gev : float array, (shower,), optional [GeV]
        Incident energies. If given, E_vis / E is drawn: the spread of the beam is not that of the showers.
    of_particle : mapping of str to bool array, (shower,), optional
        Showers of each particle, one histogram each.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No showers.
    """
    if not visible_mev.size:
        raise ValueError("no showers to draw; simulate some first")
    ax = new_axes(ax)
    value, unit = (visible_mev, " MeV") if energy_gev is None else (visible_mev / (1e3 * energy_gev), "")
    _, edges = visible_histogram(value)
    highest = 0
    parts = {"": np.ones(value.size, dtype=np.bool_)} if of_particle is None or len(of_particle) < 2 else of_particle
    for i, (name, is_part) in enumerate(parts.items()):
        part = value[is_part]
        count, _ = np.histogram(part, edges)
        highest = max(highest, int(count.max()))
        label = f"{part.size} {name} showers".replace("  ", " ") + f"\n{_mean_and_rms(part, unit)}"
        ax.stairs(count, edges, color=COLOURS[i % len(COLOURS)], lw=1.6, fill=False, label=label)
        ax.stairs(count, edges, color=COLOURS[i % len(COLOURS)], alpha=0.15, fill=True)
    ax.set_ylim(0, 1.3 * highest)
    ax.set_xlabel(r"Visible energy $E_{\mathrm{vis}}$ [MeV]" if unit else r"Visible over incident energy $E_{\mathrm{vis}} / E$")
    ax.set_ylabel(f"Showers / {edges[1] - edges[0]:.3g}{unit}")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False)
    return ax


def _mean_and_rms(value: NDArray[np.float64], unit: str) -> str:
    """Mean with its standard error, and rms, all to the error's first digit."""
    mean, rms = float(value.mean()), float(value.std())
    if not rms > 0:
        return f"mean {mean:.4g}{unit}"
    error = rms / np.sqrt(value.size)
    n = max(0, -int(np.floor(np.log10(error))))
    return rf"mean {mean:.{n}f} $\pm$ {error:.{n}f}{unit}, rms {rms:.{n}f}{unit}"


def visible_histogram(visible_mev: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts and bin edges [MeV] that `plot_visible` draws; of E_vis / E, if given those."""
    low, high = float(visible_mev.min()), float(visible_mev.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    n_bins = int(np.clip(2 * visible_mev.size ** (1 / 2.5), 5, 100))  # chosen: 10 bins for 60 showers, 60 for 5000
    count, edges = np.histogram(visible_mev, n_bins, (low, high))
    return count, edges


def plot_layer_profile(mean_mev: NDArray[np.float64], error_mev: NDArray[np.float64], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Mean visible energy of each active layer.

    Parameters
    ----------
    mean_mev, error_mev : float array, (layer,) [MeV]
        The mean over showers, and its standard error.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = new_axes(ax)
    layer = np.arange(mean_mev.size)
    ax.stairs(mean_mev, np.arange(mean_mev.size + 1) - 0.5, color=COLOURS[0], lw=1.4)
    ax.errorbar(layer, mean_mev, error_mev, fmt=".", ms=4, color=COLOURS[0])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Active layer, 0 nearest the beam")
    ax.set_ylabel(r"Mean visible energy $\langle E_{\mathrm{layer}} \rangle$ [MeV]")
    ax.set_title(title, fontsize="medium", parse_math=False)
    return ax


def new_axes(ax: Axes | None, *, width: float = 6.4, height: float = 4.6) -> Axes:
    """The given Axes, or those of a new figure that no global state knows; physics ticks on both."""
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(width, height), layout="constrained", dpi=130).add_subplot()
    ax.tick_params(which="both", direction="in", top=True, right=True)
    ax.minorticks_on()
    return ax


def _called(score: Score, *, year: bool, mode: bool) -> str:
    return ", ".join([score.model] + ([score.mode] if mode else []) + ([str(score.year)] if year else []))


def _region(ieta: int) -> str:
    if abs(ieta) > _BARREL_IETA:
        return r"$|\eta| \geq 1.5$"
    eta = (abs(ieta) - 0.5) * _ETA_PER_IETA
    k = int(np.searchsorted(_ETA_EDGES, eta, side="right")) - 1
    return rf"${_ETA_EDGES[k]:.1f} \leq |\eta| < {_ETA_EDGES[k + 1]:.1f}$"


def _daily_response(blocks: Sequence[Block]) -> tuple[FloatArray, FloatArray]:
    """Days with readings since 1970, (day,), and the mean response on each, every crystal with the same weight."""
    first = int(min(b.time_s[0] for b in blocks) // _DAY_S)
    last = int(max(b.time_s[-1] for b in blocks) // _DAY_S)
    total, count = np.zeros(last - first + 1), np.zeros(last - first + 1)
    for block in blocks:
        known = np.isfinite(block.transparency).all(axis=0)
        day = (block.time_s[known] // _DAY_S).astype(np.int64) - first
        n = np.bincount(day, minlength=total.size)
        summed = np.bincount(day, weights=block.transparency[:, known].mean(axis=0), minlength=total.size)
        total += block.n_crystals * summed / np.maximum(n, 1)
        count += block.n_crystals * (n > 0)
    has = count > 0
    return first + np.flatnonzero(has).astype(np.float64), total[has] / count[has]


def _daily_luminosity(history: TransparencyHistory) -> tuple[FloatArray, FloatArray]:
    """Luminosity of each day, (day,) [1/fb], as the most complete time grid of each year has it."""
    days: dict[int, float] = {}
    for year in history.years:
        block = max(history.of_year(year), key=lambda b: b.n_readings)
        middle = block.time_s.copy()
        middle[:-1] += 0.5 * np.diff(block.time_s)
        for d, lumi in zip((middle // _DAY_S).astype(np.int64), block.lumi_ifb, strict=True):
            days[int(d)] = days.get(int(d), 0.0) + float(lumi)
    at = sorted(days)
    return np.array(at, dtype=np.float64), np.array([days[d] for d in at])


def _dates(time_s: FloatArray) -> NDArray[np.datetime64]:
    return (1000.0 * np.asarray(time_s)).astype("datetime64[ms]")


def _with_gaps(time_s: FloatArray, values: FloatArray) -> tuple[NDArray[np.datetime64], FloatArray]:
    """Dates and values with a NaN in each long gap, so that no line crosses it."""
    gap = np.flatnonzero(np.diff(time_s) > _GAP_S) + 1
    return _dates(np.insert(time_s, gap, time_s[gap - 1] + 1.0)), np.insert(values, gap, np.nan)


def _date_axis(ax: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=10)  # type: ignore[no-untyped-call]
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    ax.set_xlabel("Time $t$ [UTC]")


def plain_text(text: str) -> str:
    """A text with no formula in it: a dollar would begin one."""
    return text.replace("$", r"\$")


def plain_ticks(axis: object) -> None:
    """Logarithmic ticks as plain numbers."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    assert isinstance(axis, Axis)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
