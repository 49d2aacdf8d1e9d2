"""Speed and memory of the engines, for `showers.py`: peers take turns in one run, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from calolife.detector.presets import load_detector
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import PDG, sample_particles

SEED = 4711  # chosen: no comparison uses it
TARGETS = {
    "fast": ("10 GeV pions a core-second, fast engine", 4000.0),
    "ratio": ("fast engine over Geant4", 200.0),
    "bare": ("our geant4 engine over bare calzone", 0.90),
    "memory-fast": ("peak memory at 10 N over N, fast engine", 1.1),
    "memory-geant4": ("peak memory at 10 N over N, geant4 engine", 1.1),
}  # 1.1 is chosen: what "flat" may mean, given that the Python heap grows a little

_bare: Any = None


def run_engine(engine: str, detector: str, particle: str, energy_gev: float, n: int, first: int) -> float:
    """CPU time that an engine takes for so many showers [s]."""
    calo = load_detector(detector)
    particles = sample_particles(calo, n, particle=particle, energy_gev=energy_gev, beam_spot_mm=30.0, seed=SEED, first=first)
    started = time.process_time()
    simulate_showers(calo, particles, engine=engine, seed=SEED, first=first)
    return time.process_time() - started


def run_bare(detector: str, particle: str, energy_gev: float, n: int, first: int) -> float:
    """CPU time of calzone alone, deposits in its own arrays, nothing made of them [s]."""
    import calzone

    from calolife.simulation.geant4 import geant4_geometry

    global _bare
    calo = load_detector(detector)
    if _bare is None:
        physics = calzone.Physics("standard", had_model="FTFP_BERT", default_cut=0.07)
        _bare = calzone.Simulation(calzone.Geometry(geant4_geometry(calo)), physics)
        _bare.sample_deposits, _bare.sample_particles = "detailed", False
    particles = sample_particles(calo, n, particle=particle, energy_gev=energy_gev, beam_spot_mm=30.0, seed=SEED, first=first)
    primaries = calzone.particles(n)
    primaries["pid"], primaries["energy"], primaries["direction"] = PDG[particle], 1e3 * energy_gev, particles.direction
    primaries["position"] = np.column_stack([0.1 * particles.position_mm, np.full(n, -0.1)])
    started = time.process_time()
    _bare.run(primaries)
    return time.process_time() - started


def peak_mib(engine: str, detector: str, n: int) -> float:
    """Peak memory of `calolife showers simulate` with so many 10 GeV pions [MiB]."""
    with tempfile.TemporaryDirectory() as folder:
        main = [sys.executable, "-c", "from calolife.cli import main; main()", "showers", "simulate", detector, "--particle", "pi-"]
        rest = ["--energy", "10", "-n", str(n), "--beam-spot-mm", "30", "--engine", engine, "--seed", str(SEED), "--quiet", "--out"]
        child = subprocess.Popen([*main, *rest, str(Path(folder) / "run")], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"showers simulate --engine {engine} -n {n} ended with status {child.returncode}")
    return used.ru_maxrss / 1024  # Linux counts in KiB


def _own_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _middle(values: list[float]) -> tuple[float, float]:
    """Median and its uncertainty, from the spread about it."""
    a = np.asarray(values)
    return float(np.median(a)), float(1.253 * a.std(ddof=1) / np.sqrt(a.size)) if a.size > 1 else float("nan")


def measure_speed(detector: str, *, quick: bool) -> dict[str, Any]:
    """Rates of the fast engine, our Geant4 engine and bare calzone for 10 GeV pions, turn by turn, and what follows."""
    rounds, n_fast, n_geant4 = (2, 2000, 10) if quick else (20, 4000, 50)
    rates: dict[str, list[float]] = {"fast": [], "geant4": [], "bare": []}
    with _own_process() as fast, _own_process() as geant4, _own_process() as bare:
        # once to compile and to load Geant4's tables; both are paid once a process
        fast.submit(run_engine, "fast", detector, "pi-", 10.0, 50, 0).result()
        geant4.submit(run_engine, "geant4", detector, "pi-", 10.0, 20, 0).result()
        bare.submit(run_bare, detector, "pi-", 10.0, 20, 0).result()
        for k in range(rounds):
            rates["fast"].append(n_fast / fast.submit(run_engine, "fast", detector, "pi-", 10.0, n_fast, k * n_fast).result())
            turns = ["geant4", "bare"] if k % 2 else ["bare", "geant4"]
            for who in turns:
                job = (geant4, (run_engine, "geant4")) if who == "geant4" else (bare, (run_bare,))
                seconds = job[0].submit(*job[1], detector, "pi-", 10.0, n_geant4, k * n_geant4).result()
                rates[who].append(n_geant4 / seconds)
    over_geant4 = [f / g for f, g in zip(rates["fast"], rates["geant4"], strict=True)]
    over_bare = [g / b for g, b in zip(rates["geant4"], rates["bare"], strict=True)]
    return {
        "what": "10 GeV pi- a core-second (CPU time), median of the rounds; all cells; start of the process not counted",
        "detector": detector, "rounds": rounds, "showers_a_round": {"fast": n_fast, "geant4": n_geant4, "bare": n_geant4},
        "load_average": os.getloadavg()[0],
        "rates": {name: _pair(*_middle(values)) for name, values in rates.items()}, "all_rates": rates,
        "ratio": _pair(*_middle(over_geant4)), "bare": _pair(*_middle(over_bare)),
    }  # fmt: skip


def measure_costs(*, quick: bool) -> list[dict[str, Any]]:
    """CPU time of a shower against its energy, both engines."""
    rows = []
    for detector, particle in (("cu-scint-24x24", "pi-"), ("pbwo4-block", "e-")):
        with _own_process() as fast, _own_process() as geant4:
            for pool, engine in ((fast, "fast"), (geant4, "geant4")):
                pool.submit(run_engine, engine, detector, particle, 10.0, 5, 0).result()
            for energy_gev in (1.0, 3.0, 10.0, 30.0, 100.0):
                # chosen: seconds at each energy, and enough showers that what a call costs by itself does not count
                n_geant4 = 5 if quick else int(np.clip(round(1000 / energy_gev), 20, 200))
                n_fast = 500 if quick else int(np.clip(round(50_000 / energy_gev), 2_000, 10_000))
                cost = {
                    engine: 1e3 * pool.submit(run_engine, engine, detector, particle, energy_gev, n, 1000).result() / n
                    for pool, engine, n in ((fast, "fast", n_fast), (geant4, "geant4", n_geant4))
                }
                rows.append({
                    "detector": detector, "particle": particle, "energy_gev": energy_gev, "fast_ms": cost["fast"],
                    "geant4_ms": cost["geant4"], "ratio": cost["geant4"] / cost["fast"], "n_fast": n_fast, "n_geant4": n_geant4,
                })  # fmt: skip
    return rows


def measure_memory(detector: str, *, quick: bool) -> list[dict[str, Any]]:
    """Peak memory of the command with N and 10 N showers."""
    rows = []
    for engine, n in (("fast", 500 if quick else 10_000), ("geant4", 10 if quick else 60)):
        small, large = (peak_mib(engine, detector, m) for m in (n, 10 * n))
        rows.append({"engine": engine, "n": n, "peak_mib": small, "peak_mib_at_10n": large, "ratio": large / small})
    return rows


def verdicts(speed: dict[str, Any], memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with what was reached."""
    reached = {"fast": speed["rates"]["fast"], "ratio": speed["ratio"], "bare": speed["bare"]}
    reached |= {f"memory-{m['engine']}": _pair(m["ratio"], float("nan")) for m in memory}
    rows = []
    for name, (what, target) in TARGETS.items():
        value = reached[name]["value"]
        met = value <= target if name.startswith("memory") else value >= target
        rows.append({"what": what, "reached": value, "uncertainty": reached[name]["uncertainty"], "target": target, "met": met})
    return rows


def _pair(value: float, uncertainty: float) -> dict[str, float | None]:
    return {"value": value, "uncertainty": None if np.isnan(uncertainty) else uncertainty}
