"""`calolife energy zee`: Z peaks of models in two conditions, from a run to its numbers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from calolife.cli import main
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import load_detector, to_toml
from calolife.energy.features import EnergySample
from calolife.energy.linear import fit_sum
from calolife.energy.samples import write_training_showers
from calolife.runs import read_run
from calolife.showers.files import write_showers
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import sample_particles
from calolife.storage import save_model

N = 60
SMALL = ["energy", "zee", "-n", str(N), "--bootstrap", "2", "--seed", "3", "--quiet"]


def model_run(folder: Path, *, digest: str, n_layers: int = 1, scale: float = 1.05) -> Path:
    """A run directory with a fitted sum."""
    layers = np.random.default_rng(1).gamma(5.0, 4000.0, (100, n_layers))
    sample = EnergySample(layers, 1e-3 * scale * layers.sum(axis=1), np.full(100, 11), digest=digest)
    folder.mkdir(parents=True)
    save_model(fit_sum(sample), folder)
    write_training_showers(folder, sample)
    return folder


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, barrel: CrystalCalorimeter) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return model_run(folder / "low", digest=barrel.digest, scale=1.05), model_run(folder / "high", digest=barrel.digest, scale=1.07)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path]) -> Path:
    out = tmp_path_factory.mktemp("runs") / "z"
    assert main([*SMALL, *map(str, models), "--out", str(out)]) == 0
    return out


def test_a_run_holds_events_fits_and_figures(run: Path) -> None:
    stored = read_run(run)
    assert set(stored.files) == {
        "log.txt", "results.json", "events.parquet", "events.csv", "comparison.parquet", "comparison.csv",
        *(f"plots/z-peak-{condition}.{kind}" for condition in ("ideal", "realistic") for kind in ("png", "csv")),
    }  # fmt: skip
    document = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert document["n_pairs"] == N
    assert document["acceptance"] == N / document["n_tried"]
    assert [(row["model"], row["condition"]) for row in document["results"]] == [
        (model, condition) for condition in ("ideal", "realistic") for model in ("low", "high", "raw")
    ]
    assert document["reference"] == "low"
    assert {row["model"] for row in document["comparison"]} == {"high", "raw"}
    events = pl.read_parquet(run / "events.parquet")
    assert events.filter(pl.col("condition") == "ideal").height == document["conditions"][0]["n_found"]
    assert document["conditions"][0]["n_lost"] == N - document["conditions"][0]["n_found"]


def test_models_shift_the_mass_by_their_scale(run: Path) -> None:
    events = pl.read_parquet(run / "events.parquet")
    np.testing.assert_allclose(events["mass_gev_low"], 1.05 * events["mass_gev_raw"], rtol=1e-9)
    np.testing.assert_allclose(events["mass_gev_high"], 1.07 * events["mass_gev_raw"], rtol=1e-9)
    # two thirds of 3 % of the light are gone, less in the middle, where the electrons of a Z are
    both = [events.filter(pl.col("condition") == c)["mass_gev_raw"].median() for c in ("ideal", "realistic")]
    assert 0.97 < both[1] / both[0] < 0.99  # type: ignore[operator]


def test_the_same_seed_gives_the_same_bytes(run: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main([*SMALL, *map(str, models), "--out", str(again)]) == 0
    for name in ("events.parquet", "results.json", "metrics.json", "plots/z-peak-realistic.csv"):
        assert (run / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.slow
def test_the_result_does_not_depend_on_workers(run: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    wide = [word if word != str(N) else "450" for word in SMALL]  # three parts
    for workers in ("1", "2"):
        assert main([*wide, "--workers", workers, *map(str, models), "--out", str(tmp_path / workers)]) == 0
    for name in ("events.parquet", "results.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_without_a_model_there_is_the_raw_energy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "raw"
    words = ["energy", "zee", "-n", "40", "--intercalibration", "0", "--light-loss", "0", "--bootstrap", "0", "--out", str(out), "--json"]
    assert main([*words, "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["condition"]) for row in document["results"]] == [("raw", "ideal")]
    assert document["comparison"] == []
    assert document["run"] == str(out)
    assert not (out / "parts").exists()


def test_pileup_is_laid_over_both_conditions(barrel: CrystalCalorimeter, tmp_path: Path) -> None:
    soft = sample_particles(barrel, 30, particle="gamma", energy_gev=(1.0, 3.0), angle_deg=3.0, seed=9)
    write_showers(tmp_path / "soft.h5", simulate_showers(barrel, soft, seed=9))
    raw = {}
    for name, more in {"alone": [], "busy": ["--pileup", str(tmp_path / "soft.h5"), "--pileup-mean", "200:300"]}.items():
        assert main(["energy", "zee", "-n", "20", *more, "--bootstrap", "0", "--seed", "3", "--out", str(tmp_path / name), "--quiet"]) == 0
        raw[name] = pl.read_parquet(tmp_path / name / "events.parquet")
    both = raw["alone"].join(raw["busy"], on=["condition", "pair"], suffix="_busy")
    assert both.height > 20
    for (condition,), part in both.group_by("condition"):
        assert (part["mass_gev_raw_busy"] / part["mass_gev_raw"]).mean() > 1.0, condition  # type: ignore[operator]


def layered(folder: Path, barrel: CrystalCalorimeter) -> list[str]:
    return [str(model_run(folder / "model", digest=load_detector("pb-scint-60").digest, n_layers=60))]


def of_another_detector(folder: Path, barrel: CrystalCalorimeter) -> list[str]:
    return [str(model_run(folder / "model", digest=replace(barrel, gap_mm=0.5).digest))]


def of_a_beam_test(folder: Path, barrel: CrystalCalorimeter) -> list[str]:
    (folder / "matrix.toml").write_text(to_toml(load_detector("pbwo4-5x5")), encoding="utf-8")
    return ["--detector", str(folder / "matrix.toml")]


def with_twice_the_same(folder: Path, barrel: CrystalCalorimeter) -> list[str]:
    return [str(model_run(folder / "model", digest=barrel.digest))] * 2


def with_pileup_of_layers(folder: Path, barrel: CrystalCalorimeter) -> list[str]:
    calo = load_detector("pbwo4-5x5")
    write_showers(folder / "other.h5", simulate_showers(calo, sample_particles(calo, 2, particle="gamma", energy_gev=1.0, seed=1), seed=1))
    return ["--pileup", str(folder / "other.h5"), "--pileup-mean", "3"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (lambda *_: ["-n", "0"], "asks for no pair"),
        (lambda *_: ["nowhere"], "nowhere"),
        (layered, "reads 60 layers, and crystals are one"),
        (of_another_detector, "was fitted to showers of detector"),
        (of_a_beam_test, "is no barrel"),
        (with_twice_the_same, "is named twice"),
        (with_pileup_of_layers, "--pileup was made in detector"),
        (lambda *_: ["--detector", "pb-scint-60"], "is made of layers"),
        (lambda *_: ["--reference", "bdt"], "is not one of raw"),
        (lambda *_: ["--pileup-mean", "3"], "belong together"),
        (lambda *_: ["--bootstrap", "1"], "must be 0 or >= 2"),
        (lambda *_: ["--intercalibration", "30"], "--intercalibration = 30 must be between 0 and 20"),
        (lambda *_: ["--light-loss", "80"], "--light-loss = 80 must be between 0 and 50"),
        (lambda *_: ["--engine", "slow"], "--engine 'slow' is not one of"),
        (lambda *_: ["--light-loss", "nan"], "--light-loss = nan must be"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: Callable[[Path, CrystalCalorimeter], list[str]],
    says: str,
    barrel: CrystalCalorimeter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(["energy", "zee", *words(tmp_path, barrel), "--out", str(out), "--quiet"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert says in told.err
    assert not out.exists()
    assert not out.with_name("out.partial").exists()
