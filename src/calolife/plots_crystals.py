"""Figures of electrons and photons in crystals: each function takes results and an optional ``ax`` and returns the Axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.plots import COLOURS, MARKERS, new_axes, plain_ticks
from calolife.plots_energy import series_colour, value_with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calolife.energy.crystal_scores import CruijffScore
    from calolife.energy.lineshapes import LineFit

__all__ = ["plot_cruijff_curves", "plot_likelihood", "plot_overtraining", "plot_ratio_fits"]

FloatArray = NDArray[np.float64]

_BAND = 0.005  # half width of the band about a mean of 1; chosen: the scale that a calibration in situ reaches
_LABELS = {"energy_gev": r"True energy $E$ [GeV]", "abs_eta": r"$|\eta|$ of the object", "rho_gev": r"Pileup density $\rho$ [GeV]"}
_LOG_SPAN = 20.0  # chosen: a wider range of energies is drawn on a logarithmic axis
_NEAR = 4 / 3  # chosen: a model this far from the reference would flatten all others
_FAR = 0.05  # chosen: the same for a mean; a calibrated model is nearer
_SIGMAS = 7.0  # chosen: both flanks of a peak down to their tails
_ROOM = 0.13  # of the height for each line of the legend


def plot_ratio_fits(
    ratio: Mapping[str, ArrayLike], fits: Mapping[str, LineFit], *, is_log: bool = False, title: str = "", ax: Axes | None = None
) -> Axes:
    """Distributions of E'/E of several models with their Cruijff fits.

    Parameters
    ----------
    ratio : mapping of str to float array, (object,)
        Series by their names, all of the same objects.
    fits : mapping of str to LineFit
        Of those series that have one; the curve is drawn over the range of the fit.
    is_log : bool
        A logarithmic axis, which shows the tails.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No series, one without objects, or a fit of a series that is not there.

    Notes
    -----
    A linear axis reaches seven sigma to each side of all peaks, a logarithmic one the ends of all fits; what lies outside is counted
    in the legend.
    """
    values = {name: np.asarray(v, dtype=np.float64) for name, v in ratio.items()}
    if not values or not all(v.size for v in values.values()):
        raise ValueError("nothing to draw; give at least one series, each with objects")
    if unknown := [name for name in fits if name not in values]:
        raise ValueError(f"fit of {unknown[0]!r}, but the series are {', '.join(values)}; name the fits as the series")
    ax = new_axes(ax, width=7.0, height=4.8)
    low, high = _shown(values, fits, is_log=is_log)
    edges = np.linspace(low, high, _n_bins(values, fits, low, high) + 1)
    width = float(edges[1] - edges[0])
    top = 0.0
    for k, (name, v) in enumerate(values.items()):
        count = np.histogram(v, edges)[0].astype(np.float64)
        outside = 100 * float(((v < low) | (v > high)).mean())
        label = name + (f": {_fit_text(fits[name])}" if name in fits else "")
        label += f", {outside:.2g} % outside" if outside else ""
        colour = series_colour(k)
        ax.stairs(count, edges, color=colour, lw=1.3, alpha=0.85, label=label)
        if len(values) == 1:
            ax.stairs(count, edges, color=colour, alpha=0.15, fill=True)
        if name in fits:
            _curve(ax, fits[name], width, colour)
        top = max(top, float(count.max()))
    if is_log:
        ax.set_yscale("log")
        ax.set_ylim(0.5, top * (top / 0.5) ** (_ROOM * len(values)))
    else:
        ax.set_ylim(0.0, top * (1.05 + _ROOM * len(values)))
    ax.set_xlim(low, high)
    ax.set_xlabel(r"$E'/E$, predicted over true energy")
    ax.set_ylabel(f"Objects / {width:.2g}")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_cruijff_curves(
    rows: Sequence[CruijffScore], *, figure: str = "sigma", reference: str | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Cruijff mean or sigma/mu of several models in bins, and below it each over the reference.

    Parameters
    ----------
    rows : sequence of CruijffScore
        Of one particle, one region and one variable that is not ``"all"``.
    figure : {"sigma", "mean"}
    reference : str, optional
        The model that the others are divided by; without one, nor a second model, the lower panel is left out.
    title : str
    ax : Axes, optional
        The lower panel is drawn below it.

    Returns
    -------
    Axes
        The upper one; the ratio is in ``ax.child_axes[0]``.

    Raises
    ------
    ValueError
        No bin with a fit, bins of different variables, another figure, or a reference that is not there.

    Notes
    -----
    Points stand at the mean of their bin, one model beside the other; the thin line is the bin. Errors above are of each model,
    those of the ratios are paired 95 % intervals. Ratios and means are drawn about 1, at a scale that the models near it
    set; an arrow at the edge stands for each point off it.
    """
    if figure not in ("sigma", "mean"):
        raise ValueError(f"figure = {figure!r} must be sigma or mean")
    drawn = [r for r in rows if np.isfinite(r.cruijff_mean)]
    if not drawn or len(kinds := {(r.particle, r.eta_region, r.variable) for r in drawn}) > 1 or drawn[0].variable not in _LABELS:
        what = "none has a fit" if not drawn else f"they are of {', '.join(sorted('/'.join(k) for k in kinds))}"
        raise ValueError(f"{len(rows)} rows to draw and {what}; give bins of one variable, particle and region")
    models = list(dict.fromkeys(r.model for r in drawn))
    if reference is not None and reference not in models:
        raise ValueError(f"reference {reference!r} is not among the models {', '.join(models)}; name one of them")
    has_ratio = reference is not None and len(models) > 1
    if ax is None:
        ax = new_axes(None, width=6.6, height=6.2 if has_ratio else 4.6)
        if has_ratio:
            # the layout engine does not find the room that axes below axes need
            ax.figure.set_layout_engine("none")  # type: ignore[union-attr]
            ax.set_position((0.14, 0.345, 0.83, 0.60))
    else:
        ax = new_axes(ax)
    axes = [ax]
    if has_ratio:
        axes.append(new_axes(ax.inset_axes((0.0, -0.42, 1.0, 0.40))))
    variable = drawn[0].variable
    low, high = min(r.low for r in drawn), max(r.high for r in drawn)
    is_log = variable == "energy_gev" and low > 0 and high > _LOG_SPAN * low
    means: dict[int, tuple[FloatArray, FloatArray, FloatArray]] = {}
    off: dict[int, tuple[FloatArray, FloatArray, FloatArray]] = {}
    for k, model in enumerate(models):
        of_it = [r for r in drawn if r.model == model]
        away = k - 0.5 * (len(models) - 1)  # points of the same bin would hide one another
        at = np.array([r.at for r in of_it])
        at = at * 1.02**away if is_log else at + 0.008 * away * (high - low)
        name = "cruijff_mean" if figure == "mean" else "cruijff_sigma_percent"
        value = np.array([getattr(r, name) for r in of_it])
        error = np.array([getattr(r, f"{name}_error") for r in of_it])
        _points(ax, of_it, at, value, np.array([error, error]), k, model)
        means[k] = at, value, np.abs(value - 1) + np.nan_to_num(error)
        if has_ratio and model != reference:
            name = "mean_ratio" if figure == "mean" else "ratio"
            ratio = np.array([[getattr(r, f"{name}{end}") for end in ("", "_low", "_high")] for r in of_it])
            below, above = ratio[:, 0] - ratio[:, 1], ratio[:, 2] - ratio[:, 0]
            _points(axes[1], of_it, at, ratio[:, 0], np.array([below, above]), k, model)
            known = np.isfinite(ratio).all(axis=1)
            if known.any():
                off[k] = at[known], ratio[known, 0], np.abs(ratio[known, 1:] - 1).max(axis=1)
    for one in axes:
        one.set_xscale("log" if is_log else "linear")
        if is_log:
            plain_ticks(one.xaxis)
        margin = (high / low) ** 0.02 if is_log else 0.02 * (high - low)
        one.set_xlim(low / margin if is_log else low - margin, high * margin if is_log else high + margin)
    if figure == "mean":
        ax.axhspan(1 - _BAND, 1 + _BAND, color="0.9", lw=0, zorder=0, label=f"$\\pm${100 * _BAND:g} %")
        ax.axhline(1.0, color="0.4", lw=0.9, ls="--", zorder=1)
        ax.set_ylabel(r"Cruijff mean $\mu$ of $E'/E$")
        _frame(ax, means, usual=_FAR, least=1.6 * _BAND, room=0.2 * (1 + len(models) // 2))
    else:
        ax.set_ylabel(r"Cruijff resolution $\sigma/\mu$ [%]")
        spread = [r.cruijff_sigma_percent for r in drawn]
        if max(spread) > 4 * min(spread):  # chosen: beyond, the small ones could not be told apart
            ax.set_yscale("log")
            plain_ticks(ax.yaxis)
            bottom, top = ax.get_ylim()
            ax.set_ylim(bottom, top * (top / bottom) ** 0.1)
        else:
            ax.set_ylim(0.0, (1.15 + 0.08 * len(models)) * max(spread))
    if has_ratio:
        axes[1].axhline(1.0, color="0.4", lw=0.9, ls="--", zorder=1)
        _frame(axes[1], off, usual=_NEAR - 1, least=1e-4)
        axes[1].set_ylabel(f"Over {reference}", parse_math=False)
        ax.tick_params(labelbottom=False)
        ax.xaxis.set_label_coords(0.5, -0.49)
    ax.set_xlabel(_LABELS[variable])
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper right", ncols=2 if len(models) > 2 else 1)
    return ax


def plot_overtraining(
    training: ArrayLike,
    held_out: ArrayLike,
    *,
    fits: tuple[LineFit, LineFit] | None = None,
    is_log: bool = False,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Distributions of E'/E of objects that a model was trained on and of others, each to an area of 1.

    Parameters
    ----------
    training, held_out : float array, (object,)
        E'/E.
    fits : (LineFit, LineFit), optional
        Of both.
    is_log : bool
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        One of both without objects.
    """
    values = {"Training": np.asarray(training, dtype=np.float64), "Held out": np.asarray(held_out, dtype=np.float64)}
    if not all(v.size for v in values.values()):
        raise ValueError("nothing to draw; give objects of both kinds")
    ax = new_axes(ax, width=7.0, height=4.8)
    named = {} if fits is None else dict(zip(values, fits, strict=True))
    low, high = _shown(values, named, is_log=is_log)
    edges = np.linspace(low, high, _n_bins(values, named, low, high) + 1)
    width = float(edges[1] - edges[0])
    middle = 0.5 * (edges[1:] + edges[:-1])
    top, smallest = 0.0, np.inf
    for (name, v), colour in zip(values.items(), (COLOURS[0], COLOURS[2]), strict=True):
        count = np.histogram(v, edges)[0].astype(np.float64)
        fraction, error = count / v.size, np.sqrt(count) / v.size
        label = f"{name} ({v.size})" + (f": {_fit_text(named[name])}" if name in named else "")
        if name == "Training":
            ax.stairs(fraction, edges, color=colour, alpha=0.25, fill=True)
            ax.stairs(fraction, edges, color=colour, lw=1.2, label=label)
        else:
            seen = count > 0
            ax.errorbar(middle[seen], fraction[seen], error[seen], fmt="o", ms=3, lw=1.0, color=colour, label=label)
        if name in named:
            _curve(ax, named[name], width / v.size, colour)
        top, smallest = max(top, float(fraction.max())), min(smallest, 0.5 / v.size)
    if is_log:
        ax.set_yscale("log")
        ax.set_ylim(smallest, top * (top / smallest) ** (2 * _ROOM))
    else:
        ax.set_ylim(0.0, top * (1.05 + 2 * _ROOM))
    ax.set_xlim(low, high)
    ax.set_xlabel(r"$E'/E$, predicted over true energy")
    ax.set_ylabel(f"Fraction of objects / {width:.2g}")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_likelihood(
    loss: Sequence[float] | FloatArray,
    validation_loss: Sequence[float] | FloatArray,
    *,
    best_epoch: int,
    step: str = "Epoch",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """How the likelihood of a training rose step by step; the one that was kept is marked.

    Parameters
    ----------
    loss, validation_loss : float array, (step,)
        -ln L per object; NaN is not drawn.
    best_epoch : int
        Counted from 1.
    step : str
        What a step is called: an epoch, or a round of trees.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No steps, or a best one that is not among them.
    """
    from matplotlib.ticker import MaxNLocator

    curves = {"Training": np.asarray(loss, dtype=np.float64), "Validation": np.asarray(validation_loss, dtype=np.float64)}
    n = curves["Training"].size
    if not 1 <= best_epoch <= n:
        raise ValueError(f"best_epoch = {best_epoch} of {n} steps; it is counted from 1")
    ax = new_axes(ax)
    for (name, curve), colour in zip(curves.items(), (COLOURS[0], COLOURS[2]), strict=True):
        if np.isfinite(curve).any():
            ax.plot(np.arange(1, n + 1), curve, color=colour, lw=1.5, marker="o" if n == 1 else "", label=name)
    kept = curves["Validation"] if np.isfinite(curves["Validation"][best_epoch - 1]) else curves["Training"]
    ax.axvline(best_epoch, color="0.5", lw=0.9, ls=":")
    ax.plot(
        [best_epoch], [kept[best_epoch - 1]], "*", ms=13, color=COLOURS[1], mec="black", mew=0.7, zorder=4,
        label=f"Kept: {step.lower()} {best_epoch}, {kept[best_epoch - 1]:.3f}",
    )  # fmt: skip
    ax.set_xlim(0, n + 1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.minorticks_off()
    ax.set_xlabel(step)
    ax.set_ylabel(r"Loss $\langle -\ln L \rangle$ per object")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False)
    return ax


def _shown(values: Mapping[str, FloatArray], fits: Mapping[str, LineFit], *, is_log: bool) -> tuple[float, float]:
    """Ends of the axis: the ranges of all fits for the tails, their peaks without; most of the values where there is no fit."""
    if fits:
        low, high = min(f.range[0] for f in fits.values()), max(f.range[1] for f in fits.values())
        if not is_log:
            low = max(low, min(f.mu - _SIGMAS * f.parameters["sigma_left"] for f in fits.values()))
            high = min(high, max(f.mu + _SIGMAS * f.parameters["sigma_right"] for f in fits.values()))
        return max(0.0, low), high
    every = np.concatenate(list(values.values()))
    low, high = (float(q) for q in np.quantile(every, [0.01, 0.99]))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _n_bins(values: Mapping[str, FloatArray], fits: Mapping[str, LineFit], low: float, high: float) -> int:
    """Scott's rule for the narrowest; source: D. W. Scott, Biometrika 66 (1979) 605."""
    widths = [3.5 * (fits[n].sigma if n in fits else (high - low) / 10) / v.size ** (1 / 3) for n, v in values.items()]
    return int(np.clip((high - low) / max(min(widths), 1e-12), 25, 160))


def _curve(ax: Axes, fit: LineFit, entries: float, colour: str) -> None:
    """The fit as so many entries per bin and unit of density."""
    at = np.linspace(*fit.range, 400)
    ax.plot(at, fit.n * entries * fit.density(at), color=colour, lw=1.5, ls="--", zorder=3)


def _fit_text(fit: LineFit) -> str:
    percent = value_with_error(100 * fit.sigma_over_mu, 100 * fit.sigma_over_mu_error)
    return rf"$\mu$ = {value_with_error(fit.mu, fit.errors['mu'])}, $\sigma/\mu$ = {percent} %"


def _frame(
    ax: Axes, series: Mapping[int, tuple[FloatArray, FloatArray, FloatArray]], *, usual: float, least: float, room: float = 0.0
) -> None:
    """Limits about 1 that show the series near it, from points (at, value, reach of value and error); arrows for what lies beyond.

    Near are series whose median is within the usual; nine in ten of their points decide. `room` is left above, in half heights.
    """
    near = [reach for _, value, reach in series.values() if abs(float(np.median(value)) - 1) < usual]
    if not near:
        return
    half = max(1.1 * float(np.quantile(np.concatenate(near), 0.9)), least)
    ax.set_ylim(1 - half, 1 + half * (1 + room))
    for k, (at, value, _) in series.items():
        for sign, marker in ((1, "^"), (-1, "v")):
            beyond = sign * (value - 1) > half
            ax.scatter(
                at[beyond], np.full(int(beyond.sum()), 1 + 0.9 * sign * half), marker=marker, s=36, color=series_colour(k),
                edgecolor="black", lw=0.5, zorder=4,
            )  # fmt: skip


def _points(ax: Axes, rows: Sequence[CruijffScore], at: FloatArray, value: FloatArray, error: FloatArray, k: int, label: str) -> None:
    """Points with errors (2, point), and their bins as thin lines."""
    colour = series_colour(k)
    ax.hlines(value, [r.low for r in rows], [r.high for r in rows], color=colour, lw=0.8, alpha=0.45, zorder=2)
    ax.errorbar(at, value, np.abs(error), fmt=MARKERS[k % len(MARKERS)], ms=4.5, lw=1.2, color=colour, label=label, zorder=3)
