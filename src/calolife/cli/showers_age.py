"""`calolife showers age`: showers in, the same from a damaged detector out, the truth kept beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calolife.cli.options import (
    Config,
    Debug,
    Force,
    Json,
    Out,
    Quiet,
    Report,
    Seed,
    must_be_apart,
    print_json,
    progress_bar,
    say,
    used_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from calolife.ageing.coefficients import Ageing
    from calolife.detector.presets import Detector
    from calolife.runs import Metric, Run
    from calolife.showers.events import Showers

__all__ = ["age", "mean_metric"]

_RECHITS_PER_PART = 2_000_000  # chosen: with every cell read out a part still takes about 200 MB
_MUCH_DOSE, _MUCH = 0.01, "1 % of the largest dose or more"  # chosen: the others would fill the map with one colour

DetectorName = Annotated[
    str | None,
    typer.Option("--detector", help="Preset or TOML file; needed where the file does not tell (CaloChallenge).", show_default=False),
]


def age(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Argument(metavar="SHOWERS", help="Run directory with showers, or a file of them (.h5, .root).", show_default=False)
    ],
    out: Out,
    max_loss: Annotated[
        float, typer.Option("--max-loss", help="Part of the signal lost where the dose is largest, such as 0.107.", show_default=False)
    ],
    law: Annotated[str, typer.Option("--law", help="How the loss grows with the dose: linear, saturating or sqrt.")] = "linear",
    scatter: Annotated[float, typer.Option("--scatter", help="Spread from cell to cell, a part of the signal, such as 0.01.")] = 0.0,
    dose_from: Annotated[
        Path | None, typer.Option("--dose-from", help="Showers that make the dose; SHOWERS itself when left out.", show_default=False)
    ] = None,
    detector: DetectorName = None,
    seed: Seed = 0,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Lay radiation damage on showers. The true signal fractions go to the folder truth/ of the run, which no estimator reads."""
    import numpy as np

    from calolife.ageing.damage import age_showers, damage_ageing, dose_gy, silent_cells
    from calolife.ageing.files import TRUTH_FILE, write_ageing
    from calolife.detector.presets import load_detector
    from calolife.runs import Metric, log, new_run, write_metrics
    from calolife.showers.files import SHOWERS_FILE, count_showers, iter_showers, read_showers, write_showers

    must_be_apart(out, [data] if dose_from is None else [data, dose_from])
    known = None if detector is None else load_detector(detector)
    sample = read_showers(data, stop=0, detector=known)
    calo = sample.detector
    # asked before the showers are read, so that a wrong number is told at once
    damage_ageing(calo, np.ones(calo.n_cells), law=law, max_loss=max_loss, scatter=scatter, seed=seed)
    if dose_from is not None:
        source = read_showers(dose_from, stop=0, detector=known).detector
        if source.digest != calo.digest:
            raise ValueError(
                f"--dose-from {dose_from} was made in detector {source.name!r} ({source.digest[:8]}), the showers in {calo.name!r} "
                f"({calo.digest[:8]}); take both from one detector"
            )
    n_showers = count_showers(data, detector=known)
    if n_showers == 0:
        raise ValueError(f"{data} has no showers; give a sample that has some")
    is_rechit = sample.kind == "rechit"
    with progress_bar(quiet=quiet) as report:
        dose, n_rechits = _dose(data if dose_from is None else dose_from, known, calo, report)
        if dose_from is not None and is_rechit:
            _, n_rechits = _dose(data, known, calo, report)
    if not (dose > 0).any():
        raise ValueError(f"{data if dose_from is None else dose_from} has no energy in any cell: there is no dose; give showers with hits")
    ageing = damage_ageing(calo, dose, law=law, max_loss=max_loss, scatter=scatter, seed=seed)
    silent = silent_cells(sample.readout, n_rechits, n_showers) if sample.readout is not None else np.zeros(0, np.int64)
    before, after = [np.zeros(0)], [np.zeros(0)]
    counts = {"n_hits": 0, "n_saturated": 0}

    def parts(report: Report) -> Iterator[Showers]:
        done = 0
        size = min(1000, max(1, _RECHITS_PER_PART // calo.n_cells)) if is_rechit else 1000
        for part in iter_showers(data, chunk=size, detector=known):
            aged = age_showers(part, ageing, seed=seed, first=done, dead=silent)
            yield aged
            before.append(part.visible_mev)
            after.append(aged.visible_mev)
            counts["n_hits"] += aged.n_hits
            if part.readout is not None:
                counts["n_saturated"] += int((part.energy_mev >= np.float32(part.readout.saturation_mev)).sum())
            done += part.n_showers
            report("showers", done, n_showers)

    asked = used_options(ctx)
    inputs = [data] if dose_from is None else [data, dose_from]
    with new_run(out, config=asked, seed=seed, inputs=inputs, force=force) as run, progress_bar(quiet=quiet) as report:
        write_showers(run.path / SHOWERS_FILE, parts(report))
        truth = run.path / TRUTH_FILE
        truth.parent.mkdir(exist_ok=True)
        write_ageing(truth, ageing)
        young, aged = np.concatenate(before), np.concatenate(after)
        has_dose = dose > 0
        seen = ageing.signal_fraction[has_dose]
        n_damaged = int(has_dose.sum())
        metrics = {
            "mean signal fraction": Metric(float(seen.mean()), math.nan, "", n_damaged),
            "lowest signal fraction": Metric(float(ageing.signal_fraction.min()), math.nan, "", calo.n_cells),
            "largest dose": Metric(float(dose.max()), math.nan, "MeV", n_damaged),
            "largest dose in gray": Metric(float(dose_gy(calo, dose).max()), math.nan, "Gy", n_damaged),
            "visible energy before": mean_metric(young),
            "visible energy after": mean_metric(aged),
        }
        write_metrics(run, metrics)
        _save_plots(run, calo, ageing, dose, young, aged)
        log(run, f"aged {n_showers} showers: {ageing.label}")
    if is_rechit:
        say(
            "these showers are rechits: they are scaled, smeared and thresholded again, which is right on average only; light lost "
            "before the readout is exact: age simhits, then digitise them",
            quiet=quiet,
        )
    if counts["n_saturated"]:
        say(
            f"{counts['n_saturated']} rechits are at the ceiling of {sample.readout.saturation_mev:g} MeV: their energy is not known, "  # type: ignore[union-attr]
            "and they lose more than their light did",
            quiet=quiet,
        )
    if "aged" in sample.origin:
        say("these showers were aged before: truth/ holds this step alone", quiet=quiet)
    if silent.size:
        say(f"{silent.size} cells never read anything, not even noise: they are taken as dead and stay so", quiet=quiet)
    if as_json:
        print_json(
            {"path": str(out), "truth": str(out / TRUTH_FILE), "detector": calo.name, "kind": sample.kind, "law": law, "max_loss": max_loss,
             "scatter": scatter, "seed": seed, "n_showers": n_showers, "n_hits": counts["n_hits"], "n_saturated": counts["n_saturated"],
             "n_silent": int(silent.size), "n_cells": calo.n_cells, "n_damaged": n_damaged, "mean_signal_fraction": float(seen.mean()),
             "min_signal_fraction": float(ageing.signal_fraction.min()), "max_dose_mev": float(dose.max()),
             "max_dose_gy": float(dose_gy(calo, dose).max()), "visible_before_mev": float(young.mean()),
             "visible_after_mev": float(aged.mean())}
        )  # fmt: skip
        return
    print(
        f"{out}: {n_showers} showers in {calo.name}, {ageing.label}; {n_damaged} cells with dose, signal fraction "
        f"{ageing.signal_fraction.min():.3f} at worst, {seen.mean():.4f} on average; {young.mean():.4g} MeV visible before, "
        f"{aged.mean():.4g} MeV after"
    )
    print(f"truth: {out / TRUTH_FILE}")


def mean_metric(visible_mev: NDArray[np.float64]) -> Metric:
    """Mean of the showers with its standard error."""
    from calolife.runs import Metric

    n = visible_mev.size
    return Metric(float(visible_mev.mean()), float(visible_mev.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, "MeV", n)


def _dose(path: Path, known: Detector | None, calo: Detector, report: Report) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Dose [MeV] and hits of every cell."""
    import numpy as np

    from calolife.ageing.damage import dose_mev
    from calolife.showers.files import count_showers, iter_showers

    total, done = count_showers(path, detector=known), 0
    dose, n_hits = np.zeros(calo.n_cells), np.zeros(calo.n_cells, dtype=np.int64)
    for part in iter_showers(path, detector=known):
        dose += dose_mev(part)
        n_hits += np.bincount(part.cell, minlength=calo.n_cells)
        done += part.n_showers
        report(f"dose of {path.name}", done, total)
    return dose, n_hits


def _save_plots(
    run: Run, calo: Detector, ageing: Ageing, dose: NDArray[np.float64], young: NDArray[np.float64], aged: NDArray[np.float64]
) -> None:
    """Figures of the showers in plots/; those that show the truth stay with it, in truth/plots/."""
    from dataclasses import replace

    import polars as pl

    from calolife.ageing.damage import dose_gy
    from calolife.detector.layers import LayeredCalorimeter
    from calolife.plots_ageing import plot_against_dose, plot_cell_map, plot_energy_sums
    from calolife.runs import write_plot

    table = pl.DataFrame({"visible_before_mev": young, "visible_after_mev": aged})
    write_plot(run, "energy-sums", plot_energy_sums({"before": young, "after": aged}, title=ageing.label), table)
    kept = replace(run, path=run.path / "truth")
    columns = calo.cell_index(ageing.cell)
    names = ("layer", "ix", "iy") if isinstance(calo, LayeredCalorimeter) else ("ieta", "iphi")
    cells = pl.DataFrame({"cell": ageing.cell, **dict(zip(names, columns, strict=True)), "signal_fraction": ageing.signal_fraction})
    cells = cells.with_columns(pl.Series("dose_mev", dose), pl.Series("dose_gy", dose_gy(calo, dose)))
    has_much = dose >= _MUCH_DOSE * dose.max()
    drawn = plot_cell_map(calo, ageing.only(ageing.cell[has_much]), title=f"{ageing.label}; cells with {_MUCH}")
    write_plot(kept, "signal-fraction-map", drawn, cells.filter(has_much))
    drawn = plot_against_dose(ageing, dose, title=ageing.label)
    # the truth has no outliers to cut off: the few cells with most dose are those to see
    low, high = float(ageing.signal_fraction.min()), float(ageing.signal_fraction.max())
    step = 0.06 * (high - low) if high > low else 0.01
    drawn.set_ylim(low - step, high + step)
    write_plot(kept, "signal-fraction-against-dose", drawn, cells)
