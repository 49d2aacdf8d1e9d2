"""Ageing coefficients from unpaired samples: every method beside the statistical limit, errors, shifted beams, speed.

    python benchmarks/ageing.py DATA                       # everything; DATA holds geant4/pions_ref.h5 and pions_today.h5
    python benchmarks/ageing.py DATA --only methods,laws   # some parts
    python benchmarks/ageing.py DATA --quick               # a smoke test

5000 + 5000 Geant4 pions of 10 GeV; the second sample is aged by `damage_ageing` (linear in the dose of the first, largest
loss 0.107, seed 7); the 300 cells with most dose are scored. `limit` is the mean absolute error that the information in the
spectrum allows (cross-fitted, stratified as the likelihood is, both samples). Replicas, beams and sizes come from the fast
engine. Times are wall times of one process on whatever else the machine does. Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from calolife.ageing.coefficients import Ageing
from calolife.ageing.damage import age_showers, correct_showers, damage_ageing, dose_mev
from calolife.ageing.estimate import AgeingEstimate, estimate_ageing
from calolife.ageing.scores import score_ageing
from calolife.detector.layers import Readout
from calolife.detector.presets import load_detector
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.files import read_showers
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import sample_particles

N_CELLS, LOSS, SEED = 300, 0.107, 7
OVER_LIMIT, UNDER_RATIO, UNDER_WGAN = 1.15, 4.0, 2.0
DOSE_OVER_LIMIT, DOSE_OVER_FREE = 0.25, 1.05
COVERAGE = {"68": (0.63, 0.75), "95": (0.92, 0.98)}
BIAS_OVER_ERROR = 0.5
SECONDS = {"without errors": 10.0, "with errors": 60.0, "all cells": 300.0}
GIB_ALL = 4.0
LAWS: dict[str, dict[str, Any]] = {
    "linear": {"law": "linear"},
    "sqrt": {"law": "sqrt"},
    "saturating": {"law": "saturating"},
    "linear, 1 % scatter": {"law": "linear", "scatter": 0.01},
    "linear, 3 % scatter": {"law": "linear", "scatter": 0.03},
    "sqrt, 3 % scatter": {"law": "sqrt", "scatter": 0.03},
    "linear, loss 0.4": {"law": "linear", "max_loss": 0.4},
}
BEAMS: dict[str, dict[str, Any]] = {
    "the same": {},
    "energy +10 %": {"energy_gev": 11.0},
    "energy -10 %": {"energy_gev": 9.0},
    "beam +1 cm": {"position_mm": (10.0, 0.0)},
    "spot 3 to 4 cm": {"beam_spot_mm": 40.0},
}
READOUTS = {
    "threshold 0.4 MeV": Readout(threshold_mev=0.4),
    "15 pe/MeV": Readout(light_yield_pe_per_mev=15),
    "noise 0.1, threshold 0.3 MeV": Readout(noise_mev=0.1, threshold_mev=0.3),
    "15 pe/MeV, noise 0.08, threshold 0.3 MeV": Readout(light_yield_pe_per_mev=15, noise_mev=0.08, threshold_mev=0.3),
    "saturation 4 MeV": Readout(saturation_mev=4.0),
}


def damaged(
    reference: Showers, today: Showers, *, law: str = "linear", max_loss: float = LOSS, scatter: float = 0.0
) -> tuple[Showers, Ageing]:
    """The second sample aged by the dose of the first, and the truth."""
    truth = damage_ageing(reference.detector, dose_mev(reference), law=law, max_loss=max_loss, scatter=scatter, seed=SEED)
    return age_showers(today, truth, seed=SEED), truth


def pions(seed: int, n: int, *, engine: str = "fast", **beam: Any) -> Showers:
    options = {"energy_gev": 10.0, "beam_spot_mm": 30.0, **beam}
    calo = load_detector("cu-scint-24x24")
    return simulate_showers(calo, sample_particles(calo, n, particle="pi-", seed=seed, **options), engine=engine, seed=seed)


def row(found: AgeingEstimate, truth: Ageing, *, own: bool = False) -> dict[str, Any]:
    """Scores of one estimate, its limit among them."""
    measured = found.ageing.only(found.ageing.cell[found.ageing.status == "measured"])
    limit = found.limit_uncertainty[found.ageing.status == "measured"].mean() * math.sqrt(2 / math.pi)
    score = score_ageing(measured, truth, own=own)
    return {**score.to_json_dict(), "limit": limit, "over_limit": score.mae / limit, "seconds": found.seconds, "law": found.law}


def errors_of(found: AgeingEstimate, truth: Ageing) -> np.ndarray:
    return np.abs(found.ageing.signal_fraction - truth.at(found.ageing.cell))


def methods(reference: Showers, today: Showers, options: argparse.Namespace) -> dict[str, Any]:
    """Every method on the Geant4 pair, without a prior; networks at their last epoch, and as kept by their truth-free stop."""
    from calolife.ageing.wgan import WganSettings

    aged, truth = damaged(reference, today)
    epochs = 2 if options.quick else None
    forms: dict[str, tuple[str, Any]] = {name: (name, None) for name in ("auto", "ratio", "trimmed", "cramer", "wasserstein", "sinkhorn")}
    settings = {
        "wgan": WganSettings(**({} if epochs is None else {"epochs": epochs})),
        "wgan, 300 epochs": WganSettings(epochs=epochs or 300),
        "wgan, published": WganSettings.published(),
    }
    if not options.quick:
        forms |= {name: ("wgan", one) for name, one in settings.items()}
    else:
        forms["wgan"] = ("wgan", settings["wgan"])
    table: dict[str, Any] = {}
    rng = np.random.default_rng(1)
    base: np.ndarray | None = None
    for name, (method, wgan) in forms.items():
        started = time.perf_counter()
        bare = estimate_ageing(reference, aged, method=method, prior="none", cells=N_CELLS, n_bootstrap=0, wgan=wgan)
        without = time.perf_counter() - started
        table[name] = {**row(bare, truth), "seconds_without_errors": without}
        if method != "wgan":
            found = estimate_ageing(reference, aged, method=method, prior="none", cells=N_CELLS)
            table[name] |= row(found, truth)
        error = errors_of(bare, truth)
        if bare.epochs:
            true = truth.at(bare.ageing.cell)
            curve = [float(np.nanmean(np.abs(epoch.signal_fraction - true))) for epoch in bare.epochs]
            table[name] |= {"mae_last_epoch": curve[-1], "mae_best_epoch": min(curve), "mae_per_epoch": curve}
            table[name]["coverage68"] = table[name]["coverage95"] = None  # no replicas were trained
        base = error if base is None else base
        drawn = rng.integers(0, error.size, (2000, error.size))
        difference = (error - base)[drawn].mean(axis=1)
        table[name]["mae_over_auto"] = float(error.mean() / base.mean())
        table[name]["mae_less_auto_95"] = np.quantile(difference, [0.025, 0.975]).tolist()
        print(f"{name:20s} MAE {table[name]['mae']:.4f}, {table[name]['over_limit']:.2f} x limit, {without:.1f} s", flush=True)
    true = truth.at(bare.ageing.cell)
    table["best constant"] = {"mae": float(np.abs(true - np.median(true)).mean())}
    return table


def laws(reference: Showers, today: Showers, options: argparse.Namespace) -> dict[str, Any]:
    """The dose prior against no prior, where the law holds and where it does not; both orders of the samples."""
    table: dict[str, Any] = {}
    for name, form in LAWS.items():
        for order, pair in (("", (reference, today)), (", swapped", (today, reference))):
            aged, truth = damaged(*pair, **form)
            found = estimate_ageing(pair[0], aged, prior="dose", cells=N_CELLS)
            free = row(found, truth, own=True)
            table[name + order] = {
                "none": free,
                "dose": row(found, truth),
                "dose_over_none": score_ageing(found.ageing, truth).mae / free["mae"],
            }
            shown = table[name + order]
            print(
                f"{name + order:32s} none {free['over_limit']:.3f}, dose {shown['dose']['over_limit']:.3f} x limit; {found.law}", flush=True
            )
    # the dose that made the damage may be known from the aged sample only
    aged, truth = damaged(today, today)
    found = estimate_ageing(reference, aged, prior="dose", cells=N_CELLS)
    table["linear in the dose of today"] = {"none": row(found, truth, own=True), "dose": row(found, truth)}
    return table


def coverage(options: argparse.Namespace) -> dict[str, Any]:
    """Errors over replicas of the fast engine: without a prior, and with it where the law holds and where cells scatter."""
    n, size = (2, 1500) if options.quick else (20, 5000)
    rows: dict[str, list[dict[str, Any]]] = {"none": [], "dose": [], "dose, 1 % scatter": []}
    for k in range(n):
        reference, today = pions(1000 + 2 * k, size), pions(1001 + 2 * k, size)
        aged, truth = damaged(reference, today)
        found = estimate_ageing(reference, aged, cells=N_CELLS, seed=k)
        rows["none"].append(row(found, truth, own=True))
        rows["dose"].append(row(found, truth))
        truth = damage_ageing(reference.detector, dose_mev(reference), law="linear", max_loss=LOSS, scatter=0.01, seed=k)
        rows["dose, 1 % scatter"].append(row(estimate_ageing(reference, age_showers(today, truth), cells=N_CELLS, seed=k), truth))
    table = {}
    for name, these in rows.items():
        table[name] = {"replicas": n}
        for figure in ("mae", "over_limit", "bias", "coverage68", "coverage95", "pull_mean", "pull_width"):
            value = np.array([one[figure] for one in these], dtype=np.float64)
            table[name][figure], table[name][f"{figure}_sd"] = float(value.mean()), float(value.std(ddof=1))
        print(f"{name:20s} 68 %: {table[name]['coverage68']:.3f}, 95 %: {table[name]['coverage95']:.3f}", flush=True)
    return table


def beams(options: argparse.Namespace) -> dict[str, Any]:
    """Bias when the beam of the second sample is another one, in units of the error of a cell."""
    size = 1500 if options.quick else 5000
    table: dict[str, Any] = {}
    for engine in options.beam_engines.split(","):
        reference = pions(1, size, engine=engine)
        for name, beam in BEAMS.items():
            aged, truth = damaged(reference, pions(2, size, engine=engine, **beam))
            found = estimate_ageing(reference, aged, prior="none", cells=N_CELLS)
            ratio = estimate_ageing(reference, aged, method="ratio", prior="none", cells=N_CELLS, n_bootstrap=0)
            score = row(found, truth)
            score["bias_over_error"] = score["bias"] / float(found.ageing.uncertainty.mean())
            score["bias_of_ratio"] = score_ageing(ratio.ageing, truth).bias
            score["is_told"] = any(shift.is_seen for shift in found.checks.shifts)
            score["remarks"] = list(found.remarks)
            table[f"{engine}: {name}"] = score
            print(
                f"{engine}, {name:16s} bias {score['bias']:+.4f} = {score['bias_over_error']:+.2f} errors, told: {score['is_told']}",
                flush=True,
            )
    return table


def readouts(reference: Showers, today: Showers, options: argparse.Namespace) -> dict[str, Any]:
    """Both samples read out, the second after its loss of light."""
    table: dict[str, Any] = {}
    for name, readout in READOUTS.items():
        for loss in (LOSS, 0.4):
            aged, truth = damaged(reference, today, max_loss=loss)
            pair = digitise(reference, readout, seed=1), digitise(aged, readout, seed=2)
            found = estimate_ageing(*pair, prior="dose", cells=N_CELLS, n_bootstrap=30)
            simple = estimate_ageing(*pair, method="cramer", prior="none", cells=N_CELLS, n_bootstrap=0)
            table[f"{name}, loss {loss:g}"] = {
                "none": row(found, truth, own=True), "dose": row(found, truth), "cramer_mae": score_ageing(simple.ageing, truth).mae,
            }  # fmt: skip
            shown = table[f"{name}, loss {loss:g}"]["none"]
            print(f"{name}, loss {loss:g}: {shown['over_limit']:.2f} x limit, bias {shown['bias']:+.4f}", flush=True)
    return table


def sizes(reference: Showers, today: Showers, options: argparse.Namespace) -> dict[str, Any]:
    """Error against the number of showers, averaged over parts of the samples; time against the number of cells."""
    table: dict[str, Any] = {"showers": {}, "cells": {}}
    aged, truth = damaged(reference, today)
    for n in (500, 1000, 2000, 5000):
        parts = [(reference.between(k * n, k * n + n), aged.between(k * n, k * n + n)) for k in range(5000 // n)]
        cells = np.sort(np.argsort(-dose_mev(reference), kind="stable")[:N_CELLS])
        found = [estimate_ageing(*pair, cells=cells, n_bootstrap=20) for pair in parts]
        errors = {
            name: np.mean([score_ageing(one.ageing, truth, own=own).mae for one in found])
            for name, own in (("none", True), ("dose", False))
        }
        limit = float(np.mean([one.limit_uncertainty[one.ageing.status == "measured"].mean() for one in found]) * math.sqrt(2 / math.pi))
        n_measured = float(np.mean([(one.ageing.status == "measured").sum() for one in found]))
        table["showers"][n] = {**{k: float(v) for k, v in errors.items()}, "limit": limit, "n_measured": n_measured, "parts": len(parts)}
        print(f"{n} showers: {table['showers'][n]}", flush=True)
    for n in (30, 300, 3000, 23_040):
        for errors_too in (False, True):
            program = (
                "import resource, sys, time\n"
                "sys.path.insert(0, 'benchmarks')\n"
                "from ageing import *\n"
                f"reference, today = (read_showers(path) for path in {[str(p) for p in paths(options.data)]!r})\n"
                "aged, truth = damaged(reference, today)\n"
                "began = time.perf_counter()\n"
                f"estimate_ageing(reference, aged, cells={n}, n_bootstrap={None if errors_too else 0})\n"
                "print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)\n"
            )
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            seconds, gib = (float(x) for x in done.stdout.split()[-2:])
            table["cells"].setdefault(n, {})["with errors" if errors_too else "without errors"] = {"seconds": seconds, "gib": gib}
        print(f"{n} cells: {table['cells'][n]}", flush=True)
        if options.quick and n == 300:
            break
    return table


def correction(reference: Showers, today: Showers, options: argparse.Namespace) -> dict[str, Any]:
    """Mean and relative width of the energy sum: young, aged, corrected by the truth and by what was found in other showers."""
    n = today.n_showers // 2
    table: dict[str, Any] = {}
    for loss in (LOSS, 0.4):
        aged, truth = damaged(reference, today, max_loss=loss)
        found = estimate_ageing(reference, aged.between(0, n), prior="dose", n_bootstrap=20).ageing
        rest = aged.between(n, today.n_showers)
        samples = {
            "young": reference, "unaged, these showers": today.between(n, today.n_showers), "aged": rest,
            "corrected by truth": correct_showers(rest, truth), "corrected by estimate": correct_showers(rest, found),
        }  # fmt: skip
        table[f"loss {loss:g}"] = {}
        for name, sample in samples.items():
            energy, m = sample.visible_mev, sample.n_showers
            width = energy.std(ddof=1) / energy.mean()
            numbers = {
                "mean_mev": energy.mean(),
                "mean_error": energy.std(ddof=1) / math.sqrt(m),
                "width": width,
                "width_error": width / math.sqrt(2 * m),
            }
            table[f"loss {loss:g}"][name] = {k: float(v) for k, v in numbers.items()}
            print(f"loss {loss:g}, {name}: {energy.mean():.2f} MeV, {100 * width:.2f} %", flush=True)
    return table


def verdicts(results: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    """Target, figure, bound, whether it is met."""
    if "methods" in results:
        table = results["methods"]
        auto = table["auto"]["mae"]
        yield "auto over the limit", table["auto"]["over_limit"], OVER_LIMIT, table["auto"]["over_limit"] <= OVER_LIMIT
        yield "ratio of means over auto", table["ratio"]["mae"] / auto, UNDER_RATIO, table["ratio"]["mae"] >= UNDER_RATIO * auto
        last = {name: one["mae_last_epoch"] / auto for name, one in table.items() if "mae_last_epoch" in one}
        for name, figure in last.items():
            yield f"{name}, last epoch, over auto", figure, UNDER_WGAN, figure >= UNDER_WGAN
        for level, (low, high) in COVERAGE.items():
            figure = table["auto"][f"coverage{level}"]
            yield f"Geant4 pair, {level} % intervals", figure, low, low <= figure <= high
        yield (
            "s without errors",
            table["auto"]["seconds_without_errors"],
            SECONDS["without errors"],
            (table["auto"]["seconds_without_errors"] <= SECONDS["without errors"]),
        )
        yield "s with errors", table["auto"]["seconds"], SECONDS["with errors"], table["auto"]["seconds"] <= SECONDS["with errors"]
    for name, one in results.get("laws", {}).items():
        if "scatter" in name:
            yield f"{name}: dose over none", one["dose_over_none"], DOSE_OVER_FREE, one["dose_over_none"] <= DOSE_OVER_FREE
        else:
            yield f"{name}: dose over limit", one["dose"]["over_limit"], DOSE_OVER_LIMIT, one["dose"]["over_limit"] <= DOSE_OVER_LIMIT
    if "coverage" in results:
        for level, (low, high) in COVERAGE.items():
            figure = results["coverage"]["none"][f"coverage{level}"]
            yield f"20 replicas, {level} % intervals", figure, low, low <= figure <= high
    for name, one in results.get("beams", {}).items():
        yield f"{name}: bias over error", abs(one["bias_over_error"]), BIAS_OVER_ERROR, abs(one["bias_over_error"]) <= BIAS_OVER_ERROR
    if 23_040 in results.get("sizes", {}).get("cells", {}):
        full = results["sizes"]["cells"][23_040]["with errors"]
        yield "s, all cells, with errors", full["seconds"], SECONDS["all cells"], full["seconds"] <= SECONDS["all cells"]
        yield "GiB, all cells", full["gib"], GIB_ALL, full["gib"] <= GIB_ALL
    for name, one in results.get("correction", {}).items():
        for figure in ("mean", "width"):
            key = "mean_mev" if figure == "mean" else "width"
            young, now = one["young"], one["corrected by estimate"]
            pull = abs(now[key] - young[key]) / math.hypot(now[f"{figure}_error"], young[f"{figure}_error"])
            yield f"{name}: {figure} after correction, pull", pull, 2.0, pull <= 2.0


def paths(data: Path) -> tuple[Path, Path]:
    return data / "geant4" / "pions_ref.h5", data / "geant4" / "pions_today.h5"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="methods,laws,coverage,beams,readouts,sizes,correction")
    parser.add_argument("--beam-engines", default="fast", help="fast, geant4 or fast,geant4; GEANT4_DATA_DIR for the second")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ageing.json"))
    given = parser.parse_args()
    pair = tuple(read_showers(path) for path in paths(given.data))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "methods": lambda: methods(*pair, given),
        "laws": lambda: laws(*pair, given),
        "coverage": lambda: coverage(given),
        "beams": lambda: beams(given),
        "readouts": lambda: readouts(*pair, given),
        "sizes": lambda: sizes(*pair, given),
        "correction": lambda: correction(*pair, given),
    }
    results: dict[str, Any] = {}
    for name in given.only.split(","):
        began = time.perf_counter()
        results[name] = parts[name]()
        print(f"-- {name}: {time.perf_counter() - began:.0f} s", flush=True)
    judged = [{"target": t, "figure": float(f), "bound": b, "is_met": bool(ok)} for t, f, b, ok in verdicts(results)]
    for one in judged:
        print(f"{'met   ' if one['is_met'] else 'MISSED'} {one['target']}: {one['figure']:.3g} (bound {one['bound']:g})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    machine = {
        "platform": platform.platform(),
        "peak_gib": peak,
        "versions": {p: version(p) for p in ("numpy", "scipy", "torch", "calolife")},
    }
    if not given.quick:
        if given.out.exists():  # parts made in another run stay
            kept = json.loads(given.out.read_text(encoding="utf-8"))
            results = kept["results"] | results
            judged = [one for one in kept["targets"] if one["target"] not in {new["target"] for new in judged}] + judged
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"machine": machine, "targets": judged, "results": results}, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(one["is_met"] for one in judged) else 1)
