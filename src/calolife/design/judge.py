"""A second look at the best designs: fresh showers, more of them, and those of Geant4, beside the published stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calolife.design.scores import Figure, compare_designs, score
from calolife.design.search import DesignTask, Trial, measure, mixed, pick_best
from calolife.design.space import build_detector, with_cells
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.limits import check_limits

__all__ = ["Round", "Verdict", "judge", "violations"]

Report = Callable[[str, float, float], None]

_FINALISTS = 6  # chosen: the best of a search by its own showers is often not the best; more cost more than they bring
_MORE_SHOWERS = 3  # chosen: the error of a finalist is then half of the spread among them
_CELLS = (10, 10)  # chosen: those of the published stacks; the search looks at sums of layers


@dataclass(frozen=True)
class Round:
    """Detectors that were hit by the same particles.

    Parameters
    ----------
    engine : {"fast", "geant4"}
    showers : int
    reference : str or None
        The best of the published stacks within the limits; None where there is none.
    figures : tuple of Figure
    """

    engine: str
    showers: int
    reference: str | None
    figures: tuple[Figure, ...]

    def figure(self, detector: str, figure: str) -> Figure:
        return next(f for f in self.figures if (f.detector, f.figure) == (detector, figure))

    @property
    def detectors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f.detector for f in self.figures))


@dataclass(frozen=True)
class Verdict:
    """What came of a search.

    Parameters
    ----------
    designs : tuple of LayeredCalorimeter
        The finalists, the best of the last round first.
    published : tuple of LayeredCalorimeter
        What they were compared with.
    rounds : tuple of Round
        The engine of the search, and then the one that confirms.
    """

    designs: tuple[LayeredCalorimeter, ...]
    published: tuple[LayeredCalorimeter, ...]
    rounds: tuple[Round, ...]


def violations(detector: LayeredCalorimeter, task: DesignTask) -> tuple[str, ...]:
    """One text for each limit of a search that a detector breaks."""
    limits = task.limits
    return check_limits(detector, budget_chf=limits.budget_chf, max_length_cm=limits.max_length_cm, size_cm=limits.size_cm).violations


def judge(
    task: DesignTask,
    trials: Sequence[Trial],
    *,
    published: Sequence[LayeredCalorimeter],
    folder: Path,
    is_pareto: bool = False,
    confirm: str | None = None,
    confirm_best: int = 3,
    confirm_showers: int = 2000,
    workers: int = 1,
    tell: Report = lambda *_: None,
) -> Verdict:
    """Measure the best few designs again, with showers that chose none of them.

    Parameters
    ----------
    task : DesignTask
    trials : sequence of Trial
    published : sequence of LayeredCalorimeter
        Stacks to compare with.
    folder : Path
        For what is simulated.
    is_pareto : bool
        The finalists are those of the front.
    confirm : {"fast", "geant4"}, optional
        Engine of a last round.
    confirm_best, confirm_showers : int
        Designs in the last round, and showers in each.
    workers : int
    tell : callable
        Called with (what, done, wanted).

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        As `measure` and `DesignTask`; fewer than one design to confirm.

    Notes
    -----
    The best of several looks better than it is. Each round has showers of its own, so that only the choice in the last round
    flatters: by 0.85 standard errors if three are equally good. Three designs or more in a round are never all of the same
    materials: the engine of the search may be wrong about some.
    """
    if confirm_best < 1:
        raise ValueError(f"confirm_best = {confirm_best} confirms nothing; take at least one")
    finalists = pick_best(trials, task, max(_FINALISTS, 2 * confirm_best if confirm else 1), is_pareto=is_pareto)
    designs = [with_cells(build_detector(trial.parameters, task.limits, name=f"design-{trial.number}"), _CELLS) for trial in finalists]
    plans = [(task.engine, _MORE_SHOWERS * task.showers, "judge", len(designs))]
    if confirm:
        plans.append((confirm, confirm_showers, "confirm", confirm_best))
    rounds = []
    for engine, showers, stage, most in plans:
        designs = mixed(designs, most)
        n_best = min(most, len(designs))
        entered = [*designs[:n_best], *published]
        found = measure(task, entered, engine=engine, showers=showers, stage=stage, folder=folder / stage, workers=workers, tell=tell)
        measured = {detector.name: m for detector, m in zip(entered, found, strict=True)}
        scores = {name: score(m, task.objective) for name, m in measured.items()}
        ranked = [designs[i] for i in sorted(range(n_best), key=[scores[design.name] for design in designs[:n_best]].__getitem__)]
        designs = ranked + designs[n_best:]
        allowed = [stack.name for stack in published if not violations(stack, task)]
        reference = min(allowed, key=scores.__getitem__, default=None)
        rounds.append(Round(engine, showers, reference, compare_designs(measured, reference=reference, seed=task.seed)))
    return Verdict(tuple(designs), tuple(published), tuple(rounds))
