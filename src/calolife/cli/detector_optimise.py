"""`calolife detector optimise`: search for the detector that measures best within a budget and a length."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calolife.cli.detector import made_of, parse_size
from calolife.cli.options import (
    Config,
    Debug,
    Force,
    Json,
    Out,
    Quiet,
    Seed,
    Workers,
    print_json,
    print_table,
    progress_bar,
    say,
    used_options,
)
from calolife.cli.showers import parse_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from calolife.design.judge import Verdict
    from calolife.design.search import DesignTask, Trial
    from calolife.detector.layers import LayeredCalorimeter
    from calolife.runs import Metric, Run

__all__ = ["optimise"]

_PUBLISHED = ("pbwo4-fe-v1", "pb-scint-fe-v2", "triple-fe-v42")


def optimise(
    ctx: typer.Context,
    budget_chf: Annotated[float, typer.Option("--budget-chf", help="Most that the materials may cost.", show_default=False)],
    max_length_cm: Annotated[float, typer.Option("--max-length-cm", help="Room along the beam.", show_default=False)],
    size_cm: Annotated[str, typer.Option("--size-cm", help="Width and height, which are filled: 50x50.", show_default=False)],
    out: Out,
    particles: Annotated[str, typer.Option("--particles", help="A particle, or a mixture.")] = "mix:gamma=0.5,pi-=0.5",
    energy: Annotated[str, typer.Option("--energy", help="Kinetic energy in GeV: 10, or 1:100 for a flat range.")] = "1:100",
    trials: Annotated[int, typer.Option("--trials", help="Designs to look at.")] = 256,
    showers: Annotated[int, typer.Option("--showers", help="Most showers in a design; what is clearly worse stops before.")] = 1200,
    engine: Annotated[str, typer.Option("--engine", help="Engine of the search: fast or geant4.")] = "fast",
    objective: Annotated[
        str, typer.Option("--objective", help="What to minimise: mean-sigma-eff, all-sigma-eff, sigma-rel or rel-loss.")
    ] = "mean-sigma-eff",
    is_pareto: Annotated[bool, typer.Option("--pareto", help="Minimise the cost too: the best few are those of the front.")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Preset or TOML file to compare with; again for more. The published stacks within the limits if not "
                     "given.", show_default=False),
    ] = None,
    confirm: Annotated[
        str | None, typer.Option("--confirm", help="Engine that the best are measured with at the end: geant4 or fast.", show_default=False)
    ] = None,
    confirm_best: Annotated[int, typer.Option("--confirm-best", help="Designs to confirm.")] = 3,
    confirm_showers: Annotated[int, typer.Option("--confirm-showers", help="Showers in each of them.")] = 2000,
    birks: Annotated[str, typer.Option("--birks", help="Quench scintillation light: on or off.")] = "on",
    seed: Seed = 0,
    workers: Workers = 1,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Search for the layered detector that measures best for the money. Run again after a stop, it goes on."""
    import shutil
    from importlib.metadata import version

    from calolife.design.judge import judge
    from calolife.design.scores import WORST
    from calolife.design.search import DesignTask, search
    from calolife.design.space import DesignLimits
    from calolife.detector.presets import preset_names
    from calolife.runs import log, new_run
    from calolife.simulation.engines import check_request
    from calolife.simulation.fast import engine_digest
    from calolife.simulation.production import n_cores

    if birks not in ("on", "off"):
        raise ValueError(f"--birks {birks!r} is not on or off")
    for option, value in (("--trials", trials), ("--confirm-best", confirm_best), ("--confirm-showers", confirm_showers)):
        if value < 1:
            raise ValueError(f"{option} = {value} looks at nothing; ask for at least one")
    if confirm is not None:
        check_request(engine=confirm)
    limits = DesignLimits(budget_chf, max_length_cm, parse_size(size_cm))
    task = DesignTask(limits, particles, parse_range(energy, what="--energy"), objective, engine, birks == "on", showers, seed)
    task.check_showers(confirm_showers if confirm else showers)
    if "geant4" in (engine, confirm):
        _need_geant4()
    if confirm is None and (confirm_best, confirm_showers) != (3, 2000):
        say("without --confirm nothing is confirmed: --confirm-best and --confirm-showers change nothing", quiet=quiet)
    published, left_out = _rivals(against, task)
    asked = used_options(ctx)
    del asked["options"]["workers"]  # nothing depends on it: an unfinished search may go on with another number
    paths = [Path(name) for name in against or () if name not in preset_names()]
    asked["options"].pop("against", None)
    if against:
        asked["options"]["against"] = [name if name in preset_names() else str(Path(name).resolve()) for name in against]
    # an unfinished search of another engine, or of an Optuna that asks for other designs, must not be taken up
    asked |= {"against_digests": [stack.digest for stack in published], "engine_digest": engine_digest(), "optuna": version("optuna")}
    n_workers = workers or n_cores()
    with new_run(out, config=asked, seed=seed, inputs=paths, force=force) as run, progress_bar(quiet=quiet, rate=True) as report:
        if run.is_resumed and (n_found := len(list((run.path / "trials").glob("[0-9]*.json")))):
            say(f"taking up {n_found} finished designs", quiet=quiet)
        looked_at = search(task, run.path / "trials", n_trials=trials, is_pareto=is_pareto, workers=n_workers, tell=report)
        verdict = judge(
            task, looked_at, published=published, folder=run.path / "parts", is_pareto=is_pareto, confirm=confirm,
            confirm_best=confirm_best, confirm_showers=confirm_showers, workers=n_workers, tell=report,
        )  # fmt: skip
        metrics, document = _metrics(verdict, objective), _document(verdict, task)
        _save(run, task, looked_at, verdict, metrics, document)
        for folder in ("trials", "parts"):
            shutil.rmtree(run.path / folder)
        log(run, f"looked at {trials} designs with {engine}")
    best = verdict.rounds[-1].figure(verdict.designs[0].name, objective)
    if best.value >= WORST:
        say("no design sees anything: the limits leave no room for a calorimeter", quiet=quiet)
    for name, why in left_out.items():
        say(f"{name} is not compared with: {why}", quiet=quiet)
    if as_json:
        print_json({"path": str(out), **document})
        return
    _print(verdict, objective, out)


def _need_geant4() -> None:
    """Hours of search must not end at a missing extra."""
    from calolife.detector.presets import load_detector
    from calolife.simulation.engines import simulate_showers
    from calolife.simulation.particles import sample_particles

    slab = load_detector("pbwo4-block")
    simulate_showers(slab, sample_particles(slab, 1, particle="mu-", energy_gev=1.0, seed=1), engine="geant4", seed=1)


def _rivals(against: list[str] | None, task: DesignTask) -> tuple[list[LayeredCalorimeter], dict[str, str]]:
    """Detectors to compare with, and why the others are left out."""
    from calolife.design.judge import violations
    from calolife.detector.layers import LayeredCalorimeter
    from calolife.detector.presets import load_detector

    found: list[LayeredCalorimeter] = []
    left_out = {}
    for name in against or _PUBLISHED:
        loaded = load_detector(name)
        if not isinstance(loaded, LayeredCalorimeter):
            raise ValueError(f"--against {name}: crystals have no layers; compare with a detector of layers")
        if any(loaded.name == other.name for other in found):
            raise ValueError(f"--against {name}: the name {loaded.name} is taken; give every detector another one")
        if loaded.name.startswith("design-"):
            raise ValueError(f"--against {name}: names like {loaded.name} are those of this search's own designs; change it in the file")
        if broken := violations(loaded, task):
            if against:
                raise ValueError(f"--against {name} is not within the limits: {'; '.join(broken)}")
            left_out[name] = "; ".join(broken)
            continue
        found.append(loaded)
    return found, left_out


def _metrics(verdict: Verdict, objective: str) -> dict[str, Metric]:
    from calolife.runs import Metric

    metrics = {}
    best = verdict.designs[0].name
    for i, shown in enumerate(verdict.rounds):
        # the rounds may be of one engine
        what = f"{shown.engine} confirmed" if i else shown.engine
        for f in shown.figures:
            if f.figure == objective or f.detector in (best, shown.reference):
                metrics[f"{f.figure} {f.detector} {what}"] = Metric(f.value, f.error, f.unit, f.n)
            if f.detector == best and shown.reference:
                width = (f.ratio_high - f.ratio_low) / 3.92  # of a Gaussian's 95 % interval, in standard errors
                metrics[f"ratio {f.figure} {best} {shown.reference} {what}"] = Metric(f.ratio, width, "", f.n)
    return metrics


def _document(verdict: Verdict, task: DesignTask) -> dict[str, Any]:
    last = verdict.rounds[-1]
    detectors = [
        {
            "name": detector.name, "is_published": detector in verdict.published, **asdict(detector.total),
            "sections": [{"name": s.name, "made_of": made_of(detector, i)} for i, s in enumerate(detector.sections())],
        }
        for detector in (*verdict.designs, *verdict.published)
    ]  # fmt: skip
    rounds = [
        {"engine": r.engine, "showers": r.showers, "reference": r.reference, "figures": [asdict(f) for f in r.figures]}
        for r in verdict.rounds
    ]
    return {
        "objective": task.objective, "best": verdict.designs[0].name, "reference": last.reference, "confirmed_by": last.engine,
        "detectors": detectors, "rounds": rounds,
    }  # fmt: skip


def _save(
    run: Run, task: DesignTask, trials: Sequence[Trial], verdict: Verdict, metrics: dict[str, Metric], document: dict[str, Any]
) -> None:
    import polars as pl

    from calolife.design.plots import plot_comparison, plot_front, plot_history
    from calolife.detector.drawing import plot_detector
    from calolife.detector.presets import to_toml
    from calolife.runs import write_json, write_metrics, write_plot, write_table

    history = _history(trials, task)
    write_table(run, "history", history)
    rows = [{"round": i, "engine": r.engine, **asdict(f)} for i, r in enumerate(verdict.rounds, 1) for f in r.figures]
    figures = pl.DataFrame(rows).with_columns(pl.col("ratio", "ratio_low", "ratio_high").fill_nan(None))
    write_table(run, "figures", figures)
    write_json(run, "results", _without_nan(document))
    write_metrics(run, metrics)
    (run.path / "best.toml").write_text(to_toml(verdict.designs[0]), encoding="utf-8")
    (run.path / "designs").mkdir(exist_ok=True)
    for design in verdict.designs:
        (run.path / "designs" / f"{design.name}.toml").write_text(to_toml(design), encoding="utf-8")
        layers = [
            {"material": v.material.name, "thickness_mm": v.thickness_mm, "is_active": v.is_active, "section": v.section}
            for v in design.layers
        ]
        write_plot(run, design.name, plot_detector(design), pl.DataFrame(layers))
    low, high = task.energy_gev if isinstance(task.energy_gev, tuple) else (task.energy_gev, task.energy_gev)
    at = f"{low:g} GeV" if low == high else f"{low:g} to {high:g} GeV"
    limits = f"{task.limits.budget_chf:g} CHF, {task.limits.max_length_cm:g} cm"
    title = f"{task.particle}, {at}, Birks' law {'on' if task.birks else 'off'}\nwithin {limits}"
    cost_chf = {detector.name: detector.cost_chf for detector in (*verdict.designs, *verdict.published)}
    front = plot_front(
        trials, verdict.rounds, objective=task.objective, cost_chf=cost_chf, budget_chf=task.limits.budget_chf, title=title
    )  # fmt: skip
    write_plot(run, "pareto", front, history.select("trial", "cost_chf", "score", "error", "is_pruned"))
    write_plot(
        run, "history", plot_history(trials, objective=task.objective, title=title), history.select("trial", "score", "error", "is_pruned")
    )
    write_plot(run, "comparison", plot_comparison(verdict.rounds, objective=task.objective, title=title), figures)


def _history(trials: Sequence[Trial], task: DesignTask) -> pl.DataFrame:
    """One row a trial: what it is, how it scored, and its point of the search space."""
    import polars as pl

    from calolife.design.search import front_of
    from calolife.design.space import build_detector

    on_front = {trial.number for trial in front_of(trials)}
    rows = []
    for trial in trials:
        detector = build_detector(trial.parameters, task.limits, name="design")
        rows.append(
            {
                "trial": trial.number, "score": trial.score, "error": trial.error, "showers": trial.rungs[-1][0],
                "is_pruned": trial.is_pruned, "is_on_front": trial.number in on_front, "cost_chf": trial.cost_chf,
                "length_cm": trial.length_cm,
                "depth_x0": trial.depth_x0, "depth_lambda": trial.depth_lambda, "n_active": trial.n_active,
                "made_of": "; ".join(made_of(detector, i) for i in range(len(detector.sections()))), **trial.parameters,
            }
        )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def _print(verdict: Verdict, objective: str, out: Path) -> None:
    from calolife.cli.energy_tables import with_error
    from calolife.design.scores import OBJECTIVES

    last = verdict.rounds[-1]
    kinds = [f.figure for f in last.figures if f.detector == last.detectors[0]]
    # the objective, what it is the mean of, and the mixture: a table of all figures would be too wide
    own = [kind for kind in kinds if kind not in OBJECTIVES]
    shown = list(dict.fromkeys([objective, "all-sigma-eff", *own]))
    if len(own) == 1:  # one kind of particle is the mean and the mixture
        shown = list(dict.fromkeys([own[0] if objective.endswith("sigma-eff") else objective, *own]))
    of = {detector.name: detector for detector in (*verdict.designs, *verdict.published)}
    unit = {f.figure: f.unit for f in last.figures}
    rows = []
    for name in sorted(last.detectors, key=lambda name: last.figure(name, objective).value):
        values = [with_error((f := last.figure(name, figure)).value, f.error) for figure in shown]
        f = last.figure(name, objective)
        ratio = "" if f.ratio != f.ratio or name == last.reference else f"{f.ratio:.3f} [{f.ratio_low:.3f}, {f.ratio_high:.3f}]"
        rows.append([name, f"{of[name].cost_chf:.0f}", *values, ratio])
    titles = [f"{figure.replace('-sigma-eff', '')} [{unit[figure]}]" for figure in shown]
    n_columns = len(shown) + (3 if last.reference else 2)
    header = ["detector", "cost [CHF]", *titles, f"ratio to {last.reference}"]
    what = "effective sigma" if objective.endswith("sigma-eff") else f"{objective} and effective sigma"
    title = f"{what}, {last.showers} showers each, {last.engine} engine"
    print_table(title, header[:n_columns], [row[:n_columns] for row in rows])
    best = verdict.designs[0]
    for i, section in enumerate(best.sections()):
        print(f"{best.name} {section.name}: {made_of(best, i)}")
    depth = f"{best.depth_x0:.1f} X0, {best.depth_lambda:.2f} lambda_I"
    print(f"{out / 'best.toml'}: {best.length_cm:.6g} cm, {depth}, {best.cost_chf:.10g} CHF")
