"""`calolife energy train | evaluate` on objects in crystals: the same runs as for layers, and Cruijff fits by region."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from calolife.cli import main
from calolife.detector.presets import load_detector
from calolife.energy.features import EnergySample, concatenate_samples
from calolife.energy.lineshapes import fit_cruijff
from calolife.energy.models import MODELS, check_model, fit_energy, load_energy_model
from calolife.energy.samples import read_energy_sample, read_training_showers
from calolife.runs import read_run
from calolife.showers.cluster_files import write_superclusters
from calolife.showers.superclusters import Superclusters

N = 700
TINY = ["--width", "4", "--k", "2", "--blocks", "1", "--epochs", "2"]


def toy_objects(n: int, *, seed: int) -> Superclusters:
    """Electrons of 5 to 200 GeV in a cross of five crystals; the less of it the hottest one has, the less of the energy is seen."""
    rng = np.random.default_rng(seed)
    barrel = load_detector("cms-barrel")
    ieta, iphi = rng.choice(np.r_[-80:-3, 4:81], n), rng.integers(2, 360, n)
    energy, share = rng.uniform(5.0, 200.0, n), rng.uniform(0.5, 0.8, n)
    cross = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    cell = barrel.cell_id((ieta[:, None] + cross[:, 0]).ravel(), (iphi[:, None] + cross[:, 1]).ravel()).reshape(n, 5)
    part = np.where(np.arange(5) == 0, share[:, None], 0.25 * (1 - share[:, None]))
    seen = energy * (0.9 + 0.1 * share) * (1 + 0.01 * rng.standard_t(4, n).clip(-8, 8))
    hit = 1000 * seen[:, None] * part
    order = np.argsort(cell, axis=1)
    cell, hit = np.take_along_axis(cell, order, axis=1), np.take_along_axis(hit, order, axis=1)
    place = barrel.cell_id(ieta, iphi)
    eta = 0.0174 * (np.abs(ieta) - 0.5) * np.sign(ieta)
    one = np.arange(n + 1)
    return Superclusters(
        barrel, n, one[:-1], 5 * one, cell.ravel(), hit.ravel(), np.repeat(one[:-1], 5), one, place, seen, eta, np.zeros(n),
        np.ones(n, dtype=bool), np.full(n, 11), energy, rho_gev=rng.uniform(0.0, 20.0, n), readout="simhits",
    )  # fmt: skip


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objects") / "objects.h5"
    write_superclusters(path, toy_objects(N, seed=1))
    return path


def train(objects: Path, out: Path, *more: str) -> dict[str, Any]:
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(["energy", "train", str(objects), "--hold-out", "0.4", "--out", str(out), "--json", "--quiet", *more]) == 0
    found = json.loads(printed.getvalue())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    more = {"sum": ["--model", "sum"], "drn": TINY}  # what is not named is the default
    return {name: (folder / name, train(objects, folder / name, *options)) for name, options in more.items()}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, objects: Path, runs: dict) -> tuple[Path, dict[str, Any]]:
    out, printed = tmp_path_factory.mktemp("runs") / "evaluated", io.StringIO()
    with redirect_stdout(printed):
        argv = ["energy", "evaluate", str(runs["sum"][0]), str(runs["drn"][0]), "--on", str(objects), "--out", str(out)]
        assert main([*argv, "--json", "--quiet"]) == 0
    return out, json.loads(printed.getvalue())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out: they take most of the time, and are tested once."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: None)


def test_the_network_is_the_default_in_crystals_and_the_run_says_so(runs: dict) -> None:
    out, found = runs["drn"]
    assert found["model"] == "drn"
    assert read_run(out).config["options"]["model"] == "drn"
    assert load_energy_model(out).width == 4


def test_training_and_held_out_objects_are_compared(runs: dict) -> None:
    for out, found in runs.values():
        training, held_out = found["overtraining"]
        assert (training["part"], held_out["part"]) == ("training", "held_out")
        assert training["n"] == held_out["n"] == round(0.4 * N)
        stored = read_run(out)
        assert stored.metrics["cruijff_sigma_percent held_out"].value == held_out["cruijff_sigma_percent"]
        assert {"plots/overtraining.png", "plots/overtraining.csv", "plots/overtraining-log.png"} <= set(stored.files)


def test_overtraining_is_measured_on_objects_of_the_training_and_on_others(runs: dict, objects: Path) -> None:
    table = pl.read_csv(runs["sum"][0] / "plots" / "overtraining.csv")
    sample = read_energy_sample([objects])
    is_trained = np.isin(sample.fingerprint, read_training_showers(runs["sum"][0]))
    for part, mask in (("training", is_trained), ("held_out", ~is_trained)):
        energies = table.filter(pl.col("part") == part)["energy_gev"].to_numpy()
        assert np.isin(energies, sample.energy_gev[mask]).all()


def test_a_network_leaves_its_likelihood(runs: dict) -> None:
    stored = read_run(runs["drn"][0])
    curve = pl.read_csv(runs["drn"][0] / "plots" / "training.csv")
    assert curve.columns == ["epoch", "loss", "validation_loss"]
    assert stored.metrics["validation_loss"].unit == ""
    assert stored.metrics["epochs"].value == 6  # 2 of all layers, 4 of the output layers alone


def test_results_gain_the_agreed_keys(evaluated: tuple[Path, dict[str, Any]]) -> None:
    rows = evaluated[1]["results"]
    assert {(r["model"], r["particle"]) for r in rows} == {(m, p) for m in ("sum", "drn") for p in ("all", "e-")}
    assert all({"mean_rel_percent", "cruijff_mean", "cruijff_sigma_percent", "eta_region"} <= set(r) for r in rows)
    assert {r["eta_region"] for r in rows} == {"all"}


def test_regions_and_bins_are_scored_by_paired_ratios(evaluated: tuple[Path, dict[str, Any]]) -> None:
    rows = evaluated[1]["cruijff"]
    assert {"all", "central"} <= {r["eta_region"] for r in rows}
    assert {"all", "energy_gev"} <= {r["variable"] for r in rows}
    for row in rows:
        assert (row["ratio"] is None) == (row["model"] == "sum")
        assert (row["verdict"] == "") == (row["model"] == "sum")
    whole = [r for r in rows if (r["model"], r["eta_region"], r["variable"]) == ("drn", "all", "all")]
    assert whole[0]["ratio_low"] < whole[0]["ratio"] < whole[0]["ratio_high"]
    assert whole[0]["n"] == evaluated[1]["n"] == round(0.4 * N)


def test_scores_are_those_of_the_predictions_written(evaluated: tuple[Path, dict[str, Any]]) -> None:
    table = pl.read_parquet(evaluated[0] / "predictions.parquet")
    fit = fit_cruijff((table["predicted_gev drn"] / table["energy_gev"]).to_numpy())
    row = next(r for r in evaluated[1]["results"] if r["model"] == "drn")
    assert row["cruijff_sigma_percent"] == pytest.approx(100 * fit.sigma_over_mu, rel=1e-9)


def test_an_evaluation_leaves_tables_metrics_and_plots_with_their_numbers(evaluated: tuple[Path, dict[str, Any]]) -> None:
    stored = read_run(evaluated[0])
    assert {"cruijff.parquet", "cruijff.csv", "scores.parquet", "comparison.parquet"} <= set(stored.files)
    assert stored.metrics["cruijff_sigma_percent drn e- all"].uncertainty > 0
    pngs = {Path(f).stem for f in stored.files if f.endswith(".png")}
    assert {"ratio", "ratio-log", "ratio-central", "cruijff-sigma-energy", "cruijff-mean-energy", "predicted-drn"} <= pngs
    assert pngs == {Path(f).stem for f in stored.files if f.startswith("plots/") and f.endswith(".csv")}
    assert "profiles" not in pngs


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_prints_fits_and_leaves_training_objects_out(
    runs: dict, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["energy", "evaluate", str(runs["sum"][0]), "--on", str(objects), "--detector", "cms-barrel", "--out", str(tmp_path / "ev")]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert f"{N - round(0.4 * N)} of {N} showers left out: a model was trained on them" in told.err
    for words in ("Cruijff mean", "sum, central", "pull width"):
        assert words in told.out


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_repeats_itself(runs: dict, objects: Path, evaluated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert main(["energy", "evaluate", "--config", str(evaluated[0]), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again" / "cruijff.csv").read_text() == (evaluated[0] / "cruijff.csv").read_text()


@pytest.mark.usefixtures("undrawn")
def test_few_objects_are_scored_without_fits(runs: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_superclusters(tmp_path / "few.h5", toy_objects(60, seed=3))
    assert main(["energy", "evaluate", str(runs["sum"][0]), "--on", str(tmp_path / "few.h5"), "--out", str(tmp_path / "ev")]) == 0
    assert "no Cruijff fits: 60 objects, 100 or more are needed" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("rho_gev", [5.0, 40.0])
def test_pileup_beyond_that_of_the_training_is_remarked(
    rho_gev: float, runs: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replace(toy_objects(60, seed=3), rho_gev=np.full(60, rho_gev))  # trained on 0 to 20 GeV
    write_superclusters(tmp_path / "busy.h5", found)
    assert main(["energy", "evaluate", str(runs["drn"][0]), "--on", str(tmp_path / "busy.h5"), "--out", str(tmp_path / "ev")]) == 0
    told = "GeV; 60 of these 60 showers lie outside"
    assert (told in capsys.readouterr().err) == (rho_gev > 20.0)


@pytest.mark.parametrize("model", ["uncalibrated", "sum", "linear", "trees"])
def test_models_of_sums_and_shapes_read_crystals_too(model: str, objects: Path) -> None:
    sample = read_energy_sample([objects]).select(np.arange(200))
    made = fit_energy(model, sample, seed=0)
    assert made.predict(sample).energy_gev.shape == (200,)


@pytest.mark.parametrize("model", ["dnn", "best"])
def test_models_of_layers_say_what_reads_crystals(model: str, objects: Path) -> None:
    says = f"model {model} reads layers, and these are objects in crystals; take uncalibrated, sum, linear, trees, bdt, drn or blend"
    with pytest.raises(ValueError, match=says):
        check_model(model, read_energy_sample([objects]))


@pytest.mark.parametrize("model", ["bdt", "drn", "blend"])
def test_models_of_crystals_say_what_reads_layers(model: str) -> None:
    layers = EnergySample(np.ones((30, 3)), np.linspace(1.0, 30.0, 30), np.full(30, 11))
    says = f"model {model} reads crystals, and these showers have layers; take uncalibrated, sum, linear, dnn, trees or best"
    with pytest.raises(ValueError, match=says):
        fit_energy(model, layers)


def test_layers_and_crystals_cannot_be_joined(objects: Path) -> None:
    sample = read_energy_sample([objects])
    layers = EnergySample(np.ones((30, 1)), np.linspace(1.0, 30.0, 30), np.full(30, 11))
    with pytest.raises(ValueError, match="join"):
        concatenate_samples([sample, layers])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--model sum --width 8", "--width belongs to --model drn or blend, and the model is sum; drop it"),
        ("--model bdt --epochs 5", "--epochs belongs to --model dnn, drn or blend, and the model is bdt; drop it"),
        ("--model bdt --hits-only", "--hits-only belongs to --model drn, and the model is bdt; drop it"),
        ("--layers 8", "--layers belongs to --model dnn, and the model is drn; drop it"),
        ("--model drn --dropout 0.1", "--dropout belongs to --model dnn, and the model is drn; drop it"),
        ("--model drn --width 99999", "--width 99999 is above 4096"),
        ("--model dnn", "model dnn reads layers, and these are objects in crystals"),
        ("--model dnr", "did you mean drn?"),
        ("--model drn --linearise", "too few to linearise drn"),
        ("--detector pbwo4-5x5", "detector"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    options: str, says: str, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["energy", "train", str(objects), "--out", str(tmp_path / "new"), *options.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not (tmp_path / "new").exists()


def test_a_model_is_refused_on_another_detector(runs: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = toy_objects(60, seed=3)
    matrix = load_detector("pbwo4-5x5")
    n = np.arange(61)
    cell = np.full(60, 12)
    ends = n[:-1], n, cell, toy.energy_gev * 900, n[:-1], n, cell
    other = Superclusters(
        matrix, 60, *ends, toy.energy_gev, np.zeros(60), np.zeros(60), np.ones(60, dtype=bool), np.full(60, 11), toy.energy_gev
    )
    write_superclusters(tmp_path / "matrix.h5", other)
    assert main(["energy", "evaluate", str(runs["drn"][0]), "--on", str(tmp_path / "matrix.h5"), "--out", str(tmp_path / "ev")]) == 2
    assert "the showers were made in detector" in capsys.readouterr().err


def test_every_model_has_a_name_of_its_own() -> None:
    assert list(MODELS)[-3:] == ["bdt", "drn", "blend"]
