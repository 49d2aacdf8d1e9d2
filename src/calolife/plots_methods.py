"""Figures of ageing methods side by side, and of a training: each function returns the Axes; nothing is saved or shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from calolife.plots import COLOURS, MARKERS, new_axes, plain_text, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_against_events", "plot_epochs", "plot_methods"]

_ORDER = (0, 2, 1, 4, 3, 9, 6, 5, 7, 8)  # blue, red, amber, purple, grey, cyan: the most different first


def plot_epochs(
    epoch: ArrayLike,
    values: Mapping[str, ArrayLike],
    *,
    kept_epoch: int | None = None,
    lines: Mapping[str, float] | None = None,
    what: str = r"MAE of the signal fraction $\langle |\hat r - r| \rangle$",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Something of each epoch of an adversarial training; the epoch that was kept is marked.

    Parameters
    ----------
    epoch : int array, (epoch,)
    values : mapping of str to float array, (epoch,)
        Curves by their names.
    kept_epoch : int, optional
    lines : mapping of str to float, optional
        Levels to hold the curves against: the statistical limit, the best constant.
    what : str
        Label of the axis.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No epochs or no curve; a kept epoch that is not one of them.
    """
    at = np.asarray(epoch)
    if not at.size or not values:
        raise ValueError("no epochs to draw; give at least one, and a curve")
    if kept_epoch is not None and kept_epoch not in at:
        raise ValueError(f"kept_epoch = {kept_epoch} is not one of the epochs {at[0]} to {at[-1]}")
    ax = new_axes(ax)
    curves = {name: np.asarray(v, dtype=np.float64) for name, v in values.items()}
    for k, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[_ORDER[k % 10]]
        ax.plot(at, curve, color=colour, lw=1.5, marker="o" if at.size <= 30 else None, ms=3.5, label=plain_text(name))
        if kept_epoch is not None:
            kept = float(curve[np.flatnonzero(at == kept_epoch)[0]])
            label = f"Kept: epoch {kept_epoch}" if k == 0 else None
            ax.plot([kept_epoch], [kept], "*", ms=13, color=colour, mec="black", mew=0.7, zorder=4, label=label)
    for (name, level), style in zip((lines or {}).items(), ("--", ":", "-.") * 3, strict=False):
        ax.axhline(level, color="0.3", lw=1.0, ls=style, label=f"{plain_text(name)}: {level:.3g}")
    every = np.concatenate([*curves.values(), list((lines or {}).values())])
    every = every[np.isfinite(every)]
    if every.size and every.min() > 0:
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
        ax.set_ylim(every.min() / 1.2, every.max() * 1.2)
    ax.set_xlabel("Epoch")
    ax.set_ylabel(what)
    ax.set_title(title, fontsize="medium", parse_math=False)
    if len(curves) > 1 or kept_epoch is not None or lines:
        ax.legend(frameon=False, fontsize="small")
    return ax


def plot_against_events(
    n_events: ArrayLike,
    mae: Mapping[str, ArrayLike],
    *,
    error: Mapping[str, ArrayLike] | None = None,
    limit: ArrayLike | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Error of each method against the number of events.

    Parameters
    ----------
    n_events : int array, (size,)
        Events in each of the two samples.
    mae : mapping of str to float array, (size,)
        Mean absolute error of each method.
    error : mapping of str to float array, (size,), optional
        Its standard error over the cells.
    limit : float array, (size,), optional
        What the cells' own hits allow.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No sizes or no method.
    """
    n = np.asarray(n_events, dtype=np.float64)
    if not n.size or not mae:
        raise ValueError("nothing to draw; give at least one number of events and one method")
    ax = new_axes(ax, width=6.4 + 1.6 * (len(mae) > 4))
    for k, (name, value) in enumerate(mae.items()):
        spread = None if error is None else np.asarray(error[name], dtype=np.float64)
        ax.errorbar(
            n * 1.012 ** (k - 0.5 * len(mae)), np.asarray(value, dtype=np.float64), spread, color=COLOURS[_ORDER[k % 10]], lw=1.4, ms=5,
            marker=MARKERS[k % len(MARKERS)], label=plain_text(name),
        )  # fmt: skip
    if limit is not None:
        ax.plot(n, np.asarray(limit, dtype=np.float64), color="black", lw=1.2, ls="--", label="Statistical limit")
    ax.set_xscale("log")
    ax.set_yscale("log")
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    ax.set_xlim(n.min() / 1.15, n.max() * 1.15)
    ax.set_xlabel("Events in each sample $N$")
    ax.set_ylabel(r"MAE of the signal fraction $\langle |\hat r - r| \rangle$")
    ax.set_title(title, fontsize="medium", parse_math=False)
    loc: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if len(mae) > 4 else {"loc": "best"}
    ax.legend(frameon=False, fontsize="small", **loc)
    return ax


def plot_methods(
    names: Sequence[str],
    mae: ArrayLike,
    *,
    error: ArrayLike | None = None,
    lines: Mapping[str, float] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Mean absolute error of each method, the best on top, beside the statistical limit and the best constant.

    Parameters
    ----------
    names : sequence of str, (method,)
    mae : float array, (method,)
    error : float array, (method,), optional
        Standard errors over the cells.
    lines : mapping of str to float, optional
        Levels to hold them against.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No methods.
    """
    value = np.asarray(mae, dtype=np.float64)
    if not value.size or len(names) != value.size:
        raise ValueError(f"{len(names)} names and {value.size} errors; give at least one method, a number for each")
    order = np.argsort(-value, kind="stable")  # the axis counts upwards: the smallest error comes last
    ax = new_axes(ax, width=7.2, height=1.5 + 0.42 * (value.size + 1))
    spread = None if error is None else np.asarray(error, dtype=np.float64)[order]
    place = np.arange(value.size)
    ax.errorbar(value[order], place, xerr=spread, fmt="o", ms=6, lw=1.5, capsize=3, color=COLOURS[0], zorder=3)
    # the best constant of cells that aged alike is off by 0, which a logarithmic axis does not have
    is_log = bool((value > 0).all())
    levels = {name: level for name, level in (lines or {}).items() if level > 0 or not is_log}
    for (name, level), style in zip(levels.items(), ("--", ":", "-.") * 3, strict=False):
        ax.axvline(level, color="0.3", lw=1.1, ls=style, label=f"{plain_text(name)}: {level:.3g}", zorder=1)
    for x, y, text in zip(value[order], place, [f"{v:.3g}" for v in value[order]], strict=True):
        ax.annotate(text, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize="x-small")
    every = np.concatenate([value, list(levels.values())])
    if is_log:
        ax.set_xscale("log")
        plain_ticks(ax.xaxis)
        ax.set_xlim(every.min() / 1.35, every.max() * 1.35)
    else:
        ax.set_xlim(0, 1.35 * float(every.max()) or 1.0)
    ax.minorticks_off()
    ax.set_yticks(place, [plain_text(names[i]) for i in order])
    ax.set_ylim(-0.6, value.size - 0.35)
    ax.grid(axis="y", color="0.9", lw=0.7, zorder=0)
    ax.set_xlabel(r"MAE of the signal fraction $\langle |\hat r - r| \rangle$")
    ax.set_title(title, fontsize="medium", parse_math=False)
    if levels:
        ax.legend(frameon=False, fontsize="small", ncols=len(levels), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
        ax.set_title(title, fontsize="medium", parse_math=False, pad=24 if title else 6)
    return ax
