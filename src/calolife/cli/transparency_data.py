"""`calolife transparency fetch | ingest | info | simulate`: readings in, before any model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from calolife.cli.options import (
    Config,
    Data,
    Debug,
    Force,
    Json,
    Out,
    Quiet,
    Seed,
    parse_years,
    print_json,
    print_table,
    progress_bar,
    say,
    used_options,
)

__all__ = ["fetch", "info", "ingest", "simulate"]


def fetch(
    ring: Annotated[str, typer.Option("--ring", help="Rings (ieta): 66, or 1,2,3, or 60-69, or -76.", show_default=False)],
    years: Annotated[str, typer.Option("--years", help="Years: 2016, or 2016-2018.")] = "2016-2018",
    out: Out = Path("cms-laser"),
    record: Annotated[str | None, typer.Option("--record", help="Zenodo record number or DOI; found by its title otherwise.")] = None,
    api: Annotated[str | None, typer.Option("--api", help="Address of another Zenodo API.", hidden=True)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download the archives of the public CMS release that hold some rings."""
    from calolife.transparency.fetch import ZENODO_API
    from calolife.transparency.fetch import fetch as run_fetch

    with progress_bar(quiet=quiet) as report:
        fetched = run_fetch(
            out, rings=_rings(ring), years=parse_years(years, what="--years"), record=record, api=api or ZENODO_API, progress=report
        )
    for note in fetched.notes:
        say(note, quiet=quiet)
    if as_json:
        print_json({**asdict(fetched), "paths": [str(p) for p in fetched.paths]})
        return
    for path in fetched.paths:
        print(path)
    say(f"next: calolife transparency ingest {out} --out DATASET", quiet=quiet)


def ingest(
    paths: Annotated[
        list[Path], typer.Argument(help="CSV files, tar.gz archives, metadata JSON, directories of them.", show_default=False)
    ],
    out: Out,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Clean readings into a dataset. Run again after a stop, it goes on; run twice, it does nothing."""
    from calolife.transparency.ingest import ingest as run_ingest

    with progress_bar(quiet=quiet) as report:
        summary = run_ingest(paths, out, progress=report)
    for note in summary.notes:
        say(note, quiet=quiet)
    if as_json:
        print_json({**asdict(summary), "path": str(summary.path), "quarantine": str(summary.quarantine)})
        return
    years = ", ".join(map(str, summary.years))
    print(
        f"{summary.path}: {summary.n_readings} readings, {summary.n_crystal_years} crystal-years, {len(summary.ieta)} rings, {years}; "
        f"{summary.n_new_sources} of {summary.n_sources} files new"
    )
    if summary.n_reordered:
        print(f"out of time order, put in order: {summary.n_reordered} readings")
    if summary.n_laser_flip:
        print(f"on the second state of a two-laser flip, flagged: {summary.n_laser_flip} readings")
    if summary.n_pre_beam_step:
        print(f"steps before beam, flagged: {summary.n_pre_beam_step}")
    if summary.set_aside:
        why = ", ".join(f"{reason} {n}" for reason, n in summary.set_aside.items())
        print(f"set aside in {summary.quarantine}: {sum(summary.set_aside.values())} rows ({why})")


def info(data: Data, as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Say what a dataset, or a directory of files, holds by ring and year."""
    from calolife.storage import describe

    found = describe(data)
    if as_json:
        print_json(found)
        return
    header = ["ring", "year", "crystals", "readings", "first", "last", "lumi [1/fb]", "reordered", "laser flip", "step"]
    rows = [
        [
            str(p["ieta"]), str(p["year"]), str(p["n_crystals"]), str(p["n_readings"]), p["first_reading"][:10], p["last_reading"][:10],
            f"{p['lumi_ifb']:.2f}", str(p["n_reordered"]), str(p["n_laser_flip"]), str(p["n_pre_beam_step"]),
        ]
        for p in found["partitions"]
    ]  # fmt: skip
    print_table(str(data), header, rows)
    if found["set_aside"]:
        print("set aside: " + ", ".join(f"{reason} {n}" for reason, n in found["set_aside"].items()))


def simulate(
    ctx: typer.Context,
    out: Out,
    n_crystals: Annotated[int, typer.Option("--crystals", min=1, help="Crystals, spread over the detector; 75848 are all.")] = 100,
    n_years: Annotated[int, typer.Option("--years", min=1, max=30, help="Years, from the first on.")] = 3,
    ring: Annotated[
        str | None, typer.Option("--ring", help="Take the crystals from these rings (ieta) instead: 66 or 60-69.", show_default=False)
    ] = None,
    first_year: Annotated[int, typer.Option("--first-year", min=2008, max=2100, help="Label of the first year.")] = 2016,
    seed: Seed = 0,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Make a dataset of synthetic crystals with LHC-like luminosity, and the truth beside it. Run again after a stop, it starts anew."""
    from collections.abc import Iterator

    from calolife.runs import Metric, log, new_run, write_metrics
    from calolife.storage import write_history
    from calolife.transparency.history import TransparencyHistory
    from calolife.transparency.synthetic import simulate_rings
    from calolife.transparency.truth import SyntheticTruth, merge_truths, write_truth

    # asked before a run is begun, so that a wrong number leaves nothing behind
    made = simulate_rings(
        n_crystals=n_crystals, n_years=n_years, seed=seed, first_year=first_year, ieta=None if ring is None else _rings(ring)
    )
    truths: list[SyntheticTruth] = []
    n_readings = 0
    with new_run(out, config=used_options(ctx), seed=seed, force=force) as run, progress_bar(quiet=quiet) as report:
        (run.path / "dataset.json").unlink(missing_ok=True)

        def histories() -> Iterator[TransparencyHistory]:
            nonlocal n_readings
            n_done = 0
            report("crystals", 0, n_crystals)
            for history, truth in made:
                yield history
                truths.append(truth)
                n_readings += history.n_readings
                n_done += truth.ln_r0.size
                report("crystals", n_done, n_crystals)

        provenance = {"made_by": "calolife transparency simulate", **used_options(ctx)["options"]}
        write_history(histories(), run.path, provenance=provenance)
        truth = merge_truths(truths)
        write_truth(truth, run.path)
        write_metrics(run, {"readings": Metric(n_readings, 0.0, "", n_crystals)})
        log(run, f"simulated {n_readings} readings of {n_crystals} crystals")
    years = list(range(first_year, first_year + n_years))
    if as_json:
        print_json({"path": str(out), "crystals": n_crystals, "years": years, "n_readings": n_readings, "seed": seed})
        return
    rings = len(set(truth.crystals.ieta.tolist()))
    print(f"{out}: {n_readings} readings of {n_crystals} crystals in {rings} rings, {', '.join(map(str, years))}; truth in {out / 'truth'}")


def _rings(text: str) -> tuple[int, ...]:
    """Rings of a list; a leading minus belongs to the number, not to a range."""
    import re

    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"--ring {text!r}: {part.strip()!r} is not a ring; write 66, 60-69 or -85--76")
        found.update(r for r in range(int(match[1]), int(match[2] or match[1]) + 1) if r)
    if not found:
        raise ValueError(f"--ring {text!r}: there is no ring 0; ieta is -85 to -1 and 1 to 85 in the barrel")
    return tuple(sorted(found))
