"""Figures of a search: each function takes results and an optional ``ax`` and returns the Axes; nothing is saved or shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calolife.design.scores import OBJECTIVES
from calolife.design.search import Trial, front_of
from calolife.plots import COLOURS, MARKERS, new_axes, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from calolife.design.judge import Round

__all__ = ["plot_comparison", "plot_front", "plot_history"]

_LABELS = {
    "mean-sigma-eff": r"$\sigma_\mathrm{eff}/E$, mean over particles [%]",
    "all-sigma-eff": r"$\sigma_\mathrm{eff}/E$, all particles [%]",
    "sigma-rel": r"$\sigma(E'/E)$ [%]",
    "rel-loss": r"$\langle (E'-E)^2/E \rangle$ [GeV]",
}
_SYMBOLS = {
    "gamma": r"$\gamma$",
    "pi-": r"$\pi^-$",
    "pi+": r"$\pi^+$",
    "e-": r"$e^-$",
    "e+": r"$e^+$",
    "mu-": r"$\mu^-$",
    "mu+": r"$\mu^+$",
}
_ENGINES = {"fast": "fast engine", "geant4": "Geant4"}


def plot_front(
    trials: Sequence[Trial],
    rounds: Sequence[Round],
    *,
    objective: str,
    cost_chf: Mapping[str, float],
    budget_chf: float,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Score against cost: all designs looked at, the front, and those measured again with their errors.

    Parameters
    ----------
    trials : sequence of Trial
    rounds : sequence of Round
        Of the second look.
    objective : str
    cost_chf : mapping of str to float [CHF]
        By name, of the detectors in the rounds; those whose name does not begin with ``design-`` are published.
    budget_chf : float [CHF]
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes
    """  # fmt: skip
    ax = new_axes(ax, width=8.4, height=5.4)
    for is_pruned, style, label in ((True, {"alpha": 0.35, "ms": 3}, "Stopped early"), (False, {"alpha": 0.9, "ms": 4.5}, "Design")):
        shown = [t for t in trials if t.is_pruned == is_pruned]
        if shown:
            at, value = [_chf(t.cost_chf, budget_chf) for t in shown], [t.score for t in shown]
            ax.plot(at, value, "o", color="0.6", mec="none", label=label, **style)  # type: ignore[arg-type]
    front = front_of(trials)
    cost = [*(_chf(t.cost_chf, budget_chf) for t in front), budget_chf]
    ax.step(cost, [*(t.score for t in front), front[-1].score], where="post", color=COLOURS[0], lw=1.6, label="Front")
    for k, shown_round in enumerate(rounds):
        for is_design in (True, False):
            names = [n for n in shown_round.detectors if n.startswith("design-") == is_design]
            found = [shown_round.figure(name, objective) for name in names]
            if found:
                label = f"{'Best designs again' if is_design else 'Compared with'}, {_measured_with(shown_round)}"
                is_last = shown_round is rounds[-1]
                at = [_chf(cost_chf[name], budget_chf) for name in names]
                ax.errorbar(
                    at, [f.value for f in found], [f.error for f in found], ls="none", capsize=2,
                    marker=MARKERS[k] if is_design else "*", ms=6 if is_design else 11, mfc=None if is_last else "white",
                    color=COLOURS[2] if is_design else COLOURS[4], label=label,
                )  # fmt: skip
    ax.axvline(budget_chf, color="0.3", lw=1, ls=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    again = [r.figure(n, objective) for r in rounds for n in r.detectors]
    every = [*(t.score for t in trials), *(f.value for f in again)]
    # what sees next to nothing would press everything else together
    high = min(1.1 * max(*every, *(f.value + f.error for f in again)), 6 * min(every))
    ax.set_ylim(0.92 * _least([*every, *(f.value - f.error for f in again)], min(every)), high)
    last = rounds[-1]
    for name in last.detectors:
        if not name.startswith("design-"):
            here = (_chf(cost_chf[name], budget_chf), last.figure(name, objective).value)
            is_right = here[0] > 0.3 * budget_chf
            ax.annotate(
                name, here, xytext=(-9 if is_right else 9, 0), textcoords="offset points", ha="right" if is_right else "left", va="center",
                fontsize=8, color=COLOURS[4],
            )  # fmt: skip
    ax.text(budget_chf, ax.get_ylim()[1], "budget ", ha="right", va="top", rotation=90, fontsize=8, color="0.3")
    ax.set_xlabel("Cost of the materials [CHF]")
    ax.set_ylabel(_LABELS[objective])
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


def plot_history(trials: Sequence[Trial], *, objective: str, title: str = "", ax: Axes | None = None) -> Axes:
    """Score of each trial in the order in which they were asked for, and the best so far.

    Parameters
    ----------
    trials : sequence of Trial
    objective : str
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    from matplotlib.ticker import MaxNLocator

    ax = new_axes(ax, width=8.4)
    value = np.array([t.score for t in trials])
    is_pruned = np.array([t.is_pruned for t in trials])
    number = np.array([t.number for t in trials])
    if is_pruned.any():
        ax.plot(number[is_pruned], value[is_pruned], "o", ms=3, color="0.75", mec="none", label="Stopped early")
    error = np.array([t.error for t in trials])
    full = ~is_pruned
    ax.errorbar(number[full], value[full], error[full], ls="none", marker="o", ms=4, lw=0.8, color=COLOURS[0], label="All showers")
    best = np.minimum.accumulate(np.where(is_pruned, np.inf, value))
    ax.step(number, np.where(np.isfinite(best), best, np.nan), where="post", color=COLOURS[2], lw=1.6, label="Best so far")
    ax.set_yscale("log")
    plain_ticks(ax.yaxis)
    high = min(1.1 * float(np.where(full, value + error, value).max()), 30 * value.min())
    ax.set_ylim(0.95 * _least(np.where(full, value - error, value).tolist(), value.min()), high)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.minorticks_off()
    ax.set_xlabel("Trial")
    ax.set_ylabel(_LABELS[objective])
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


def plot_comparison(rounds: Sequence[Round], *, objective: str = "mean-sigma-eff", title: str = "", ax: Axes | None = None) -> Axes:
    """Effective sigma of each detector: of each kind of particle and their mean, for every engine.

    Parameters
    ----------
    rounds : sequence of Round
    objective : str
        What the detectors are ordered by.
    title : str
    ax : Axes, optional

    Returns
    -------
    Axes
    """

    def last_value(name: str) -> tuple[int, float]:
        """Round from the end, and the score in it: those of the last round come first."""
        back, shown = next((i, r) for i, r in enumerate(reversed(rounds)) if name in r.detectors)
        return back, shown.figure(name, objective).value

    names = sorted(dict.fromkeys(name for shown in reversed(rounds) for name in shown.detectors), key=last_value)
    ax = new_axes(ax, width=8.4, height=1.6 + 0.45 * len(names))
    kinds = [f.figure.removesuffix("-sigma-eff") for f in rounds[0].figures if f.detector == rounds[0].detectors[0]]
    kinds = ["mean", *(kind for kind in kinds if kind not in (*OBJECTIVES, "mean", "all"))]
    if len(kinds) == 2:  # one kind of particle is its own mean
        kinds = kinds[1:]
    for i, shown in enumerate(rounds):
        for k, kind in enumerate(kinds):
            found = [shown.figure(name, f"{kind}-sigma-eff") for name in shown.detectors]
            at = [names.index(f.detector) + (0.16 * (i - 0.5 * (len(rounds) - 1))) for f in found]
            label = f"{_SYMBOLS.get(kind, kind)}, {_measured_with(shown)}"
            ax.errorbar(
                [f.value for f in found], at, xerr=[f.error for f in found], ls="none", marker=MARKERS[k], ms=5.5, capsize=2,
                color=COLOURS[(2, 0, 4, 1, 5, 6)[k % 6]], mfc="white" if shown is not rounds[-1] else None, label=label,
            )  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.minorticks_off()
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.grid(axis="x", alpha=0.25)
    ax.set_xlabel(r"$\sigma_\mathrm{eff}/E$ [%]")
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax


def _measured_with(shown: Round) -> str:
    """Both rounds may be of one engine."""
    return f"{_ENGINES[shown.engine]}, {shown.showers} showers"


def _least(values: Sequence[float], otherwise: float) -> float:
    """Lower end of a logarithmic axis: the smallest value, unless an error bar would take it far below the scores."""
    return max(min(values), 0.5 * otherwise)


def _chf(cost: float, budget_chf: float) -> float:
    return max(cost, min(1.0, budget_chf))  # polystyrene is free and the axis is logarithmic
