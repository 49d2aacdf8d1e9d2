"""`calolife showers tune`: the constants of the fast engine, again from Geant4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calolife.cli.options import Config, Debug, Force, Json, Out, Quiet, Seed, Workers, print_json, progress_bar, say, used_options

if TYPE_CHECKING:
    from calolife.runs import Metric, Run
    from calolife.simulation.tune import StageFit

__all__ = ["tune"]


def tune(
    ctx: typer.Context,
    out: Out,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Directory of the Geant4 samples; what it lacks is simulated into it. In the run if not given.",
                     show_default=False),
    ] = None,
    stages: Annotated[str, typer.Option("--stages", help="Stages to run, in their order.")] = "em-homogeneous,em-sampling,hadronic",
    iterations: Annotated[int, typer.Option("--iterations", min=0, help="At most so many steps a stage; 0: compare only.")] = 4,
    events_scale: Annotated[float, typer.Option("--events-scale", help="Factor on all numbers of showers, for a quick look.")] = 1.0,
    tuning_list: Annotated[
        Path | None, typer.Option("--list", help="Another list of samples, in TOML; that of the package if not given.", show_default=False)
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Constants to start from, in CSV; those of the package if not given.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="geant4; or fast, which stands in for it to see the fit close.")] = "geant4",
    seed: Seed = 0,
    workers: Workers = 1,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Tune the fast engine to Geant4. Run again after a stop, it goes on."""
    import hashlib

    from calolife.runs import log, new_run, write_metrics
    from calolife.simulation.engines import ENGINES
    from calolife.simulation.production import n_cores
    from calolife.simulation.tune import fit_stage, packaged_table, pick_stages, read_constants, tuned_names, with_constants
    from calolife.simulation.tuning_samples import load_tuning, make_sample, read_sample

    if engine not in ENGINES:
        raise ValueError(f"--engine {engine!r} is not one of {', '.join(ENGINES)}")
    wanted = pick_stages(stages)
    table = packaged_table() if start is None else start.read_text(encoding="utf-8")
    constants = read_constants(table, what="the package's table" if start is None else str(start))
    listed = list(load_tuning(tuning_list, events_scale=events_scale))
    pick_stages(",".join(s.stage for s in listed))
    listed = [s for s in listed if s.stage in {stage.name for stage in wanted}]
    if without := [stage.name for stage in wanted if stage.name not in {s.stage for s in listed}]:
        raise ValueError(f"stage {without[0]} has no samples in {tuning_list}; name some, or leave it out with --stages")
    asked = used_options(ctx)
    del asked["options"]["workers"]  # the constants do not depend on it: an unfinished run may go on with another number
    # stages of two tables or lists must not meet in one run
    asked["start_sha256"] = hashlib.sha256(table.encode()).hexdigest()
    asked["samples"] = [f"{s.name} {s.detector.digest[:16]} {s.n} {s.n_fast} {s.weight:g} {s.beam_spot_mm:g} {s.seed}" for s in listed]
    n_workers = workers or n_cores()
    fits: list[StageFit] = []
    inputs = [p for p in (tuning_list, start) if p is not None]
    with new_run(out, config=asked, seed=seed, inputs=inputs, force=force) as run, progress_bar(quiet=quiet) as report:
        folder = run.path / "samples" if samples is None else samples
        folder.mkdir(parents=True, exist_ok=True)

        def note(text: str) -> None:
            log(run, text)
            say(text, quiet=quiet)

        for i, sample in enumerate(listed):
            report("samples", i, len(listed))
            if not (folder / f"{sample.name}.h5").exists():
                make_sample(sample, folder, engine=engine, workers=n_workers, tell=report)
                log(run, f"simulated {sample.name}: {sample.n} showers with {engine}")
        report("samples", len(listed), len(listed))
        for stage in wanted:
            kept = run.path / f"stage_{stage.name}.json"
            if run.is_resumed and kept.exists():
                fit = _read_fit(kept, constants)
                note(f"{stage.name}: done before")
            else:
                references = [(s, read_sample(s, folder, engine=engine)) for s in listed if s.stage == stage.name]
                free = tuned_names(table)
                fit = fit_stage(
                    stage, references, constants, is_free=free.__contains__, iterations=iterations, seed=seed, workers=n_workers,
                    tell=report, log=note,
                )  # fmt: skip
                _write_fit(run, fit)
            constants = fit.constants
            fits.append(fit)
            _write_features(run, fit)
        (run.path / "shower_constants.csv").write_text(with_constants(table, constants), encoding="utf-8")
        _write_moves(run, fits, read_constants(table))
        metrics = _metrics(fits)
        write_metrics(run, metrics)
    if as_json:
        stages_done = [f.stage for f in fits]
        print_json({"path": str(out), "stages": stages_done, "metrics": {n: m.value for n, m in metrics.items() if "/" not in n}})
        return
    for fit in fits:
        print(f"{fit.stage}: chi2 per feature {fit.chi2[0]:.3g} -> {fit.chi2[-1]:.3g}, {len(fit.moved)} constants, {len(fit.rows)} numbers")
    print(out / "shower_constants.csv")


def _write_fit(run: Run, fit: StageFit) -> None:
    import math
    from dataclasses import asdict

    from calolife.runs import write_json

    plain = {
        "stage": fit.stage,
        "constants": {name: getattr(fit.constants, name) for name in fit.moved},
        "spread": [None if math.isnan(s) else s for s in fit.spread],
        "chi2": list(fit.chi2),
        "rows": [asdict(row) for row in fit.rows],
    }
    write_json(run, f"stage_{fit.stage}", plain)


def _read_fit(path: Path, before: object) -> StageFit:
    import json
    import math

    from calolife.simulation.constants import Constants
    from calolife.simulation.tune import FeatureRow, StageFit

    assert isinstance(before, Constants)
    stored = json.loads(path.read_text(encoding="utf-8"))
    return StageFit(
        stored["stage"], before._replace(**stored["constants"]), tuple(stored["constants"]),
        tuple(math.nan if s is None else s for s in stored["spread"]), tuple(stored["chi2"]),
        tuple(FeatureRow(**row) for row in stored["rows"]),
    )  # fmt: skip


def _write_features(run: Run, fit: StageFit) -> None:
    from dataclasses import asdict

    import polars as pl

    from calolife.runs import write_plot, write_table
    from calolife.simulation.tune import plot_stage

    features = pl.DataFrame([asdict(row) for row in fit.rows])
    write_table(run, f"features_{fit.stage}", features)
    write_plot(run, f"features_{fit.stage}", plot_stage(fit.rows), features)


def _write_moves(run: Run, fits: list[StageFit], start: object) -> None:
    import polars as pl

    from calolife.runs import write_table

    rows = [
        {"stage": f.stage, "constant": name, "before": getattr(start, name), "after": getattr(f.constants, name), "spread": spread}
        for f in fits
        for name, spread in zip(f.moved, f.spread, strict=True)
    ]
    shape = {"stage": pl.String, "constant": pl.String, "before": pl.Float64, "after": pl.Float64, "spread": pl.Float64}
    write_table(run, "constants", pl.DataFrame(rows, schema=shape))


def _metrics(fits: list[StageFit]) -> dict[str, Metric]:
    import math

    from calolife.runs import Metric
    from calolife.simulation.tune import chi2_of

    made = {}
    for fit in fits:
        for when, is_after in (("before", False), ("after", True)):
            made[f"{fit.stage}_chi2_{when}"] = Metric(chi2_of(fit.rows, after=is_after), math.nan, "", len(fit.rows))
        for key in ("sample", "feature"):
            for name in dict.fromkeys(getattr(row, key) for row in fit.rows):
                rows = [row for row in fit.rows if getattr(row, key) == name]
                for when, is_after in (("before", False), ("after", True)):
                    made[f"{fit.stage}/{key}/{name}/chi2_{when}"] = Metric(chi2_of(rows, after=is_after), math.nan, "", len(rows))
    return made
