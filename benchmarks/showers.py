"""The fast engine beside Geant4: the same particles in the same detectors, accuracy, speed and memory.

    python benchmarks/showers.py --reference DIR                       # everything; Geant4 showers what DIR lacks: hours
    python benchmarks/showers.py --reference DIR --points ready        # accuracy at the points that DIR holds
    python benchmarks/showers.py --reference DIR --points 'pbwo4-block_e-_*' --only accuracy
    python benchmarks/showers.py --reference DIR --only classifier     # or speed
    python benchmarks/showers.py --reference DIR --quick               # a smoke test: few showers, few points, minutes
    python benchmarks/showers.py --sample FILE --particle pi-          # any other file of Geant4 showers of one energy

DIR holds one run of `calolife showers simulate --engine geant4` a point. The fast engine showers the particles of that
sample again, four times as often, with other random numbers. Each row carries statistical uncertainties of both; MISSED
is a target missed by more than two of them, missed? by less. Both resolutions, effective sigma and rms, have to meet
the target; the rms of a crystal hangs on a few photonuclear reactions, and its uncertainty comes out too small. The worst
of several layers is off by chance alone, `by chance` says how far on average. Rows without a verdict have no target: they
are there to look at, as are layers taken together (`group`) where most are too thin to hold 2 % of the energy. Exit status
1 when a target is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from _showers_figures import PROFILES, draw_figures, numbers_of, rounded
from _showers_speed import measure_costs, measure_memory, measure_speed, verdicts

from calolife.detector.presets import load_detector
from calolife.showers.events import UNKNOWN_PARTICLE, Showers
from calolife.showers.files import read_showers
from calolife.simulation.compare import Comparison, Sample, compare_samples
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import Particles, sample_particles

REFERENCE_SEED = 90210
EM_DETECTORS = ("pbwo4-block", "pb-scint-60", "cu-scint-24x24")
PION_DETECTORS = ("cu-scint-24x24", "pb-scint-fe-v2")
DETAILED = ("cu-scint-24x24", "pi-", 10.0)  # cells, occupancy, classifier, speed
CUT_MEV = 0.1  # about a tenth of what a minimum ionising particle leaves in 5 mm of polystyrene
# start of a quantity's name -> largest difference, electromagnetic and pions; relative, or in the unit where absolute
TARGETS = {
    "mean visible energy": (0.02, 0.05),
    "resolution": (0.10, 0.15),
    "longitudinal maximum": (0.3, math.inf),
    "layer mean": (0.10, 0.15),
    "containment": (2.0, math.inf),
    "cell energy": (math.inf, 0.10),
}
AUC_GATE, AUC_AIM = 0.75, 0.60


@dataclass(frozen=True)
class Point:
    """One sample of the table of targets."""

    detector: str
    particle: str
    energy_gev: float
    n: int

    @property
    def name(self) -> str:
        return f"{self.detector}_{self.particle}_{self.energy_gev:g}"

    @property
    def is_pion(self) -> bool:
        return self.particle == "pi-"

    @property
    def is_detailed(self) -> bool:
        return (self.detector, self.particle, self.energy_gev) == DETAILED

    @property
    def beam_spot_mm(self) -> float:
        return 30.0 if self.is_pion else 5.0

    def simulate_command(self, out: Path) -> list[str]:
        """The command that makes the reference sample."""
        main = [sys.executable, "-c", "from calolife.cli import main; main()"]
        return [
            *main, "showers", "simulate", self.detector, "--particle", self.particle, "--energy", f"{self.energy_gev:g}",
            "-n", str(self.n), "--beam-spot-mm", f"{self.beam_spot_mm:g}", "--engine", "geant4", "--seed", str(REFERENCE_SEED),
            "--workers", "1", "--quiet", "--out", str(out),
        ]  # fmt: skip


def all_points(*, quick: bool) -> list[Point]:
    """The points of the table, pions of the detailed comparison first."""
    em, pion = ((1, 2, 5, 10, 20, 50, 100), (2, 5, 10, 20, 50, 100)) if not quick else ((2,), (10,))
    wanted = [(d, "pi-", e) for d in PION_DETECTORS for e in pion] + [(d, p, e) for d in EM_DETECTORS for p in ("e-", "gamma") for e in em]
    wanted.sort(key=lambda w: w != DETAILED)
    return [Point(d, p, float(e), (40 if e < 20 else 20) if quick else (2000 if e < 20 else 500)) for d, p, e in wanted]


def make_references(points: list[Point], folder: Path, *, workers: int) -> None:
    """Shower with Geant4 what the folder lacks; each in a process of its own, as one process runs one geometry."""
    missing = [p for p in points if not (folder / p.name / "showers.h5").exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        for point in pool.map(
            lambda p: (subprocess.run(p.simulate_command(folder / p.name), check=True, stdout=subprocess.DEVNULL), p)[1], missing
        ):
            print(f"Geant4: {point.name}", file=sys.stderr)


def read_reference(point: Point, folder: Path) -> Showers:
    """A reference sample, checked to be what the point asks for."""
    showers = read_showers(folder / point.name / "showers.h5")
    origin = showers.origin
    if origin.get("engine") != "geant4" or showers.detector.digest != load_detector(point.detector).digest:
        sys.exit(f"{folder / point.name} holds no Geant4 showers of {point.detector} as it is now; remove it and run again")
    if showers.n_showers != point.n or not np.allclose(showers.energy_gev, point.energy_gev) or origin.get("seed") != REFERENCE_SEED:
        sys.exit(f"{folder / point.name} holds other showers than the {point.n} wanted; remove it and run again")
    return showers


def shower_again(reference: Showers, *, seed: int, replicas: int) -> Showers:
    """The particles of a sample through the fast engine, so many times."""
    particles = Particles(reference.pdg_id, reference.energy_gev, reference.position_mm[:, :2], reference.direction)
    n = reference.n_showers
    return Showers.concatenate(
        [simulate_showers(reference.detector, particles, engine="fast", seed=seed, first=k * n) for k in range(replicas)]
    )


def read_sample(path: Path, *, particle: str, beam_spot_mm: float, seed: int, replicas: int) -> tuple[Point, Sample, Sample]:
    """A file of Geant4 showers made elsewhere, and the fast engine's of the same particles, or of alike ones where it tells none.

    Cells below the lowest energy in the file are left out of both: it may have been written with a threshold.
    """
    reference = read_showers(path)
    energy_gev = float(reference.energy_gev[0])
    if not np.allclose(reference.energy_gev, energy_gev):
        sys.exit(
            f"{path} holds energies from {reference.energy_gev.min():g} to {reference.energy_gev.max():g} GeV; give showers of one energy"
        )
    if not np.isfinite(reference.position_mm).all() or (reference.pdg_id == UNKNOWN_PARTICLE).any():
        gun = sample_particles(
            reference.detector, reference.n_showers, particle=particle, energy_gev=energy_gev, beam_spot_mm=beam_spot_mm, seed=seed
        )
        at = np.column_stack([gun.position_mm, np.zeros(gun.n_particles)])
        reference = replace(reference, pdg_id=gun.pdg_id, position_mm=at, direction=gun.direction)
    fast = shower_again(reference, seed=seed, replicas=replicas)
    kept = fast.energy_mev >= reference.energy_mev.min()
    fast = replace(
        fast, cell=fast.cell[kept], energy_mev=fast.energy_mev[kept], offsets=np.concatenate([[0], np.cumsum(kept)])[fast.offsets]
    )
    point = Point(reference.detector.name, particle, energy_gev, reference.n_showers)
    return point, Sample(reference), Sample(fast)


def target_of(quantity: str, *, is_pion: bool) -> float | None:
    """Largest difference allowed; None for a quantity without a target."""
    limit = next((both[is_pion] for start, both in TARGETS.items() if quantity.startswith(start)), math.inf)
    return None if math.isinf(limit) else limit


def row_of(point: Point, found: Comparison, *, n: tuple[int, int], note: str = "", is_judged: bool = True) -> dict[str, Any]:
    """A comparison with its target and verdict."""
    target = target_of(found.quantity, is_pion=point.is_pion) if is_judged else None
    beyond = None if target is None else (abs(found.difference) - target) / max(found.difference_error, 1e-12)
    return {
        "quantity": found.quantity + note, "detector": point.detector, "particle": point.particle, "energy_gev": point.energy_gev,
        "n_geant4": n[0], "n_fast": n[1], "geant4": found.reference, "geant4_uncertainty": found.reference_error,
        "fast": found.trial, "fast_uncertainty": found.trial_error, "unit": found.unit,
        "difference": found.difference, "difference_uncertainty": found.difference_error, "is_absolute": found.is_absolute,
        "where": found.where, "by_chance": None if math.isnan(found.by_chance) else found.by_chance,
        "target": target, "met": None if target is None else bool(abs(found.difference) <= target), "sigmas_beyond": beyond,
    }  # fmt: skip


def accuracy_rows(point: Point, reference: Sample, fast: Sample, *, n_resamples: int) -> list[dict[str, Any]]:
    """All rows of a point but the classifier's."""
    quantities = ["mean", "resolution", "layers"] if point.is_pion else ["mean", "resolution", "shower-max", "layers"]
    if point.detector == "pbwo4-block":
        quantities.append("containment")
    n = reference.n, fast.n
    rows = [row_of(point, c, n=n) for c in compare_samples(reference, fast, quantities=quantities, n_resamples=n_resamples)]
    if point.is_detailed:
        for cut in (CUT_MEV, 0.02, 0.0):
            found = compare_samples(reference, fast, quantities=["spectrum", "occupancy"], threshold_mev=cut, n_resamples=n_resamples)
            note = f", cells > {cut:g} MeV" if cut else ", all cells"
            rows += [row_of(point, c, n=n, note=note, is_judged=cut == CUT_MEV) for c in found]
    return rows


def features_of(sample: Sample) -> np.ndarray:
    """What the classifier sees: layer sums and layer widths, (shower, 2 layer)."""
    return np.hstack([sample.layer_mev, sample.layer_width_mm])


def auc_of(first: np.ndarray, second: np.ndarray, *, seed: int, folds: int = 5) -> tuple[float, float]:
    """Area under the ROC curve of a boosted forest that tells two samples of one size apart, and its uncertainty.

    Showers of the same particle share a fold: a tree could otherwise learn the particle in one sample and expect the
    other sample wherever it meets it again. Uncertainty of the tested showers as J. A. Hanley and B. J. McNeil, Radiology
    143 (1982) 29; with that of the training, equal samples of noise scattered by 1.4 times as much.
    """
    import lightgbm

    n = len(first)
    fold = np.random.default_rng(seed).permutation(n) % folds
    fold, x, y = np.tile(fold, 2), np.vstack([first, second]), np.repeat([0, 1], n)
    # chosen: small trees, slow learning; the number of trees is where the AUC of these samples is flat
    settings = {
        "objective": "binary", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 20, "feature_fraction": 0.5,
        "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1, "num_threads": 1, "deterministic": True, "seed": seed,
    }  # fmt: skip
    areas = []
    for k in range(folds):
        train, test = fold != k, fold == k
        forest = lightgbm.train(settings, lightgbm.Dataset(x[train], y[train]), num_boost_round=200)
        areas.append(area_under_curve(forest.predict(x[test]), y[test] == 1))
    auc = float(np.mean(areas))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return auc, math.sqrt((auc * (1 - auc) + (n - 1) * (q1 + q2 - 2 * auc**2)) / n**2)


def area_under_curve(score: np.ndarray, is_second: np.ndarray) -> float:
    """Chance that a shower of the second sample scores higher than one of the first; ties count half."""
    from scipy.stats import rankdata

    n_second = int(is_second.sum())
    rank = rankdata(score)[is_second].sum()
    return float((rank - n_second * (n_second + 1) / 2) / (n_second * (score.size - n_second)))


def classifier_rows(point: Point, reference: Sample, fast: Sample, *, seed: int) -> list[dict[str, Any]]:
    """AUC of the fast engine against Geant4, block by block; the floor is one fast block against another."""
    n = reference.n
    blocks = [features_of(Sample(fast.showers.between(k * n, (k + 1) * n))) for k in range(fast.n // n)]
    known, half = features_of(reference), reference.n // 2
    against = [auc_of(known, block, seed=seed + k) for k, block in enumerate(blocks)]
    floors = [auc_of(blocks[k], blocks[k + 1], seed=seed + k) for k in range(0, len(blocks) - 1, 2)]
    sums = [auc_of(known[:, : known.shape[1] // 2], blocks[0][:, : known.shape[1] // 2], seed=seed)]
    widths = [auc_of(known[:, known.shape[1] // 2 :], blocks[0][:, known.shape[1] // 2 :], seed=seed)]
    rows = []
    for what, found, size in (
        ("classifier AUC, layer sums and widths", against, n),
        ("classifier AUC, layer sums only", sums, n),
        ("classifier AUC, layer widths only", widths, n),
        ("classifier AUC, floor: fast against fast", floors, n),
        ("classifier AUC, floor: Geant4 against Geant4, halves", [auc_of(known[:half], known[half : 2 * half], seed=seed)], half),
    ):
        if not found:
            continue
        value = float(np.mean([v for v, _ in found]))
        # the blocks share the Geant4 sample: the uncertainty of one stands for that of their mean
        error = found[0][1]
        is_judged = what.endswith("and widths")
        rows.append({
            "quantity": what, "detector": point.detector, "particle": point.particle, "energy_gev": point.energy_gev,
            "n_each": size, "n_blocks": len(found), "auc": value, "auc_uncertainty": error,
            "target": AUC_GATE if is_judged else None, "aim": AUC_AIM if is_judged else None,
            "met": value <= AUC_GATE if is_judged else None, "sigmas_beyond": (value - AUC_GATE) / error if is_judged else None,
        })  # fmt: skip
    return rows


def line_of(row: dict[str, Any]) -> str:
    """A row as text."""
    state = "" if row["met"] is None else "met" if row["met"] else "MISSED" if row["sigmas_beyond"] > 2 else "missed?"
    head = f"{state:7s} {row['quantity']:46s} {row['detector']:15s} {row['particle']:5s} {row['energy_gev']:4g} "
    if "auc" in row:
        limit = f"   <= {row['target']}, aim {row['aim']}" if row["target"] else ""
        return head + f"{row['auc']:.3f} +- {row['auc_uncertainty']:.3f} (n = {row['n_each']} each, {row['n_blocks']} blocks){limit}"
    scale, unit = (1, row["unit"]) if row["is_absolute"] else (100, "%")
    target = "" if row["target"] is None else f" (target {scale * row['target']:g})"
    chance = "" if row["by_chance"] is None else f", by chance {scale * row['by_chance']:.1f}"
    where = f"; {row['where']}" if row["where"] else ""
    geant4, fast = (f"{row[name]:10.4g} +- {row[name + '_uncertainty']:7.2g}" for name in ("geant4", "fast"))
    difference = f"{scale * row['difference']:+7.2f} +- {scale * row['difference_uncertainty']:4.2f} {unit}"
    return head + f"{geant4} {fast} {row['unit']:4s} {difference}{target}{chance}{where}"


def summary_of(rows: list[dict[str, Any]]) -> list[str]:
    """How many rows of each quantity meet their target, and the worst."""
    lines = []
    judged = [r for r in rows if r["met"] is not None and "auc" not in r]
    for name, is_pion in dict.fromkeys((r["quantity"].split(", cells")[0], r["particle"] == "pi-") for r in judged):
        these = [r for r in judged if r["quantity"].startswith(name) and (r["particle"] == "pi-") == is_pion]
        worst = max(these, key=lambda r: abs(r["difference"]))
        scale = 1 if worst["is_absolute"] else 100
        at = f"{worst['detector']} {worst['particle']} {worst['energy_gev']:g}"
        who = "pions" if is_pion else "e, gamma"
        sure = sum(not r["met"] and r["sigmas_beyond"] > 2 for r in these)
        lines.append(
            f"{name:34s} {who:9s} {sum(r['met'] for r in these):3d} of {len(these):3d} met, {sure} missed by > 2 sigma; "
            f"worst {scale * worst['difference']:+.2f} of {scale * worst['target']:g} at {at}"
        )
    return lines


def machine() -> dict[str, Any]:
    """Where this ran, with what."""
    packages = ("numpy", "scipy", "numba", "h5py", "lightgbm", "calzone", "calolife")
    model = next(
        (line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), platform.processor()
    )
    constants = files("calolife").joinpath("data", "shower_constants.csv").read_bytes()
    return {
        "cpu": model, "cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(),
        "versions": {name: version(name) for name in packages}, "shower_constants_sha256": hashlib.sha256(constants).hexdigest(),
    }  # fmt: skip


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def chosen_points(options: argparse.Namespace, folder: Path, parts: set[str]) -> list[Point]:
    """The points asked for, Geant4 samples made where they are missing and wanted."""
    points = all_points(quick=options.quick)
    if options.points == ["ready"]:
        points = [p for p in points if (folder / p.name / "showers.h5").exists()]
    elif options.points != ["all"]:
        points = [p for p in points if any(fnmatch(p.name, pattern) for pattern in options.points)]
    if "accuracy" not in parts:
        points = [p for p in points if "classifier" in parts and p.is_detailed]
    if not points and parts != {"speed"}:
        sys.exit(f"no point to compare: {folder} holds none, or no name matches {' '.join(options.points)}")
    if options.points != ["ready"]:
        make_references(points, folder, workers=options.workers)
    return points


def compare_points(points: list[Point], folder: Path, *, parts: set[str], options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """Rows of all points, printed as they come, and the numbers behind the figures."""
    drawn = {f"{d}_{p}_{e}" for d, p, energies in PROFILES for e in energies}
    rows: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}
    for given in (*points, *options.sample):
        if isinstance(given, Point):
            point, reference = given, Sample(read_reference(given, folder))
            fast = Sample(shower_again(reference.showers, seed=options.seed, replicas=options.replicas))
        else:
            spot = options.beam_spot_mm
            point, reference, fast = read_sample(
                given, particle=options.particle, beam_spot_mm=spot, seed=options.seed, replicas=options.replicas
            )
            print(f"{given}: {reference.showers}, cells from {reference.showers.energy_mev.min():.3g} MeV on")
        made = accuracy_rows(point, reference, fast, n_resamples=options.resamples) if "accuracy" in parts else []
        if "classifier" in parts and point.is_detailed:
            made += classifier_rows(point, reference, fast, seed=options.seed)
        if isinstance(given, Path):
            made = [row | {"sample": given.name} for row in made]
        elif point.name in drawn:
            profiles[point.name] = numbers_of(reference, fast, is_detailed=point.is_detailed)
        for row in made:
            print(line_of(row), flush=True)
        rows += made
    return rows, profiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder of the Geant4 samples, filled where it lacks one")
    parser.add_argument("--points", nargs="+", default=["all"], help="all, ready, or names with wildcards such as 'pbwo4-block_e-_*'")
    parser.add_argument("--sample", nargs="+", type=Path, default=[], help="files of Geant4 showers to compare instead")
    parser.add_argument("--particle", default="pi-", help="in --sample, where the file does not tell")
    parser.add_argument("--beam-spot-mm", type=float, default=30.0, help="in --sample, where the file does not tell")
    parser.add_argument("--only", nargs="+", choices=("accuracy", "classifier", "speed"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1, help="of the fast engine and the resampling")
    parser.add_argument("--replicas", type=int, default=4, help="fast showers of each particle")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="processes that make missing Geant4 samples")
    parser.add_argument(
        "--out", type=Path, help="JSON, figures beside it; benchmarks/results/showers.json for a whole run, none for a part"
    )
    options = parser.parse_args()
    if (options.reference is None) == (not options.sample):
        parser.error("give --reference DIR, or --sample FILE")
    parts = set(options.only or ("accuracy", "classifier", "speed"))
    if (options.points == ["ready"] or options.sample) and not options.only:
        parts.remove("speed")  # while samples are being made, there is no core to time anything on
    folder = (options.reference or Path()) / ("quick" if options.quick else "")
    started = time.perf_counter()
    points = chosen_points(options, folder, parts) if options.reference else []
    rows, profiles = compare_points(points, folder, parts=parts, options=options)
    print(*summary_of(rows), sep="\n")
    result: dict[str, Any] = {
        "what": "fast engine against Geant4 (reduced data), same particles, other random numbers; differences relative unless is_absolute",
        "reference": {"seed": REFERENCE_SEED, "physics": "FTFP_BERT", "is_reduced_data": True},
        "fast": {"seed": options.seed, "replicas": options.replicas},
        "is_quick": options.quick, "machine": machine(), "rows": rows, "profiles": profiles,
    }  # fmt: skip
    targets: list[dict[str, Any]] = []
    if "speed" in parts:
        speed, costs = measure_speed(DETAILED[0], quick=options.quick), measure_costs(quick=options.quick)
        memory = measure_memory(DETAILED[0], quick=options.quick)
        targets = verdicts(speed, memory)
        result |= {"speed": speed, "costs": costs, "memory": memory, "speed_targets": targets}
        for c in costs:
            times = f"fast {c['fast_ms']:8.3f} ms, Geant4 {c['geant4_ms']:8.1f} ms a shower, ratio {c['ratio']:.0f}"
            print(f"        {c['detector']:15s} {c['particle']:5s} {c['energy_gev']:4g} GeV: {times}")
        for name, rate in speed["rates"].items():
            print(f"        {name}: {rate['value']:.4g} +- {rate['uncertainty'] or 0:.2g} pions of 10 GeV a core-second")
        for m in memory:
            print(
                f"        {m['engine']}: peak {m['peak_mib']:.0f} MiB at {m['n']}, {m['peak_mib_at_10n']:.0f} MiB at {10 * m['n']} showers"
            )
        for t in targets:
            error = "" if t["uncertainty"] is None else f" +- {t['uncertainty']:.2g}"
            print(f"{'met   ' if t['met'] else 'MISSED'}  {t['what']}: {t['reached']:.4g}{error} (target {t['target']:g})")
    result["wall_s"] = time.perf_counter() - started
    is_whole = options.points == ["all"] and not options.sample and not options.only and not options.quick
    out = options.out or (Path(__file__).parent / "results" / "showers.json" if is_whole else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rounded(result), indent=1) + "\n", encoding="utf-8")
        draw_figures(rounded(result), out)
    return 0 if all(r["met"] is not False for r in rows) and all(t["met"] for t in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
