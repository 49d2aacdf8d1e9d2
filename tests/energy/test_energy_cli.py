"""`calolife energy train | evaluate`: fitted to some showers, scored on others, whatever the files are called."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

from calolife.cli import main
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.energy.features import sample_of
from calolife.energy.samples import read_energy_sample, read_training_showers
from calolife.runs import read_run
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.files import write_calochallenge, write_showers

N, N_LAYERS = 1500, 8
KEYS = {"model", "particle", "mean_rel_percent", "sigma_rel_percent", "mae_gev", "rmse_gev", "rel_loss", "sigma_eff_percent", "n"}


def toy_layers(n: int, *, n_layers: int = N_LAYERS, seed: int) -> dict[str, np.ndarray]:
    """Photons that stop early and pions that fluctuate, 1 to 100 GeV; a tenth of the energy is seen, unevenly per layer."""
    rng = np.random.default_rng(seed)
    energy = rng.uniform(1.0, 100.0, n)
    is_pion = rng.random(n) < 0.5
    depth = np.where(is_pion, rng.uniform(0.3, 0.8, n), 0.2)[:, None]
    profile = np.exp(-0.5 * ((np.arange(n_layers) / n_layers - depth) / 0.15) ** 2)
    mean = energy[:, None] * profile / profile.sum(axis=1, keepdims=True)  # GeV in each layer
    deposit = rng.gamma(20.0 * mean + 1e-3) / 20.0 * np.linspace(60.0, 140.0, n_layers)
    return {
        "layer_energy_mev": deposit.astype(np.float32), "true_energy_gev": energy.astype(np.float32),
        "pdg_id": np.where(is_pion, -211, 22).astype(np.int32),
    }  # fmt: skip


def write_sums(path: Path, columns: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of layer sums."""
    return write_sums(tmp_path_factory.mktemp("showers") / "sums.h5", toy_layers(N, seed=1))


@pytest.fixture(scope="module")
def stack() -> LayeredCalorimeter:
    layers = Layer(material("G4_Pb"), 6.0), Layer(material("G4_POLYSTYRENE"), 6.0, is_active=True, cells=(4, 4))
    return LayeredCalorimeter("eight", (), 200.0, 200.0).add_period(N_LAYERS, *layers)


def showers_in(stack: LayeredCalorimeter, n: int, *, seed: int) -> Showers:
    """The toy's layers, each shared by the inner cells of the stack."""
    toy = toy_layers(n, n_layers=stack.n_active, seed=seed)
    inner = np.array([5, 6, 9, 10])
    cell = (16 * np.arange(stack.n_active)[:, None] + inner).ravel()
    share = np.array([0.4, 0.3, 0.2, 0.1])
    energy = (toy["layer_energy_mev"][:, :, None] * share).reshape(n, -1)
    return Showers.from_hits(
        stack, np.repeat(np.arange(n), cell.size), np.tile(cell, n), energy.ravel(), pdg_id=toy["pdg_id"], energy_gev=toy["true_energy_gev"]
    )


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, stack: LayeredCalorimeter) -> Path:
    """A file of showers with cells."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5"
    write_showers(path, showers_in(stack, N, seed=2))
    return path


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory, sums: Path) -> Path:
    """A run of `linear` that a fifth of the showers was kept from."""
    out = tmp_path_factory.mktemp("runs") / "linear"
    assert main(["energy", "train", str(sums), "--model", "linear", "--hold-out", "0.2", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, sums: Path) -> Path:
    """The same of `sum`."""
    out = tmp_path_factory.mktemp("runs") / "sum"
    assert main(["energy", "train", str(sums), "--model", "sum", "--hold-out", "0.2", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, sums: Path, linear: Path, scaled: Path) -> tuple[Path, dict[str, Any]]:
    """Both on the showers held out: the run, and what --json printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "evaluated", io.StringIO()
    with redirect_stdout(printed):
        assert main(["energy", "evaluate", str(linear), str(scaled), "--on", str(sums), "--out", str(out), "--json", "--quiet"]) == 0
    return out, json.loads(printed.getvalue())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out: they take most of the time, and are tested once."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: None)


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, argv), "--json", "--quiet"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_the_json_has_the_agreed_keys(evaluated: tuple[Path, dict[str, Any]]) -> None:
    _, found = evaluated
    assert [(r["model"], r["particle"]) for r in found["results"]] == [(m, p) for m in ("linear", "sum") for p in ("all", "gamma", "pi-")]
    assert all(set(r) >= KEYS for r in found["results"])
    assert {r["n"] for r in found["results"] if r["particle"] == "all"} == {N // 5}
    for row in found["results"]:
        assert sum(r["n"] for r in found["results"] if r["model"] == row["model"] and r["particle"] != "all") == N // 5
    assert (found["n"], found["n_left_out"]) == (N // 5, N - N // 5)


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_says_who_is_better_with_paired_intervals(
    linear: Path, scaled: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["energy", "evaluate", linear, scaled, "--on", sums, "--reference", "sum", "--out", tmp_path / "ev"]
    found = run_json(capsys, *argv)
    (row,) = [c for c in found["comparison"] if c["particle"] == "all" and c["figure"] == "rel_loss"]
    # the layers of the toy are unevenly bright: a weight per layer must win
    assert (row["model"], row["baseline"], row["verdict"]) == ("linear", "sum", "better")
    assert row["difference_low"] < row["difference"] < row["difference_high"] < 0
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"] < 1


def test_results_agree_with_the_predictions_written(evaluated: tuple[Path, dict[str, Any]]) -> None:
    run, found = evaluated
    rows = pl.read_parquet(run / "predictions.parquet")
    rel = ((rows["predicted_gev linear"] - rows["energy_gev"]) / rows["energy_gev"]).to_numpy()
    assert found["results"][0]["mean_rel_percent"] == pytest.approx(100 * rel.mean(), rel=1e-9)
    assert found["results"][0]["sigma_rel_percent"] == pytest.approx(100 * rel.std(), rel=1e-9)
    loss = ((rows["predicted_gev linear"] - rows["energy_gev"]) ** 2 / rows["energy_gev"]).mean()
    assert found["results"][0]["rel_loss"] == pytest.approx(loss, rel=1e-9)
    assert (rows["sigma_gev linear"] > 0).all()


def test_held_out_are_the_first_of_the_permutation(linear: Path, sums: Path) -> None:
    sample = read_energy_sample([sums])
    held_out = np.random.default_rng(1).permutation(N)[: round(0.2 * N)]
    trained = np.setdiff1d(np.arange(N), held_out)
    np.testing.assert_array_equal(np.sort(sample.fingerprint[trained]), read_training_showers(linear))


def test_showers_held_out_are_scored_alike_by_both_commands(linear: Path, evaluated: tuple[Path, dict[str, Any]]) -> None:
    metrics = read_run(linear).metrics
    for row in (r for r in evaluated[1]["results"] if r["model"] == "linear"):
        stored = metrics[f"rel_loss linear {row['particle']}"]
        assert stored.n == row["n"]
        assert stored.value == pytest.approx(row["rel_loss"], rel=1e-9)  # the order of the showers differs, so may the last digits


@pytest.mark.usefixtures("undrawn")
def test_a_shower_that_any_of_the_models_has_seen_is_left_out(
    linear: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    argv = ["energy", "train", sums, "--model", "sum", "--hold-out", "0.3", "--split-seed", "2", "--out", other, "--quiet"]
    assert main([str(a) for a in argv]) == 0
    assert main(["energy", "evaluate", str(linear), str(other), "--on", str(sums), "--out", str(tmp_path / "ev")]) == 0
    seen = np.union1d(read_training_showers(linear), read_training_showers(other))
    n_left = N - seen.size
    remarks = capsys.readouterr().err
    assert f"{seen.size} of {N} showers left out: a model was trained on them" in remarks
    assert f"the runs held out different showers: {n_left} are new to all" in remarks
    assert pl.read_parquet(tmp_path / "ev" / "predictions.parquet").height == n_left


def test_an_evaluation_leaves_tables_metrics_and_plots_with_their_numbers(evaluated: tuple[Path, dict[str, Any]]) -> None:
    stored = read_run(evaluated[0])
    tables = ("scores", "comparison", "resolution", "bins", "predictions", "pulls")
    assert {f"{table}.{suffix}" for table in tables for suffix in ("parquet", "csv")} <= set(stored.files)
    pngs = {Path(f).stem for f in stored.files if f.endswith(".png")}
    assert {"predicted-linear", "predicted-sum", "response", "resolution", "response-pi-", "residuals-linear", "profiles"} <= pngs
    assert {"pulls-linear", "pulls-sum"} <= pngs
    assert pngs == {Path(f).stem for f in stored.files if f.startswith("plots/") and f.endswith(".csv")}
    assert stored.metrics["sigma_eff_percent linear all"].unit == "%"
    assert stored.metrics["stochastic of sigma_eff linear all"].uncertainty > 0


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_prints_scores_verdicts_and_terms(
    linear: Path, scaled: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["energy", "evaluate", str(linear), str(scaled), "--on", str(sums), "--out", str(tmp_path / "ev")]) == 0
    printed = capsys.readouterr().out
    for words in ("linear, pi-", "sum, gamma", "rel. loss [GeV]", "against linear, paired", "worse", "S [% sqrt(GeV)]"):
        assert words in printed


@pytest.mark.usefixtures("undrawn")
def test_the_resolution_of_a_toy_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    energy = rng.uniform(2.0, 100.0, 8000)
    visible = 100.0 * energy * (1 + np.hypot(0.2 / np.sqrt(energy), 0.01) * rng.standard_normal(energy.size))
    columns = {"layer_energy_mev": visible[:, None], "true_energy_gev": energy, "pdg_id": np.full(energy.size, 22, np.int32)}
    path = write_sums(tmp_path / "toy.h5", columns)
    assert main(["energy", "train", str(path), "--model", "sum", "--hold-out", "0.5", "--out", str(tmp_path / "sum"), "--quiet"]) == 0
    found = run_json(capsys, "energy", "evaluate", tmp_path / "sum", "--on", path, "--out", tmp_path / "ev")
    (fit,) = [f for f in found["resolution"] if (f["particle"], f["spread"]) == ("all", "resolution")]
    assert abs(fit["stochastic"]["value"] - 0.2) < 4 * fit["stochastic"]["uncertainty"]
    assert abs(fit["constant"]["value"] - 0.01) < 4 * fit["constant"]["uncertainty"]


@pytest.mark.usefixtures("undrawn")
def test_bins_are_those_asked_for(linear: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "energy", "evaluate", linear, "--on", sums, "--bins", "1,50,100", "--out", tmp_path / "ev")
    edges = [(b["low_gev"], b["high_gev"]) for b in found["bins"] if b["particle"] == "all"]
    assert edges == [(1.0, 50.0), (50.0, 100.0)]


def test_cells_and_layer_sums_of_the_same_showers_give_the_same_weights(cells: Path, stack: LayeredCalorimeter, tmp_path: Path) -> None:
    showers = showers_in(stack, N, seed=2)
    columns = {"layer_energy_mev": showers.layer_energy_mev(), "true_energy_gev": showers.energy_gev, "pdg_id": showers.pdg_id}
    path = write_sums(tmp_path / "sums.h5", columns)
    for name, data in (("cells", cells), ("sums", path)):
        assert main(["energy", "train", str(data), "--model", "linear", "--out", str(tmp_path / name), "--quiet"]) == 0
    assert (tmp_path / "cells" / "model.safetensors").read_bytes() == (tmp_path / "sums" / "model.safetensors").read_bytes()


def test_showers_are_read_part_by_part(cells: Path, stack: LayeredCalorimeter, monkeypatch: pytest.MonkeyPatch) -> None:
    import calolife.energy.samples as samples

    whole = sample_of(showers_in(stack, N, seed=2))
    sizes: list[int] = []
    parts = samples.iter_showers

    def few(path: Path, **options: object) -> object:
        for part in parts(path, chunk=400, **options):
            sizes.append(part.n_showers)
            yield part

    monkeypatch.setattr(samples, "iter_showers", few)
    found = read_energy_sample([cells])
    assert sizes == [400, 400, 400, 300]
    np.testing.assert_array_equal(found.layer_energy_mev, whole.layer_energy_mev)
    np.testing.assert_array_equal(found.shape, whole.shape)
    assert found.digest == stack.digest


def test_several_files_are_one_sample(stack: LayeredCalorimeter, cells: Path, tmp_path: Path) -> None:
    showers = showers_in(stack, N, seed=2)
    write_showers(tmp_path / "a.h5", showers.between(0, 800))
    write_showers(tmp_path / "b.h5", showers.between(750, N))  # 50 showers stand in both
    joined = read_energy_sample([tmp_path / "a.h5", tmp_path / "b.h5"])
    np.testing.assert_array_equal(joined.layer_energy_mev, read_energy_sample([cells]).layer_energy_mev)
    argv = ["energy", "train", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--model", "linear", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "both")]) == 0
    assert main(["energy", "train", str(cells), "--model", "linear", "--out", str(tmp_path / "one"), "--quiet"]) == 0
    assert (tmp_path / "both" / "model.safetensors").read_bytes() == (tmp_path / "one" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_training_showers_read_out_otherwise_are_noticed(linear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = toy_layers(N, seed=1)
    noisy = toy["layer_energy_mev"] + np.random.default_rng(5).normal(0.0, 1.0, (N, N_LAYERS)).astype(np.float32)
    other, again = (
        write_sums(tmp_path / "other.h5", toy_layers(N, seed=9)),
        write_sums(tmp_path / "again.h5", {**toy, "layer_energy_mev": noisy}),
    )
    assert main(["energy", "evaluate", str(linear), "--on", str(other), "--out", str(tmp_path / "a")]) == 0
    assert "true energy of a training shower" not in capsys.readouterr().err
    assert main(["energy", "evaluate", str(linear), "--on", str(again), "--out", str(tmp_path / "b")]) == 0
    assert f"{N - N // 5} of the {N} showers scored have the true energy of a training shower" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_showers_that_left_nothing_are_scored_too(linear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = toy_layers(60, seed=9)
    path = write_sums(tmp_path / "empty.h5", {**toy, "layer_energy_mev": 0 * toy["layer_energy_mev"]})
    found = run_json(capsys, "energy", "evaluate", linear, "--on", path, "--out", tmp_path / "ev")
    assert found["results"][0]["mean_rel_percent"] == -100.0


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("model", "is_warned"), [("trees", True), ("linear", False)])
def test_a_model_that_may_learn_the_one_energy_by_heart_is_named(
    model: str, is_warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = toy_layers(200, seed=9)
    scale = (10.0 / toy["true_energy_gev"])[:, None]
    columns = {**toy, "layer_energy_mev": toy["layer_energy_mev"] * scale, "true_energy_gev": np.full(200, 10.0)}
    path = write_sums(tmp_path / "ten.h5", columns)
    assert main(["energy", "train", str(path), "--model", model, "--out", str(tmp_path / "run")]) == 0
    assert ("may answer with what it was shown" in capsys.readouterr().err) == is_warned


@pytest.mark.usefixtures("undrawn")
def test_showers_unlike_those_trained_on_are_remarked(
    stack: LayeredCalorimeter, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    showers = showers_in(stack, N, seed=2)
    photons = showers.select((showers.pdg_id == 22) & (showers.energy_gev < 50))
    write_showers(tmp_path / "photons.h5", photons)
    write_showers(tmp_path / "rechits.h5", digitise(showers_in(stack, 300, seed=3), Readout(threshold_mev=5.0), seed=1))
    argv = ["energy", "train", str(tmp_path / "photons.h5"), "--out", str(tmp_path / "run"), "--hold-out", "0.005", "--model"]
    assert main([*argv, "sum"]) == 0
    assert "2 showers held out: too few" in capsys.readouterr().err
    assert main(["energy", "evaluate", str(tmp_path / "run"), "--on", str(tmp_path / "rechits.h5"), "--out", str(tmp_path / "a")]) == 0
    first, second, third = (line for line in capsys.readouterr().err.splitlines() if line.startswith("sum: "))
    assert first == "sum: trained on simhits; these are rechits of threshold 5 MeV: the response may be off"
    assert second == "sum: never trained on pi-, only on gamma: what it makes of it is a guess"
    assert re.fullmatch(r"sum: trained on \S+ to (49|50)\S* GeV; 1\d\d of these 300 showers lie outside", third)
    held_out = [str(tmp_path / "photons.h5"), "--out", str(tmp_path / "b")]
    assert main(["energy", "evaluate", str(tmp_path / "run"), "--on", *held_out]) == 0
    assert "sum: " not in capsys.readouterr().err
    both = [str(cells), str(tmp_path / "rechits.h5"), "--model", "sum", "--out", str(tmp_path / "c")]
    assert main(["energy", "train", *both]) == 2
    assert "holds rechits of threshold 5 MeV" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_fit_that_is_missing_is_explained_and_one_particle_is_told_once(
    linear: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["energy", "evaluate", str(linear), "--on", str(sums), "--particle", "gamma", "--out", str(tmp_path / "ev")]
    assert main([*argv, "--bins", "1,20,50,100"]) == 0
    printed = capsys.readouterr().out
    assert "no resolution fit for gamma: 3 energy bins, 4 or more are needed" in printed
    assert "linear, all" not in printed
    assert {b["particle"] for b in pl.read_csv(tmp_path / "ev" / "bins.csv").to_dicts()} == {"all", "gamma"}


@pytest.mark.usefixtures("undrawn")
def test_only_the_particles_asked_for(sums: Path, linear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["energy", "train", str(sums), "--model", "sum", "--particle", "gamma", "--out", str(tmp_path / "photons"), "--quiet"]
    assert main(argv) == 0
    n_photons = int((read_energy_sample([sums]).pdg_id == 22).sum())
    assert read_run(tmp_path / "photons").metrics["fit_seconds"].n == n_photons
    found = run_json(capsys, "energy", "evaluate", linear, "--on", sums, "--particle", "pi-", "--out", tmp_path / "pions")
    assert {r["particle"] for r in found["results"]} == {"all", "pi-"}


def test_a_run_repeats_itself_with_config(linear: Path, tmp_path: Path) -> None:
    assert main(["energy", "train", "--config", str(linear), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    for name in ("model.safetensors", "training_showers.npy", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (linear / name).read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_repeats_itself_with_config(linear: Path, scaled: Path, sums: Path, tmp_path: Path) -> None:
    assert main(["energy", "evaluate", str(linear), str(scaled), "--on", str(sums), "--out", str(tmp_path / "a"), "--quiet"]) == 0
    assert main(["energy", "evaluate", "--config", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--quiet"]) == 0
    for name in ("metrics.json", "scores.csv", "comparison.csv", "predictions.csv", "bins.csv", "resolution.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


@pytest.mark.usefixtures("undrawn")
def test_models_of_one_name_are_named_by_their_directories(
    linear: Path, scaled: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "twin"
    assert main(["energy", "train", str(sums), "--model", "linear", "--hold-out", "0.2", "--out", str(twin), "--quiet"]) == 0
    found = run_json(capsys, "energy", "evaluate", linear, twin, scaled, "--on", sums, "--out", tmp_path / "ev")
    assert [r["model"] for r in found["results"] if r["particle"] == "all"] == ["linear", "twin", "sum"]
    # the same fit twice: not a digit apart
    assert {c["verdict"] for c in found["comparison"] if c["model"] == "twin"} == {"no difference"}


def test_no_pickle_is_in_a_run(linear: Path) -> None:
    stored = np.load(linear / "training_showers.npy", allow_pickle=False)
    assert stored.dtype == np.uint64
    assert {Path(f).suffix for f in read_run(linear).files} <= {".safetensors", ".json", ".npy", ".txt", ".png", ".csv"}


def dnn(sums: Path, out: Path, *more: str, epochs: int = 6) -> list[str]:
    return ["energy", "train", str(sums), "--model", "dnn", "--layers", "16,8", "--epochs", str(epochs), "--out", str(out), *more]


def test_a_network_leaves_its_curves(sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, *dnn(sums, tmp_path / "net", "--hold-out", "0.2"))
    assert found["n_training"] == N - N // 5
    stored = read_run(tmp_path / "net")
    assert {"plots/training.png", "plots/training.csv", "plots/predicted-dnn.png"} <= set(stored.files)
    curve = pl.read_csv(tmp_path / "net" / "plots" / "training.csv")
    assert curve.columns == ["epoch", "loss_gev", "validation_loss_gev"]
    assert stored.metrics["epochs"].value == curve.height
    assert stored.metrics["validation_loss"].value == pytest.approx(curve["validation_loss_gev"].min())
    assert not any(f.startswith("checkpoint") for f in stored.files)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("layers", "rate"), [("256,128", 0.0), ("256,128,64", 0.2)])
def test_both_published_forms_have_the_published_dropout(layers: str, rate: float, sums: Path, tmp_path: Path) -> None:
    from calolife.energy.models import load_energy_model

    argv = ["energy", "train", str(sums), "--model", "dnn", "--layers", layers, "--epochs", "1", "--out", str(tmp_path / "net"), "--quiet"]
    assert main(argv) == 0
    model = load_energy_model(tmp_path / "net")
    assert (",".join(map(str, model.layers)), model.dropout) == (layers, rate)


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import calolife.energy.dnn as module

    whole = module.fit_dnn

    def stopped(*args: object, progress: Callable[[object], None], **options: object) -> object:
        def stop(epoch: object) -> None:
            if epoch.number == 2:
                raise KeyboardInterrupt

        return whole(*args, progress=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit_dnn", stopped)
        assert main(dnn(sums, tmp_path / "a")) == 130
    assert re.search(r"interrupted; unfinished work is kept in .*a\.partial: give the same command again to go on", capsys.readouterr().err)
    assert not (tmp_path / "a").exists()
    assert main(dnn(sums, tmp_path / "a")) == 0
    assert "taking up the training" in capsys.readouterr().err
    assert main(dnn(sums, tmp_path / "b")) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


_SLOWED = """
import time
import calolife.energy.dnn as module
from calolife.cli import main
whole = module.fit_dnn
module.fit_dnn = lambda *args, progress, **options: whole(*args, progress=lambda epoch: time.sleep(0.2), **options)
main({argv!r})
"""


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_killed_training_goes_on_to_the_same_bytes(sums: Path, tmp_path: Path) -> None:
    argv = dnn(sums, tmp_path / "a", "--quiet", epochs=20)
    process = subprocess.Popen([sys.executable, "-c", _SLOWED.format(argv=argv)])
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / "a.partial").glob("checkpoint/*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    finally:
        process.kill()
    assert not (tmp_path / "a").exists()
    assert main(argv) == 0
    assert "resumed" in (tmp_path / "a" / "log.txt").read_text()
    assert main(dnn(sums, tmp_path / "b", "--quiet", epochs=20)) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("model", ["linear", "dnn"])
def test_a_linearised_model_stands_beside_the_one_it_was(
    model: str, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = dnn(sums, tmp_path / "a")[:-2] if model == "dnn" else ["energy", "train", str(sums), "--model", model]
    for name, more in (("plain", []), ("straight", ["--linearise"])):
        assert main([*argv, *more, "--hold-out", "0.2", "--out", str(tmp_path / name), "--quiet"]) == 0
    np.testing.assert_array_equal(read_training_showers(tmp_path / "plain"), read_training_showers(tmp_path / "straight"))
    found = run_json(capsys, "energy", "evaluate", tmp_path / "plain", tmp_path / "straight", "--on", sums, "--out", tmp_path / "ev")
    assert [r["model"] for r in found["results"] if r["particle"] == "all"] == [model, f"linearised {model}"]
    assert ("validation_loss" in read_run(tmp_path / "straight").metrics) == (model == "dnn")


def _bad(name: str, argv: str, message: str) -> object:
    return pytest.param(argv, message, id=name)


BAD_INPUT = [
    _bad("showers that are not there", "train nowhere.h5 --out new", "no showers at nowhere.h5; give a file or a run directory"),
    _bad("no showers named", "train --out new", "missing argument"),
    _bad("a file that is no HDF5", "train WRONG --model sum --out new", "is not HDF5"),
    _bad("a run without showers", "train RUN --model sum --out new", "has no showers.h5"),
    _bad("a file of something else", "train OTHER --model sum --out new", "holds no showers that calolife knows"),
    _bad("a file cut short", "train CUT --model sum --out new", "truncated"),
    _bad("layer sums that are not finite", "train NAN --model sum --out new", "nan.h5: layer_energy_mev of shower 7 is not finite"),
    _bad("true energies that are not above zero", "train ZERO --model sum --out new", "energy_gev of shower 3 is 0.0"),
    _bad("a file without showers", "train EMPTY --model sum --out new", "holds no showers; give a file with some"),
    _bad("too few showers", "train FEW --model linear --out new", "12 showers are too few to fit a model to; give at least 20"),
    _bad("an unknown model", "train DATA --model linaer --out new", "model 'linaer' is not one of"),
    _bad("an unknown model like a known one", "train DATA --model linaer --out new", "did you mean linear?"),
    _bad("no model to linearise", "train DATA --model uncalibrated --linearise --out new", "cannot be linearised"),
    _bad("a network linearised by too few", "train DATA --model dnn --linearise --hold-out 0.4 --out new", "90 that stop its training"),
    _bad("links that go round in a circle", "train LOOP --model sum --out new", "loop.h5"),
    _bad("a dropout that is no part", "train DATA --model dnn --dropout nan --out new", "--dropout nan is no part of the hidden values"),
    _bad("layers wider than memory", "train DATA --model dnn --layers 99999999999 --out new", "has a width above 4096"),
    _bad("all held out", "train DATA --model sum --hold-out 1 --out new", "--hold-out 1 is no part of the showers"),
    _bad("less than none held out", "train DATA --model sum --hold-out -0.1 --out new", "--hold-out -0.1 is no part of the showers"),
    _bad("a part that is no number", "train DATA --model sum --hold-out nan --out new", "--hold-out nan is no part of the showers"),
    _bad("a part below one shower", "train DATA --model sum --hold-out 0.0003 --out new", "hold out one at least"),
    _bad("a split of nothing", "train DATA --model sum --split-seed 2 --out new", "--split-seed says which showers are held out"),
    _bad("layers of no network", "train DATA --model linear --layers 8 --out new", "--layers belongs to --model dnn"),
    _bad("epochs of no network", "train DATA --model sum --epochs 5 --out new", "--epochs belongs to --model dnn"),
    _bad("dropout of no network", "train DATA --model sum --dropout 0.1 --out new", "--dropout belongs to --model dnn"),
    _bad("layers in words", "train DATA --model dnn --layers wide --out new", "--layers 'wide' is not a list of widths"),
    _bad("layers of no width", "train DATA --model dnn --layers 8,0 --out new", "--layers '8,0' is not a list of widths"),
    _bad("crystals", "train CRYSTALS --model sum --out new", "none of the 1 showers has a matched supercluster"),
    _bad("crystals named", "train DENSE --detector pbwo4-5x5 --model sum --out new", "voxels but detector 'pbwo4-5x5' has 25 cells"),
    _bad("a file that tells no detector", "train DENSE --model sum --out new", "does not tell its detector"),
    _bad("files of different layers", "train DATA SEVEN --model sum --out new", "has 7 layers"),
    _bad("files of different detectors", "train CELLS OTHERCELLS --model sum --out new", "join showers of one detector only"),
    _bad("a file named twice", "train DATA DATA --model sum --out new", "is named twice"),
    _bad("a copy of a file", "train DATA COPY --model sum --out new", "stand in an earlier file too"),
    _bad("an unknown particle", "train DATA --model sum --particle photon --out new", "unknown particle 'photon'"),
    _bad("a particle that is not there", "train DATA --model sum --particle mu- --out new", "none of the 1500 showers is of mu-"),
    _bad("no particle", "train DATA --model sum --particle , --out new", "names nothing"),
    _bad("an unknown device", "train DATA --model sum --device gpu --out new", "--device 'gpu' is not one of auto, cpu, cuda"),
    _bad("a GPU that is not there", "train DATA --model dnn --device cuda:99 --out new", "device 'cuda:99' is not there: PyTorch sees"),
    _bad("a run of that name", "train DATA --model sum --out RUN", "exists; choose another --out, or replace it with --force"),
    _bad("a file of that name", "train DATA --model sum --out WRONG --force", "exists and is not a run directory"),
    _bad("a run inside its showers", "train SHOWERRUN --model sum --out SHOWERRUN/new", "lies inside the input"),
    _bad("a run in place of its showers", "train SHOWERRUN --model sum --force --out SHOWERRUN", "lies inside the input"),
    _bad("config of another command", "train --config EVALUATED --out new", "belongs to 'calolife energy evaluate', not to"),
    _bad("no run", "evaluate --on DATA --out new", "missing argument"),
    _bad("no showers to score", "evaluate RUN --out new", "missing option '--on'"),
    _bad("a run that is not there", "evaluate nowhere --on DATA --out new", "nowhere/model.json"),
    _bad("a run without a model", "evaluate SHOWERRUN --on DATA --out new", "no model.json: it is a run of 'calolife showers simulate'"),
    _bad("a run of another command", "evaluate EVALUATED --on DATA --out new", "it is a run of 'calolife energy evaluate'; give a run of"),
    _bad("a file of a run", "evaluate RUN/model.json --on DATA --out new", "model.json is a file; give the run directory it is in"),
    _bad("a damaged record of the training", "evaluate BADRECORD --on DATA --out new", "training.json is damaged"),
    _bad("a model that measures no energy", "evaluate RIDGE --on DATA --out new", "holds a model 'ridge', no energy regressor"),
    _bad("a damaged model", "evaluate DAMAGED --on DATA --out new", "train the model again"),
    _bad("a model whose showers are unknown", "evaluate NOSHOWERS --on DATA --out new", "what the model was fitted to is unknown"),
    _bad("a damaged list of showers", "evaluate BADSHOWERS --on DATA --out new", "training_showers.npy is damaged"),
    _bad("a list of showers that is a pickle", "evaluate PICKLED --on DATA --out new", "training_showers.npy is damaged"),
    _bad("showers of other layers", "evaluate RUN --on SEVEN --out new", "the showers have 7 layers, the model was fitted on 8"),
    _bad("showers of another detector", "evaluate CELLRUN --on OTHERCELLS --out new", "the showers were made in detector"),
    _bad("all showers seen", "evaluate CELLRUN --on CELLS --out new", "evaluate on others, or train with --hold-out 0.2"),
    _bad("a run named twice", "evaluate RUN RUN --on DATA --out new", "is named twice"),
    _bad("a reference that is not there", "evaluate RUN --on DATA --reference dnn --out new", "--reference 'dnn' is not one of linear"),
    _bad("bins in words", "evaluate RUN --on DATA --bins low,high --out new", "--bins 'low,high' is not a list of energies"),
    _bad("bins backwards", "evaluate RUN --on DATA --bins 50,10 --out new", "rising from 0 or above"),
    _bad("bins without showers", "evaluate RUN --on DATA --bins 200,300 --out new", "200 to 300 GeV, has 0 showers"),
    _bad("a run inside a model", "evaluate RUN --on DATA --out RUN/new", "lies inside the input"),
]  # fmt: skip


@pytest.fixture(scope="module")
def wrong(
    tmp_path_factory: pytest.TempPathFactory,
    stack: LayeredCalorimeter,
    sums: Path,
    cells: Path,
    linear: Path,
    evaluated: tuple[Path, dict[str, Any]],
) -> dict[str, Path]:
    """Files and runs that are wrong, by the word that stands for them."""
    folder = tmp_path_factory.mktemp("wrong")
    toy = toy_layers(N, seed=5)
    layers = toy["layer_energy_mev"].copy()
    layers[7, 2] = np.nan
    energy = toy["true_energy_gev"].copy()
    energy[3] = 0.0
    names = {
        "NAN": write_sums(folder / "nan.h5", {**toy, "layer_energy_mev": layers}),
        "ZERO": write_sums(folder / "zero.h5", {**toy, "true_energy_gev": energy}),
        "EMPTY": write_sums(folder / "empty.h5", {k: v[:0] for k, v in toy.items()}),
        "FEW": write_sums(folder / "few.h5", {k: v[:12] for k, v in toy.items()}),
        "SEVEN": write_sums(folder / "seven.h5", toy_layers(N, n_layers=7, seed=6)),
        "OTHER": write_sums(folder / "other.h5", {"tracks": np.zeros(3)}),
        "COPY": folder / "copy.h5", "CUT": folder / "cut.h5", "WRONG": folder / "wrong.h5", "CRYSTALS": folder / "crystals.h5",
        "DENSE": folder / "dense.h5", "OTHERCELLS": folder / "othercells.h5", "SHOWERRUN": folder / "showerrun",
        "LOOP": folder / "loop.h5", "CELLRUN": folder / "cellrun", "EVALUATED": evaluated[0],
    }  # fmt: skip
    names["LOOP"].symlink_to(names["LOOP"])
    names["COPY"].write_bytes(sums.read_bytes())
    names["CUT"].write_bytes(cells.read_bytes()[: cells.stat().st_size // 2])
    names["WRONG"].write_text("not HDF5")
    crystals = CrystalCalorimeter("matrix", material("G4_PbWO4"), (1, 2, 3), 3)
    write_showers(names["CRYSTALS"], Showers.from_hits(crystals, [0], [4], [500.0], pdg_id=11, energy_gev=[1.0]))
    write_calochallenge(names["DENSE"], showers_in(stack, 30, seed=7))
    wider = LayeredCalorimeter("wider", stack.layers, 400.0, 400.0)
    write_showers(names["OTHERCELLS"], showers_in(wider, 40, seed=8))
    names["SHOWERRUN"].mkdir()
    for record in ("config.json", "metrics.json", "provenance.json"):
        (names["SHOWERRUN"] / record).write_text('{"command": "showers simulate"}')
    (names["SHOWERRUN"] / "showers.h5").write_bytes(cells.read_bytes())
    assert main(["energy", "train", str(cells), "--model", "sum", "--out", str(names["CELLRUN"]), "--quiet"]) == 0
    for word in ("RIDGE", "DAMAGED", "NOSHOWERS", "BADSHOWERS", "PICKLED", "BADRECORD"):
        names[word] = folder / word.lower()
        names[word].mkdir()
        for name in ("model.json", "model.safetensors", "training_energies.npy", "training_showers.npy"):
            (names[word] / name).write_bytes((linear / name).read_bytes())
    record = json.loads((names["RIDGE"] / "model.json").read_text())
    (names["RIDGE"] / "model.json").write_text(json.dumps({**record, "name": "ridge"}))
    (names["DAMAGED"] / "model.safetensors").write_bytes((linear / "model.safetensors").read_bytes()[:50])
    (names["NOSHOWERS"] / "training_showers.npy").unlink()
    (names["BADSHOWERS"] / "training_showers.npy").write_bytes(b"0123")
    (names["BADRECORD"] / "training.json").write_text("[]")
    np.save(names["PICKLED"] / "training_showers.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return names


@pytest.mark.parametrize(("argv", "message"), BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: str, message: str, wrong: dict[str, Path], sums: Path, cells: Path, linear: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {**wrong, "DATA": sums, "CELLS": cells, "RUN": linear}
    words = [str(Path(names.get(first, first), *rest)) for first, *rest in (word.split("/") for word in argv.split())]
    before = {path: sorted(path.rglob("*")) for path in (linear, wrong["SHOWERRUN"])}
    capfd.readouterr()
    assert main(["energy", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("calolife: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
    assert {path: sorted(path.rglob("*")) for path in before} == before
