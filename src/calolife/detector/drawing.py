"""Side view of a detector, coloured by material."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, fold_periods
from calolife.detector.presets import Detector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_detector"]

# chosen: metals in greys and browns, what shines in blue and gold; apart in luminance too
_COLOURS = {
    "G4_Pb": "#4d5259", "G4_Fe": "#a9adb3", "G4_W": "#26282b", "G4_Cu": "#b8693a", "G4_BRASS": "#c9a24b", "G4_Zn": "#c5cdd6",
    "G4_Al": "#d9dde2", "G4_Si": "#6a4c93", "G4_lAr": "#7fd1e0", "G4_POLYSTYRENE": "#3f90da", "G4_PbWO4": "#ffc94a", "G4_AIR": "#ffffff",
}  # fmt: skip
_OTHERS = ("#bd1f01", "#832db6", "#2e8b57", "#e76300", "#717581")  # for materials of the user's own
_CHARACTER = 0.0075  # width of a digit of 8 points over that of the figure
_MAX_INSETS = 5  # chosen: more do not fit side by side


def plot_detector(detector: Detector, ax: Axes | None = None) -> Axes:
    """Side view of a detector, the beam from the left; crystals: along eta, the beam from below.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        A calorimeter without layers.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> plot_detector(load_detector("pb-scint-60")).get_xlabel()
    'Depth $z$ [cm]'
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(10.0, 5.6), layout="constrained", dpi=130).add_subplot()
    if isinstance(detector, CrystalCalorimeter):
        return _plot_crystals(detector, ax)
    return _plot_layers(detector, ax)


def _plot_layers(detector: LayeredCalorimeter, ax: Axes) -> Axes:
    if not detector.layers:
        raise ValueError(f"calorimeter {detector.name} has no layers to draw; add some")
    from matplotlib.patches import Patch

    colours = _colours(detector)
    half_cm, length_cm = detector.size_y_mm / 20, detector.length_cm
    # chosen: thinner layers would be all edge
    lw = 0.4 if min(layer.thickness_mm for layer in detector.layers) > 0.2 * length_cm else 0.0
    _draw_slabs(ax, detector.layers, 0.0, (-half_cm, half_cm), colours, mm=10.0, lw=lw)
    ax.set_xlim(-0.06 * length_cm, 1.02 * length_cm)
    # above: names of the sections; below: each section's period under a magnifying glass
    ax.set_ylim(-half_cm * 3.1, half_cm * 1.75)
    ax.annotate("", (-0.005 * length_cm, 0.0), (-0.055 * length_cm, 0.0), arrowprops={"arrowstyle": "->", "lw": 1.6})
    ax.text(-0.03 * length_cm, 0.06 * half_cm, "beam", ha="center", va="bottom", fontsize=8)
    z_cm = 0.0
    shown = detector.sections()
    blocks = [tuple(layers) for _, layers in groupby(detector.layers, key=lambda layer: layer.section)]
    for k, section in enumerate(shown):
        end_cm = z_cm + section.length_cm
        bracket = {"arrowstyle": "|-|,widthA=.3,widthB=.3", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (z_cm, 1.06 * half_cm), (end_cm, 1.06 * half_cm), arrowprops=bracket)
        depth = f"{section.depth_x0:.1f} $X_0$\n{section.depth_lambda:.1f} $\\lambda_I$"
        name = f"{_text(section.name)}\n" if section.name else ""
        if section.length_cm > 0.05 * length_cm:
            ax.text(0.5 * (z_cm + end_cm), 1.1 * half_cm, name + depth, ha="center", va="bottom", fontsize=8)
        if k < _MAX_INSETS:
            n = min(len(shown), _MAX_INSETS)
            _draw_period(ax, blocks[k], section.name, colours, at=(0.05 + 0.94 * k / n, 0.085, 0.94 / n - 0.015, 0.2))
        z_cm = end_cm
    which = "each section" if len(shown) <= _MAX_INSETS else f"the first {_MAX_INSETS} sections"
    ax.text(0.5, 0.02, f"one period of {which}, thicknesses in mm", transform=ax.transAxes, ha="center", fontsize=8, color="0.35")
    handles = [
        Patch(facecolor=colours[name], edgecolor="0.3", label=f"{_short(name)}, {'active' if is_active else 'passive'}")
        for name, is_active in dict.fromkeys((layer.material.name, layer.is_active) for layer in detector.layers)
    ]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=min(len(handles), 4), frameon=False)
    ax.set_yticks([-half_cm, 0.0, half_cm])
    ax.set_xlabel("Depth $z$ [cm]")
    ax.set_ylabel("Height $y$ [cm]")
    ax.yaxis.set_label_coords(-0.055, 3.1 / 4.85)  # beside the slabs, not beside the periods
    ax.set_title(f"{_text(detector.name)}: {length_cm:.4g} cm, {detector.depth_x0:.1f} $X_0$, {detector.depth_lambda:.1f} $\\lambda_I$")
    return ax


def _draw_slabs(
    ax: Axes, layers: tuple[Layer, ...], z: float, y: tuple[float, float], colours: dict[str, str], *, mm: float, lw: float = 0.0
) -> float:
    """Slabs from z on, in units of `mm` millimetres; gives where they end."""
    from matplotlib.collections import PolyCollection

    corners, faces = [], []
    for layer in layers:
        end = z + layer.thickness_mm / mm
        corners.append([(z, y[0]), (end, y[0]), (end, y[1]), (z, y[1])])
        faces.append(colours[layer.material.name])
        z = end
    ax.add_collection(PolyCollection(corners, facecolors=faces, edgecolors="0.3" if lw else "none", linewidths=lw, snap=False))
    return z


def _draw_period(ax: Axes, layers: tuple[Layer, ...], name: str, colours: dict[str, str], *, at: tuple[float, float, float, float]) -> None:
    """The period that repeats most in a section, with its thicknesses."""
    n, period = max(fold_periods(layers), key=lambda block: block[0] * len(block[1]))
    shown = period[:8]  # chosen: more cannot be read
    inset = ax.inset_axes(at)
    end = _draw_slabs(inset, shown, 0.0, (0.0, 1.0), colours, mm=1.0, lw=0.6)
    z = 0.0
    for layer in shown:
        text, colour = f"{layer.thickness_mm:.4g}", colours[layer.material.name]
        if layer.thickness_mm > end * _CHARACTER * (len(text) + 0.5) / at[2]:
            ink = "white" if _is_dark(colour) else "black"
            inset.text(z + layer.thickness_mm / 2, 0.5, text, ha="center", va="center", fontsize=8, color=ink)
        z += layer.thickness_mm
    inset.set(xlim=(0, end), ylim=(0, 1), xticks=[], yticks=[])
    label = f"{_text(name)}: " if name else ""
    inset.set_title(f"{label}{n} $\\times$ {end:.4g} mm" if n > 1 else f"{label}{end:.4g} mm", fontsize=8, pad=3)


def _plot_crystals(detector: CrystalCalorimeter, ax: Axes) -> Axes:
    from matplotlib.collections import PolyCollection

    length_cm, x_cm = detector.length_cm, detector.x_edges_mm / 10
    corners = [[(low, 0.0), (high, 0.0), (high, length_cm), (low, length_cm)] for low, high in x_cm]
    colour = _COLOURS.get(detector.material.name, _OTHERS[0])
    ax.add_collection(PolyCollection(corners, facecolors=colour, edgecolors="none", snap=False))
    width = x_cm[-1, 1] - x_cm[0, 0]
    ax.set_xlim(x_cm[0, 0] - 0.02 * width, x_cm[-1, 1] + 0.02 * width)
    ax.set_ylim(-0.06 * length_cm, 1.16 * length_cm)
    # rows between two module gaps are one module
    is_end = x_cm[1:, 0] - x_cm[:-1, 1] > detector.gap_mm / 10 + 1e-6
    first = np.concatenate([[0], np.flatnonzero(is_end) + 1])
    last = np.concatenate([np.flatnonzero(is_end), [detector.n_eta - 1]])
    for a, b in zip(first, last, strict=True):
        rows = f"$i_\\eta$ {detector.ieta[a]} … {detector.ieta[b]}".replace("-", "\N{MINUS SIGN}")
        ax.text((x_cm[a, 0] + x_cm[b, 1]) / 2, 1.03 * length_cm, rows, ha="center", fontsize=8)
    ax.set_xlabel("Along $\\eta$, unrolled: $x$ [cm]")
    ax.set_ylabel("Depth $z$ [cm], beam from below")
    ax.set_title(
        f"{_text(detector.name)}: {detector.n_eta} $\\times$ {detector.n_phi} crystals of {_short(detector.material.name)}, "
        f"{detector.depth_x0:.1f} $X_0$, {detector.depth_lambda:.2f} $\\lambda_I$"
    )
    if detector.upstream_x0:
        upstream = ax.twinx()
        x_mm = np.linspace(detector.x_edges_mm[0, 0], detector.x_edges_mm[-1, 1], 401)
        eta, _ = detector.eta_phi_at(x_mm, np.zeros_like(x_mm))
        depth = detector.upstream_x0_at(eta)
        upstream.plot(x_mm / 10, depth, color="#bd1f01", lw=1.6)
        top = max(2.2, float(depth.max()))
        upstream.set_ylim(-0.06 * top, 1.16 * top)
        upstream.set_ylabel("Material in front [$X_0$]", color="#bd1f01")
        upstream.tick_params(axis="y", colors="#bd1f01")
    return ax


def _colours(detector: LayeredCalorimeter) -> dict[str, str]:
    names = list(dict.fromkeys(layer.material.name for layer in detector.layers))
    others = [name for name in names if name not in _COLOURS]
    return {name: _COLOURS.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 140  # source: ITU-R BT.709, luma of 0 to 255


def _short(name: str) -> str:
    return _text(name.removeprefix("G4_"))


def _text(name: str) -> str:
    """A name as it is written: a dollar would begin a formula."""
    return name.replace("$", r"\$")
