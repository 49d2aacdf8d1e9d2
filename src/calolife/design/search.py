"""The search: generations of designs, stopped and taken up at any moment, always the same; and a second look at the best."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.design.scores import OBJECTIVES, Measured, bootstrap_scores, reconstruct, score
from calolife.design.space import TEXTBOOK_POINT, DesignLimits, Parameters, build_detector, suggest_point, with_cells
from calolife.detector.layers import Layer, LayeredCalorimeter
from calolife.errors import FileFormatError
from calolife.simulation.engines import check_request, simulate_showers
from calolife.simulation.particles import parse_particle, sample_particles
from calolife.simulation.production import Production, read_part, simulate_parts, start_worker

__all__ = ["DesignTask", "Trial", "front_of", "measure", "mixed", "pick_best", "search", "stage_seed"]

FloatArray = NDArray[np.float64]
Report = Callable[[str, float, float], None]

_GENERATION = 16  # trials asked for together; chosen: keeps several processes busy, and the sampler hears often
_STARTUP = 32  # chosen: two generations at random before the sampler models anything
_CANDIDATES = 96  # chosen: a sampler of twenty numbers at once needs more than its usual 24 to find the best of its model
_RUNGS = (9, 3)  # chosen: a trial that is clearly worse stops at a ninth or a third of its showers
_FEWEST_IN_RUNG = 100  # chosen: the width of fewer is not known to 10 %
_FEWEST_OF_PARTICLE = 15  # chosen: an effective sigma of fewer says nothing
_TEXTBOOK_NUMBER = -1  # it is no trial, and the sampler does not hear of it
_CLEARLY = 2.0  # chosen: standard errors by which a trial must be worse than the best before it is stopped
_N_BOOTSTRAP_RUNG = 100  # chosen: a standard error to 7 %


@dataclass(frozen=True)
class DesignTask:
    """What is searched for, and on which showers designs are compared.

    Parameters
    ----------
    limits : DesignLimits
    particle : str
        As `parse_particle` reads it.
    energy_gev : float or (float, float) [GeV]
        A pair is a range, flat in energy.
    objective : str
        One of `OBJECTIVES`.
    engine : {"fast", "geant4"}
    birks : bool
    showers : int
        Of the longest evaluation of a design.
    seed : int

    Raises
    ------
    ValueError
        Whatever `sample_particles` refuses; an unknown objective or engine; too few showers to tell a width for each particle.
    """

    limits: DesignLimits
    particle: str = "mix:gamma=0.5,pi-=0.5"
    energy_gev: float | tuple[float, float] = (1.0, 100.0)
    objective: str = "mean-sigma-eff"
    engine: str = "fast"
    birks: bool = True
    showers: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective {self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        check_request(engine=self.engine, seed=self.seed)
        self.check_showers(self.showers)
        empty = LayeredCalorimeter("empty", (), 10 * self.limits.size_cm[0], 10 * self.limits.size_cm[1])
        sample_particles(empty, 1, particle=self.particle, energy_gev=self.energy_gev, seed=self.seed)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Showers after which a trial may be stopped; the last are all."""
        _, fractions = parse_particle(self.particle)
        fewest = max(_FEWEST_IN_RUNG, 2 * _FEWEST_OF_PARTICLE / float(fractions.min()))
        return (*(n for n in (self.showers // part for part in _RUNGS) if n >= fewest), self.showers)

    def check_showers(self, showers: int) -> None:
        """Nothing, if so many showers tell how wide the energies of each particle are.

        Raises
        ------
        ValueError
            Too few.
        """
        _, fractions = parse_particle(self.particle)
        needed = math.ceil(2 * _FEWEST_OF_PARTICLE / float(fractions.min()))
        if showers < needed:
            raise ValueError(f"showers = {showers} are too few to tell how wide each particle's energies are; take {needed} or more")


@dataclass(frozen=True)
class Trial:
    """One design that was looked at.

    Parameters
    ----------
    number : int
    parameters : mapping
        As `build_detector` takes them.
    cost_chf, length_cm, depth_x0, depth_lambda : float
    n_active : int
    rungs : tuple of (int, float, float)
        Showers, score and its standard error, each time it was scored.
    is_pruned : bool
        Stopped early: clearly worse than the best that costs no more (Pareto), or than the best.
    """

    number: int
    parameters: dict[str, float | int | str]
    cost_chf: float
    length_cm: float
    depth_x0: float
    depth_lambda: float
    n_active: int
    rungs: tuple[tuple[int, float, float], ...]
    is_pruned: bool

    @property
    def score(self) -> float:
        return self.rungs[-1][1]

    @property
    def error(self) -> float:
        return self.rungs[-1][2]


def search(
    task: DesignTask, folder: Path, *, n_trials: int, is_pareto: bool = False, workers: int = 1, tell: Report = lambda *_: None
) -> tuple[Trial, ...]:
    """Look for designs with Optuna's tree-structured Parzen estimator.

    Parameters
    ----------
    task : DesignTask
    folder : Path
        Where finished trials are, or go, one file each.
    n_trials : int
    is_pareto : bool
        Two objectives, the score and the cost; otherwise the score alone.
    workers : int
        Processes; 1: this one.
    tell : callable
        Called with ("designs", done, wanted).

    Returns
    -------
    tuple of Trial
        In order. They do not depend on `workers`, nor on how often the search was stopped and taken up.

    Raises
    ------
    ValueError
        Fewer than one trial.
    FileFormatError
        Trials in the folder that another search left.
    ChildProcessError
        A worker process died.

    Notes
    -----
    Trials are asked for in generations of 16, with a sampler seeded for each, and told in order when all are done. All are hit by
    the same particles. A trial stops at a ninth or a third of its showers where it is two standard errors worse than the best
    of the generations before, or `TEXTBOOK_POINT`, was with as many (Pareto: the best that costs no more); it is told with the
    score that it has.
    """
    if n_trials < 1:
        raise ValueError(f"n_trials = {n_trials} looks at nothing; ask for at least one")
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Trial] = []
    with _quiet_optuna() as optuna, _pool(workers) as pool:
        textbook = _evaluate_all(folder, [_Job(task, _TEXTBOOK_NUMBER, dict(TEXTBOOK_POINT), ())], None, lambda n: None)
        study = optuna.create_study(directions=["minimize"] * (1 + is_pareto))
        while len(done) < n_trials:
            generation = len(done) // _GENERATION
            sampler_seed = stage_seed(task.seed, f"generation {generation}") % 2**32
            study.sampler = optuna.samplers.TPESampler(
                seed=sampler_seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=_STARTUP, n_ei_candidates=_CANDIDATES
            )
            asked = [study.ask() for _ in range(min(_GENERATION, n_trials - len(done)))]
            points = {trial.number: suggest_point(trial) for trial in asked}
            jobs = [_Job(task, number, point, _bars(task, textbook + done, point, is_pareto=is_pareto)) for number, point in points.items()]
            finished = _evaluate_all(folder, jobs, pool, partial(_tell_designs, tell, len(done), n_trials))
            for asked_trial, trial in zip(asked, finished, strict=True):
                study.tell(asked_trial, [trial.score, trial.cost_chf][: 1 + is_pareto])
            done += finished
    return tuple(done)


def _tell_designs(tell: Report, before: int, wanted: int, n: int) -> None:
    tell("designs", before + n, wanted)


@dataclass(frozen=True)
class _Job:
    """A trial to evaluate; `bars` holds score and error of the trial to beat after each rung, nothing without one."""

    task: DesignTask
    number: int
    parameters: dict[str, float | int | str]
    bars: tuple[tuple[float, float], ...]


def _bars(task: DesignTask, done: Sequence[Trial], point: Parameters, *, is_pareto: bool) -> tuple[tuple[float, float], ...]:
    cost_chf = build_detector(point, task.limits, name="asked").cost_chf
    rivals = [trial for trial in done if not trial.is_pruned and (not is_pareto or trial.cost_chf <= cost_chf)]
    if not rivals:
        return ()
    return tuple((value, error) for _, value, error in min(rivals, key=lambda trial: trial.score).rungs)


def _evaluate_all(folder: Path, jobs: Sequence[_Job], pool: ProcessPoolExecutor | None, tell: Callable[[int], None]) -> list[Trial]:
    """Trials in the order of their jobs; those with a file are read."""
    found = {job.number: trial for job in jobs if (trial := _read_trial(folder, job)) is not None}
    tell(len(found))
    missing = [job for job in jobs if job.number not in found]
    for trial in map(_evaluate, missing) if pool is None else _beside(pool, missing):
        _write_trial(folder, trial)
        found[trial.number] = trial
        tell(len(found))
    return [found[job.number] for job in jobs]


def _beside(pool: ProcessPoolExecutor, jobs: Sequence[_Job]) -> Iterator[Trial]:
    try:
        for future in as_completed([pool.submit(_evaluate, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise ChildProcessError("a worker process died: it was killed, or had no memory left; use fewer --workers") from None


def _evaluate(job: _Job) -> Trial:
    task = job.task
    detector = build_detector(job.parameters, task.limits, name=f"design-{job.number}")
    layers, energy, pdg = np.empty((0, detector.n_active)), np.empty(0), np.empty(0, np.int32)
    rungs: list[tuple[int, float, float]] = []
    is_pruned = False
    for i, n in enumerate(task.rungs):
        start = energy.size
        particles = sample_particles(detector, n - start, particle=task.particle, energy_gev=task.energy_gev, seed=task.seed, first=start)
        showers = simulate_showers(detector, particles, engine=task.engine, seed=task.seed, birks=task.birks, first=start)
        layers = np.concatenate([layers, showers.layer_energy_mev()])
        energy, pdg = np.concatenate([energy, showers.energy_gev]), np.concatenate([pdg, showers.pdg_id])
        measured = reconstruct(detector, layers, energy, pdg)
        value = score(measured, task.objective)
        error = float(bootstrap_scores([measured], task.objective, n=_N_BOOTSTRAP_RUNG).std(ddof=1))
        # twelve digits: how many threads the linear algebra has changes the last ones
        rungs.append((n, float(f"{value:.12g}"), float(f"{error:.12g}")))
        if i < len(job.bars) and n < task.showers:
            best, best_error = job.bars[i]
            if is_pruned := value - best > _CLEARLY * math.hypot(error, best_error):
                break
    total = detector.total
    assert total.cost_chf is not None
    return Trial(
        job.number, job.parameters, total.cost_chf, total.length_cm, total.depth_x0, total.depth_lambda, total.n_active, tuple(rungs),
        is_pruned,
    )  # fmt: skip


def _trial_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _write_trial(folder: Path, trial: Trial) -> None:
    path = _trial_path(folder, trial.number)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(asdict(trial), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _read_trial(folder: Path, job: _Job) -> Trial | None:
    path = _trial_path(folder, job.number)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        path.unlink()  # damaged by a crash of the machine: it is evaluated again
        return None
    if stored.get("parameters") != job.parameters:
        raise FileFormatError(f"{path} is of another search, or of another version of Optuna; start anew with --force")
    return Trial(**{**stored, "rungs": tuple((int(n), float(value), float(error)) for n, value, error in stored["rungs"])})


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna without its log and without the warnings about the experimental options that `search` takes."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if workers == 1:
        yield None
        return
    before = set(multiprocessing.active_children())
    # spawned, not forked: a copy of a process with compiled threads or with Geant4 in it may hang
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        yield pool
    except BaseException:
        # nobody waits for what the workers have in hand
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def stage_seed(seed: int, stage: str) -> int:
    """A seed for one stage of a search: what a design was chosen on must not be what it is judged on.

    Examples
    --------
    >>> stage_seed(1, "confirm") == stage_seed(1, "confirm") != stage_seed(1, "judge")
    True
    """
    return int(np.random.SeedSequence([seed, *stage.encode()]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def pick_best(trials: Sequence[Trial], task: DesignTask, n: int, *, is_pareto: bool = False) -> tuple[Trial, ...]:
    """The few trials worth another look, the best first, no detector twice, not all of the same materials.

    Parameters
    ----------
    trials : sequence of Trial
    task : DesignTask
    n : int
    is_pareto : bool
        The best, and then those of the front that are spread most evenly over the logarithm of the cost.

    Returns
    -------
    tuple of Trial
    """
    different: dict[tuple[Layer, ...], Trial] = {}
    for trial in sorted(trials, key=lambda t: (t.is_pruned, t.score, t.cost_chf)):
        different.setdefault(build_detector(trial.parameters, task.limits, name="design").layers, trial)
    ranked = [trial for trial in different.values() if not trial.is_pruned] or list(different.values())
    if not is_pareto:
        detectors = [build_detector(trial.parameters, task.limits, name=str(trial.number)) for trial in ranked]
        of = {str(trial.number): trial for trial in ranked}
        return tuple(of[detector.name] for detector in mixed(detectors, n)[:n])
    front = list(front_of(ranked))
    if len(front) > n:
        at = np.log([1.0 + trial.cost_chf for trial in front])
        wanted = np.linspace(at[0], at[-1], n)
        front = [front[i] for i in sorted({int(np.argmin(abs(at - x))) for x in wanted})]
    return tuple(sorted(front, key=lambda trial: trial.score))


def mixed(detectors: Sequence[LayeredCalorimeter], n: int) -> list[LayeredCalorimeter]:
    """Detectors in their order, but where the first n >= 3 are all of the same materials, the best of others takes the n-th place."""
    kinds = [tuple(dict.fromkeys((layer.section, layer.material.name) for layer in detector.layers)) for detector in detectors]
    order = list(range(len(kinds)))
    other = next((i for i in order if kinds[i] != kinds[0]), 0)
    if n >= 3 and other >= n:
        order.insert(n - 1, order.pop(other))
    return [detectors[i] for i in order]


def front_of(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials than which none is both cheaper and better, from the cheapest on; stopped ones only where all were stopped."""
    front: list[Trial] = []
    for trial in sorted([t for t in trials if not t.is_pruned] or trials, key=lambda t: (t.cost_chf, t.score)):
        if not front or trial.score < front[-1].score:
            front.append(trial)
    return tuple(front)


def measure(
    task: DesignTask,
    detectors: Sequence[LayeredCalorimeter],
    *,
    engine: str,
    showers: int,
    stage: str,
    folder: Path,
    workers: int = 1,
    tell: Report = lambda *_: None,
) -> tuple[Measured, ...]:
    """Shower the same particles in several detectors and reconstruct their energies.

    Parameters
    ----------
    task : DesignTask
    detectors : sequence of LayeredCalorimeter
    engine : {"fast", "geant4"}
    showers : int
        In each detector.
    stage : str
        Names the particles: another stage shoots others.
    folder : Path
        Where finished parts are, or go.
    workers : int
    tell : callable
        Called with (what, done, wanted).

    Returns
    -------
    tuple of Measured
        It does not depend on `workers`, nor on how often it was stopped and taken up.

    Raises
    ------
    ValueError, ChildProcessError, MissingExtraError
        As `simulate_parts` and the engines.
    """
    found = []
    for detector in detectors:
        plain = with_cells(detector, (1, 1))  # sums of layers are all that is needed
        production = Production(
            plain, showers, particle=task.particle, energy_gev=task.energy_gev, engine=engine, seed=stage_seed(task.seed, stage),
            birks=task.birks,
        )  # fmt: skip
        parts = simulate_parts(
            production, folder / plain.digest[:16], workers=workers,
            tell=lambda _, done, wanted, name=detector.name: tell(f"{name}, {engine}", done, wanted),  # type: ignore[misc]
        )  # fmt: skip
        read = [read_part(path) for path in parts]
        found.append(
            reconstruct(
                plain, np.concatenate([part.layer_energy_mev() for part in read]), np.concatenate([part.energy_gev for part in read]),
                np.concatenate([part.pdg_id for part in read]),
            )
        )  # fmt: skip
    return tuple(found)
