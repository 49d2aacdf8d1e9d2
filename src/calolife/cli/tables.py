"""What a run keeps of results: tables, and plots with the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from calolife.cli.options import print_table

if TYPE_CHECKING:
    import polars as pl

    from calolife.runs import Metric, Run
    from calolife.transparency.backtest import BacktestResult
    from calolife.transparency.daily import Outlook
    from calolife.transparency.history import Block, Forecast, TransparencyHistory
    from calolife.transparency.schedule import LumiSchedule
    from calolife.transparency.studies import Comparison

__all__ = [
    "forecast_table",
    "mean_metrics",
    "outlook_table",
    "percent",
    "plan_table",
    "print_backtest",
    "response_table",
    "save_comparison",
    "time_text",
]


def time_text(time_s: float) -> str:
    """ISO 8601, UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def response_table(history: TransparencyHistory) -> pl.DataFrame:
    """Mean transparency and luminosity of each ring and day."""
    import polars as pl

    frames = []
    for block in history.blocks:
        day = np.floor(block.time_s / 86400.0).astype(np.int64)
        for ieta in np.unique(block.ieta):
            here = block.ieta == ieta
            frames.append(
                pl.DataFrame(
                    {"ieta": np.full(day.size, ieta), "day": day, "n": np.full(day.size, int(here.sum())),
                     "sum": block.transparency[here].sum(axis=0)}
                )
            )  # fmt: skip
    daily = pl.concat(frames).group_by("ieta", "day").agg(pl.col("sum").sum(), pl.col("n").sum()).sort("ieta", "day")
    return daily.select("ieta", pl.from_epoch("day", time_unit="d").alias("day"), (pl.col("sum") / pl.col("n")).alias("transparency"))


def outlook_table(outlooks: Sequence[Outlook]) -> pl.DataFrame:
    """One row per crystal and forecast reading."""
    import polars as pl

    return pl.concat([forecast_table(o.block, o.forecast).with_columns(lumi_ifb=np.tile(o.lumi_ifb, o.block.n_crystals)) for o in outlooks])


def forecast_table(block: Block, forecast: Forecast) -> pl.DataFrame:
    """One row per crystal, window and step; times are UTC."""
    import polars as pl

    row = forecast.row.ravel()
    n = block.n_crystals
    time_us = (block.time_s[row] * 1e6).round().astype(np.int64)
    value = forecast.transparency.reshape(n, -1)
    half68, half95 = forecast.half68.reshape(n, -1), forecast.half95.reshape(n, -1)
    columns = {
        "xtal_id": np.repeat(block.xtal_id, row.size),
        "ieta": np.repeat(block.ieta, row.size),
        "iphi": np.repeat(block.iphi, row.size),
        "time": np.tile(time_us, n),
        "transparency": value.ravel(),
        "lower68": (value - half68).ravel(),
        "upper68": (value + half68).ravel(),
        "lower95": (value - half95).ravel(),
        "upper95": (value + half95).ravel(),
    }
    return pl.DataFrame(columns).with_columns(pl.from_epoch("time", time_unit="us").dt.replace_time_zone("UTC"))


def plan_table(schedule: LumiSchedule, start_s: float, stop_s: float) -> pl.DataFrame:
    """The schedule's intervals that touch a span, as `read_schedule` reads them back."""
    import polars as pl

    last = min(int(np.searchsorted(schedule.time_s, stop_s)), schedule.lumi_ifb.size)
    first = max(int(np.searchsorted(schedule.time_s, start_s, side="right")) - 2, 0)
    # the last row closes the interval before it
    lumi = np.append(schedule.lumi_ifb[first:last], 0.0)
    return pl.DataFrame({"time": [_exact(t) for t in schedule.time_s[first : last + 1]], "lumi_ifb": lumi})


def _exact(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat()


def save_comparison(run: Run, comparison: Comparison, tested: TransparencyHistory) -> None:
    """Scores, tables and plots of a backtest."""
    import polars as pl

    from calolife.plots import plot_coverage, plot_forecast, plot_horizon, plot_mape, plot_response
    from calolife.runs import write_json, write_metrics, write_plot, write_table
    from calolife.transparency.backtest import WINDOW, known_before, window_count

    result = comparison.result
    document = comparison.to_json_dict()
    write_json(run, "results", document)
    write_table(run, "results", pl.DataFrame(document["results"], infer_schema_length=None))
    write_metrics(run, mean_metrics(result))
    write_plot(run, "response", plot_response(tested), response_table(tested))
    results = pl.DataFrame(document["results"], infer_schema_length=None)
    for mode in dict.fromkeys(s.mode for s in result.scores):
        for year in tested.years:
            scores = [s for s in result.scores if (s.mode, s.year) == (mode, year) and not s.model.endswith("-last24")]
            here = results.filter((pl.col("mode") == mode) & (pl.col("year") == year))
            write_plot(run, f"mape-{mode}-{year}", plot_mape(scores), here.select("model", "crystal", "mape_percent", "skill"))
    if any(np.isfinite(s.coverage95).all() for s in result.scores):
        write_plot(
            run, "coverage", plot_coverage(result.scores), results.select("model", "mode", "year", "crystal", "coverage68", "coverage95")
        )
    if result.horizons:
        write_plot(
            run, "error-against-horizon", plot_horizon(result.horizons), pl.DataFrame(document["horizons"], infer_schema_length=None)
        )
    for (name, mode), model in comparison.models.items():
        if name != next(iter(n for n, m in comparison.models if m == mode)):
            continue  # curves of the first model asked for; all of them would be a book
        for year in tested.years:
            block = next(tested.of_year(year)).crystals([0])
            n = window_count(block.n_readings)
            origins, horizon = (WINDOW * np.arange(1, n + 1), WINDOW) if mode == "window" else (np.array([WINDOW]), WINDOW * n)
            made = model.forecast(known_before(block, int(origins[-1])), origins=origins, horizon=horizon)
            axes = plot_forecast(block, made, xtal_id=int(block.xtal_id[0]))
            truth = block.transparency[0, made.row.ravel()]
            write_plot(run, f"curves-{mode}-{year}", axes, forecast_table(block, made).with_columns(reading=truth))


def print_backtest(comparison: Comparison) -> None:
    """Mean scores as a table, and the published tasks as a second one."""
    document = comparison.to_json_dict()
    rows = []
    for mean in document["mean"]:
        rows.append(
            [_called(mean, comparison.default[mean["mode"]]), mean["mode"], str(mean["year"]), f"{mean['mape_percent']:.3f}", _skill(mean),
             percent(mean["coverage68"]), percent(mean["coverage95"]), _seconds(mean["fit_s"]), _seconds(mean["forecast_s"])]
        )  # fmt: skip
    header = ["model", "mode", "year", "MAPE [%]", "skill [95 %]", "in 68 %", "in 95 %", "fit [s]", "forecast [s]"]
    n = comparison.result.scores[0].xtal_id.size
    print_table(f"mean over {n} crystal{'s' * (n != 1)}; skill is against repeating the last reading", header, rows)
    tasks = []
    for mean in document["tasks"]:
        mode = "free-run" if mean["task"] == "year-to-year" else "window"
        called = _called(mean, comparison.default[mode])
        tasks.append([called, mean["task"], str(mean["year"]), f"{mean['mape_percent']:.3f}", _skill(mean), str(mean["n_targets"])])
    if tasks:
        print_table("the published tasks", ["model", "task", "year", "MAPE [%]", "skill [95 %]", "readings"], tasks)


def _called(mean: Mapping[str, Any], default: str) -> str:
    name = mean["model"].replace("default", f"default ({default})", 1)
    return f"{name}{', fitted year' if mean['in_sample'] else ''}"


def _skill(mean: Mapping[str, Any]) -> str:
    if mean["skill"] is None:
        return ""
    around = "-" if mean["skill_low"] is None else f"{_two(mean['skill_low'])}, {_two(mean['skill_high'])}"
    return f"{_two(mean['skill'])} [{around}]"


def mean_metrics(result: BacktestResult) -> dict[str, Metric]:
    """Mean MAPE of each model, mode and year, with a quarter of its 95 % interval's width as the error."""
    from calolife.runs import Metric

    metrics = {}
    for s in result.scores:
        low, high = s.mape_percent_interval
        metrics[f"mape {s.model} {s.mode} {s.year}"] = Metric(s.mean_mape_percent, (high - low) / 3.92, "%", int(s.xtal_id.size))
    return metrics


def percent(fraction: float | None) -> str:
    """For print; empty where unknown."""
    return "" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")
