"""`calolife showers info | convert | digitise`: showers that are there already."""

from __future__ import annotations

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
    as_typed,
    is_typed,
    parse_numbers,
    print_json,
    print_table,
    progress_bar,
    say,
    used_options,
)
from calolife.cli.showers import parse_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from calolife.detector.layers import Readout
    from calolife.detector.presets import Detector
    from calolife.showers.events import Showers

__all__ = ["convert", "digitise", "info"]

Input = Annotated[Path, typer.Argument(help="Run directory with showers, or a file of them (.h5, .root).", show_default=False)]
DetectorName = Annotated[
    str | None,
    typer.Option("--detector", help="Preset or TOML file; needed where the file does not tell (CaloChallenge).", show_default=False),
]
_OPTIONS = {
    "width_percent": "--intercalibration", "pileup_mean": "--pileup-mean", "hot_mev": "--hot-mev", "dead cell": "--dead: cell",
    "hot cell": "--hot: cell", "is both dead and hot": "is in --dead and in --hot", "the pileup": "--pileup",
    "the pileup sample": "--pileup", "raise the threshold, overlay fewer, or digitise in parts (first=)":
    "raise --threshold, or lower --pileup-mean or --noise",
}  # fmt: skip
_READOUT_OPTIONS = {
    "readout: light_yield_pe_per_mev": "--light-yield", "readout: noise_mev": "--noise", "readout: threshold_mev": "--threshold",
    "saturation_mev": "--saturation",
}  # fmt: skip
_RECHITS_PER_PART = 2_000_000  # chosen: with every cell read out a part still takes about 200 MB


def info(data: Input, detector: DetectorName = None, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Say what a run or a file of showers holds."""
    from calolife.showers.files import holds_layer_sums
    from calolife.showers.summary import describe_layer_sums, describe_showers

    is_sums = holds_layer_sums(data)
    found = describe_layer_sums(data) if is_sums else describe_showers(data, detector=_detector(detector))
    if as_json:
        print_json(found)
        return
    if is_sums:
        print(f"{data}: {found['n_showers']} showers, the sums of {found['n_layers']} layers each; no cells, and no detector told")
    else:
        origin = ", ".join(f"{name} {value}" for name, value in found["origin"].items())
        print(
            f"{data}: {found['n_showers']} showers, {found['n_hits']} {found['kind']}s in {found['detector']} "
            f"({found['detector_digest'][:12]})"
        )
        if origin:
            print(f"made by: {origin}")
        if found["readout"] is not None:
            print(f"readout: {', '.join(f'{name} {value:g}' for name, value in found['readout'].items())}")
    if found["n_showers"] == 0:
        return
    low, high = found["energy_gev"]
    print(f"energy: {low:g} GeV" if low == high else f"energy: {low:g} to {high:g} GeV")
    print(f"visible: {_with_error(found['visible_mev'])} MeV a shower")
    if not is_sums:
        print(f"hits: {_with_error(found['hits_per_shower'])} a shower, {100 * found['occupancy']:.3g} % of {found['n_cells']} cells")
    rows = [
        [name, str(p["n"]), f"{p['energy_gev']:.4g}", _with_error({"mean": p["visible_mev"], "uncertainty": p["uncertainty_mev"]})]
        for name, p in found["particles"].items()
    ]
    print_table("particles", ["particle", "showers", "mean energy [GeV]", "mean visible [MeV]"], rows)


def convert(
    data: Input,
    target: Annotated[Path, typer.Argument(help="File to write: .h5, .hdf5 or .root.", show_default=False)],
    layout: Annotated[
        str | None, typer.Option("--format", help="calolife, calochallenge or root; by the suffix otherwise.", show_default=False)
    ] = None,
    detector: DetectorName = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write showers in another format."""
    from calolife.showers.files import count_showers, iter_showers, write_calochallenge, write_root, write_showers

    writers = {"calolife": write_showers, "calochallenge": write_calochallenge, "root": write_root}
    by_suffix = {".h5": "calolife", ".hdf5": "calolife", ".root": "root"}
    if layout is None:
        layout = by_suffix.get(target.suffix)
        if layout is None:
            raise ValueError(f"{target}: no format has the suffix {target.suffix!r}; use .h5, .hdf5 or .root, or name one with --format")
    if layout not in writers:
        raise ValueError(f"--format {layout!r} is not one of {', '.join(writers)}")
    if (layout == "root") != (target.suffix == ".root"):  # the suffix says how to read it again
        raise ValueError(f"{target}: a file of format {layout} must{'' if layout == 'root' else ' not'} end in .root; choose another name")
    if target.exists() and not force:
        raise ValueError(f"{target} exists; choose another name, or replace it with --force")
    known = _detector(detector)
    total = count_showers(data, detector=known)
    with progress_bar(quiet=quiet) as report:

        def told() -> Iterator[Showers]:
            done = 0
            for part in iter_showers(data, detector=known):
                yield part
                done += part.n_showers
                report("showers", done, total)

        n = writers[layout](target, told())
    if layout == "calochallenge":
        say("kept are energies only: not the particles, where they came in, the detector, nor whether it is read out", quiet=quiet)
    if as_json:
        print_json({"path": str(target), "format": layout, "n_showers": n})
        return
    print(f"{target}: {n} showers ({layout})")


def digitise(
    ctx: typer.Context,
    data: Input,
    out: Out,
    light_yield: Annotated[
        float | None, typer.Option("--light-yield", min=0.0, help="Photo-electrons per MeV; 0: no photo-statistics.", show_default=False)
    ] = None,
    noise: Annotated[float | None, typer.Option("--noise", min=0.0, help="Electronics noise of a cell, MeV.", show_default=False)] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0.0, help="Rechits below it are dropped, MeV.", show_default=False)
    ] = None,
    saturation: Annotated[
        float | None, typer.Option("--saturation", min=0.0, help="Most a cell reads before noise, MeV.", show_default=False)
    ] = None,
    dead: Annotated[str | None, typer.Option("--dead", help="Dead cells: 5,17 or 5-17.", show_default=False)] = None,
    dead_fraction: Annotated[float, typer.Option("--dead-fraction", min=0.0, max=1.0, help="Part of the cells, taken at random.")] = 0.0,
    hot: Annotated[str | None, typer.Option("--hot", help="Hot cells: 5,17 or 5-17.", show_default=False)] = None,
    hot_mev: Annotated[float, typer.Option("--hot-mev", help="Mean energy of a hot cell above the threshold, MeV.")] = 1.0,
    pileup: Annotated[Path | None, typer.Option("--pileup", help="Run or file of showers to overlay.", show_default=False)] = None,
    pileup_mean: Annotated[
        str, typer.Option("--pileup-mean", help="Mean number of overlaid showers: 30, or 0:60 for a mean drawn flat for each shower.")
    ] = "0",
    intercalibration: Annotated[
        float, typer.Option("--intercalibration", min=0.0, help="How far the calibration is off from cell to cell, %.")
    ] = 0.0,
    calibration_seed: Annotated[
        int | None,
        typer.Option("--calibration-seed", min=0, help="Seed of that: the same for all samples of one detector. --seed if not given.",
                     show_default=False),
    ] = None,
    signal_fraction: Annotated[
        Path | None,
        typer.Option("--signal-fraction", show_default=False,
                     help="Light that is left of each cell: a run of showers age or ageing estimate, or a table cell,signal_fraction."),
    ] = None,
    uncorrected: Annotated[bool, typer.Option("--uncorrected", help="Leave the light that is lost uncorrected.")] = False,
    detector: DetectorName = None,
    seed: Seed = 0,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Read showers out: visible energy in, rechits out. What is not given comes from the detector's readout record."""
    from calolife.detector.layers import Readout
    from calolife.runs import Metric, log, new_run, write_metrics
    from calolife.showers.calibration import read_out
    from calolife.showers.digitise import draw_cells
    from calolife.showers.files import SHOWERS_FILE, count_showers, iter_showers, read_showers, write_showers
    from calolife.showers.summary import Moments

    known = _detector(detector)
    n_showers = count_showers(data, detector=known)
    sample = read_showers(data, stop=0, detector=known)
    calo = sample.detector
    readout = _readout(calo, light_yield, noise, threshold, saturation)
    if dead is not None and dead_fraction > 0:
        raise ValueError("--dead and --dead-fraction both name dead cells; give one of them")
    if hot is None and is_typed(ctx, "hot_mev"):
        raise ValueError("--hot-mev is the energy of hot cells and none is named; name some with --hot, or drop it")
    hot_cells = () if hot is None else parse_numbers(hot, what="--hot")
    # a cell named as hot is not drawn as dead
    drawn = [int(c) for c in draw_cells(calo, dead_fraction, seed=seed) if c not in hot_cells]
    dead_cells = drawn if dead is None else parse_numbers(dead, what="--dead")
    means = parse_range(pileup_mean, what="--pileup-mean")
    if (pileup is None) != (means == 0.0):
        raise ValueError("--pileup and --pileup-mean belong together; give both or none")
    if calibration_seed is not None and intercalibration == 0:
        raise ValueError("--calibration-seed is the seed of --intercalibration; give that too, or drop it")
    if uncorrected and signal_fraction is None:
        raise ValueError("--uncorrected leaves lost light as it is, and none is lost; give --signal-fraction, or drop it")
    with as_typed({}, of="--pileup"):
        overlaid = None if pileup is None else read_showers(pileup, detector=known)
    left = None if signal_fraction is None else _light_left(signal_fraction, calo)
    names = {**_OPTIONS, "seed": "--seed" if calibration_seed is None or seed >= 2**63 else "--calibration-seed"}

    before, after, hits = Moments(), Moments(), Moments()
    is_dense = readout.noise_mev > 0 and readout.threshold_mev == 0
    chunk = max(1, min(1000, _RECHITS_PER_PART // calo.n_cells)) if is_dense else 1000

    def read(part: Showers, first: int) -> Showers:
        with as_typed(names):
            return read_out(
                part, readout, seed=seed, first=first, dead=dead_cells, hot=hot_cells, hot_mev=hot_mev, pileup=overlaid,
                pileup_mean=means, signal_fraction=left, is_corrected=not uncorrected, intercalibration_percent=intercalibration,
                calibration_seed=calibration_seed,
            )  # fmt: skip

    def parts(report: Report) -> Iterator[Showers]:
        nonlocal before, after, hits
        done = 0
        for part in iter_showers(data, chunk=chunk, detector=known):
            rechits = read(part, done)
            yield rechits
            before, after, hits = (
                before.add(part.visible_mev),
                after.add(rechits.visible_mev),
                hits.add(rechits.offsets[1:] - rechits.offsets[:-1]),
            )
            done += part.n_showers
            report("showers", done, n_showers)

    # asked before a run is begun, so that a wrong number leaves nothing behind
    read(sample, 0)
    asked = used_options(ctx)
    if hot is None:
        del asked["options"]["hot_mev"]
    if readout == Readout():
        say("the readout is ideal: it changes no energy; give --light-yield, --noise, --threshold or --saturation", quiet=quiet)
    if pileup is not None and pileup.resolve() == data.resolve():
        say("the pileup is the sample itself: a shower may be laid over itself; another sample is better", quiet=quiet)
    if signal_fraction is not None and "aged" in sample.origin:
        say("these showers were aged before: with --signal-fraction they lose light twice", quiet=quiet)
    if is_dense:
        say(f"noise without a threshold: each of the {calo.n_cells} cells of every shower is written", quiet=quiet)
    inputs = [path for path in (data, pileup, signal_fraction) if path is not None]
    with new_run(out, config=asked, seed=seed, inputs=inputs, force=force) as run, progress_bar(quiet=quiet) as report:
        write_showers(run.path / SHOWERS_FILE, parts(report))
        n = hits.n
        metrics = {
            "visible energy": Metric(before.mean, before.uncertainty, "MeV", n),
            "read energy": Metric(after.mean, after.uncertainty, "MeV", n),
            "rechits per shower": Metric(hits.mean, hits.uncertainty, "", n),
            "occupancy": Metric(100 * hits.mean / calo.n_cells, 100 * hits.uncertainty / calo.n_cells, "%", n),
        }
        write_metrics(run, metrics)
        log(run, f"digitised {n} showers")
    if as_json:
        counts = {"n_showers": n, "n_hits": int(hits.total), "n_dead": len(dead_cells), "n_hot": len(hot_cells), "seed": seed}
        print_json({"path": str(out), "detector": calo.name, **counts, "visible_mev": before.mean, "read_mev": after.mean})
        return
    print(f"{out}: {n} showers, {int(hits.total)} rechits in {calo.name}; {before.mean:.4g} MeV visible, {after.mean:.4g} MeV read")


def _readout(calo: Detector, light_yield: float | None, noise: float | None, threshold: float | None, saturation: float | None) -> Readout:
    from dataclasses import replace

    given = {"light_yield_pe_per_mev": light_yield, "noise_mev": noise, "threshold_mev": threshold, "saturation_mev": saturation}
    with as_typed(_READOUT_OPTIONS):
        return replace(calo.readout, **{name: value for name, value in given.items() if value is not None})


def _light_left(path: Path, calo: Detector) -> NDArray[np.float64]:
    """Signal fraction of every cell; 1 of those that the file does not list."""
    import numpy as np

    from calolife.ageing.files import read_truth

    with as_typed({}, of="--signal-fraction"):
        ageing = read_truth(path)
    if ageing.detector_digest and ageing.detector_digest != calo.digest:
        raise ValueError(
            f"--signal-fraction {path} belongs to detector {ageing.detector_digest[:8]}, the showers to {calo.name!r} ({calo.digest[:8]}); "
            "give one of the same detector"
        )
    if ageing.cell.size and int(ageing.cell[-1]) >= calo.n_cells:
        raise ValueError(f"--signal-fraction {path} lists cell {int(ageing.cell[-1])}; {calo.name!r} has cells 0 to {calo.n_cells - 1}")
    left = np.ones(calo.n_cells)
    left[ageing.cell] = ageing.signal_fraction
    return left


def _detector(name: str | None) -> Detector | None:
    from calolife.detector.presets import load_detector

    return None if name is None else load_detector(name)


def _with_error(number: dict[str, float]) -> str:
    import math

    mean, error = number["mean"], number["uncertainty"]
    if not (math.isfinite(error) and error > 0):
        return f"{mean:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} +- {error:.{digits}f}"
