"""`calolife demo`: the main job on synthetic crystals, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calolife.cli import tables
from calolife.cli.options import Config, Debug, Force, Json, Quiet, Seed, print_json, progress_bar, used_options

__all__ = ["demo"]

MODELS = ("default", "hybrid", "kinetics", "ridge", "lstm", "persistence")


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")] = Path("demo-run"),
    n_crystals: Annotated[int, typer.Option("--crystals", min=1, max=360, help="Crystals to simulate.")] = 4,
    seed: Seed = 0,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Simulate crystals, fit models, score them on a year they have not seen, forecast 30 days. About a minute, offline."""
    from calolife.plots import plot_forecast
    from calolife.runs import new_run, write_plot, write_table
    from calolife.storage import save_model, write_history
    from calolife.transparency.daily import forecast_ahead, repeat_until
    from calolife.transparency.schedule import named_schedule
    from calolife.transparency.studies import Network, compare_models
    from calolife.transparency.synthetic import simulate_history

    with new_run(out, config=used_options(ctx), seed=seed, force=force) as run, progress_bar(quiet=quiet) as report:
        report("simulate", 0, 1)
        history, _ = simulate_history(n_crystals=n_crystals, n_years=2, seed=seed)
        fitted, tested = history.years
        # chosen: small and short, so that the demo stays within minutes on two cores
        network = Network(hidden=32, epochs=60)
        comparison = compare_models(
            MODELS,
            history,
            train_years=[fitted],
            test_years=[tested],
            modes=("window", "free-run"),
            seed=seed,
            network=network,
            tell=report,
        )
        tables.save_comparison(run, comparison, history.select(years=[tested]))
        model = comparison.models["default", "window"]
        save_model(model, run.path)
        # the last 30 days of beam are taken as the future, with a plan made beforehand
        from_s = max(float(b.time_s[b.lumi_ifb > 0][-1]) for b in history.of_year(tested)) - 30 * 86400.0
        report("forecast", 0, 1)
        plan = repeat_until(named_schedule("nominal-week", start_s=from_s - 86400.0), from_s + 31 * 86400.0)
        outlooks = forecast_ahead(model, history, schedule=plan, horizon_s=30 * 86400.0, from_s=from_s)
        ahead = tables.outlook_table(outlooks)
        write_table(run, "forecast", ahead)
        first = outlooks[0]
        xtal_id = int(first.block.xtal_id[0])
        axes = plot_forecast(first.block, first.forecast, xtal_id=xtal_id, start_s=from_s - 30 * 86400.0)
        write_plot(run, "forecast", axes, ahead.filter(ahead["xtal_id"] == xtal_id))
        write_history(history, run.path / "data", provenance={"made_by": "calolife demo", "seed": seed})
    if as_json:
        print_json(comparison.to_json_dict() | {"run": str(out)})
        return
    tables.print_backtest(comparison)
    print(f"synthetic crystals of ring 66, fitted to {fitted}, scored on {tested}; what they leave out is in docs/data.md")
    print(f"forecast of 30 days: {out / 'forecast.parquet'}, {out / 'plots' / 'forecast.png'}")
    print(f"all plots: {out / 'plots'}; the numbers again: calolife show {out}")
