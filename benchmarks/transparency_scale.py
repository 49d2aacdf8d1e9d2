"""How the transparency commands scale: simulate, fit and backtest the whole detector; ingest raw CSV.

    python benchmarks/transparency_scale.py                      # everything: 75,848 crystals and 1 GB of CSV
    python benchmarks/transparency_scale.py --crystals 1000 --csv-mb 100 --out quick.json

Each step runs in its own process, so that its peak memory is its own; memory of helper processes is added to
it, which counts shared pages twice. Needs about 5 GB of disk in --work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 24
YEAR = 2016
SAMPLE_RINGS = 6  # chosen: as many as the fit takes; tau and b are shared, so a few rings across the detector are enough
CRYSTALS_AT_ONCE = 400  # chosen: about a ring; more saves no time and takes memory
TARGETS = {"fit_and_backtest_s": 300.0, "fit_and_backtest_gib": 8.0, "ingest_mb_per_s": 100.0, "ingest_gib": 1.5}


def peak_gib(*, of_children: int = 0) -> float:
    """Peak memory of this process and of so many alike children [GiB]."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return float(own + of_children * child) / 2**20  # Linux counts in KiB


def simulate(folder: Path, *, n_crystals: int, seed: int) -> dict[str, Any]:
    """One synthetic year as a dataset."""
    from calolife.storage import write_history
    from calolife.transparency.synthetic import simulate_rings

    started = time.perf_counter()
    rings = simulate_rings(n_crystals=n_crystals, n_years=1, seed=seed, first_year=YEAR)
    write_history((history for history, _ in rings), folder, provenance={"made_by": "benchmarks/transparency_scale.py", "seed": seed})
    seconds = time.perf_counter() - started
    size = sum(f.stat().st_size for f in folder.rglob("*.parquet"))
    return {"n_crystals": n_crystals, "seconds": seconds, "disk_mb": size / 1e6, "peak_gib": peak_gib()}


def score_rings(job: tuple[Any, Path, list[int]]) -> tuple[np.ndarray, float, int]:
    """MAPE of each crystal [%], and readings inside the 95 % interval, of all."""
    from calolife.storage import read_history
    from calolife.transparency.backtest import window_count
    from calolife.transparency.kinetics import extend_kinetics, forecast_blocks

    model, folder, rings = job
    history = read_history(folder, ieta=rings)
    model = extend_kinetics(model, history)
    origins = [WINDOW + WINDOW * np.arange(window_count(b.n_readings)) for b in history.blocks]
    mape, inside, n = [], 0.0, 0
    for block, made in zip(history.blocks, forecast_blocks(model, history.blocks, origins=origins, horizon=WINDOW), strict=True):
        reading = block.transparency[:, made.row]
        gap = np.abs(made.transparency - reading)
        mape.append(100 * (gap / reading).mean(axis=(1, 2)))
        inside += float((gap <= made.half95).sum())
        n += gap.size
    return np.concatenate(mape), inside, n


def fit_and_backtest(folder: Path, *, workers: int, seed: int) -> dict[str, Any]:
    """Fit kinetics to the year and score it in window mode."""
    from calolife.storage import dataset_record, read_history
    from calolife.transparency.history import TransparencyHistory
    from calolife.transparency.kinetics import fit_kinetics

    started = time.perf_counter()
    parts = dataset_record(folder)["partitions"]
    rings = [int(p["ieta"]) for p in parts]
    picked = sorted({rings[int(k)] for k in (np.arange(SAMPLE_RINGS) + 0.5) / SAMPLE_RINGS * len(rings)})
    sample = [next(iter(read_history(folder, ieta=[ring]).blocks)) for ring in picked]
    model = fit_kinetics(TransparencyHistory(tuple(b.crystals(np.arange(min(10, b.n_crystals))) for b in sample)), seed=seed)
    fitted = time.perf_counter()
    jobs: list[list[int]] = [[]]
    held = 0
    for part in parts:
        if jobs[-1] and held + part["n_crystals"] > CRYSTALS_AT_ONCE:
            jobs.append([])
            held = 0
        jobs[-1].append(int(part["ieta"]))
        held += part["n_crystals"]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(score_rings, [(model, folder, job) for job in jobs]))
    ended = time.perf_counter()
    mape = np.concatenate([m for m, _, _ in done])
    return {
        "n_crystals": mape.size,
        "shared_fit_s": fitted - started,
        "ring_fits_and_windows_s": ended - fitted,
        "seconds": ended - started,
        "peak_gib": peak_gib(of_children=workers),
        "workers": workers,
        "mape_percent": float(mape.mean()),
        "mape_uncertainty_percent": float(mape.std() / np.sqrt(mape.size)),
        "coverage95": sum(i for _, i, _ in done) / sum(n for _, _, n in done),
        "in_sample": True,
    }


def write_csv(folder: Path, *, megabytes: float, seed: int) -> dict[str, Any]:
    """Ring files in the layout of the raw release, of about this size in all."""
    import polars as pl

    from calolife.transparency.synthetic import simulate_rings

    folder.mkdir(parents=True)
    written = 0.0
    for ring in range(60, 86):
        ((history, _),) = simulate_rings(n_crystals=360, n_years=1, seed=seed, first_year=YEAR, ieta=[ring])
        tables = []
        for block in history.blocks:
            at = pl.Series("laser_datetime", (block.time_s * 1e6).astype(np.int64)).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")
            counter = np.concatenate([[0.0], np.cumsum(block.lumi_ifb)[:-1]]) * 1e9
            grid = pl.DataFrame({"start_ts": at, "stop_ts": at.shift(-1, fill_value=at[-1]), "laser_datetime": at})
            for k, xtal_id in enumerate(block.xtal_id.tolist()):
                tables.append(
                    grid.select(
                        pl.lit(xtal_id).alias("xtal_id"), "start_ts", "stop_ts", "laser_datetime",
                        pl.Series("calibration", block.transparency[k]), pl.col("laser_datetime").alias("time"),
                        pl.Series("int_deliv_inv_ub", counter.round(3)),
                    )
                )  # fmt: skip
        whole = pl.concat(tables)
        left = megabytes * 1e6 - written
        path = folder / f"ring_{ring}.csv"
        # 110 bytes a row: the last file is cut to what is asked for, at the end of a crystal
        n_rows = max(int(left / 110), 1)
        if n_rows < whole.height:
            last = whole["xtal_id"][n_rows]
            whole = whole.head(n_rows).filter(pl.col("xtal_id") != last) if whole["xtal_id"][0] != last else whole.head(n_rows)
        whole.write_csv(path)
        written += path.stat().st_size
        if written > 0.97 * megabytes * 1e6:
            break
    return {"csv_mb": written / 1e6, "files": len(list(folder.glob("*.csv")))}


def run_ingest(csv: Path, folder: Path) -> dict[str, Any]:
    """Ingest the CSV files."""
    from calolife.transparency.ingest import ingest

    megabytes = sum(f.stat().st_size for f in csv.rglob("*.csv")) / 1e6
    started = time.perf_counter()
    summary = ingest([csv], folder)
    seconds = time.perf_counter() - started
    return {
        "csv_mb": megabytes, "seconds": seconds, "mb_per_s": megabytes / seconds, "peak_gib": peak_gib(of_children=os.cpu_count() or 1),
        "n_readings": summary.n_readings, "set_aside": sum(summary.set_aside.values()),
    }  # fmt: skip


def in_process(step: str, **options: object) -> dict[str, Any]:
    """Run one step of this file in a process of its own; its result is the last line of its stdout."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if step != "ingest" else dict(os.environ)
    command = [sys.executable, __file__, f"--step={step}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", default="1000,5000,20000,75848", help="numbers of crystals of the table, comma separated")
    parser.add_argument("--csv-mb", type=float, default=1000.0, help="size of the CSV to ingest [MB]")
    parser.add_argument("--parts", default="fit,ingest", help="what to measure: fit, ingest or both")
    parser.add_argument("--workers", type=int, default=2, help="processes of the fit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="directory for the data; a temporary one when left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "transparency_scale.json")
    parser.add_argument("--step", choices=["simulate", "fit", "csv", "ingest"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.step == "simulate":
        result = simulate(options.folder, n_crystals=int(options.crystals), seed=options.seed)
    elif options.step == "fit":
        result = fit_and_backtest(options.folder, workers=options.workers, seed=options.seed)
    elif options.step == "csv":
        result = write_csv(options.folder, megabytes=options.csv_mb, seed=options.seed)
    elif options.step == "ingest":
        result = run_ingest(options.source, options.folder)
    else:
        return measure(options)
    print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace) -> int:
    """All steps; 1 if a target is missed."""
    if unknown := set(options.parts.split(",")) - {"fit", "ingest"}:
        print(f"--parts {options.parts!r}: {unknown.pop()!r} is not a part; allowed: fit, ingest", file=sys.stderr)
        return 2
    numbers = sorted(int(n) for n in options.crystals.split(","))
    result: dict[str, Any] = {
        "what": "one synthetic year; kinetics fitted and scored in window mode; raw CSV ingested",
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(), "numpy": np.__version__},
        "targets": TARGETS,
    }
    missed = []
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary)
        if "fit" in options.parts:
            result["simulate"], result["fit_and_backtest"] = [], []
            for n in numbers:
                folder = work / f"year_{n}"
                made = in_process("simulate", folder=folder, crystals=n, seed=options.seed)
                result["simulate"].append(made)
                size = f"{made['disk_mb']:.0f} MB on disk, {made['peak_gib']:.2f} GiB of memory"
                print(f"{n:6d} crystals simulated: {made['seconds']:.0f} s, {size}", flush=True)
                row = in_process("fit", folder=folder, workers=options.workers, seed=options.seed)
                result["fit_and_backtest"].append(row)
                print(
                    f"{n:6d} crystals fitted and scored: {row['shared_fit_s']:.0f} + {row['ring_fits_and_windows_s']:.0f} s, "
                    f"{row['peak_gib']:.2f} GiB, MAPE {row['mape_percent']:.4f} %, 95 % interval holds {100 * row['coverage95']:.1f} %",
                    flush=True,
                )
            if row["seconds"] > TARGETS["fit_and_backtest_s"] or row["peak_gib"] > TARGETS["fit_and_backtest_gib"]:
                missed.append("fit_and_backtest")
        if "ingest" in options.parts:
            in_process("csv", folder=work / "csv", csv_mb=options.csv_mb, seed=options.seed)
            row = in_process("ingest", source=work / "csv", folder=work / "ingested")
            result["ingest"] = row
            speed = f"{row['seconds']:.1f} s, {row['mb_per_s']:.0f} MB/s"
            print(f"{row['csv_mb']:.0f} MB of CSV ingested: {speed}, {row['peak_gib']:.2f} GiB", flush=True)
            if row["mb_per_s"] < TARGETS["ingest_mb_per_s"] or row["peak_gib"] > TARGETS["ingest_gib"]:
                missed.append("ingest")
    result["missed"] = missed
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'targets missed: ' + ', '.join(missed) if missed else 'all targets met'}; {options.out}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
