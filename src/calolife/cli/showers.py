"""`calolife showers simulate`: particles into a calorimeter, showers out."""

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
    Seed,
    Workers,
    as_typed,
    is_typed,
    print_json,
    progress_bar,
    say,
    used_options,
)

if TYPE_CHECKING:
    from calolife.runs import Metric, Run
    from calolife.simulation.production import Production, Summary

__all__ = ["parse_range", "simulate"]

_OPTIONS = {
    "energy_gev": "--energy", "pt_gev": "--pt", "position_mm": "--position-mm", "beam_spot_mm": "--beam-spot-mm",
    "angle_deg": "--angle-deg", "cut_mm": "--cut-mm", "physics list": "--physics", "engine": "--engine", "n =": "-n =",
    "unknown particle": "--particle: unknown particle", "particle 'mix": "--particle 'mix", "seed =": "--seed =",
}  # fmt: skip
_CRYSTAL_TILT_DEG = "3"  # source: CMS, JINST 3 (2008) S08004: crystal axes are tilted by 3 degrees off the vertex


def simulate(
    ctx: typer.Context,
    detector: Annotated[str, typer.Argument(help="Name of a detector, or a TOML file.", show_default=False)],
    out: Out,
    particle: Annotated[
        str, typer.Option("--particle", help="e-, e+, gamma, pi-, pi+, proton, neutron, mu-, mu+, mix:gamma=0.5,pi-=0.5, or minbias: "
                          "proton-proton collisions, to be overlaid by showers digitise --pileup."),
    ] = "e-",
    energy: Annotated[
        str | None,
        typer.Option("--energy", help="Kinetic energy in GeV: 10, or 1:100 for a flat range; 10 if not given.", show_default=False),
    ] = None,
    pt: Annotated[
        str | None,
        typer.Option("--pt", help="Instead of it, for crystals: transverse momentum in GeV, 20, or 1:300 for a flat range.",
                     show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--showers", min=1, help="Showers.")] = 1000,
    beam_spot_mm: Annotated[
        float | None, typer.Option("--beam-spot-mm", help="Width of the Gaussian beam in x and y; 0 if not given.", show_default=False)
    ] = None,
    position_mm: Annotated[
        str | None,
        typer.Option("--position-mm", help="Centre of the beam, X:Y; the face's centre if not given, a barrel is hit all over.",
                     show_default=False),
    ] = None,
    angle_deg: Annotated[
        str | None,
        typer.Option("--angle-deg", help="Angle to the z axis in degrees: 5, or 0:10 for a flat range; if not given 0, and 3 for crystals "
                     "with gaps.", show_default=False),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="fast or geant4.")] = "fast",
    birks: Annotated[str, typer.Option("--birks", help="Quench scintillation light: on or off.")] = "on",
    physics: Annotated[str, typer.Option("--physics", help="Physics list, geant4 only: FTFP_BERT or QGSP_BERT.")] = "FTFP_BERT",
    cut_mm: Annotated[float, typer.Option("--cut-mm", help="Production cut in mm of range, geant4 only.")] = 0.7,
    seed: Seed = 0,
    workers: Workers = 1,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Simulate showers. Run again after a stop, it goes on."""
    import shutil

    from calolife.detector.crystals import CrystalCalorimeter
    from calolife.detector.presets import load_detector, preset_names
    from calolife.runs import log, new_run, write_metrics
    from calolife.showers.files import iter_showers, write_showers
    from calolife.simulation.production import Production, n_cores, read_part, simulate_parts, summarise

    if birks not in ("on", "off"):
        raise ValueError(f"--birks {birks!r} is not on or off")
    if engine == "fast":
        for name, option in (("physics", "--physics"), ("cut_mm", "--cut-mm")):
            if is_typed(ctx, name):
                raise ValueError(f"{option} belongs to --engine geant4, and the engine is fast; drop it, or add --engine geant4")
    calorimeter = load_detector(detector)
    energy, pt = _which_energy(ctx, particle, energy, pt)
    is_tilted = angle_deg is None and isinstance(calorimeter, CrystalCalorimeter) and calorimeter.has_gaps
    if angle_deg is None:
        angle_deg = _CRYSTAL_TILT_DEG if is_tilted else "0"
    with as_typed(_OPTIONS):
        production = Production(
            calorimeter,
            n,
            particle=particle,
            energy_gev=None if energy is None else parse_range(energy, what="--energy"),
            pt_gev=None if pt is None else parse_range(pt, what="--pt"),
            position_mm=None if position_mm is None else _pair(position_mm, what="--position-mm"),
            beam_spot_mm=beam_spot_mm,
            angle_deg=parse_range(angle_deg, what="--angle-deg"),
            engine=engine,
            seed=seed,
            birks=birks == "on",
            physics=physics,
            cut_mm=cut_mm,
        )
    asked = used_options(ctx)
    del asked["options"]["workers"]  # the showers do not depend on it: an unfinished run may go on with another number
    chosen = {"angle_deg": angle_deg, "energy": energy, "pt": pt}
    asked["options"] = {name: v for name, v in (asked["options"] | chosen).items() if v is not None}
    if engine == "fast":  # they change nothing in it
        del asked["options"]["physics"], asked["options"]["cut_mm"]
    source = Path(detector)
    if is_file := detector not in preset_names():
        asked["options"]["detector"] = str(source.resolve())
    asked["detector_digest"] = calorimeter.digest  # parts of two detectors must not meet in one run
    if engine == "fast":
        from calolife.simulation.fast import engine_digest

        asked["engine_digest"] = engine_digest()  # nor parts made before and after a change of the engine
    inputs = [source] if is_file else []
    with new_run(out, config=asked, seed=seed, inputs=inputs, force=force) as run, progress_bar(quiet=quiet, rate=True) as report:
        parts = run.path / "parts"
        if run.is_resumed and any(parts.glob("*.h5")):
            say(f"taking up {len(list(parts.glob('*.h5')))} finished parts", quiet=quiet)
        paths = simulate_parts(production, parts, workers=workers or n_cores(), tell=report)
        write_showers(run.path / "showers.h5", (read_part(path) for path in paths))
        summary = summarise(iter_showers(run.path / "showers.h5", chunk=production.part_size))
        metrics = _metrics(summary)
        write_metrics(run, metrics)
        _plot(run, summary, production)
        shutil.rmtree(parts)
        log(run, f"simulated {n} showers with {engine}")
    if is_tilted:  # told at the end: what goes wrong before is one line of its own
        say(f"{calorimeter.name} has gaps along its crystals: particles come in at {angle_deg} degrees; --angle-deg 0 shoots straight",
            quiet=quiet)  # fmt: skip
    if as_json:
        print_json({"path": str(out), "n_showers": n, **{name: metric.value for name, metric in metrics.items()}})
        return
    shown = ", ".join(f"{name.replace('_', ' ')} {m.value:.4g} +- {m.uncertainty:.2g} {m.unit}".rstrip() for name, m in metrics.items())
    print(f"{out}: {n} showers; {shown}")


def _which_energy(ctx: typer.Context, particle: str, energy: str | None, pt: str | None) -> tuple[str | None, str | None]:
    """What of --energy and --pt counts: one that is typed wins over one of --config; 10 GeV where there is none."""
    from calolife.simulation.collisions import MINBIAS

    typed = [option for name, option in (("energy", "--energy"), ("pt", "--pt")) if is_typed(ctx, name)]
    if particle == MINBIAS:
        if typed:
            raise ValueError(f"{typed[0]} belongs to a beam, and {MINBIAS} collisions have energies of their own; drop it")
        return None, None
    if len(typed) == 2:
        raise ValueError("--energy and --pt both say how hard the particles are; give one of them")
    if pt is not None and "--energy" not in typed:
        return None, pt
    return energy or "10", None


def _metrics(summary: Summary) -> dict[str, Metric]:
    from calolife.runs import Metric

    numbers = {
        "visible": (summary.visible_mev_mean, 1.0, "MeV"),
        "visible_fraction": (summary.visible_fraction, 100.0, "%"),
        "resolution": (summary.resolution, 100.0, "%"),
        "hits": (summary.n_hits_mean, 1.0, ""),
    }
    return {name: Metric(scale * value, scale * error, unit, summary.n) for name, ((value, error), scale, unit) in numbers.items()}


def _plot(run: Run, summary: Summary, production: Production) -> None:
    import numpy as np
    import polars as pl

    from calolife.plots import plot_layer_profile, plot_visible, visible_histogram
    from calolife.runs import write_plot
    from calolife.simulation.particles import PDG

    is_pt = production.pt_gev is not None
    given = production.pt_gev if is_pt else production.energy_gev
    low, high = (0.0, np.inf) if given is None else np.broadcast_to(given, 2)
    energy = f"{low:g} GeV" if low == high else f"{low:g} to {high:g} GeV"
    energy = "at 13 TeV" if given is None else f"pT {energy}" if is_pt else energy
    title = f"{production.detector.name}, {production.particle}, {energy}\n{production.engine} engine, seed {production.seed}"
    name_of = {code: name for name, code in PDG.items()}
    of_particle = {name_of[int(code)]: summary.pdg_id == code for code in np.unique(summary.pdg_id)}
    if given is None:  # a collision is no particle: its first one says nothing, and its energy is not that of a beam
        of_particle, low = {}, high
    energy_gev = None if low == high and not is_pt else summary.energy_gev
    value, unit = (summary.visible_mev, "_mev") if energy_gev is None else (summary.visible_mev / (1e3 * energy_gev), "_fraction")
    count, edges = visible_histogram(value)
    numbers = pl.DataFrame({f"from{unit}": edges[:-1], f"to{unit}": edges[1:], "showers": count})
    drawn = plot_visible(summary.visible_mev, energy_gev=energy_gev, of_particle=of_particle, title=title)
    write_plot(run, "visible_energy", drawn, numbers)
    if summary.layer_mean_mev.size > 1:
        mean, error = summary.layer_mean_mev, summary.layer_error_mev
        table = pl.DataFrame({"layer": range(mean.size), "mean_mev": mean, "error_mev": error})
        write_plot(run, "layer_profile", plot_layer_profile(mean, error, title=title), table)


def parse_range(text: str, *, what: str) -> float | tuple[float, float]:
    """A number, or two such as ``1:100``."""
    found = _numbers(text)
    if len(found) == 1:
        return found[0]
    if len(found) != 2:
        raise ValueError(f"{what} {text!r} is not a number or a range; write 10 or 1:100")
    return found[0], found[1]


def _pair(text: str, *, what: str) -> tuple[float, float]:
    found = _numbers(text)
    if len(found) != 2:
        raise ValueError(f"{what} {text!r} is not two numbers; write X:Y")
    return found[0], found[1]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(":")]
    except ValueError:
        return []
