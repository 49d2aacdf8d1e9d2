"""`calolife energy zee`: Z bosons to electron pairs, through a barrel of crystals and the models; their mass peaks out."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calolife.cli.energy import must_be_model, names_of_runs
from calolife.cli.options import (
    Config,
    Debug,
    Force,
    Json,
    Out,
    Quiet,
    Seed,
    Workers,
    as_typed,
    must_be_apart,
    print_json,
    print_table,
    progress_bar,
    say,
    used_options,
)
from calolife.cli.showers import parse_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calolife.cli.options import Report
    from calolife.detector.crystals import CrystalCalorimeter
    from calolife.energy.features import EnergySample
    from calolife.energy.zpeaks import ZComparison, ZEvents, ZPeak
    from calolife.runs import Run
    from calolife.showers.superclusters import Superclusters
    from calolife.zee import ZPairs

__all__ = ["zee"]

_RAW = "raw"
_OPTIONS = {
    "intercalibration_percent": "--intercalibration", "light_loss_percent": "--light-loss", "pileup_mean": "--pileup-mean",
    "the pileup": "--pileup", "the pileup sample": "--pileup", "engine": "--engine", "n_pairs": "-n", "seed": "--seed",
    "raise the threshold, overlay fewer, or digitise in parts (first=)": "lower --pileup-mean",
}  # fmt: skip


def zee(
    ctx: typer.Context,
    out: Out,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...", help="Runs of 'calolife energy train'; the raw energy only if none is given.", show_default=False
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--pairs", help="Pairs with both electrons in the barrel and above 20 GeV.")] = 5000,
    detector: Annotated[str, typer.Option("--detector", help="Preset or TOML file of a barrel of crystals.")] = "cms-barrel",
    intercalibration: Annotated[
        float, typer.Option("--intercalibration", help="Realistic: error of the calibration from crystal to crystal, %.")
    ] = 0.5,
    light_loss: Annotated[
        float,
        typer.Option("--light-loss", help="Realistic: mean light lost at the end of the barrel, %, not corrected; 2/3 of it over all."),
    ] = 3.0,
    pileup: Annotated[
        Path | None, typer.Option("--pileup", help="Run or file of showers to overlay, in both conditions.", show_default=False)
    ] = None,
    pileup_mean: Annotated[str, typer.Option("--pileup-mean", help="Mean number of overlaid showers: 30, or 0:60 for a flat range.")] = "0",
    engine: Annotated[str, typer.Option("--engine", help="fast or geant4.")] = "fast",
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Model that the others are compared with; the first run when left out.", show_default=False),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", help="Replicas for the 95 % intervals of a comparison, 40 or more; 0: none.")
    ] = 100,
    seed: Seed = 0,
    workers: Workers = 1,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Measure the Z peak of simulated electron pairs, in an ideal and in a realistic detector. Run again after a stop, it goes on."""
    import shutil

    from calolife.detector.presets import preset_names
    from calolife.energy.zpeaks import LEAST_REPLICAS, compare_z_peaks, fit_true_peak
    from calolife.runs import log, new_run
    from calolife.showers.files import read_showers
    from calolife.simulation.production import n_cores, read_part, simulate_parts
    from calolife.zee import ZProduction, conditions_of, find_electrons

    given = runs or []
    if n < 1:
        raise ValueError(f"-n {n} asks for no pair; a fit takes some hundred")
    if bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"--bootstrap {bootstrap} must be 0 or >= 2; 100 give errors to 7 %")
    mean = parse_range(pileup_mean, what="--pileup-mean")
    if (pileup is None) != (mean == 0):
        raise ValueError("--pileup and --pileup-mean belong together; give both or none")
    must_be_apart(out, [*given, *([] if pileup is None else [pileup])])
    barrel = _barrel(detector)
    models = _models(given, barrel)
    names = [*models, _RAW]
    against = names[0] if reference is None else reference
    if against not in names:
        raise ValueError(f"--reference {against!r} is not one of {', '.join(names)}")
    with as_typed({}, of="--pileup"):
        overlaid = None if pileup is None else read_showers(pileup)
    with as_typed(_OPTIONS):
        conditions = conditions_of(intercalibration, light_loss)
        production = ZProduction(barrel, n, engine=engine, seed=seed)
    reading: dict[str, Any] = {"conditions": conditions, "seed": seed, "pileup": overlaid, "pileup_mean": mean}
    # one pair before a run is begun, so that a wrong number leaves nothing behind
    with as_typed(_OPTIONS):
        find_electrons([production.simulate(0, 2)], barrel, **reading)
    asked = used_options(ctx)
    del asked["options"]["workers"]  # the showers do not depend on it: an unfinished run may go on with another number
    asked["detector_digest"] = barrel.digest  # parts of two detectors must not meet in one run
    source = Path(detector)
    if is_file := detector not in preset_names():
        asked["options"]["detector"] = str(source.resolve())
    if engine == "fast":
        from calolife.simulation.fast import engine_digest

        asked["engine_digest"] = engine_digest()
    inputs = [*given, *([source] if is_file else []), *([] if pileup is None else [pileup])]
    with new_run(out, config=asked, seed=seed, inputs=inputs, force=force) as run, progress_bar(quiet=quiet, rate=True) as report:
        parts = run.path / "parts"
        if run.is_resumed and any(parts.glob("*.h5")):
            say(f"taking up {len(list(parts.glob('*.h5')))} finished parts", quiet=quiet)
        paths = simulate_parts(production, parts, workers=workers or n_cores(), tell=report)
        found = find_electrons((read_part(path) for path in paths), barrel, **reading, tell=report, n_showers=production.n)
        pairs = production.pairs(0, n)
        events, remarks = _measured(found, pairs, models, given)
        peaks: list[ZPeak] = []
        comparisons: list[ZComparison] = []
        for measured in events:
            tell = _named(report, f"replicas, {measured.condition}")
            shown, compared = compare_z_peaks(measured, reference=against, n_bootstrap=bootstrap, seed=seed, tell=tell)
            peaks, comparisons = [*peaks, *shown], [*comparisons, *compared]
        true_gev = {measured.condition: fit_true_peak(measured) for measured in events}
        document = _document(pairs, events, peaks, comparisons, true_gev, reference=against)
        _save(run, events, peaks, document, reference=against, title=_title(barrel, engine, "" if overlaid is None else pileup_mean, seed))
        shutil.rmtree(parts)
        log(run, f"measured {n} pairs with {', '.join(names)}")
    for remark in dict.fromkeys(remarks):
        say(remark, quiet=quiet)
    if comparisons and 0 < bootstrap < LEAST_REPLICAS:
        say(f"{bootstrap} replicas make no 95 % interval, and a rough standard error; --bootstrap {LEAST_REPLICAS} makes one", quiet=quiet)
    for peak in peaks:
        if peak.remark:
            say(f"{peak.model}, {peak.condition}: {peak.remark}", quiet=quiet)
    if as_json:
        print_json({"run": str(out), **document})
        return
    _print(document, peaks, comparisons)
    print(f"plots and numbers: {out}")


def _barrel(name: str) -> CrystalCalorimeter:
    from calolife.detector.crystals import CrystalCalorimeter
    from calolife.detector.presets import load_detector
    from calolife.zee import barrel_eta

    with as_typed({}, of="--detector"):
        found = load_detector(name)
    if not isinstance(found, CrystalCalorimeter):
        raise ValueError(f"--detector {name} is made of layers; the Z goes to a barrel of crystals: give one such as cms-barrel")
    barrel_eta(found)
    return found


def _models(runs: Sequence[Path], barrel: CrystalCalorimeter) -> dict[str, Any]:
    """Models by their names, all of them fitted to this detector."""
    from calolife.energy.models import load_energy_model

    if twice := [r for i, r in enumerate(runs) if os.path.realpath(r) in [os.path.realpath(p) for p in runs[:i]]]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    for path in runs:
        must_be_model(path)
    found = dict(zip(names_of_runs(runs), (load_energy_model(r) for r in runs), strict=True))
    for path, (name, model) in zip(runs, found.items(), strict=True):
        if name == _RAW:
            raise ValueError(f"{path} is called {_RAW}, as the energy without a model; give it another name")
        if model.n_layers != 1:
            raise ValueError(
                f"{path}: model {name} reads {model.n_layers} layers, and crystals are one; train one on electrons of {barrel.name}"
            )
        if model.digest != barrel.digest:
            whose = model.digest[:8] or "of no name"
            raise ValueError(
                f"{path}: model {name} was fitted to showers of detector {whose}, and the electrons go to {barrel.name} "
                f"({barrel.digest[:8]}); name its detector with --detector, or train it on electrons of {barrel.name}"
            )
    return found


def _measured(
    found: Mapping[str, Superclusters], pairs: ZPairs, models: Mapping[str, Any], runs: Sequence[Path]
) -> tuple[list[ZEvents], list[str]]:
    """Events of each condition with the energies of all models, and what sets the electrons apart from those of the training."""
    from dataclasses import replace

    import numpy as np

    from calolife.energy.samples import unlike_training
    from calolife.energy.zpeaks import ZEvents
    from calolife.showers.events import PDG
    from calolife.zee import LEAST_PT_GEV, both_found

    events, remarks = [], []
    for condition, objects in found.items():
        pair, rows = both_found(objects)
        if not pair.size:
            raise ValueError(f"no pair of {pairs.n_pairs} was found twice in the {condition} condition; ask for more pairs")
        measured = {}
        if models:
            sample = _sample(objects)
            # taken for electrons: what they radiate lies on the other side in phi, which is a matter of a per cent of the resolution
            alike = replace(sample, pdg_id=np.full(sample.n_showers, PDG["e-"], np.int32))
            for run, (name, model) in zip(runs, models.items(), strict=True):
                measured[name] = model.predict(sample).energy_gev[rows]
                remarks += [f"{name}: {remark}" for remark in unlike_training(alike, run)]
        measured[_RAW] = objects.raw_energy_gev[rows]
        events.append(
            ZEvents(
                condition, pair, pairs.mass_gev[pair], pairs.electron_energy_gev[pair], pairs.electron_eta[pair], pairs.electron_phi[pair],
                measured, LEAST_PT_GEV,
            )
        )  # fmt: skip
    return events, remarks


def _sample(objects: Superclusters) -> EnergySample:
    from calolife.energy.objects import sample_of_objects

    sample = sample_of_objects(objects)
    assert sample.n_showers == objects.n_objects, "all objects are matched, and none may be lost"
    return sample


def _document(
    pairs: ZPairs,
    events: Sequence[ZEvents],
    peaks: Sequence[ZPeak],
    comparisons: Sequence[ZComparison],
    true_gev: Mapping[str, float],
    *,
    reference: str,
) -> dict[str, Any]:
    tried = int(pairs.n_tried.sum())
    return {
        "n_pairs": pairs.n_pairs, "n_tried": tried, "acceptance": pairs.n_pairs / tried, "reference": reference,
        "conditions": [
            {"condition": e.condition, "n_found": e.n_events, "n_lost": pairs.n_pairs - e.n_events,
             "true_mass_gev": true_gev[e.condition] if true_gev[e.condition] == true_gev[e.condition] else None}
            for e in events
        ],
        "results": [peak.to_json_dict() for peak in peaks],
        "comparison": [c.to_json_dict() for c in comparisons],
    }  # fmt: skip


def _save(run: Run, events: Sequence[ZEvents], peaks: Sequence[ZPeak], document: dict[str, Any], *, reference: str, title: str) -> None:
    import polars as pl

    from calolife.plots_zee import plot_z_peak
    from calolife.runs import Metric, write_json, write_metrics, write_plot, write_table

    write_json(run, "results", document)
    metrics = {"acceptance": Metric(100.0 * document["acceptance"], math.nan, "%", document["n_tried"])}
    for row in document["results"]:
        for name, unit in (("mass_gev", "GeV"), ("shift_percent", "%"), ("resolution_percent", "%"), ("effective_sigma_gev", "GeV")):
            value, error = (math.nan if v is None else v for v in (row[name]["value"], row[name]["uncertainty"]))
            metrics[f"{name.rsplit('_', 1)[0].replace('_', ' ')} {row['model']} {row['condition']}"] = Metric(value, error, unit, row["n"])
    for row in document["comparison"]:
        value, error = (math.nan if v is None else v for v in (row["ratio"], row["ratio_error"]))
        what = f"ratio {row['figure'].replace('_', ' ')} {row['model']} {row['reference']} {row['condition']}"
        metrics[what] = Metric(value, error, "", max(e.n_events for e in events))
    write_metrics(run, metrics)
    write_table(run, "events", pl.concat([_event_table(e) for e in events]))
    if document["comparison"]:
        write_table(run, "comparison", pl.DataFrame(document["comparison"], infer_schema_length=None))
    fits = {(p.model, p.condition): p.fit for p in peaks}
    for e in events:
        models = [m for m in e.energy_gev if m != _RAW] or [_RAW]
        mass = {m: e.mass_gev(m)[e.is_kept(m)] for m in models}
        of = {m: fits[m, e.condition] for m in models}
        base = reference if reference in models else models[0]
        drawn = plot_z_peak(mass, of, reference=base, title=f"Z to electrons, {e.condition}; {title}")
        write_plot(run, f"z-peak-{e.condition}", drawn, _histogram(mass, of))


def _histogram(mass: Mapping[str, Any], fits: Mapping[str, Any]) -> Any:
    """Counts of each model and what its fit expects, in the bins of the figure."""
    import numpy as np
    import polars as pl

    from calolife.plots_zee import peak_bins

    edges = peak_bins(max(m.size for m in mass.values()))
    columns = {"from_gev": edges[:-1], "to_gev": edges[1:]}
    for name, values in mass.items():
        columns[f"pairs_{name}"] = np.histogram(values, edges)[0]
        if fits[name] is not None:
            columns[f"fit_{name}"] = fits[name].expected(edges)
    return pl.DataFrame(columns)


def _event_table(events: ZEvents) -> Any:
    import polars as pl

    columns: dict[str, Any] = {"pair": events.pair, "true_mass_gev": events.true_mass_gev}
    for k, which in enumerate(("electron", "positron")):
        columns |= {
            f"{which}_energy_gev": events.true_energy_gev[:, k], f"{which}_eta": events.eta[:, k], f"{which}_phi": events.phi[:, k],
            **{f"{which}_energy_gev_{name}": energy[:, k] for name, energy in events.energy_gev.items()},
        }  # fmt: skip
    columns |= {f"mass_gev_{name}": events.mass_gev(name) for name in events.energy_gev}
    columns |= {f"is_in_fit_{name}": events.is_kept(name) for name in events.energy_gev}
    return pl.DataFrame({"condition": [events.condition] * events.n_events, **columns})


def _print(document: dict[str, Any], peaks: Sequence[ZPeak], comparisons: Sequence[ZComparison]) -> None:
    from calolife.cli.energy_tables import with_error

    rows = []
    for peak, row in zip(peaks, document["results"], strict=True):
        figures = [row[k] for k in ("mass_gev", "shift_percent", "resolution_percent", "effective_sigma_gev")]
        told = ["" if f["value"] is None else with_error(f["value"], f["uncertainty"] or 0.0) for f in figures]
        quality = "" if peak.fit is None else f"{peak.fit.chi2:.0f}/{peak.fit.ndf}"
        rows.append([f"{peak.model}, {peak.condition}", str(peak.n), *told, quality])
    header = ["model, condition", "pairs", "peak [GeV]", "shift [%]", "sigma / peak [%]", "effective sigma [GeV]", "chi2/ndf"]
    lost = ", ".join(f"{c['n_lost']} lost in the {c['condition']} one" for c in document["conditions"])
    title = f"{document['n_pairs']} pairs in the acceptance ({100 * document['acceptance']:.1f} % of {document['n_tried']}); {lost}"
    print_table(title, header, rows)
    has_interval = any(math.isfinite(c.low) for c in comparisons)
    ratios = [
        [f"{c.model}, {c.condition}", c.figure.replace("_", " "),
         f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]" if math.isfinite(c.low) else with_error(c.ratio, c.ratio_error)]
        for c in comparisons
        if math.isfinite(c.ratio_error)
    ]  # fmt: skip
    if ratios:
        last = "ratio [95 %]" if has_interval else "ratio +- standard error"
        print_table(f"against {document['reference']}, paired", ["model, condition", "figure", last], ratios)


def _title(barrel: CrystalCalorimeter, engine: str, pileup_mean: str, seed: int) -> str:
    pileup = f", pileup {pileup_mean}" if pileup_mean else ""
    return f"{barrel.name}, {engine} engine{pileup}, seed {seed}"


def _named(report: Report, name: str) -> Report:
    return lambda what, done, total: report(name, done, total)
