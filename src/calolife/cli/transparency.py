"""`calolife transparency train | forecast | rescore | backtest | table | scan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from calolife.cli import tables
from calolife.cli.options import (
    Config,
    Data,
    Debug,
    Device,
    Force,
    Json,
    Out,
    Quiet,
    Seed,
    parse_duration,
    parse_numbers,
    parse_time,
    parse_years,
    pick_device,
    print_json,
    print_table,
    progress_bar,
    say,
    used_options,
)  # fmt: skip

if TYPE_CHECKING:
    from calolife.runs import Metric
    from calolife.transparency.history import TransparencyHistory

__all__ = ["backtest", "forecast", "rescore", "scan", "table", "train"]

MODES = ("window", "free-run")

Train = Annotated[str, typer.Option("--train", help="Years to fit: 2016, or 2016,2017, or 2016-2018.")]
Test = Annotated[str, typer.Option("--test", help="Years to score, in the same form.")]
Crystals = Annotated[
    str | None, typer.Option("--crystals", help="Crystals to use: 54000,54001 or 54000-54359; all when left out.", show_default=False)
]
Ring = Annotated[str | None, typer.Option("--ring", help="Rings (ieta) to use: 66 or 1-85.", show_default=False)]
Hidden = Annotated[int, typer.Option("--hidden", min=1, help="lstm: size of its states.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="lstm: most passes over the training windows.")]
RunArgument = Annotated[Path, typer.Argument(help="Run directory with a trained model.", show_default=False)]
OptionalOut = Annotated[
    Path | None, typer.Option("--out", "-o", help="Directory to write; nothing is written when left out.", show_default=False)
]


def train(
    ctx: typer.Context,
    data: Data,
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="persistence, ridge, kinetics, lstm, hybrid or default: the default in window mode.")
    ] = "default",
    train: Train = "2016",
    crystals: Crystals = None,
    ring: Ring = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help="lstm: what its decoder is fed in training: recursive, teacher or mixed.")
    ] = "recursive",
    teacher_forcing: Annotated[
        float, typer.Option("--teacher-forcing", help="lstm: probability of the true readings in teacher and mixed.")
    ] = 0.5,
    hidden: Hidden = 64,
    epochs: Epochs = 200,
    length: Annotated[int, typer.Option("--length", min=2, help="lstm: readings encoded, and decoded.")] = 24,
    time_step: Annotated[bool, typer.Option("--time-step", help="lstm: the time to the next reading is an input too.")] = False,
    patience: Annotated[
        int, typer.Option("--patience", min=0, help="lstm: epochs without gain on the tail before it stops; 0: never.")
    ] = 30,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit a model to some years. A training that was stopped goes on when the command is repeated."""
    import time

    from calolife.plots import plot_response
    from calolife.runs import Metric, log, new_run, write_metrics, write_plot
    from calolife.storage import save_model
    from calolife.transparency.studies import Network, fit_named, resolve_name

    years = parse_years(train, what="--train")
    name = resolve_name(model, mode="window")
    if not 0 <= teacher_forcing <= 1:
        raise ValueError(f"--teacher-forcing {teacher_forcing} must be a probability, 0 to 1")
    network = Network(
        hidden=hidden, epochs=epochs, strategy=strategy, teacher_forcing=teacher_forcing, encoder_length=length, decoder_length=length,
        stride=length, features=("time_step",) if time_step else (), patience=patience or None, device=pick_device(device),
    )  # fmt: skip
    history = _read(data, crystals=crystals, ring=ring, years=years)
    with new_run(out, config=used_options(ctx), seed=seed, inputs=[data], force=force) as run:
        started = time.perf_counter()
        checkpoint = run.path / "checkpoint"
        if run.is_resumed and checkpoint.exists():
            say(f"taking up the training in {checkpoint}", quiet=quiet)
        with progress_bar(quiet=quiet) as report:
            made = fit_named(name, history, seed=seed, network=network, checkpoint_dir=checkpoint, tell=report)
        seconds = time.perf_counter() - started
        save_model(made, run.path)
        log(run, f"fitted {name} to {history.n_readings} readings of {history.xtal_ids.size} crystals in {seconds:.1f} s")
        write_plot(run, "response", plot_response(history), tables.response_table(history))
        half = made.interval.at([6 * 3600.0, 30 * 86400.0])[1]
        n = history.n_readings
        metrics = {
            "fit_seconds": Metric(seconds, math.nan, "s", n),
            "half95_6h": Metric(100 * float(half[0]), math.nan, "%", n),
            "half95_30d": Metric(100 * float(half[1]), math.nan, "%", n),
        }
        metrics |= _centres(made)
        write_metrics(run, metrics)
        _drop_checkpoint(checkpoint)
    if as_json:
        print_json(
            {"model": name, "train": list(years), "crystals": history.xtal_ids.tolist(), "run": str(out), "metrics": _plain(metrics)}
        )
        return
    print(f"{name} fitted to {n} readings of {history.xtal_ids.size} crystals in {', '.join(map(str, years))}: {seconds:.1f} s, in {out}")


_MOST_IFB_PER_DAY = 10.0  # chosen: more than twice what the HL-LHC is designed for


def _centres(made: Any) -> dict[str, Metric]:
    """tau and b of a model's colour centres, with errors; nothing for a model without."""
    from calolife.runs import Metric

    kinetics = getattr(made, "kinetics", made)
    if not hasattr(kinetics, "tau_d"):
        return {}
    n = kinetics.xtal_id.size
    found = {}
    for j, (tau, b) in enumerate(zip(kinetics.tau_d[0], kinetics.b_per_ifb[0], strict=True)):
        found[f"tau_{j + 1}"] = Metric(float(tau), float(tau * kinetics.log_error[0, j]), "d", n)
        found[f"b_{j + 1}"] = Metric(float(b), float(b * kinetics.log_error[1, j]), "fb", n)
    return found


def forecast(
    ctx: typer.Context,
    run: RunArgument,
    data: Data,
    out: Out,
    future: Annotated[
        str | None,
        typer.Option(
            "--future",
            help="Luminosity to come: a CSV file (time, lumi_ifb of each interval) or lhc-2018-like, nominal-week, stop.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Now, UTC; readings after it are not used. The last reading when left out.", show_default=False),
    ] = None,
    horizon: Annotated[str, typer.Option("--horizon", help="How far to forecast: 12h, 30d, 2w.")] = "30d",
    every: Annotated[
        str | None, typer.Option("--every", help="Time between forecast readings; as the readings were when left out.", show_default=False)
    ] = None,
    crystals: Crystals = None,
    ring: Ring = None,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Forecast each crystal from its last reading on, given the luminosity to come."""
    from calolife.plots import plot_forecast
    from calolife.runs import Metric, new_run, write_json, write_metrics, write_plot, write_table
    from calolife.storage import save_model
    from calolife.transparency.daily import forecast_ahead, repeat_until
    from calolife.transparency.forecasters import load_model
    from calolife.transparency.schedule import SCHEDULE_NAMES, open_schedule

    if future is None:
        named = ", ".join(SCHEDULE_NAMES)
        raise ValueError(f"a forecast needs the luminosity to come: give --future FILE.csv (columns time, lumi_ifb) or one of {named}")
    horizon_s = parse_duration(horizon, what="--horizon")
    step_s = None if every is None else parse_duration(every, what="--every")
    model = load_model(run)
    history = _read(data, crystals=crystals, ring=ring)
    from_s = max(float(b.time_s[-1]) for b in history.blocks) if start is None else parse_time(start, what="--from")
    last_s = [float(b.time_s[b.time_s <= from_s][-1]) for b in history.blocks if b.time_s[0] <= from_s]
    # of crystals read at other minutes, the earliest: the plan must reach back to each one's last reading
    latest = max(last_s, default=from_s)
    schedule = open_schedule(future, start_s=min((t for t in last_s if t > latest - 86400.0), default=from_s))
    if future == "nominal-week":
        schedule = repeat_until(schedule, from_s + horizon_s)
    inputs = [run, data] + ([] if future in SCHEDULE_NAMES else [Path(future)])
    rate = schedule.lumi_ifb / (np.diff(schedule.time_s) / 86400.0)
    if rate.max() > _MOST_IFB_PER_DAY:
        raise ValueError(
            f"--future {future}: {rate.max():.3g} /fb in a day; the LHC delivers about 1 (HL-LHC: 4), so lumi_ifb must be 1/fb per interval"
        )
    is_fitted = from_s <= _last_training_s(history, model)
    with new_run(out, config=used_options(ctx), inputs=inputs, force=force) as made:
        outlooks = forecast_ahead(model, history, schedule=schedule, horizon_s=horizon_s, from_s=from_s, step_s=step_s)
        ahead = tables.outlook_table(outlooks)
        write_table(made, "forecast", ahead)
        write_table(made, "plan", tables.plan_table(schedule, min(o.last_s for o in outlooks), from_s + horizon_s))
        write_json(made, "outlook", {"from_s": from_s, "horizon_s": horizon_s, "model": model.name})
        save_model(model, made.path)
        first = outlooks[0]
        shown_s = max(from_s - horizon_s, float(first.block.time_s[0]))
        axes = plot_forecast(first.block, first.forecast, xtal_id=int(first.block.xtal_id[0]), start_s=shown_s)
        write_plot(made, "forecast", axes, ahead.filter(ahead["xtal_id"] == first.block.xtal_id[0]))
        n_crystals = sum(o.block.n_crystals for o in outlooks)
        end = [float(v) for o in outlooks for v in o.forecast.transparency[:, 0, -1] / o.block.transparency[:, o.forecast.row[0, 0] - 1]]
        mean = sum(end) / len(end)
        spread = math.sqrt(sum((e - mean) ** 2 for e in end) / max(len(end) - 1, 1) / len(end))
        metrics = {
            "luminosity": Metric(float(first.lumi_ifb.sum()), math.nan, "1/fb", first.lumi_ifb.size),
            "response_at_end": Metric(mean, spread, "", n_crystals),
        }
        write_metrics(made, metrics)
    if is_fitted:  # said once it is made: bad input is one line
        say("the model was fitted to readings of this time: not a forecast but a description", quiet=quiet)
    if as_json:
        print_json(
            {
                "model": model.name,
                "from": tables.time_text(from_s),
                "in_sample": is_fitted,
                "run": str(out),
                "metrics": _plain(metrics),
                "forecast": ahead.to_dicts(),
            }
        )
        return
    ahead_text = f"{horizon} and {metrics['luminosity'].value:.2f} /fb ahead"
    print(f"{model.name}, {n_crystals} crystals from {tables.time_text(from_s)}, {ahead_text}:")
    print(f"transparency at the end over that of the last reading: {mean:.4f}, mean over crystals")
    print("the intervals hold for this luminosity; what an error of the plan costs is not in them")
    print(out / "forecast.parquet")


def _last_training_s(history: TransparencyHistory, model: Any) -> float:
    """Last reading [s] of the years that a model was fitted to."""
    return max((float(b.time_s[-1]) for b in history.blocks if b.year in model.train_years), default=-math.inf)


def rescore(
    run: Annotated[Path, typer.Argument(help="Run directory of a forecast.", show_default=False)],
    data: Data,
    out: OptionalOut = None,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Score a forecast once its readings are in: with the luminosity planned then, and with the one delivered."""
    import json
    from dataclasses import asdict

    import polars as pl

    from calolife.errors import FileFormatError
    from calolife.runs import Metric, new_run, read_run, write_metrics, write_table
    from calolife.storage import read_history
    from calolife.transparency.daily import rescore_outlook
    from calolife.transparency.forecasters import load_model
    from calolife.transparency.schedule import read_schedule

    if "outlook.json" not in read_run(run).files:
        raise FileFormatError(f"{run} holds no forecast; give a run of 'calolife transparency forecast'")
    asked = json.loads((run / "outlook.json").read_text(encoding="utf-8"))
    schedule = read_schedule(run / "plan.csv")
    scores = rescore_outlook(load_model(run), read_history(data), schedule=schedule, from_s=asked["from_s"], horizon_s=asked["horizon_s"])
    rows = [asdict(s) for s in scores]
    metrics = {}
    for luminosity in ("planned", "delivered"):
        mape = [s.mape_percent for s in scores if s.luminosity == luminosity]
        mean = sum(mape) / len(mape)
        error = math.sqrt(sum((m - mean) ** 2 for m in mape) / (len(mape) - 1) / len(mape)) if len(mape) > 1 else math.nan
        metrics[f"mape_{luminosity}"] = Metric(mean, error, "%", len(mape))
    if out is not None:
        config_used = {"command": "transparency rescore", "options": {"run": str(run.resolve()), "data": str(data.resolve())}}
        with new_run(out, config=config_used, inputs=[run, data], force=force) as made:
            write_table(made, "scores", pl.DataFrame(rows))
            write_metrics(made, metrics)
    if as_json:
        print_json({"model": asked["model"], "results": rows, "metrics": _plain(metrics)})
        return
    cells = [
        [
            f"{s.xtal_id}, {s.luminosity}", str(s.n_readings), f"{s.mape_percent:.3f}", f"{s.persistence_percent:.3f}",
            tables.percent(s.coverage68), tables.percent(s.coverage95), f"{s.lumi_ifb:.2f}", f"{s.delivered_ifb:.2f}",
        ]
        for s in scores
    ]  # fmt: skip
    print_table(
        f"{asked['model']}: forecast against the readings that came",
        ["crystal, luminosity", "readings", "MAPE [%]", "last reading [%]", "in 68 %", "in 95 %", "given [1/fb]", "delivered [1/fb]"],
        cells,
    )


def backtest(
    ctx: typer.Context,
    data: Data,
    models: Annotated[
        str, typer.Option("--models", help="Models to compare: default, persistence, ridge, kinetics, lstm, hybrid.")
    ] = "default,persistence",
    train: Train = "2016",
    test: Test = "2017,2018",
    mode: Annotated[
        str, typer.Option("--mode", help="window (truth given every 24 readings), free-run (only the first 24), or both.")
    ] = "window,free-run",
    crystals: Crystals = None,
    ring: Ring = None,
    published_leak: Annotated[
        bool, typer.Option("--published-leak", help="Add rows NAME-leak that are scaled with the test year, as published.")
    ] = False,
    hidden: Hidden = 64,
    epochs: Epochs = 200,
    out: OptionalOut = None,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit models on some years and score them on others."""
    from calolife.runs import new_run
    from calolife.transparency.studies import Network, compare_models, resolve_name

    train_years, test_years = parse_years(train, what="--train"), parse_years(test, what="--test")
    names = _names(models, what="--models")
    modes = _names(mode, what="--mode")
    if unknown := [m for m in modes if m not in MODES]:
        raise ValueError(f"--mode {unknown[0]!r} is not one of {', '.join(MODES)}")
    for name in names:
        resolve_name(name, mode=modes[0])
    network = Network(hidden=hidden, epochs=epochs, device=pick_device(device))
    history = _read(data, crystals=crystals, ring=ring, years=(*train_years, *test_years))

    def compare(checkpoint: Path | None) -> Any:
        with progress_bar(quiet=quiet) as report:
            return compare_models(
                names, history, train_years=train_years, test_years=test_years, modes=modes, seed=seed, network=network,
                published_leak=published_leak, checkpoint_dir=checkpoint, tell=report,
            )  # fmt: skip

    if out is None:
        comparison = compare(None)
    else:
        with new_run(out, config=used_options(ctx), seed=seed, inputs=[data], force=force) as run:
            comparison = compare(run.path / "checkpoint")
            tables.save_comparison(run, comparison, history.select(years=test_years))
            _drop_checkpoint(run.path / "checkpoint")
    if as_json:
        print_json(comparison.to_json_dict())
        return
    tables.print_backtest(comparison)
    if out is not None:
        print(f"plots and numbers: {out}")


def table(
    ctx: typer.Context,
    data: Data,
    train: Train = "2016",
    test: Test = "2016-2018",
    crystals: Crystals = None,
    ring: Ring = None,
    published_size: Annotated[
        bool, typer.Option("--published-size", help="Hidden size 1024 and 200 epochs, as published: hours on a CPU.")
    ] = False,
    hidden: Hidden = 32,
    epochs: Epochs = 30,
    out: OptionalOut = None,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """The published Table 1 (Model-S, Model-R; recursive, mixed, teacher-forced) beside ours."""
    from dataclasses import asdict

    import polars as pl

    from calolife.runs import new_run, write_json, write_metrics, write_table
    from calolife.transparency.studies import Network, score_published_table

    train_years, test_years = parse_years(train, what="--train"), parse_years(test, what="--test")
    if published_size:
        hidden, epochs = 1024, 200
    # as published: no early stopping, the whole span trained on
    network = Network(hidden=hidden, epochs=epochs, patience=None, device=pick_device(device))
    history = _read(data, crystals=crystals, ring=ring, years=(*train_years, *test_years))
    with progress_bar(quiet=quiet) as report:
        rows, result = score_published_table(history, train_years=train_years, years=test_years, network=network, seed=seed, tell=report)
    if out is not None:
        with new_run(out, config=used_options(ctx), seed=seed, inputs=[data], force=force) as run:
            flat = [asdict(r) | {"published_percent": None, "low": r.published_percent[0], "high": r.published_percent[1]} for r in rows]
            write_table(run, "table", pl.DataFrame(flat).drop("published_percent"))
            write_json(run, "results", result.to_json_dict())
            write_metrics(run, tables.mean_metrics(result))
    document = result.to_json_dict() | {"hidden": hidden, "epochs": epochs, "table": [asdict(r) for r in rows]}
    if as_json:
        print_json(document)
        return
    columns = [(mode, year) for mode in MODES for year in test_years]
    by_cell = {(r.layout, r.strategy, r.mode, r.year): r for r in rows}
    published = {(r.mode, r.year): r.published_percent for r in rows}
    scores = {(s.model, s.mode, s.year): s.mean_mape_percent for s in result.scores}
    seconds = {name: f"{value:.1f}" for name, value in result.fit_seconds.items()}
    lines = [["published, lowest-highest", *(_range(published[c]) for c in columns), ""]]
    for layout in ("Model-S", "Model-R"):
        for strategy in ("R", "M", "T"):
            honest = f"lstm-{layout[-1].lower()}-{strategy.lower()}"
            leak = [f"{by_cell[layout, strategy, *c].ours_percent:.3f}" for c in columns]
            lines.append([f"{layout} {strategy}, leak", *leak, seconds[honest]])
            lines.append([f"{layout} {strategy}", *(_cell(scores.get((honest, *c))) for c in columns), seconds[honest]])
    lines.append(["default, no leak", *(_cell(scores.get(("default", *c))) for c in columns), seconds["default"]])
    size = "the published size" if published_size else "scaled down; --published-size for the published one"
    n_crystals = result.scores[0].xtal_id.size
    title = f"mean MAPE [%] over {n_crystals} crystal{'s' * (n_crystals != 1)}; hidden size {hidden}, {epochs} epochs ({size})"
    header = [f"{mode} {year}{', fitted' if year in train_years else ''}" for mode, year in columns]
    print_table(title, ["model", *header, "fit [s]"], lines)
    print("leak: scaled with the test year's own mean and spread, as published; R, M, T: recursive, mixed, teacher-forced")
    if fitted := [str(y) for y in test_years if y in train_years]:
        print(f"fitted: the models were fitted to {', '.join(fitted)}; no forecast of a new year")


def scan(
    ctx: typer.Context,
    data: Data,
    lengths: Annotated[str, typer.Option("--lengths", help="Readings encoded and decoded.")] = "6,12,24,48,96",
    train: Train = "2016",
    test: Test = "2017,2018",
    crystals: Crystals = None,
    ring: Ring = None,
    hidden: Hidden = 32,
    epochs: Epochs = 30,
    out: OptionalOut = None,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Error of the lstm against the length of its sequences."""
    import polars as pl

    from calolife.plots import plot_lengths
    from calolife.runs import Metric, new_run, write_metrics, write_plot
    from calolife.transparency.studies import Network, scan_lengths

    wanted = parse_numbers(lengths, what="--lengths")
    train_years, test_years = parse_years(train, what="--train"), parse_years(test, what="--test")
    network = Network(hidden=hidden, epochs=epochs, device=pick_device(device))
    history = _read(data, crystals=crystals, ring=ring, years=(*train_years, *test_years))
    with progress_bar(quiet=quiet) as report:
        found = scan_lengths(history, wanted, train_years=train_years, test_years=test_years, network=network, seed=seed, tell=report)
    rows: list[dict[str, Any]] = [{"series": y, "length": n, "mape_percent": found[y][n]} for y in found for n in found[y]]
    if out is not None:
        with new_run(out, config=used_options(ctx), seed=seed, inputs=[data], force=force) as run:
            write_plot(run, "lengths", plot_lengths(found), pl.DataFrame(rows))
            n_crystals = int(history.xtal_ids.size)
            write_metrics(
                run, {f"mape_{r['series']}_{r['length']}": Metric(float(r["mape_percent"]), math.nan, "%", n_crystals) for r in rows}
            )
    if as_json:
        print_json({"results": rows, "hidden": hidden, "epochs": epochs})
        return
    cells = [[str(n), *(f"{found[y][n]:.3f}" for y in found)] for n in wanted]
    print_table(f"window MAPE [%], hidden size {hidden}, at most {epochs} epochs", ["length", *found], cells)


def _read(data: Path, *, crystals: str | None, ring: str | None, years: Sequence[int] | None = None) -> TransparencyHistory:
    from calolife.storage import read_history

    return read_history(
        data,
        years=years,
        xtal_ids=None if crystals is None else parse_numbers(crystals, what="--crystals"),
        ieta=None if ring is None else parse_numbers(ring, what="--ring"),
    )


def _names(text: str, *, what: str) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    if not names:
        raise ValueError(f"{what} {text!r} names nothing; give one or more, separated by commas")
    return names


def _drop_checkpoint(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _plain(metrics: dict[str, Metric]) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: asdict(m) for name, m in metrics.items()}


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _range(limits: tuple[float, float]) -> str:
    return "" if math.isnan(limits[0]) else f"{limits[0]:.3f}-{limits[1]:.3f}"
