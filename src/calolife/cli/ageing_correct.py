"""`calolife ageing correct`: aged showers and signal fractions in, showers with the lost signal given back out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calolife.cli.options import Config, Debug, Force, Json, Out, Quiet, Report, must_be_apart, print_json, progress_bar, say, used_options
from calolife.cli.showers_age import mean_metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from calolife.detector.presets import Detector
    from calolife.runs import Metric
    from calolife.showers.events import Showers

__all__ = ["correct"]

DetectorName = Annotated[
    str | None,
    typer.Option("--detector", help="Preset or TOML file; needed where the file does not tell (CaloChallenge).", show_default=False),
]


def correct(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Argument(metavar="SHOWERS", help="Run directory with aged showers, or a file of them (.h5, .root).", show_default=False)
    ],
    fractions: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run of 'calolife ageing estimate', or its ageing.parquet.", show_default=False)
    ],
    out: Out,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Showers of the young detector, for the figure and the comparison.", show_default=False),
    ] = None,
    detector: DetectorName = None,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Divide the energy of every cell by its signal fraction. Dead, hot and masked cells, and those not listed, are left as they are."""
    import numpy as np
    import polars as pl

    from calolife.ageing.damage import CORRECTED, correct_showers
    from calolife.ageing.files import read_ageing
    from calolife.detector.presets import load_detector
    from calolife.plots_ageing import plot_energy_sums
    from calolife.runs import log, new_run, write_metrics, write_plot
    from calolife.showers.files import SHOWERS_FILE, count_showers, iter_showers, read_showers, write_showers

    inputs = [data, fractions] if reference is None else [data, fractions, reference]
    must_be_apart(out, inputs)
    known = None if detector is None else load_detector(detector)
    ageing = read_ageing(fractions)
    sample = read_showers(data, stop=0, detector=known)
    calo = sample.detector
    correct_showers(sample, ageing)  # another detector is told before anything is written
    n_showers = count_showers(data, detector=known)
    if n_showers == 0:
        raise ValueError(f"{data} has no showers; give a sample that has some")
    if reference is not None:
        young_calo = read_showers(reference, stop=0, detector=known).detector
        if young_calo.digest != calo.digest:
            raise ValueError(
                f"--reference {reference} was made in detector {young_calo.name!r} ({young_calo.digest[:8]}), the showers in "
                f"{calo.name!r} ({calo.digest[:8]}); take both from one detector"
            )
        if count_showers(reference, detector=known) == 0:
            raise ValueError(f"--reference {reference} has no showers; give a sample that has some, or drop it")
    is_used = np.isin(ageing.status, CORRECTED)
    n_left = {s: int((ageing.status == s).sum()) for s in ("dead", "hot", "masked")}
    before, after = [np.zeros(0)], [np.zeros(0)]
    energy = {"all": 0.0, "corrected": 0.0}
    has_factor = np.zeros(calo.n_cells, dtype=bool)
    has_factor[ageing.cell[is_used]] = True

    def parts(report: Report) -> Iterator[Showers]:
        done = 0
        for part in iter_showers(data, detector=known):
            made = correct_showers(part, ageing)
            yield made
            before.append(part.visible_mev)
            after.append(made.visible_mev)
            energy["all"] += float(part.energy_mev.sum(dtype=np.float64))
            energy["corrected"] += float(part.energy_mev[has_factor[part.cell]].sum(dtype=np.float64))
            done += part.n_showers
            report("showers", done, n_showers)

    with new_run(out, config=used_options(ctx), inputs=inputs, force=force) as run, progress_bar(quiet=quiet) as report:
        write_showers(run.path / SHOWERS_FILE, parts(report))
        sums = {"aged": np.concatenate(before), "corrected": np.concatenate(after)}
        if reference is not None:
            sums = {"young": _visible(reference, known, report), **sums}
        named = {"young": "reference", "aged": "before", "corrected": "after"}
        metrics: dict[str, Metric] = {}
        for name, visible in sums.items():
            metrics[f"visible energy {named[name]}"] = mean_metric(visible)
            metrics[f"width {named[name]}"] = _width_metric(visible)
        write_metrics(run, metrics)
        table = pl.concat([pl.DataFrame({"sample": [name] * v.size, "visible_mev": v}) for name, v in sums.items()])
        write_plot(run, "energy-sums", plot_energy_sums(sums, title=ageing.label), table)
        log(run, f"corrected {n_showers} showers: {int(is_used.sum())} cells, {ageing.label}")
    share = energy["corrected"] / energy["all"] if energy["all"] else 0.0
    n_alone = calo.n_cells - int(is_used.sum())
    if n_alone:
        told = "".join(f"{n} {status}, " for status, n in n_left.items() if n)
        say(
            f"{n_alone} of {calo.n_cells} cells are left as they are: {told}{n_alone - sum(n_left.values())} not listed; those corrected "
            f"hold {100 * share:.1f} % of the energy",
            quiet=quiet,
        )
    if "corrected" in sample.origin:
        say("these showers were corrected before, and now once more", quiet=quiet)
    if sample.readout is not None and sample.readout.threshold_mev > 0:
        say(f"what the threshold of {sample.readout.threshold_mev:g} MeV cut from the aged signal does not come back", quiet=quiet)
    if as_json:
        values = {f"{named[name]}_{k}": v for name, visible in sums.items() for k, v in _moments(visible).items()}
        counts = {"n_showers": n_showers, "n_cells": calo.n_cells, "n_corrected": int(is_used.sum()), "n_left_alone": n_alone}
        left = {f"n_{status}": n for status, n in n_left.items()}
        print_json({"path": str(out), "detector": calo.name, **counts, **left, "corrected_energy_fraction": share, **values})
        return
    print(f"{out}: {n_showers} showers in {calo.name}, {int(is_used.sum())} cells corrected")
    for name, visible in sums.items():
        m, w = metrics[f"visible energy {named[name]}"], metrics[f"width {named[name]}"]
        width = f", width {_rounded(w)} MeV" if math.isfinite(w.value) else ""
        print(f"{name}: mean {_rounded(m)} MeV{width} ({visible.size} showers)")


def _visible(path: Path, known: Detector | None, report: Report) -> NDArray[np.float64]:
    import numpy as np

    from calolife.showers.files import count_showers, iter_showers

    total, found = count_showers(path, detector=known), [np.zeros(0)]
    for part in iter_showers(path, detector=known):
        found.append(part.visible_mev)
        report("reference", sum(f.size for f in found), total)
    return np.concatenate(found)


def _width_metric(visible_mev: NDArray[np.float64]) -> Metric:
    """Standard deviation with its standard error, from the fourth moment: showers have tails."""
    from calolife.runs import Metric

    n = visible_mev.size
    if n < 2:
        return Metric(math.nan, math.nan, "MeV", n)
    off = visible_mev - visible_mev.mean()
    variance = float((off**2).mean())
    error = math.sqrt(max(float((off**4).mean()) - variance**2, 0.0) / n) / (2 * math.sqrt(variance)) if variance > 0 else math.nan
    return Metric(float(visible_mev.std(ddof=1)), error, "MeV", n)


def _moments(visible_mev: NDArray[np.float64]) -> dict[str, float]:
    m, w = mean_metric(visible_mev), _width_metric(visible_mev)
    return {"mean_mev": m.value, "mean_uncertainty_mev": m.uncertainty, "width_mev": w.value, "width_uncertainty_mev": w.uncertainty}


def _rounded(metric: Metric) -> str:
    if not (math.isfinite(metric.uncertainty) and metric.uncertainty > 0):
        return f"{metric.value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(metric.uncertainty)))
    return f"{metric.value:.{digits}f} +- {metric.uncertainty:.{digits}f}"
