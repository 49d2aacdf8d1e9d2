"""Figures of the energy measurement: each function takes results and an optional ``ax`` and returns the Axes; nothing is saved or shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.energy.resolution import effective_sigma
from calolife.plots import COLOURS, MARKERS, new_axes, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calolife.energy.resolution import EnergyBins, Resolution

__all__ = [
    "plot_energy_response",
    "plot_predicted",
    "plot_profiles",
    "plot_pulls",
    "plot_residuals",
    "plot_resolution_curve",
    "plot_training",
    "series_colour",
    "value_with_error",
]

FloatArray = NDArray[np.float64]

_MATH_NAMES = {
    "gamma": r"$\gamma$", "e-": r"$e^-$", "e+": r"$e^+$", "pi-": r"$\pi^-$", "pi+": r"$\pi^+$",
    "mu-": r"$\mu^-$", "mu+": r"$\mu^+$", "proton": "p", "neutron": "n", "all": "all particles",
}  # fmt: skip
_MOST_POINTS = 4000  # chosen: more dots than this hide one another
_MOST_INSIDE = 4  # chosen: the legend of more series would take half of the axes
_LINES = ("-", "--", "-.", ":")
_SPREADS_SHOWN = 5.0  # chosen: effective sigmas on each side; what lies outside is counted in the legend


def plot_predicted(
    predicted_gev: ArrayLike,
    energy_gev: ArrayLike,
    *,
    of_particle: Mapping[str, NDArray[np.bool_]] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Predicted against true energy with the diagonal, and below it their ratio.

    Parameters
    ----------
    predicted_gev, energy_gev : float array, (shower,) [GeV]
    of_particle : mapping of str to bool array, (shower,), optional
        Showers of each particle, in a colour each.
    title : str
    ax : Axes, optional
        The ratio is drawn below it.

    Returns
    -------
    Axes
        The upper one; the ratio is in ``ax.child_axes[0]``.

    Raises
    ------
    ValueError
        No showers.

    Notes
    -----
    Dots up to 4,000 showers, a density above. The ratio is cut at five effective sigmas; triangles show what lies outside.
    """
    predicted, energy = np.asarray(predicted_gev, dtype=np.float64), np.asarray(energy_gev, dtype=np.float64)
    if not energy.size:
        raise ValueError("no showers to draw; give at least one")
    if ax is None:
        ax = new_axes(None, width=5.6, height=6.4)
        # the layout engine does not find the room that axes below axes need
        ax.figure.set_layout_engine("none")  # type: ignore[union-attr]
        ax.set_position((0.13, 0.325, 0.84, 0.63))
    else:
        ax = new_axes(ax)
    below = new_axes(ax.inset_axes((0.0, -0.40, 1.0, 0.38)))
    ratio = predicted / energy
    low, high = min(0.0, float(predicted.min())), 1.04 * max(float(energy.max()), float(np.quantile(predicted, 0.999)))
    half = float(np.clip(_SPREADS_SHOWN * effective_sigma(ratio), 1e-3, 1.0)) + abs(float(np.median(ratio)) - 1)
    shown = np.clip(ratio, 1 - half, 1 + half)
    is_outside = shown != ratio
    if energy.size <= _MOST_POINTS:
        for k, (name, mask) in enumerate(_parts(of_particle, energy.size).items()):
            style: dict[str, Any] = {"s": 9.0, "lw": 0, "alpha": 0.55, "color": COLOURS[2 * k % len(COLOURS)]}
            ax.scatter(energy[mask], predicted[mask], **style, label=f"{_particle(name)} ({int(mask.sum())})")
            below.scatter(energy[mask & ~is_outside], shown[mask & ~is_outside], **style)
            for sign, marker in ((1, "^"), (-1, "v")):
                beyond = mask & is_outside & (sign * (ratio - 1) > 0)
                below.scatter(
                    energy[beyond], np.full(int(beyond.sum()), 1 + 0.96 * sign * half), marker=marker, **{**style, "s": 16, "alpha": 0.9}
                )
    else:
        from matplotlib.colors import LogNorm

        n_bins = 120
        density: dict[str, Any] = {"cmap": "viridis", "norm": LogNorm(vmin=1), "rasterized": True}
        *_, image = ax.hist2d(energy, predicted, bins=n_bins, range=[[low, high], [low, high]], **density)
        below.hist2d(energy, shown, bins=(n_bins, 60), range=[[low, high], [1 - half, 1 + half]], **density)
        scale = ax.inset_axes((0.56, 0.15, 0.38, 0.03))
        ax.figure.colorbar(image, cax=scale, orientation="horizontal", format="{x:g}")
        scale.set_title(f"Showers / ({high / n_bins:.2g} GeV)$^2$", fontsize="small")
    for axes, y in ((ax, [low, high]), (below, [1.0, 1.0])):
        axes.plot([low, high], y, color="black", lw=1.0, ls="--", zorder=3, label="$E' = E$" if axes is ax else None)
    ax.set_xlim(low, high)
    below.set_xlim(low, high)
    ax.set_ylim(low, high)
    below.set_ylim(1 - half, 1 + half)
    ax.tick_params(labelbottom=False)
    ax.set_ylabel(r"Predicted energy $E'$ [GeV]")
    below.set_ylabel(r"$E'/E$")
    ax.set_xlabel(r"True energy $E$ [GeV]")
    ax.xaxis.set_label_coords(0.5, -0.47)
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", markerscale=2)
    return ax


def plot_energy_response(
    bins: Mapping[str, EnergyBins], *, is_robust: bool = False, band: float = 0.01, title: str = "", ax: Axes | None = None
) -> Axes:
    """Response against true energy, one series per model or particle, with the band that it should keep.

    Parameters
    ----------
    bins : mapping of str to EnergyBins
        Series by their names.
    is_robust : bool
        Draw medians, not means.
    band : float
        Half width of the band around 1.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No series.

    Notes
    -----
    The axis is symmetric about 1. Where some points lie far from the rest it holds nine in ten, and an arrow at its edge
    stands for each point beyond.
    """
    ax = _curve_axes(bins, ax, legend_width=2.6)
    name = "median_response" if is_robust else "response"
    ax.axhspan(1 - band, 1 + band, color="0.9", lw=0, zorder=0, label=f"$\\pm${100 * band:g} %")
    ax.axhline(1.0, color="0.4", lw=0.9, ls="--", zorder=1)
    off = []
    for k, (series, found) in enumerate(bins.items()):
        value, error = getattr(found, name), getattr(found, f"{name}_error")
        _points(ax, found, value, error, k, _particle(series), n_series=len(bins))
        off.append(np.abs(value - 1) + np.minimum(error, 3 * band))  # one bin of huge error must not flatten all others
    every = np.concatenate(off)
    usual = float(np.quantile(every, 0.9))
    half = 1.08 * max(2.2 * band, float(every.max()) if every.max() < 2.5 * usual else 1.2 * usual)
    for k, found in enumerate(bins.values()):
        value, energy = getattr(found, name), _beside(found, k, len(bins))
        for sign, marker in ((1, "^"), (-1, "v")):
            beyond = sign * (value - 1) > half
            at = np.full(int(beyond.sum()), 1 + 0.965 * sign * half)
            ax.scatter(energy[beyond], at, marker=marker, s=42, color=series_colour(k), edgecolor="black", lw=0.5, zorder=4)
    is_inside = len(bins) <= _MOST_INSIDE
    ax.set_ylim(1 - half, 1 + half * (1 + is_inside * (0.16 + 0.17 * (1 + len(bins) // 2))))
    ax.set_ylabel(r"Median response of $E'/E$" if is_robust else r"Response $\langle E'/E \rangle$")
    ax.set_title(title, fontsize="medium", parse_math=False)
    _legend(ax, is_inside=is_inside, ncols=2 if is_inside else 1)
    return ax


def plot_resolution_curve(
    bins: Mapping[str, EnergyBins],
    *,
    fits: Mapping[str, Resolution] | None = None,
    is_effective: bool = False,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Resolution against true energy with the fitted curves; the legend gives their terms.

    Parameters
    ----------
    bins : mapping of str to EnergyBins
        Series by their names.
    fits : mapping of str to Resolution, optional
        Of those series that have one; drawn with a band of one standard error, but for a fit without a degree of freedom.
    is_effective : bool
        Draw effective sigmas, not standard deviations.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No series, or a fit of a series that is not there.
    """
    fits = {} if fits is None else fits
    if unknown := [name for name in fits if name not in bins]:
        raise ValueError(f"fit of {unknown[0]!r}, but the series are {', '.join(bins)}; name the fits as the series")
    ax = _curve_axes(bins, ax, legend_width=4.6 if fits else 2.6)
    is_inside = len(bins) <= _MOST_INSIDE
    name = "sigma_eff" if is_effective else "resolution"
    for k, (series, found) in enumerate(bins.items()):
        value, error = 100 * getattr(found, name), 100 * getattr(found, f"{name}_error")
        fit = fits.get(series)
        label = _particle(series) if fit is None else f"{_particle(series)}: {_terms(fit)}"
        _points(ax, found, value, error, k, label, n_series=len(bins))
        if fit is not None:
            energy = np.geomspace(found.edges_gev[0] if found.edges_gev[0] > 0 else found.energy_gev[0] / 2, found.edges_gev[-1], 200)
            curve, width = 100 * fit.at(energy), 100 * fit.error_at(energy)
            ax.plot(energy, curve, color=series_colour(k), lw=1.5, ls=_LINES[k % len(_LINES)], zorder=2)
            if fit.ndf > 0:
                faint = 0.2 if is_inside else 0.1
                ax.fill_between(energy, curve - width, curve + width, color=series_colour(k), alpha=faint, lw=0)
    ax.set_yscale("log")
    plain_ticks(ax.yaxis)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** (0.10 * (len(bins) + bool(fits)) * is_inside))
    ax.set_ylabel(r"Effective resolution $\sigma_{\mathrm{eff}}/E$ [%]" if is_effective else r"Resolution $\sigma/E$ [%]")
    ax.set_title(title, fontsize="medium", parse_math=False)
    _legend(
        ax, is_inside=is_inside, fontsize="small",
        title=r"$\sigma/E = S/\sqrt{E} \oplus N/E \oplus C$" if fits else None,
    )  # fmt: skip
    return ax


def plot_residuals(residual: Mapping[str, ArrayLike], *, of: str = "showers", title: str = "", ax: Axes | None = None) -> Axes:
    """Distributions of (E' - E)/E, one per particle or model, with their effective sigmas.

    Parameters
    ----------
    residual : mapping of str to float array, (shower,)
        Series by their names; each is scaled to an area of 1.
    of : str
        What the axis calls them: showers, or the objects found in crystals.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No series, or one without showers.
    """
    ax = _distributions({name: 100 * np.asarray(v, dtype=np.float64) for name, v in residual.items()}, unit=" %", of=of, ax=ax)
    ax.set_xlabel(r"Relative residual $(E' - E)/E$ [%]")
    ax.set_title(title, fontsize="medium", parse_math=False)
    return ax


def plot_pulls(pull: Mapping[str, ArrayLike], *, of: str = "showers", title: str = "", ax: Axes | None = None) -> Axes:
    """Distributions of (E' - E)/sigma(E), one per particle or model, with the unit Gaussian.

    Parameters
    ----------
    pull : mapping of str to float array, (shower,)
        Series by their names; each is scaled to an area of 1.
    of : str
        What the axis calls them: showers, or the objects found in crystals.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No series, or one without showers.
    """
    ax = _distributions({name: np.asarray(v, dtype=np.float64) for name, v in pull.items()}, unit="", of=of, at_least=4.0, ax=ax)
    x = np.linspace(*ax.get_xlim(), 300)
    ax.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color="black", lw=1.0, ls="--", label="Unit Gaussian")
    ax.set_ylim(0, max(ax.get_ylim()[1], 0.55))
    ax.set_xlabel(r"Pull $(E' - E)/\sigma(E)$")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_training(
    loss: Sequence[float] | FloatArray,
    validation_loss: Sequence[float] | FloatArray,
    *,
    best_epoch: int,
    unit: str = "GeV",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Losses of a training epoch by epoch; the epoch whose weights were kept is marked.

    Parameters
    ----------
    loss, validation_loss : float array, (epoch,)
        NaN validation losses are not drawn.
    best_epoch : int
        Counted from 1.
    unit : str
        Of the losses.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No epochs, or a best epoch that is not one of them.
    """
    curves = {"Training": np.asarray(loss, dtype=np.float64), "Validation": np.asarray(validation_loss, dtype=np.float64)}
    n = curves["Training"].size
    if not 1 <= best_epoch <= n:
        raise ValueError(f"best_epoch = {best_epoch} of {n} epochs; it is counted from 1")
    ax = new_axes(ax)
    for (name, curve), colour in zip(curves.items(), (COLOURS[0], COLOURS[2]), strict=True):
        if np.isfinite(curve).any():
            ax.plot(np.arange(1, n + 1), curve, color=colour, lw=1.5, label=name)
    kept = curves["Validation"] if np.isfinite(curves["Validation"][best_epoch - 1]) else curves["Training"]
    ax.axvline(best_epoch, color="0.5", lw=0.9, ls=":")
    ax.plot(
        [best_epoch], [kept[best_epoch - 1]], "*", ms=13, color=COLOURS[1], mec="black", mew=0.7, zorder=4,
        label=f"Kept: epoch {best_epoch}, {kept[best_epoch - 1]:.3g} {unit}",
    )  # fmt: skip
    ax.set_yscale("log")
    plain_ticks(ax.yaxis)
    ax.set_xlim(0, n + 1)
    ax.set_xlabel("Epoch")
    ax.set_ylabel(rf"Loss $\langle (E' - E)^2/E \rangle$ [{unit}]")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False)
    return ax


def plot_profiles(
    layer_energy_mev: FloatArray,
    energy_gev: FloatArray,
    *,
    of_particle: Mapping[str, NDArray[np.bool_]] | None = None,
    edges_gev: Sequence[float] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Longitudinal profiles: mean energy per layer and GeV of incident energy, for each particle in ranges of energy.

    Parameters
    ----------
    layer_energy_mev : float array, (shower, layer) [MeV]
    energy_gev : float array, (shower,) [GeV]
        True energies.
    of_particle : mapping of str to bool array, (shower,), optional
        Showers of each particle, in a colour each.
    edges_gev : sequence of float, optional [GeV]
        Ranges of energy, a line style each; three with as many showers by default.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No showers, more than four ranges, or none with a shower in it.
    """
    layers, energy = np.asarray(layer_energy_mev, dtype=np.float64), np.asarray(energy_gev, dtype=np.float64)
    if not energy.size:
        raise ValueError("no showers to draw; give at least one")
    edges = np.unique(np.quantile(energy, [0, 1 / 3, 2 / 3, 1])) if edges_gev is None else np.asarray(edges_gev, dtype=np.float64)
    if edges.size == 1:
        edges = np.repeat(edges, 2)
    if edges.size > 5:
        raise ValueError(f"{edges.size - 1} ranges of energy; give at most 4: more lines cannot be told apart")
    ax = new_axes(ax, width=7.6)
    where = np.arange(layers.shape[1] + 1) - 0.5
    highest, is_drawn = 0.0, False
    for k, (name, mask) in enumerate(_parts(of_particle, energy.size).items()):
        for r, (low, high) in enumerate(pairwise(edges.tolist())):
            is_last = r == edges.size - 2
            inside = mask & (energy >= low) & ((energy <= high) if is_last else (energy < high))
            n = int(inside.sum())
            if not n:
                continue
            total = energy[inside].sum()
            profile = layers[inside].sum(axis=0) / total
            highest, is_drawn = max(highest, float(profile.max())), True
            label = f"{_particle(name)}, {low:.3g} to {high:.3g} GeV ({n})"
            ax.stairs(profile, where, color=COLOURS[2 * k % len(COLOURS)], ls=("-", "--", ":", "-.")[r], lw=1.4, label=label, baseline=None)
    if not is_drawn:
        raise ValueError(f"no shower between {edges[0]:g} and {edges[-1]:g} GeV; give other edges_gev")
    ax.set_xlim(where[0], where[-1])
    ax.set_ylim(0, 1.08 * highest if highest > 0 else 1.0)  # showers that left nothing are a flat line
    ax.set_xlabel("Active layer, 0 nearest the beam")
    ax.set_ylabel(r"$\langle E_{\mathrm{layer}} \rangle / \langle E \rangle$ [MeV / GeV]")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False)
    return ax


def _curve_axes(bins: Mapping[str, EnergyBins], ax: Axes | None, *, legend_width: float) -> Axes:
    """Axes with a logarithmic axis of energy; a new figure is wider where the legend goes beside them."""
    if not bins:
        raise ValueError("no series to draw; give the bins of at least one")
    ax = new_axes(ax, width=6.4 + legend_width * (len(bins) > _MOST_INSIDE))
    ax.set_xscale("log")
    plain_ticks(ax.xaxis)
    low = min(float(b.edges_gev[0] if b.edges_gev[0] > 0 else b.energy_gev[0] / 2) for b in bins.values())
    ax.set_xlim(low / 1.08, 1.08 * max(float(b.edges_gev[-1]) for b in bins.values()))
    ax.set_xlabel(r"True energy $E$ [GeV]")
    return ax


def _legend(ax: Axes, *, is_inside: bool, ncols: int = 1, fontsize: str = "medium", title: str | None = None) -> None:
    """In the upper right corner of the axes, or to the right of them."""
    loc: dict[str, Any] = {"loc": "upper right"} if is_inside else {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    ax.legend(frameon=False, ncols=ncols, fontsize=fontsize, title=title, title_fontsize="small", **loc)


def _beside(bins: EnergyBins, k: int, n_series: int) -> FloatArray:
    """Energies to draw the points of series k at: series of the same bins would hide one another."""
    energy: FloatArray = bins.energy_gev * 1.025 ** (k - 0.5 * (n_series - 1))
    return energy


def _points(ax: Axes, bins: EnergyBins, value: FloatArray, error: FloatArray, k: int, label: str, *, n_series: int) -> None:
    """Points with errors, and their bins as thin lines."""
    energy, colour = _beside(bins, k, n_series), series_colour(k)
    ax.hlines(value, bins.edges_gev[:-1], bins.edges_gev[1:], color=colour, lw=0.8, alpha=0.45, zorder=2)
    ax.errorbar(energy, value, error, fmt=MARKERS[k % len(MARKERS)], ms=4.5, lw=1.2, color=colour, label=label, zorder=3)


def _distributions(values: Mapping[str, FloatArray], *, unit: str, of: str, at_least: float = 1e-9, ax: Axes | None) -> Axes:
    if not values or not all(v.size for v in values.values()):
        raise ValueError("nothing to draw; give at least one series, each with showers")
    ax = new_axes(ax)
    widths = {name: effective_sigma(v) for name, v in values.items()}
    middle = float(np.median(np.concatenate(list(values.values()))))
    narrow, wide = min(widths.values()), max(widths.values())
    half = max(_SPREADS_SHOWN * float(np.sqrt(narrow * wide)), 0.6 * _SPREADS_SHOWN * wide, at_least)
    low, high = middle - half, middle + half
    for k, (name, v) in enumerate(values.items()):
        # Scott's rule, for each its own; source: D. W. Scott, Biometrika 66 (1979) 605
        width = 3.5 * widths[name] / v.size ** (1 / 3)
        edges = np.linspace(low, high, int(np.clip(2 * half / width if width > 0 else 40, 20, 200)) + 1)
        height = np.histogram(v, edges)[0] / (v.size * (edges[1] - edges[0]))
        outside = 100 * float(((v < low) | (v > high)).mean())
        label = rf"{_particle(name)}: $\sigma_{{\mathrm{{eff}}}}$ = {_three_digits(widths[name])}{unit}"
        label += f", {outside:.2g} % outside" if outside else ""
        ax.stairs(height, edges, color=series_colour(k), lw=1.6, label=label)
        if len(values) <= 3:
            ax.stairs(height, edges, color=series_colour(k), alpha=0.12, fill=True)
    ax.axvline(0.0, color="0.4", lw=0.9, ls="--", zorder=0)
    ax.set_xlim(low, high)
    ax.set_ylim(0, ax.get_ylim()[1] * (1.05 + 0.075 * len(values)))
    ax.set_ylabel(f"Fraction of {of} [1 / {unit.strip()}]" if unit else f"Fraction of {of} per unit")
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def _terms(fit: Resolution) -> str:
    """S, N and C with errors and units; the limit of a term that is not seen."""
    percent = 100.0
    parts = []
    for symbol, value, error, upper, is_seen, factor, unit in zip(
        "SNC", (fit.stochastic, fit.noise, fit.constant), fit.errors, fit.upper95, fit.is_seen, (percent, 1.0, percent),
        (r" % $\sqrt{\mathrm{GeV}}$", " GeV", " %"), strict=True,
    ):  # fmt: skip
        if value == 0 and error == 0:
            continue  # not fitted
        if is_seen or not np.isfinite(upper):
            parts.append(f"${symbol}$ = {value_with_error(factor * value, factor * float(error))}{unit}")
        else:
            parts.append(f"${symbol}$ < {factor * upper:.2g}{unit}")
    return ", ".join(parts)


def value_with_error(value: float, error: float) -> str:
    """Value and error as text, both to the second digit of an error that begins with 1 or 2, else the first."""
    if not error > 0:
        return f"{value:.3g}"
    place = int(np.floor(np.log10(error)))
    digits = max(0, -place + (1 if error / 10.0**place < 3 else 0))
    return rf"{value:.{digits}f} $\pm$ {error:.{digits}f}"


def _three_digits(value: float) -> str:
    """3.00, not 3."""
    return f"{value:#.3g}".rstrip(".")


def _parts(of_particle: Mapping[str, NDArray[np.bool_]] | None, n: int) -> Mapping[str, NDArray[np.bool_]]:
    return of_particle if of_particle else {"all": np.ones(n, dtype=np.bool_)}


def _particle(name: str) -> str:
    """A particle as a talk shows it; any other name as it is."""
    return _MATH_NAMES.get(name, name.replace("$", r"\$"))


def series_colour(k: int) -> str:
    """Colour of the k-th of the series that are drawn together."""
    return COLOURS[(0, 2, 1, 4, 3, 9, 6, 5, 7, 8)[k % 10]]  # blue, red, amber, purple, grey, cyan: the most different first
