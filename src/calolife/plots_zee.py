"""The figure of the Z peak; nothing is saved or shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.plots import MARKERS, new_axes
from calolife.plots_energy import series_colour, value_with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calolife.energy.lineshapes import LineFit

__all__ = ["peak_bins", "plot_z_peak"]

FloatArray = NDArray[np.float64]

_SHOWN_GEV = (76.0, 106.0)  # chosen: the peak and the start of its tails; the fit goes from 60 to 120 GeV
_FEW = 1500  # events; chosen: bins of half a GeV would hold too few
_CURVE_POINTS = 600  # chosen: a smooth line
_LEAST_COUNT = 10.0  # expected in a bin of the ratio; chosen: a ratio of fewer tells nothing
_RATIO_SPAN = (0.3, 1.7)  # chosen: half a peak's height is seen, single bins in the tails are cut


def peak_bins(n_events: int) -> FloatArray:
    """Edges of the bins in which a peak of so many events is drawn, (bin + 1,) [GeV]."""
    low, high = _SHOWN_GEV
    return np.linspace(low, high, 31 if n_events < _FEW else 61)


def plot_z_peak(
    mass_gev: Mapping[str, FloatArray], fits: Mapping[str, LineFit | None], *, reference: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """Masses that several models give to the same electron pairs, with their fits, and below it all over the reference's fit.

    Parameters
    ----------
    mass_gev : mapping of str to float array, (event,) [GeV]
        Those in the fit of each model.
    fits : mapping of str to LineFit or None
    reference : str
        Model whose fit the ratio is taken to; without a fit of it there is no ratio.
    title : str
    ax : Axes, optional
        The ratio is drawn below it.

    Returns
    -------
    Axes
        The upper one; the ratio is in ``ax.child_axes[0]`` where there is one.

    Raises
    ------
    ValueError
        No models.

    Notes
    -----
    Error bars are Poisson's, sqrt(n). In the ratio only bins with ten events or more expected.
    """
    if not mass_gev:
        raise ValueError("no models to draw; give at least one")
    edges = peak_bins(max(m.size for m in mass_gev.values()))
    width, middle = edges[1] - edges[0], 0.5 * (edges[:-1] + edges[1:])
    fine = np.linspace(edges[0], edges[-1], _CURVE_POINTS)
    base = fits.get(reference)
    if ax is None:
        ax = new_axes(None, width=6.0, height=6.4)
        if base is not None:
            # the layout engine does not find the room that axes below axes need
            ax.figure.set_layout_engine("none")  # type: ignore[union-attr]
            ax.set_position((0.14, 0.36, 0.83, 0.59))
    else:
        ax = new_axes(ax)
    below = None if base is None else new_axes(ax.inset_axes((0.0, -0.42, 1.0, 0.38)))
    for k, (model, mass) in enumerate(mass_gev.items()):
        colour, fit = series_colour(k), fits.get(model)
        count = np.histogram(mass, edges)[0].astype(np.float64)
        points: dict[str, Any] = {"fmt": MARKERS[k % len(MARKERS)], "ms": 3.5, "lw": 0.9, "color": colour}
        told = f"{model} ({mass.size})"
        if fit is not None:
            width_percent = value_with_error(100 * fit.sigma_over_mu, 100 * fit.sigma_over_mu_error)
            told = f"{model} ({fit.n}): {value_with_error(fit.mu, fit.errors['mu'])} GeV, $\\sigma_{{\\mathrm{{CB}}}}/m$ {width_percent} %"
            # two models on top of each other are told apart by their line styles
            style: dict[str, Any] = {"color": colour, "lw": 1.3, "ls": ("-", "--", "-.", ":")[k % 4]}
            ax.plot(fine, fit.n * width * fit.density(fine), **style)
        ax.errorbar(middle, count, np.sqrt(count), label=told, **points)
        if below is None or base is None:
            continue
        expected = base.expected(edges)
        shown = expected >= _LEAST_COUNT
        shift = 0.1 * width * (k - 0.5 * (len(mass_gev) - 1))  # beside one another
        ratio, error = count[shown] / expected[shown], np.sqrt(count[shown]) / expected[shown]
        low, high = _RATIO_SPAN
        inside = (ratio > low) & (ratio < high)
        below.errorbar(middle[shown][inside] + shift, ratio[inside], error[inside], **points)
        if fit is not None:
            below.plot(fine, fit.n * fit.density(fine) / (base.n * base.density(fine)), **style)
    low, high = _SHOWN_GEV
    ax.set_xlim(low, high)
    ax.set_ylim(0.0, 1.32 * ax.get_ylim()[1])  # the legend stands above the peak
    ax.set_ylabel(f"Electron pairs / {width:g} GeV")
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    ax.set_xlabel(r"Mass $m_{ee}$ [GeV]")
    if below is not None:
        below.set_xlim(low, high)
        below.set_ylim(*_RATIO_SPAN)
        ax.tick_params(labelbottom=False)
        below.set_ylabel(f"Ratio to the fit\nof {reference}")
        ax.xaxis.set_label_coords(0.5, -0.49)
    return ax
