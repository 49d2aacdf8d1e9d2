"""Electrons in crystals, from showers to the Z peak: the network beside the trees and a scaled sum, on the same objects.

    python benchmarks/drn.py WORK                      # everything, some hours; what WORK holds already is kept
    python benchmarks/drn.py WORK --only speed         # or agreement, tune, accuracy, photons, limits, zee; one or several
    python benchmarks/drn.py WORK --quick              # a smoke test of every part: hundreds of electrons

Each step is a command of calolife with the seeds below, kept as a run in WORK: 200,000 electrons and positrons of the fast engine to
train on, 40,000 to test, 40,000 more on which nothing was decided (`confirm`), 4,000 electrons of Geant4 (with its data in
GEANT4_DATA_DIR), flat from 1 to 300 GeV, all over the barrel, with 0 to 60 collisions of pileup. `photons` does with 100,000 and 20,000
photons what `accuracy` does with electrons.

`agreement` compares the two engines before any readout: what the simulation was frozen on before a model was trained. `tune` gives the
trees and the network the same CPU time for their settings, on training electrons alone; `accuracy` trains with the defaults. `limits` asks
where the information is: how well the trees and the network do with fewer electrons, and what the trees would do if they were told parts
of the truth.

Times are wall time on the cores that PyTorch may use, with two threads where a row says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.energy.blend import blend_of
from calolife.energy.features import EnergySample
from calolife.energy.models import load_energy_model
from calolife.energy.samples import read_energy_sample
from calolife.storage import save_model

Json = dict[str, Any]
FloatArray = NDArray[np.float64]

N_TRAIN, N_TEST, N_GEANT4, N_COLLISIONS, N_PAIRS = 200_000, 40_000, 4_000, 4_000, 6_000
N_TRAIN_PHOTONS, N_TEST_PHOTONS = 100_000, 20_000
N_REPLICAS = 40
SEEDS = {
    "train": 61, "test": 65, "geant4": 661, "collisions": 63, "test_collisions": 66, "zee": 64, "train_photons": 71, "test_photons": 75,
    "confirm": 85, "confirm_collisions": 86,
}  # fmt: skip
BOTH_CHARGES = "mix:e-=0.5,e+=0.5"
ENERGY, PILEUP = "1:300", "0:60"
MODELS = {"sum": (), "bdt": (), "drn": (), "drn-hits": ("--hits-only",)}  # with the options of each
TUNE_MINUTES, N_TUNE, N_JUDGED = 12.0, 20_000, 6_000
EDGES_GEV = (1.0, 30.0, 100.0, 200.0, 300.0)  # of the comparison of the engines
NEED = {  # objects a second on two cores, at least; with what the publication had on its CPU
    "default 1": (400, 90), "default 100": (5_000, 500), "default 50000": (5_000, 70), "published 100": (1_500, 500),
}  # fmt: skip
NEED_EPOCH_MINUTES = 6.0


class Bench:
    """Steps in a directory, each done once."""

    def __init__(self, work: Path, *, scale: float) -> None:
        self.work, self.scale = work, scale
        work.mkdir(parents=True, exist_ok=True)

    def n(self, whole: int) -> str:
        return str(max(200, round(whole * self.scale)))

    def run(self, name: str, *argv: str) -> Path:
        """A command of calolife, whose run is kept; its JSON goes beside it."""
        out = self.work / name
        if out.exists() and out.with_suffix(".json").exists():
            return out
        started = time.perf_counter()
        command = [sys.executable, "-c", "from calolife.cli import main; raise SystemExit(main())", *argv, "--out", str(out), "--json"]
        if out.exists():  # killed before its JSON was kept
            command.append("--force")
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        out.with_suffix(".json").write_text(done.stdout, encoding="utf-8")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        return out

    def told(self, name: str) -> Json:
        """What a command said."""
        found: Json = json.loads((self.work / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def objects(self, name: str, n: int, *, particle: str = BOTH_CHARGES, engine: str = "fast") -> Path:
        """Objects of a sample: showers, read out with pileup, clustered. Training and test share neither seeds nor collisions."""
        seed = str(SEEDS[name])
        of = ("--particle", particle, "--energy", ENERGY, "-n", self.n(n), "--engine", engine, "--workers", "2")
        showers = self.run(f"{name}_showers", "showers", "simulate", "cms-barrel", *of, "--seed", seed)
        pileup = "collisions" if name.startswith("train") else f"{'confirm' if name == 'confirm' else 'test'}_collisions"
        of = ("--particle", "minbias", "-n", self.n(N_COLLISIONS), "--workers", "2")
        collisions = self.run(pileup, "showers", "simulate", "cms-barrel", *of, "--seed", str(SEEDS[pileup]))
        rechits = self.run(
            f"{name}_rechits", "showers", "digitise", str(showers), "--pileup", str(collisions), "--pileup-mean", PILEUP, "--seed", seed
        )
        return self.run(f"{name}_objects", "showers", "cluster", str(rechits), "--only-matched")

    def models(self) -> list[Path]:
        """Of electrons."""
        objects = self.objects("train", N_TRAIN)
        runs = [self.run(m, "energy", "train", str(objects), "--model", m.split("-")[0], *how) for m, how in MODELS.items()]
        return [*runs, self.blend("blend", objects, runs[1], runs[2])]

    def photon_models(self) -> list[Path]:
        objects = self.objects("train_photons", N_TRAIN_PHOTONS, particle="gamma")
        runs = [self.run(f"{m}-photons", "energy", "train", str(objects), "--model", m) for m in ("sum", "bdt", "drn")]
        return [*runs, self.blend("blend-photons", objects, runs[1], runs[2])]

    def blend(self, name: str, objects: Path, bdt: Path, drn: Path) -> Path:
        """What `energy train --model blend` fits, of two models that are there already: a fit repeats to the same numbers."""
        out = self.work / name
        if not out.with_suffix(".json").exists():
            shutil.copytree(bdt, out, dirs_exist_ok=True)
            models = load_energy_model(bdt), load_energy_model(drn)
            save_model(blend_of(*models, read_energy_sample([objects])), out)
            seconds = sum(self.told(m.name)["fit_seconds"] for m in (bdt, drn))
            out.with_suffix(".json").write_text(json.dumps({"fit_seconds": seconds}), encoding="utf-8")
        return out


# --- the engines beside each other


def around_hottest(path: Path) -> tuple[dict[str, FloatArray], FloatArray]:
    """Energy in 1, 9, 25 and all crystals over the true energy, and widths in crystals, of showers before the readout."""
    from calolife.showers.files import iter_showers

    parts: list[dict[str, FloatArray]] = []
    energies = []
    for showers in iter_showers(path):
        n, n_phi, of, energy = showers.n_showers, showers.detector.n_phi, showers.shower_index, showers.energy_mev.astype(np.float64)
        row, column = np.divmod(showers.cell, n_phi)
        order = np.lexsort((-energy, of))
        hottest = order[np.minimum(np.searchsorted(of[order], np.arange(n)), order.size - 1)]
        rows, columns = row - row[hottest][of], (column - column[hottest][of] + n_phi // 2) % n_phi - n_phi // 2

        def summed(weight: FloatArray, of: Any = of, n: int = n) -> FloatArray:
            return np.bincount(of, weight, n).astype(np.float64)

        within = {k: summed(energy * ((np.abs(rows) <= k) & (np.abs(columns) <= k))) for k in (0, 1, 2)}
        with np.errstate(divide="ignore", invalid="ignore"):
            # 4.7: CMS's weight of sigma ieta-ieta
            weight = np.where((np.abs(rows) <= 2) & (np.abs(columns) <= 2), np.maximum(4.7 + np.log(energy / within[2][of]), 0.0), 0.0)
            norm = summed(weight)
            widths = [np.sqrt(summed(weight * (x - (summed(weight * x) / norm)[of]) ** 2) / norm) for x in (rows, columns)]
        true = 1000.0 * showers.energy_gev
        parts.append(
            {"1 crystal": within[0] / true, "9 crystals": within[1] / true, "25 crystals": within[2] / true,
             "all crystals": summed(energy) / true, "sigma ieta-ieta": widths[0], "sigma iphi-iphi": widths[1]}
        )  # fmt: skip
        energies.append(showers.energy_gev)
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, np.concatenate(energies)


def agreement(bench: Bench) -> Json:
    """Fast over Geant4: mean, median and effective sigma of each quantity in bins of energy, with their errors."""
    bench.objects("geant4", N_GEANT4, particle="e-", engine="geant4")
    bench.objects("test", N_TEST)
    (slow, slow_gev), (fast, fast_gev) = (around_hottest(bench.work / f"{name}_showers") for name in ("geant4", "test"))
    rng = np.random.default_rng(1)
    rows = []
    for low, high in ((EDGES_GEV[0], EDGES_GEV[-1]), *itertools.pairwise(EDGES_GEV)):
        for name in slow:
            a, b = (x[name][(e >= low) & (e < high) & np.isfinite(x[name])] for x, e in ((slow, slow_gev), (fast, fast_gev)))
            row: Json = {"quantity": name, "low_gev": low, "high_gev": high, "n_geant4": a.size, "n_fast": b.size}
            for what, of in (("mean", np.mean), ("median", np.median), ("sigma_eff", sigma_eff)):
                replicas = [of(rng.choice(b, b.size)) / of(rng.choice(a, a.size)) for _ in range(50)]
                row |= {what: float(of(b) / of(a)), f"{what}_error": float(np.std(replicas))}
            rows.append(row)
    return {"rows": rows}


def sigma_eff(values: FloatArray) -> float:
    from calolife.energy.resolution import shortest_half

    return float(shortest_half(np.sort(values)[None])[0])


# --- settings: the same time for both


def tune(bench: Bench) -> Json:
    """Search the settings of the trees and of the network in the same CPU time, each on one core; training electrons left out judge."""
    whole = read_energy_sample([bench.objects("train", N_TRAIN)])
    order = np.random.default_rng(1).permutation(whole.n_showers)
    n_judged, n_fitted = (min(n, whole.n_showers // 3) for n in (N_JUDGED, N_TUNE))
    judged, fitted = whole.select(order[:n_judged]), whole.select(order[n_judged : n_judged + n_fitted])
    minutes = TUNE_MINUTES * bench.scale
    with ProcessPoolExecutor(len(DEFAULTS), mp_context=get_context("spawn")) as pool:
        searches = {model: pool.submit(search, model, fitted, judged, 60 * minutes) for model in DEFAULTS}
        found = {model: s.result() for model, s in searches.items()}
    return {"minutes_each": minutes, "n_fitted": n_fitted, "n_judged": n_judged, **found}


def search(model: str, fitted: EnergySample, judged: EnergySample, seconds: float) -> Json:
    """Settings tried in so many seconds of CPU, the default first; their loss is -ln of the likelihood of the objects left out."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials: list[Json] = []

    def objective(trial: optuna.Trial) -> float:
        started = time.process_time()
        loss, settings = {"bdt": trial_of_bdt, "drn": trial_of_drn}[model](trial, fitted, judged)
        trials.append({"loss": loss, "seconds": time.process_time() - started, **settings})
        return loss

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=8))
    study.enqueue_trial(DEFAULTS[model])
    while sum(t["seconds"] for t in trials) < seconds:
        study.optimize(objective, n_trials=1)
        print(model, json.dumps(rounded(trials[-1])), flush=True)
    return {"default": trials[0], "best": min(trials, key=lambda t: t["loss"]), "n_trials": len(trials), "trials": trials}


DEFAULTS: dict[str, Json] = {
    "bdt": {"leaves": 15, "learning_rate": 0.05, "least_in_leaf": 20, "feature_fraction": 0.7, "bagging_fraction": 0.8, "l2": 1.0},
    "drn": {"width": 32, "hidden": 32, "k": 8, "blocks": 2, "lr": 2e-3, "batch_size": 256},
}


def trial_of_bdt(trial: Any, fitted: EnergySample, judged: EnergySample) -> tuple[float, Json]:
    from calolife.energy.ball import ball_slopes
    from calolife.energy.bdt import ALPHA_LEFT, ALPHA_RIGHT, fit_bdt

    settings = {
        "leaves": trial.suggest_int("leaves", 4, 64, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.15, log=True),
        "least_in_leaf": trial.suggest_int("least_in_leaf", 10, min(300, fitted.n_showers // 10), log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
        "l2": trial.suggest_float("l2", 0.01, 100.0, log=True),
    }
    model = fit_bdt(fitted, seed=1, **settings)
    y = np.log(judged.energy_gev / (judged.visible_mev / 1000.0))
    return float(ball_slopes(y, model.parameters(judged), alpha_left=ALPHA_LEFT, alpha_right=ALPHA_RIGHT)[0].mean()), settings


def trial_of_drn(trial: Any, fitted: EnergySample, judged: EnergySample) -> tuple[float, Json]:
    import torch

    from calolife.energy.crystal_ball import crystal_ball_nll
    from calolife.energy.drn import infer
    from calolife.energy.drn_model import fit_drn, in_units, inputs_of

    settings = {
        "width": trial.suggest_int("width", 24, 48, step=8),
        "hidden": trial.suggest_int("hidden", 24, 64, step=8),
        "k": trial.suggest_int("k", 6, 12, step=2),
        "blocks": trial.suggest_int("blocks", 2, 3),
        "lr": trial.suggest_float("lr", 1e-3, 5e-3, log=True),
        "batch_size": trial.suggest_int("batch_size", 128, 256, step=128),
    }
    model = fit_drn(fitted, seed=1, epochs=8, n_threads=1, **settings)
    assert judged.objects is not None
    raw = judged.objects.raw_energy_gev
    hit, count, event = (torch.from_numpy(a) for a in inputs_of(judged, reads_features=True))
    shape = in_units(infer(model.net, hit, count=count, event=event), torch.from_numpy(raw.astype(np.float32)))
    y = torch.from_numpy(np.log(raw / judged.energy_gev).astype(np.float32))
    return float(crystal_ball_nll(shape, y).mean()), settings


# --- accuracy

DROPPED = (
    "particle",
    "at",
    "p_value",
    "n_outside",
    "why",
    "mean_ratio",
    "mean_ratio_low",
    "mean_ratio_high",
    "fit",
)  # of a row: the runs keep them


def accuracy(bench: Bench) -> Json:
    """All models on the test electrons, and on Geant4's."""
    models = bench.models()
    found: Json = {"fit_seconds": {m.name: bench.told(m.name)["fit_seconds"] for m in models}}
    bench.objects("test", N_TEST)
    bench.objects("geant4", N_GEANT4, particle="e-", engine="geant4")
    bench.objects("confirm", N_TEST)
    return found | {name: scores(bench, name, models) for name in ("test", "geant4", "confirm")}


def photons(bench: Bench) -> Json:
    """The same with photons: trained on photons, and what the models of electrons say of them."""
    own = bench.photon_models()
    bench.objects("test_photons", N_TEST_PHOTONS, particle="gamma")
    found: Json = {"fit_seconds": {m.name: bench.told(m.name)["fit_seconds"] for m in own}}
    models = [*own, *(m for m in bench.models() if m.name == "blend")]
    return found | {"test": scores(bench, "test_photons", models)}


def scores(bench: Bench, name: str, models: list[Path]) -> Json:
    """Cruijff rows of all models on the objects of this sample."""
    objects = bench.work / f"{name}_objects"
    bench.run(f"{name}_scores", "energy", "evaluate", *map(str, models), "--on", str(objects), "--reference", "bdt")
    told = bench.told(f"{name}_scores")
    particles = {r["particle"] for r in told["cruijff"]}
    rows = [
        {k: v for k, v in r.items() if k not in DROPPED}
        for r in told["cruijff"]
        if (r["particle"] == "all" or len(particles) == 1) and "all" in (r["eta_region"], r["variable"])
    ]
    counts = {k: v for k, v in bench.told(f"{name}_objects").items() if isinstance(v, (int, float))}
    return {"n": told["n"], "objects": counts, "cruijff": rows}


def limits(bench: Bench) -> Json:
    """Where the information is: fewer electrons to learn from, and the parts of the energy that no crystal sees."""
    from calolife.energy.lineshapes import fit_cruijff
    from calolife.energy.models import fit_energy

    train, test = (read_energy_sample([bench.objects(name, n)]) for name, n in (("train", N_TRAIN), ("test", N_TEST)))
    rows = []
    for n in (5_000, 20_000):
        some = train.select(np.sort(np.random.default_rng(1).permutation(train.n_showers)[: round(n * max(bench.scale, 0.05))]))
        for model in ("bdt", "drn"):
            ratio = fit_energy(model, some, seed=0).predict(test).energy_gev / test.energy_gev
            fit = fit_cruijff(ratio, n_bootstrap=50)
            rows.append({"model": model, "n_training": some.n_showers, "sigma_percent": 100 * fit.sigma_over_mu})
            print(json.dumps(rounded(rows[-1])), flush=True)
    return {"fewer_electrons": rows, "oracles": oracles(bench)}


def oracles(bench: Bench) -> list[Json]:
    """What the trees would do if they were told more, each piece of the truth by itself, of a tenth of the electrons."""
    from calolife.energy.lineshapes import fit_cruijff
    from calolife.energy.models import fit_energy
    from calolife.energy.objects import sample_of_objects
    from calolife.showers.cluster_files import read_superclusters
    from calolife.showers.files import iter_showers

    told: dict[str, tuple[EnergySample, dict[str, FloatArray]]] = {}
    for name, n in (("train", N_TRAIN // 10), ("test", N_TEST // 2)):
        found = read_superclusters(bench.work / f"{name}_objects").matched()
        found = found.select(found.shower < max(200, round(n * bench.scale)))
        seen, position = [], []
        for showers in iter_showers(bench.work / f"{name}_showers"):
            seen.append(showers.visible_mev / 1000.0)
            position.append(showers.position_mm[:, :2])
            if sum(x.size for x in seen) > found.shower[-1]:
                break
        seed = found.detector.cell_position_mm(found.seed_cell)[:, :2]
        away = (np.concatenate(position)[found.shower] - seed) / found.detector.crystal_size_mm
        truth = {
            "energy of all crystals before the readout": (np.concatenate(seen)[found.shower] / found.raw_energy_gev)[:, None],
            "where a photon would arrive": np.clip(away, -5.0, 5.0),
            "energy of all crystals, no other feature": np.empty((found.n_objects, 0)),
        }
        told[name] = sample_of_objects(found), truth
    rows: list[Json] = []
    for what in ("nothing", *told["train"][1]):
        samples = []
        for sample, truth in told.values():
            extra = truth.get(what, np.empty((sample.n_showers, 0)))
            shape, names = np.column_stack([sample.shape, extra]), (*sample.shape_names, *(f"truth_{i}" for i in range(extra.shape[1])))
            samples.append(replace(sample, shape=shape, shape_names=names))
        if what == "energy of all crystals, no other feature":
            ratio = (
                told["test"][1]["energy of all crystals before the readout"][:, 0] * samples[1].visible_mev / 1000.0 / samples[1].energy_gev
            )
        else:
            ratio = fit_energy("bdt", samples[0], seed=0).predict(samples[1]).energy_gev / samples[1].energy_gev
        fit = fit_cruijff(ratio, n_bootstrap=50)
        rows.append({"told": what, "n_training": samples[0].n_showers, "sigma_percent": 100 * fit.sigma_over_mu,
                     "sigma_eff_percent": 100 * sigma_eff(ratio)})  # fmt: skip
        print(json.dumps(rounded(rows[-1])), flush=True)
    return rows


def zee(bench: Bench) -> Json:
    """The Z peak by trees, network and both, ideal and realistic."""
    models = [str(m) for m in bench.models() if m.name in ("bdt", "drn", "blend")]
    how = ("-n", bench.n(N_PAIRS), "--reference", "bdt", "--bootstrap", str(N_REPLICAS), "--seed", str(SEEDS["zee"]), "--workers", "2")
    bench.run("zee", "energy", "zee", *models, *how)
    told = bench.told("zee")
    return {**told, "results": [{k: v for k, v in r.items() if k not in DROPPED} for r in told["results"]], "run": "zee"}


# --- speed


def speed(bench: Bench) -> Json:
    """Objects a second of the network, from objects in memory to energies, and the time of an epoch."""
    import torch

    from calolife.energy.drn import infer
    from calolife.energy.drn_model import PUBLISHED, fit_drn, inputs_of

    sample = read_energy_sample([bench.objects("test", N_TEST)])
    sample = sample.select(np.arange(50_000) % sample.n_showers) if bench.scale == 1 else sample
    few = sample.select(np.arange(min(2_000, sample.n_showers)))
    rng = np.random.default_rng(1)
    rows = []
    # of a few electrons: what a model answers costs nothing more or less
    models = {
        "default": fit_drn(few, epochs=1),
        "published": fit_drn(few.select(np.arange(min(200, few.n_showers))), epochs=1, **PUBLISHED),
    }
    for name, model in models.items():
        for size in (1, 100, sample.n_showers):
            some = [sample.select(rng.integers(0, sample.n_showers, size)) for _ in range({1: 400, 100: 40}.get(size, 1))]
            for way, n_threads in (("split", 1), ("split", 2), ("reference", 1)):
                if (name == "published" and size > 5_000) or (way == "reference" and size > 5_000) or (size == 1 and n_threads == 2):
                    continue

                def answer(s: EnergySample, way: str = way, n_threads: int = n_threads, model: Any = model) -> None:
                    if way == "split":
                        model.predict(s, n_threads=n_threads)
                        return
                    hit, count, event = (torch.from_numpy(a) for a in inputs_of(s, reads_features=model.reads_features))
                    infer(model.net, hit, count=count, event=event, is_reference=True)

                answer(some[0])
                wall, cpu = time.perf_counter(), time.process_time()
                for s in some:
                    answer(s)
                wall, cpu, n = time.perf_counter() - wall, time.process_time() - cpu, len(some) * size
                of = {"model": name, "layer": way, "batch": size, "threads": n_threads}
                rows.append({**of, "per_second": n / wall, "per_cpu_second": n / cpu})
                print(json.dumps(rounded(rows[-1])), flush=True)
    epochs = []
    for n_threads in (1, 2):
        started, n = time.perf_counter(), min(20_000, sample.n_showers)
        fit_drn(sample.select(np.arange(n)), epochs=1, n_threads=n_threads)
        minutes = (time.perf_counter() - started) / 60 * N_TRAIN / n
        epochs.append({"threads": n_threads, "minutes_per_epoch_of_200000": minutes})
        print(json.dumps(rounded(epochs[-1])), flush=True)
    best = {f"{r['model']} {r['batch']}": 0.0 for r in rows}
    for r in rows:
        if r["layer"] == "split":
            best[f"{r['model']} {r['batch']}"] = max(best[f"{r['model']} {r['batch']}"], r["per_second"])
    needs = [{"what": k, "per_second": best.get(k, float("nan")), "needed": need, "published": said} for k, (need, said) in NEED.items()]
    needs.append({"what": "epoch", "minutes": min(e["minutes_per_epoch_of_200000"] for e in epochs), "needed": NEED_EPOCH_MINUTES})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = [pool.submit(memory_of, bench.work / "test_objects", n).result() for n in (12_500, 25_000, 50_000)]
    return {"rows": rows, "epochs": epochs, "targets": needs, "memory": memory}


def memory_of(path: Path, n: int) -> Json:
    """Memory of a process of its own, with n objects in memory and at most while the network reads them all at once."""
    import psutil

    from calolife.energy.drn_model import fit_drn

    sample = read_energy_sample([path])
    model = fit_drn(sample.select(np.arange(min(200, sample.n_showers))), epochs=1)
    sample = sample.select(np.arange(n) % sample.n_showers)
    model.predict(sample.select(np.arange(min(100, n))))
    process = psutil.Process()
    before, most, is_done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_done.wait(0.02):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model.predict(sample)
    is_done.set()
    watcher.join()
    row = {"objects": n, "hits": int(sample.objects.cell.size), "before_mb": before / 1e6, "more_mb": (most - before) / 1e6}
    print(json.dumps(rounded(row)), flush=True)
    return row


PARTS: dict[str, Callable[[Bench], Json]] = {
    "agreement": agreement, "tune": tune, "accuracy": accuracy, "photons": photons, "limits": limits, "zee": zee, "speed": speed,
}  # fmt: skip


def rounded(value: Any) -> Any:
    """Five digits are enough."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON; benchmarks/results/drn.json unless --quick")
    options = parser.parse_args()
    parts = tuple(PARTS) if options.only is None else tuple(options.only.split(","))
    if unknown := [p for p in parts if p not in PARTS]:
        parser.error(f"--only {unknown[0]!r} is not one of {', '.join(PARTS)}")
    if "GEANT4_DATA_DIR" not in os.environ and {"agreement", "accuracy"} & set(parts):
        parser.error("Geant4 electrons need GEANT4_DATA_DIR; leave out agreement and accuracy with --only, or set it (docs/showers.md)")
    out = options.out or (None if options.quick else Path(__file__).parent / "results" / "drn.json")
    result: Json = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    bench = Bench(options.work, scale=0.005 if options.quick else 1.0)
    result |= {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "torch": version("torch"), "lightgbm": version("lightgbm"), "seeds": SEEDS, "energy_gev": ENERGY, "pileup": PILEUP,
        "n": {
            "train": N_TRAIN, "test": N_TEST, "geant4": N_GEANT4, "pairs": N_PAIRS, "train_photons": N_TRAIN_PHOTONS,
            "test_photons": N_TEST_PHOTONS,
        },
    }  # fmt: skip
    for part in parts:
        result[part] = rounded(PARTS[part](bench))
        if out is not None:  # part by part: the next may be stopped
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
