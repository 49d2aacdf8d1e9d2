"""Figures of `showers.py`, drawn from the numbers it stores: the fast engine over Geant4, with ratios below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calolife.showers.events import Showers
from calolife.simulation.compare import Sample, active_depth_x0

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = {
    "pbwo4-block": "PbWO$_4$ block", "pb-scint-60": "60 x (Pb 2 + PS 2 mm)", "cu-scint-24x24": "40 x (Cu 20 + PS 5 mm)",
    "pb-scint-fe-v2": "Pb/PS + Fe/PS stack (v2)",
}  # fmt: skip
PARTICLE = {"e-": "e$^-$", "gamma": "$\\gamma$", "pi-": "$\\pi^-$"}
PROFILES = (("pbwo4-block", "e-", (1, 10, 100)), ("cu-scint-24x24", "pi-", (2, 10, 100)), ("pb-scint-fe-v2", "pi-", (2, 10, 100)))
# ten colours apart for every reader; source: M. Petroff, "Accessible Color Sequences for Data Visualization" (2021)
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6")
SPECTRUM_MEV = np.geomspace(1e-3, 300.0, 56)


def numbers_of(reference: Sample, fast: Sample, *, is_detailed: bool) -> dict[str, Any]:
    """What the figures need of a point, in few digits."""
    numbers: dict[str, Any] = {"depth_x0": active_depth_x0(reference.showers.detector)}
    for name, sample in (("geant4", reference), ("fast", fast)):
        layer = sample.layer_mev
        numbers[name] = {"mev": layer.mean(axis=0), "error_mev": layer.std(axis=0, ddof=1) / np.sqrt(sample.n)}
        if is_detailed:
            numbers[name] |= cell_numbers(sample.showers)
    return rounded(numbers)


def cell_numbers(showers: Showers, *, threshold_mev: float = 0.1) -> dict[str, Any]:
    """Cells per shower against their energy, and lit cells against depth, with errors from the scatter between showers."""
    n, n_layers, n_bins = showers.n_showers, showers.detector.n_active, SPECTRUM_MEV.size - 1
    index = np.searchsorted(SPECTRUM_MEV, showers.energy_mev, side="right") - 1
    inside = (index >= 0) & (index < n_bins)
    cells = np.bincount(showers.shower_index[inside] * n_bins + index[inside], minlength=n * n_bins).reshape(n, n_bins)
    lit = showers.energy_mev > threshold_mev
    occupied = np.bincount((showers.shower_index * n_layers + showers.layer)[lit], minlength=n * n_layers).reshape(n, n_layers)
    return {
        "cells": cells.mean(axis=0), "cells_error": cells.std(axis=0, ddof=1) / np.sqrt(n),
        "occupancy": occupied.mean(axis=0), "occupancy_error": occupied.std(axis=0, ddof=1) / np.sqrt(n),
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Five digits of every number, as plain Python; None where it is no number, as JSON knows no NaN."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def draw_figures(document: dict[str, Any], out: Path) -> list[Path]:
    """Draw what the document holds numbers for, beside ``out``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    made = []
    for name, draw in (("profiles", draw_profiles), ("resolution", draw_resolution), ("cells", draw_cells)):
        if (figure := draw(document)) is None:
            continue
        path = out.with_name(f"{out.stem}_{name}.png")
        figure.savefig(path, dpi=110)
        plt.close(figure)
        made.append(path)
    return made


def _panels(n: int, *, rows: int = 2) -> tuple[Figure, list[tuple[Axes, ...]]]:
    """So many panels side by side, each with ratio panels below it."""
    from matplotlib import pyplot as plt

    ratios = {"height_ratios": [3, *[1.2] * (rows - 1)]}
    figure, axes = plt.subplots(
        rows, n, figsize=(4.6 * n, 3.0 + 1.3 * rows), sharex="col", squeeze=False, layout="constrained", gridspec_kw=ratios
    )
    figure.get_layout_engine().set(hspace=0.01)
    for ax in axes.flat:
        ax.tick_params(which="both", direction="in", top=True, right=True)
    for ax in axes[1:].flat:
        ax.axhline(0, color="0.3", lw=0.8)
    axes[1][0].set_ylabel("fast / Geant4 $-$ 1 [%]", fontsize=9)
    return figure, [tuple(axes[:, k]) for k in range(n)]


def _band(ax: Axes, percent: float) -> None:
    ax.axhspan(-percent, percent, color="#94a4a2", alpha=0.3, lw=0, label=f"target $\\pm${percent:g} %")
    ax.set_ylim(-2.2 * percent, 2.2 * percent)


def _pull(ax: Axes, x: Any, a: Any, da: Any, b: Any, db: Any, **style: Any) -> None:
    a, da, b, db = (np.asarray(v, float) for v in (a, da, b, db))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = b / a
        error = ratio * np.hypot(da / a, db / b)
    ax.errorbar(x, 100 * (ratio - 1), 100 * error, lw=0, elinewidth=0.9, **style)


def draw_profiles(document: dict[str, Any]) -> Figure | None:
    """Mean energy of the layers against depth."""
    numbers = document["profiles"]
    columns = [(d, p, [e for e in energies if f"{d}_{p}_{e}" in numbers]) for d, p, energies in PROFILES]
    columns = [c for c in columns if c[2]]
    if not columns:
        return None
    figure, panels = _panels(len(columns))
    for (detector, particle, energies), (ax, below) in zip(columns, panels, strict=True):
        _band(below, 10 if particle == "e-" else 15)
        for k, energy in enumerate(energies):
            at = numbers[f"{detector}_{particle}_{energy}"]
            g, f, depth = at["geant4"], at["fast"], np.asarray(at["depth_x0"])
            per_gev = 1.0 / energy
            ax.step(depth, per_gev * np.asarray(f["mev"]), where="mid", color=COLOURS[k], lw=1.4, label=f"{energy} GeV")
            points = {"color": COLOURS[k], "marker": "o", "ms": 2.6}
            ax.errorbar(depth, per_gev * np.asarray(g["mev"]), per_gev * np.asarray(g["error_mev"]), lw=0, elinewidth=0.9, **points)
            large = np.asarray(g["mev"]) > 0.005 * np.sum(g["mev"])
            columns_of = [np.asarray(v)[large] for v in (g["mev"], g["error_mev"], f["mev"], f["error_mev"])]
            _pull(below, depth[large], *columns_of, **points)
        ax.plot([], [], "ko", ms=3, label="Geant4")
        ax.plot([], [], "k-", label="fast")
        ax.set_title(f"{PARTICLE[particle]} in {TITLE[detector]}", fontsize=11)
        ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        ax.legend(frameon=False, fontsize=9, title="Mean over showers", title_fontsize=9)
        below.set_xlabel("Depth $t$ [$X_0$]")
    panels[0][0].set_ylabel("Visible energy of a layer / $E$ [MeV / GeV]")
    return figure


def draw_resolution(document: dict[str, Any]) -> Figure | None:
    """Resolution against energy, electrons and pions, with the ratios of the resolution and of the mean below."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    rows = {(r["quantity"], r["detector"], r["particle"], r["energy_gev"]): r for r in document["rows"] if "fast" in r}
    particles = [p for p in ("e-", "pi-") if any(k[2] == p for k in rows)]
    if not particles:
        return None
    figure, panels = _panels(len(particles), rows=3)
    for particle, (ax, below, response) in zip(particles, panels, strict=True):
        _band(below, 10 if particle == "e-" else 15)
        _band(response, 2 if particle == "e-" else 5)
        for k, detector in enumerate(d for d in TITLE if any(key[1:3] == (d, particle) for key in rows)):
            style = {"color": COLOURS[k], "marker": "osD"[k % 3], "ms": 4}
            for quantity, under in (("resolution, effective sigma", below), ("mean visible energy", response)):
                energy = np.array(sorted(e for q, d, p, e in rows if (q, d, p) == (quantity, detector, particle)))
                here = [rows[quantity, detector, particle, e] for e in energy]
                g, dg, f, df = (np.array([r[n] for r in here]) for n in ("geant4", "geant4_uncertainty", "fast", "fast_uncertainty"))
                _pull(under, energy * (1 + 0.03 * (k - 1)), g, dg, f, df, **style)
                if under is below:
                    ax.plot(energy, f, "-", color=COLOURS[k], lw=1.4)
                    ax.errorbar(energy, g, dg, lw=0, elinewidth=0.9, label=TITLE[detector], **style)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_formatter(ScalarFormatter())
        ax.tick_params(axis="y", which="minor", labelsize=7)
        ax.set_title(PARTICLE[particle], fontsize=11)
        ax.plot([], [], "ko", ms=3, label="Geant4")
        ax.plot([], [], "k-", label="fast")
        ax.legend(frameon=False, fontsize=8)
        response.set_xlabel("Energy $E$ [GeV]")
        response.set_xticks([e for e in (1, 2, 5, 10, 20, 50, 100) if particle == "e-" or e > 1])
        response.xaxis.set_major_formatter(ScalarFormatter())
        response.xaxis.set_minor_formatter(NullFormatter())
    panels[0][0].set_ylabel("Resolution $\\sigma_{\\rm eff}/\\langle E_{\\rm vis}\\rangle$ [%]")
    panels[0][1].set_ylabel("Resolution,\nfast / Geant4 $-$ 1 [%]", fontsize=8)
    panels[0][2].set_ylabel("Mean,\nfast / Geant4 $-$ 1 [%]", fontsize=8)
    return figure


def draw_cells(document: dict[str, Any]) -> Figure | None:
    """Energies of cells, and lit cells against depth, for pions of 10 GeV."""
    at = document["profiles"].get("cu-scint-24x24_pi-_10")
    if at is None or "cells" not in at["geant4"]:
        return None
    g, f = at["geant4"], at["fast"]
    figure, ((ax, below), (bx, under)) = _panels(2)
    auc = next((r for r in document["rows"] if r["quantity"] == "classifier AUC, layer sums and widths"), None)
    middle = np.sqrt(SPECTRUM_MEV[1:] * SPECTRUM_MEV[:-1])
    per_decade = 1 / np.diff(np.log10(SPECTRUM_MEV))
    style = {"color": COLOURS[0], "marker": "o", "ms": 3}
    ax.step(middle, np.asarray(f["cells"]) * per_decade, where="mid", color=COLOURS[2], lw=1.4, label="fast")
    ax.errorbar(middle, g["cells"] * per_decade, g["cells_error"] * per_decade, lw=0, elinewidth=0.9, label="Geant4", **style)
    ax.set_xscale("log")
    ax.set_yscale("log")
    top = float(np.max(g["cells"] * per_decade))
    ax.set_ylim(1e-3 * top, 3 * top)
    ax.axvline(0.1, color="0.5", lw=0.8, ls=":")
    ax.set_ylabel("Cells per shower and decade")
    ax.legend(frameon=False, title="" if auc is None else f"AUC {auc['auc']:.3f} $\\pm$ {auc['auc_uncertainty']:.3f}")
    ax.set_title(f"10 GeV {PARTICLE['pi-']} in {TITLE['cu-scint-24x24']}", fontsize=11)
    _band(below, 10)
    below.set_ylim(-50, 50)
    _pull(below, middle, g["cells"], g["cells_error"], f["cells"], f["cells_error"], **style)
    below.set_xlabel("Visible energy of a cell $e$ [MeV]")
    layer = np.arange(len(g["occupancy"]))
    bx.step(layer, f["occupancy"], where="mid", color=COLOURS[2], lw=1.4)
    bx.errorbar(layer, g["occupancy"], g["occupancy_error"], lw=0, elinewidth=0.9, **style)
    bx.set_ylabel("Cells above 0.1 MeV per shower")
    bx.set_ylim(0, None)
    _band(under, 10)
    under.set_ylim(-30, 30)
    _pull(under, layer, g["occupancy"], g["occupancy_error"], f["occupancy"], f["occupancy_error"], **style)
    under.set_xlabel("Layer")
    return figure
