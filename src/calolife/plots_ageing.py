"""Figures of an estimate of ageing: each function takes results and an optional ``ax`` and returns the Axes; nothing is saved or shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.ageing.coefficients import Ageing
from calolife.ageing.scores import r_squared
from calolife.detector.crystals import CrystalCalorimeter
from calolife.plots import COLOURS, MARKERS, new_axes, plain_text, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from calolife.detector.presets import Detector

__all__ = [
    "plot_against_dose",
    "plot_against_truth",
    "plot_cell_map",
    "plot_distribution",
    "plot_energy_sums",
    "plot_pulls",
    "plot_uncertainty",
]

FloatArray = NDArray[np.float64]

_USABLE = ("measured", "prior-dominated")
_MOST_POINTS = 2000  # chosen: more error bars than this hide one another
_MOST_SPREAD = 0.35  # chosen: a ratio worse known than this only fills the panel
_MOST_LAYERS = 60  # chosen: panels of more layers are too small to read
_OWN, _FOUND, _TRUE = "0.62", COLOURS[0], COLOURS[2]
_ORDER = (0, 2, 1, 4, 3, 9, 6, 5, 7, 8)  # blue, red, amber, purple, grey, cyan: the most different first
_FRACTION = r"Signal fraction $r$"


def plot_against_truth(ageing: Ageing, truth: Ageing, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Signal fractions found against the true ones, with errors and the diagonal; below, their difference.

    Parameters
    ----------
    ageing : Ageing
        Drawn are its cells that are measured or prior-dominated. Where a prior moved them, what the own hits of the
        measured ones say is drawn in grey.
    truth : Ageing
    title : str
    ax : Axes, optional
        The difference is drawn below it.

    Returns
    -------
    Axes
        The upper one; the difference is in ``ax.child_axes[0]``.

    Raises
    ------
    ValueError
        No cell that both have.

    Notes
    -----
    The axes hold 99 % of the cells; the legend counts those outside. Error bars up to 2,000 cells.
    """
    found, true = _both(ageing, truth)
    ax, below = _two_axes(ax)
    shown = [found.signal_fraction, true]
    measured = found.status == "measured"
    if has_own := _has_own(found):
        shown.append(found.own_fraction[measured])
    low, high = _range(np.concatenate(shown))
    x_low, x_high = _range(true, margin=0.04)
    few = found.n_cells <= _MOST_POINTS
    dots: dict[str, Any] = {"ls": "none", "marker": "o", "rasterized": not few}
    if has_own:
        label = f"Own hits alone: {_score(found.own_fraction[measured], true[measured])}"
        label += "" if measured.all() else f"\n{int(measured.sum())} measured cells"
        ax.plot(true[measured], found.own_fraction[measured], ms=3.0 if few else 1.5, color=_OWN, mew=0, label=label, zorder=2, **dots)
    n_outside = int(((found.signal_fraction < low) | (found.signal_fraction > high)).sum())
    label = ("With prior: " if has_own else "") + _score(found.signal_fraction, true)
    label += f"\n{n_outside} of {true.size} cells outside" if n_outside else f"\n{true.size} cells"
    error = np.where(np.isfinite(found.uncertainty), found.uncertainty, 0.0) if few else None
    style: dict[str, Any] = {**dots, "ms": 3.2 if few else 1.5, "color": _FOUND, "mew": 0, "elinewidth": 0.6}
    ax.errorbar(true, found.signal_fraction, error, label=label, zorder=3, **style)
    ends = np.array([min(low, x_low), max(high, x_high)])
    ax.plot(ends, ends, color="black", lw=1.0, ls="--", zorder=4)
    difference = found.signal_fraction - true
    half = 1.15 * float(np.quantile(np.abs(difference) + (0.0 if error is None else error), 0.99)) or 1e-3
    below.errorbar(true, difference, error, zorder=3, **style)
    below.axhline(0.0, color="black", lw=1.0, ls="--", zorder=4)
    ax.set_ylim(low, high + 0.30 * (high - low))  # room for the legend
    below.set_ylim(-half, half)
    for axes in (ax, below):
        axes.set_xlim(x_low, x_high)
    ax.tick_params(labelbottom=False)
    ax.set_ylabel(r"Signal fraction found $\hat r$")
    below.set_ylabel(r"$\hat r - r$")
    ax.set_xlabel(r"True signal fraction $r$")
    ax.xaxis.set_label_coords(0.5, -0.47)
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small", markerscale=1.6)
    return ax


def plot_cell_map(detector: Detector, ageing: Ageing, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Signal fraction of every listed cell, one panel per layer.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    ageing : Ageing
        Cells that are not listed are grey; dead, hot and masked ones carry a cross.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No cell, or one that the detector does not have.

    Notes
    -----
    Panels show the part of the layers that holds listed cells; layers with none are left out. Of more than 60 layers,
    those with most listed cells are drawn.
    """
    if not ageing.n_cells:
        raise ValueError("no cells to draw; give at least one")
    if ageing.cell[-1] >= detector.n_cells:
        raise ValueError(f"cell {ageing.cell[-1]} is not in the detector, which has {detector.n_cells}; give its own ageing")
    layer, ix, iy, size = _places(detector, ageing.cell)
    layers, n_listed = np.unique(layer, return_counts=True)
    if layers.size > _MOST_LAYERS:
        layers = np.sort(layers[np.argsort(-n_listed, kind="stable")[:_MOST_LAYERS]])
    # a panel spans 0 to 1; layers of other cells are cut to the same part of their width
    x0, x1 = _part(ix / size[layer, 0], (ix + 1) / size[layer, 0])
    y0, y1 = _part(iy / size[layer, 1], (iy + 1) / size[layer, 1])
    aspect = _side_ratio(detector) * (y1 - y0) / (x1 - x0)
    n_columns = int(np.clip(np.ceil(np.sqrt(1.7 * layers.size * aspect)), 1, layers.size))
    n_rows = -(-layers.size // n_columns)
    width = 8.4
    ax = new_axes(ax, width=width, height=0.9 + max(2.2, (width - 1.6) * n_rows * (aspect + 0.22) / (1.1 * n_columns)))
    usable = np.isin(ageing.status, _USABLE)
    lowest, highest = _colour_range(ageing.signal_fraction[usable] if usable.any() else ageing.signal_fraction)
    for k, number in enumerate(layers):
        row, column = divmod(k, n_columns)
        left, bottom = 1.1 * column, -(aspect + 0.22) * row
        n_x, n_y = (int(n) for n in size[number])
        i0, i1, j0, j1 = int(np.floor(x0 * n_x)), int(np.ceil(x1 * n_x)), int(np.floor(y0 * n_y)), int(np.ceil(y1 * n_y))
        values = np.full((n_x, n_y), np.nan)
        here = layer == number
        values[ix[here], iy[here]] = ageing.signal_fraction[here]
        x = left + (np.arange(i0, i1 + 1) / n_x - x0) / (x1 - x0)
        y = bottom + aspect * (np.arange(j0, j1 + 1) / n_y - y0) / (y1 - y0)
        ax.fill_between([x[0], x[-1]], y[0], y[-1], color="0.93", lw=0)
        image = ax.pcolormesh(x, y, values[i0:i1, j0:j1].T, cmap="viridis", vmin=lowest, vmax=highest, rasterized=True)
        bad = here & ~usable
        ax.plot(
            0.5 * (x[ix[bad] - i0] + x[ix[bad] - i0 + 1]), 0.5 * (y[iy[bad] - j0] + y[iy[bad] - j0 + 1]),
            ls="none", marker="x", ms=4, mew=1.0, color=_TRUE,
        )  # fmt: skip
        ax.text(left + 0.5, bottom + aspect + 0.03, f"layer {number}", ha="center", va="bottom", fontsize="x-small")
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.colorbar(image, ax=ax, label=_FRACTION, fraction=0.035, pad=0.015)
    ax.set_aspect("equal")
    ax.set_xlim(-0.05, 1.1 * n_columns - 0.05)
    ax.set_ylim(-(aspect + 0.22) * (n_rows - 1) - 0.05, aspect + 0.2)
    ax.minorticks_off()
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_frame_on(False)
    ax.set_xlabel(_panel_text(detector, (x0, x1), "x"), fontsize="small")
    ax.set_ylabel(_panel_text(detector, (y0, y1), "y"), fontsize="small")
    n_bad = int((~usable).sum())
    crosses = f"{n_bad} cell{'s' * (n_bad != 1)} dead, hot or masked (crosses)" if n_bad else ""
    ax.set_title(", ".join(t for t in (title, crosses) if t), fontsize="medium", parse_math=False)
    return ax


def plot_distribution(ageing: Ageing, *, truth: Ageing | None = None, title: str = "", ax: Axes | None = None) -> Axes:
    """Distribution of the signal fractions over the cells, beside the true one where it is known.

    Parameters
    ----------
    ageing : Ageing
        Cells that are measured or prior-dominated; in grey the own hits of the measured ones, where a prior moved them.
    truth : Ageing, optional
        Drawn are those of these cells that it lists.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No such cell.
    """
    found = _usable(ageing)
    series = {"Found": (found.signal_fraction, _FOUND)}
    if _has_own(found):
        series = {"Own hits alone": (found.own_fraction[found.status == "measured"], _OWN), "With prior": (found.signal_fraction, _FOUND)}
        series = {name: of for name, of in series.items() if of[0].size}
    if truth is not None and (known := truth.only(found.cell)).n_cells:
        series["True"] = (known.signal_fraction, _TRUE)
    low, high = _range(np.concatenate([v for v, _ in series.values()]))
    n_bins = int(np.clip(2 * found.n_cells**0.4, 8, 80))  # chosen: 20 bins for 300 cells
    edges = np.linspace(low, high, n_bins + 1)
    ax = new_axes(ax)
    highest = 0
    for name, (value, colour) in series.items():
        count = np.histogram(value, edges)[0]
        highest = max(highest, int(count.max()))
        n_outside = int(((value < low) | (value > high)).sum())
        label = f"{name}: mean {value.mean():.4f}, rms {value.std():.4f}" + (f", {n_outside} outside" if n_outside else "")
        ax.stairs(count, edges, color=colour, lw=1.6, ls="--" if name == "True" else "-", label=label)
        if name in ("Found", "With prior"):
            ax.stairs(count, edges, color=colour, alpha=0.15, fill=True)
    ax.set_xlim(low, high)
    if found.n_cells > _MOST_POINTS:  # most cells of a detector see no dose: a peak at 1
        ax.set_yscale("log")
        ax.set_ylim(0.5, highest ** (1.1 + 0.09 * len(series)))
    else:
        ax.set_ylim(0, highest * (1.08 + 0.09 * len(series)))
    ax.set_xlabel(_FRACTION)
    ax.set_ylabel(f"Cells / {edges[1] - edges[0]:.2g}")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_pulls(pull: Mapping[str, ArrayLike], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Distributions of (found - true) / uncertainty over the cells, with the unit Gaussian.

    Parameters
    ----------
    pull : mapping of str to float array, (cell,)
        Series by their names, such as with and without prior; what is not finite is left out.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        Nothing to draw.
    """
    finite = {name: np.asarray(v, dtype=np.float64)[np.isfinite(np.asarray(v, dtype=np.float64))] for name, v in pull.items()}
    if not finite or not all(v.size for v in finite.values()):
        raise ValueError("no pulls to draw; give at least one series, each with a finite one")
    ax = new_axes(ax)
    half = float(np.clip(max(np.quantile(np.abs(v), 0.995) for v in finite.values()), 4.0, 10.0))
    n_least = min(v.size for v in finite.values())
    edges = np.linspace(-half, half, int(np.clip(2.5 * half * n_least ** (1 / 3) / 3.5, 12, 80)) // 2 * 2 + 1)
    width, highest = edges[1] - edges[0], 0.0
    for k, (name, v) in enumerate(finite.items()):
        height = np.histogram(v, edges)[0] / (v.size * width)
        highest = max(highest, float(height.max()))
        in68, in95 = 100 * float((np.abs(v) <= 1).mean()), 100 * float((np.abs(v) <= 1.96).mean())
        label = (
            f"{plain_text(name)} ({v.size} cells): mean {v.mean():.2f} $\\pm$ {v.std() / np.sqrt(v.size):.2f}, "
            f"width {v.std():.2f} $\\pm$ {v.std() / np.sqrt(2 * v.size):.2f};\n{in68:.0f} % within 1, {in95:.0f} % within 1.96"
        )
        colour = COLOURS[_ORDER[k % 10]]
        ax.stairs(height, edges, color=colour, lw=1.6, label=label)
        if len(finite) <= 2:
            ax.stairs(height, edges, color=colour, alpha=0.12, fill=True)
    x = np.linspace(-half, half, 300)
    ax.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color="black", lw=1.0, ls="--", label="Unit Gaussian")
    ax.set_xlim(-half, half)
    ax.set_ylim(0, max(highest, 0.4) * (1.16 + 0.14 * len(finite)))
    ax.set_xlabel(r"Pull $(\hat r - r) / \sigma(\hat r)$")
    ax.set_ylabel("Fraction of cells per unit")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_energy_sums(sums: Mapping[str, ArrayLike], *, of: str = "all cells", title: str = "", ax: Axes | None = None) -> Axes:
    """Distributions of the energy summed in each shower; below, each over the first one.

    Parameters
    ----------
    sums : mapping of str to float array, (shower,) [MeV]
        Series by their names, the young detector first: young, aged, corrected. Each is scaled to an area of 1.
    of : str
        What was summed, for the axis.
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
        No series, or one without showers.
    """
    series = {name: np.asarray(v, dtype=np.float64) for name, v in sums.items()}
    if not series or not all(v.size for v in series.values()):
        raise ValueError("no energy sums to draw; give at least one series, each with showers")
    every = np.concatenate(list(series.values()))
    # of a handful of showers the range would hold none
    outside = 0.003 if every.size * 0.003 >= 1 else 0.0
    low, high = (float(q) for q in np.quantile(every, [outside, 1 - outside]))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    n_least = min(v.size for v in series.values())
    # series far from each other: the narrowest still wants three bins for each of its widths
    narrow = min(float(np.diff(np.quantile(v, [0.16, 0.84]))[0]) / 2 for v in series.values())
    n_wanted = 3 * (high - low) / narrow if narrow > 0 else 0.0
    edges = np.linspace(low, high, int(np.clip(max(1.6 * n_least**0.4, n_wanted), 8, 160)) + 1)
    width, middle = edges[1] - edges[0], 0.5 * (edges[1:] + edges[:-1])
    ax, below = _two_axes(ax)
    first: tuple[FloatArray, FloatArray] | None = None
    highest = 0.0
    for k, (name, v) in enumerate(series.items()):
        count = np.histogram(v, edges)[0]
        height, error = count / (v.size * width), np.sqrt(count) / (v.size * width)
        highest = max(highest, float(height.max()))
        colour = ("0.45", COLOURS[2], COLOURS[0], *COLOURS[3:])[k % 10]
        label = f"{plain_text(name)} ({v.size}): {_mean_and_rms(v)}"
        ax.stairs(height, edges, color=colour, lw=1.6, label=label)
        if first is None:
            ax.stairs(height, edges, color=colour, alpha=0.18, fill=True)
            first = height, error
            continue
        ok = (count > 0) & (first[0] > 0)
        ratio = height[ok] / first[0][ok]
        spread = ratio * np.hypot(error[ok] / height[ok], first[1][ok] / first[0][ok])
        at = middle[ok] + (k - 0.5 * len(series)) * 0.14 * width
        told = spread < _MOST_SPREAD
        below.errorbar(at[told], ratio[told], spread[told], fmt=MARKERS[k % len(MARKERS)], ms=3.5, lw=1.0, color=colour)
    below.axhline(1.0, color="0.45", lw=1.0)
    ax.set_xlim(low, high)
    below.set_xlim(low, high)
    below.set_ylim(0.4, 1.6)
    ax.set_ylim(0, highest * (1.1 + 0.09 * len(series)))
    ax.tick_params(labelbottom=False)
    ax.set_ylabel("Fraction of showers [1/MeV]")
    below.set_ylabel(f"Over {plain_text(next(iter(series)))}")
    ax.set_xlabel(rf"Energy sum of {plain_text(of)} $\sum E$ [MeV]")
    ax.xaxis.set_label_coords(0.5, -0.47)
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_against_dose(
    ageing: Ageing, dose: ArrayLike, *, truth: Ageing | None = None, unit: str = "MeV", title: str = "", ax: Axes | None = None
) -> Axes:
    """Signal fraction against the dose of each cell.

    Parameters
    ----------
    ageing : Ageing
    dose : float array, (cell,) [MeV or Gy]
        Of the cells of `ageing`.
    truth : Ageing, optional
        Drawn are those of these cells that it lists.
    unit : {"MeV", "Gy"}
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No cell that is measured or prior-dominated; one dose per cell is needed.
    """
    found, at = _usable(ageing), np.asarray(dose, dtype=np.float64)
    if at.shape != ageing.cell.shape:
        raise ValueError(f"dose has shape {at.shape} for {ageing.n_cells} cells; give one number per cell")
    at = at[np.isin(ageing.cell, found.cell)]
    few = found.n_cells <= _MOST_POINTS
    ax = new_axes(ax)
    shown = [found.signal_fraction]
    measured = found.status == "measured"
    if has_own := _has_own(found) and bool(measured.any()):
        shown.append(found.own_fraction[measured])
        ax.plot(
            at[measured],
            found.own_fraction[measured],
            "o",
            ms=3.0 if few else 1.5,
            color=_OWN,
            mew=0,
            label="Own hits alone",
            rasterized=not few,
        )
    error = found.uncertainty if few and np.isfinite(found.uncertainty).all() and found.uncertainty.any() else None
    ax.errorbar(
        at, found.signal_fraction, error, fmt="o", ms=3.2 if few else 1.5, mew=0, elinewidth=0.6, color=_FOUND,
        label="With prior" if has_own else "Cells", rasterized=not few,
    )  # fmt: skip
    if truth is not None and (known := truth.only(found.cell)).n_cells:
        shown.append(known.signal_fraction)
        known_at = at[np.isin(found.cell, known.cell)]
        order = np.argsort(known_at, kind="stable")
        ax.plot(known_at[order], known.signal_fraction[order], "--", lw=1.2, color=_TRUE, label="True", zorder=4, rasterized=not few)
    ax.set_ylim(*_range(np.concatenate(shown), margin=0.12))
    if few or not (at > 0).any():
        ax.set_xlim(left=0)
    else:
        ax.set_xscale("log")
        ax.set_xlim(*np.quantile(at[at > 0], [0.02, 1]) * [0.9, 1.1])
        _decades(ax.xaxis, at[at > 0])
    ax.set_xlabel(f"Dose of the cell $D$ [{unit}]")
    ax.set_ylabel(_FRACTION)
    ax.set_title(title, fontsize="medium", parse_math=False)
    if len(shown) > 1:
        ax.legend(frameon=False, fontsize="small", loc="upper right")  # the loss grows with the dose
    return ax


def plot_uncertainty(
    ageing: Ageing, dose_mev: ArrayLike, *, limit: ArrayLike | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Uncertainty of each cell against its dose: with the prior, from its own hits alone, and the statistical limit.

    Parameters
    ----------
    ageing : Ageing
    dose_mev : float array, (cell,) [MeV]
        Of the cells of `ageing`.
    limit : float array, (cell,), optional
        Smallest uncertainty that the cell's own hits allow; NaN where unknown.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No cell with an uncertainty and a dose above 0.
    """
    dose = np.asarray(dose_mev, dtype=np.float64)
    series = {"With prior": (ageing.uncertainty, _FOUND, "o")} if _has_own(ageing) else {}
    series = {"Own hits alone": (ageing.own_uncertainty, "0.55", "s"), **series}
    if limit is not None:
        series["Statistical limit"] = (np.asarray(limit, dtype=np.float64), _TRUE, "_")
    ax = new_axes(ax)
    usable = np.isin(ageing.status, _USABLE) & (dose > 0)
    few = ageing.n_cells <= _MOST_POINTS
    every = []
    for name, (value, colour, marker) in series.items():
        ok = usable & np.isfinite(value) & (value > 0)
        if name != "With prior":  # the hits of the others say next to nothing
            ok &= ageing.status == "measured"
        if ok.any():
            size = {"_": 6.0}.get(marker, 3.2) if few else 1.5
            middle = f"{name}: median {np.median(value[ok]):.2g}"
            ax.plot(dose[ok], value[ok], ls="none", marker=marker, ms=size, color=colour, alpha=0.8, label=middle, rasterized=not few)
            every.append(value[ok])
    if not every:
        raise ValueError("no cell has an uncertainty and a dose above 0; estimate with errors")
    ax.set_xscale("log")
    ax.set_yscale("log")
    _decades(ax.xaxis, dose[usable])
    _decades(ax.yaxis, np.concatenate(every))
    low, high = float(np.concatenate(every).min()), float(np.concatenate(every).max())
    ax.set_ylim(low / 1.3, high * 1.3 * (high / low) ** 0.25)
    ax.set_xlabel("Dose of the cell $D$ [MeV]")
    ax.set_ylabel(r"Uncertainty of the signal fraction $\sigma(\hat r)$")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper right", fontsize="small")
    return ax


def _decades(axis: Axis, values: FloatArray) -> None:
    """Logarithmic ticks as plain numbers, at decades only where there are many."""
    from matplotlib.ticker import LogLocator

    plain_ticks(axis)
    if values.max() > 300 * values.min():
        axis.set_major_locator(LogLocator())


def _usable(ageing: Ageing) -> Ageing:
    kept = ageing.only(ageing.cell[np.isin(ageing.status, _USABLE)])
    if not kept.n_cells:
        raise ValueError("no cell is measured or prior-dominated; there is nothing to draw")
    return kept


def _both(ageing: Ageing, truth: Ageing) -> tuple[Ageing, FloatArray]:
    kept = _usable(ageing).only(truth.cell)
    if not kept.n_cells:
        raise ValueError("the truth lists none of the cells; give that of the same detector")
    return kept, truth.at(kept.cell)


def _has_own(ageing: Ageing) -> bool:
    """Whether a prior moved the numbers away from what the cells' own hits say."""
    return not np.allclose(ageing.own_fraction, ageing.signal_fraction, rtol=0, atol=1e-12, equal_nan=True)


def _score(found: FloatArray, true: FloatArray) -> str:
    ok = np.isfinite(found)
    r2 = r_squared(found[ok], true[ok])
    mae = f"MAE {np.abs(found - true)[ok].mean():.3g}" if ok.any() else "no number"
    return mae + (f", $R^2$ {r2:.3f}" if np.isfinite(r2) else "")


def _range(values: FloatArray, *, margin: float = 0.08) -> tuple[float, float]:
    low, high = (float(q) for q in np.nanquantile(values, [0.005, 0.995]))
    step = margin * (high - low) if high > low else 0.01
    return low - step, high + step


def _colour_range(values: FloatArray) -> tuple[float, float]:
    low, high = (float(q) for q in np.quantile(values, [0.0005, 0.9995]))
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _two_axes(ax: Axes | None) -> tuple[Axes, Axes]:
    """Axes, and shorter ones right below them."""
    if ax is None:
        ax = new_axes(None, width=6.0, height=6.2)
        # the layout engine does not find the room that axes below axes need
        ax.figure.set_layout_engine("none")  # type: ignore[union-attr]
        ax.set_position((0.145, 0.325, 0.825, 0.62))
    else:
        ax = new_axes(ax)
    return ax, new_axes(ax.inset_axes((0.0, -0.40, 1.0, 0.38)))


def _places(detector: Detector, cell: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Layer, column and row of cells, and the number of both in each layer, (layer, 2)."""
    if isinstance(detector, CrystalCalorimeter):
        ix, iy = np.divmod(cell, detector.n_phi)
        return np.zeros_like(cell), ix, iy, np.array([[detector.n_eta, detector.n_phi]])
    layer, ix, iy = detector.cell_index(cell)
    return np.asarray(layer), np.asarray(ix), np.asarray(iy), np.asarray(detector.cell_grid)


def _part(low: FloatArray, high: FloatArray) -> tuple[float, float]:
    return float(low.min()), float(high.max())


def _side_ratio(detector: Detector) -> float:
    """Height over width of a whole panel."""
    if isinstance(detector, CrystalCalorimeter):
        return detector.n_phi / detector.n_eta
    return detector.size_y_mm / detector.size_x_mm


def _panel_text(detector: Detector, part: tuple[float, float], axis: str) -> str:
    if isinstance(detector, CrystalCalorimeter):
        return r"$\eta$ index" if axis == "x" else r"$\varphi$ index"
    size = detector.size_x_mm if axis == "x" else detector.size_y_mm
    low, high = (size * (p - 0.5) for p in part)
    return f"${axis}$ from {low:.0f} to {high:.0f} [mm] in every panel" + ("; grey: not asked for" if axis == "x" else "")


def _mean_and_rms(value: FloatArray) -> str:
    mean, rms = float(value.mean()), float(value.std())
    if not rms > 0:
        return f"mean {mean:.4g} MeV"
    error = rms / np.sqrt(value.size)
    n = max(0, 1 - int(np.floor(np.log10(error))) - (error / 10.0 ** np.floor(np.log10(error)) >= 3))
    return rf"mean {mean:.{n}f} $\pm$ {error:.{n}f}, rms {rms:.{n}f} MeV"
