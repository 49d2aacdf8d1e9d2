"""Figures of superclusters: each function takes results and an optional ``ax`` and returns the Axes; nothing is saved or shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calolife.plots import COLOURS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calolife.showers.superclusters import Superclusters

__all__ = ["plot_object_hits", "plot_raw_response", "plot_supercluster", "response_histogram"]

FloatArray = NDArray[np.float64]

_MOST_CUT = 0.005  # chosen: part of the objects left out at either end, whose range would squeeze the peak


def response_histogram(response: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """Counts and bin edges that `plot_raw_response` draws; what lies beyond the last half per cent at either end is left out.

    Parameters
    ----------
    response : float array, (object,)

    Returns
    -------
    count : int array, (bin,)
    edges : float array, (bin + 1,)
    """
    low, left, right, high = (float(q) for q in np.quantile(response, [_MOST_CUT, 0.15865, 0.84135, 1 - _MOST_CUT]))
    margin = 0.05 * (high - low) if high > low else 0.05
    low, high = low - margin, high + margin
    # a tail much longer than the peak is wide still wants some bins across the peak
    n_bins = int(np.clip(max(2 * response.size**0.4, 6 * (high - low) / max(right - left, 1e-9)), 8, 120)) if right > left else 8
    count, edges = np.histogram(response, n_bins, (low, high))
    return count, edges


def plot_raw_response(response: FloatArray, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Histogram of raw over true energy.

    Parameters
    ----------
    response : float array, (object,)
        Of matched objects.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No objects.
    """
    if not response.size:
        raise ValueError("no matched objects to draw; give showers that reach the crystals")
    ax = new_axes(ax)
    count, edges = response_histogram(response)
    low, middle, high = np.quantile(response, [0.15865, 0.5, 0.84135])
    label = f"{response.size} matched objects\nmedian {middle:.4f}, half width of 68.3 %: {0.5 * (high - low):.4f}"
    ax.stairs(count, edges, color=COLOURS[0], lw=1.6, label=label)
    ax.stairs(count, edges, color=COLOURS[0], alpha=0.15, fill=True)
    ax.set_ylim(0, 1.25 * max(int(count.max()), 1))
    ax.set_xlabel(r"Raw over true energy $E_{\mathrm{raw}} / E$")
    ax.set_ylabel(f"Objects / {edges[1] - edges[0]:.2g}")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left")
    return ax


def plot_object_hits(n_hits: NDArray[np.int64], *, title: str = "", ax: Axes | None = None) -> Axes:
    """How many crystals an object has.

    Parameters
    ----------
    n_hits : int array, (object,)
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No objects.
    """
    if not n_hits.size:
        raise ValueError("no objects to draw; give showers that reach the crystals")
    ax = new_axes(ax)
    count = np.bincount(n_hits)
    edges = np.arange(count.size + 1) - 0.5
    ax.stairs(count, edges, color=COLOURS[0], lw=1.6, label=f"{n_hits.size} objects\nmedian {np.median(n_hits):g}")
    ax.stairs(count, edges, color=COLOURS[0], alpha=0.15, fill=True)
    ax.set_xlim(0, float(np.quantile(n_hits, 0.999)) * 1.05 + 1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(r"Crystals of an object $n_{\mathrm{hits}}$")
    ax.set_ylabel("Objects")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False)
    return ax


def plot_supercluster(found: Superclusters, which: int, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Crystals of one object about its seed, with the seeds of its clusters.

    Parameters
    ----------
    found : Superclusters
    which : int
        Index of the object.
    title : str
        First line; where the object is and what it measures stands below.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        An object that is not there.
    """
    if not 0 <= which < found.n_objects:
        raise ValueError(f"object {which} is not there; the sample has {found.n_objects}, from 0")
    from matplotlib.colors import LogNorm

    one, detector = found.select([which]), found.detector
    rows, columns = _about(one.cell, int(one.seed_cell[0]), one)
    seed_rows, seed_columns = _about(one.cluster_seed, int(one.seed_cell[0]), one)
    low, high = (rows.min() - 2, columns.min() - 2), (rows.max() + 2, columns.max() + 2)
    values = np.full((high[0] - low[0] + 1, high[1] - low[1] + 1), np.nan)
    values[rows - low[0], columns - low[1]] = one.energy_mev / 1000.0
    n_rows, n_columns = values.shape
    ax = new_axes(ax, width=float(np.clip(2.2 + 0.17 * n_columns, 5.0, 14.0)), height=float(np.clip(1.4 + 0.17 * n_rows, 3.4, 7.0)))
    edges = np.arange(low[1], high[1] + 2) - 0.5, np.arange(low[0], high[0] + 2) - 0.5
    energy = one.energy_mev / 1000.0
    least, most = float(energy.min()), float(energy.max())
    # of one crystal a logarithm has no range
    norm = LogNorm(least, most if most > least else 2 * least)
    image = ax.pcolormesh(*edges, values, cmap="viridis", norm=norm, rasterized=True)
    ax.plot(seed_columns, seed_rows, ls="none", marker="o", ms=6, mfc="white", mec=COLOURS[2], mew=1.5, label="seeds of clusters")
    figure = ax.get_figure(root=True)
    assert figure is not None
    # an axes of its own would be taller than the crystals, which are drawn square
    figure.colorbar(image, cax=ax.inset_axes((1.015, 0.0, 0.03, 1.0)), label="Energy of a crystal [GeV]")
    ax.set_aspect("equal")
    ax.set_xlabel(r"Columns from the seed $\Delta i\phi$")
    ax.set_ylabel(r"Rows from the seed $\Delta i\eta$")
    ieta, iphi = detector.cell_index(one.seed_cell)
    true = f"true {one.energy_gev[0]:.4g} GeV" if one.is_matched[0] else "not matched"
    told = f"seed at ieta {ieta[0]}, iphi {iphi[0]}: raw {one.raw_energy_gev[0]:.4g} GeV, {true}"
    ax.set_title(f"{title}\n{told}" if title else told, fontsize="small", parse_math=False)
    ax.legend(frameon=False, fontsize="small", loc="upper right")
    return ax


def _about(cell: NDArray[np.int32], seed: int, one: Superclusters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns from the seed."""
    n_phi = one.detector.n_phi
    row, column = np.divmod(cell.astype(np.int64), n_phi)
    columns = column - seed % n_phi
    if one.detector.is_phi_periodic:
        columns = (columns + n_phi // 2) % n_phi - n_phi // 2
    return row - seed // n_phi, columns
