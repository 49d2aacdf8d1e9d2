"""`calolife ageing estimate | compare`: what they find, keep and refuse."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

import calolife.ageing.estimate
from calolife.ageing.coefficients import STATUSES, Ageing
from calolife.ageing.damage import age_showers
from calolife.ageing.estimate import AgeingEstimate
from calolife.ageing.files import read_ageing, write_ageing
from calolife.cli import main
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.runs import read_run
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.files import write_showers

N, N_CELLS, N_HITS = 400, 30, 30
DEAD = 14


@pytest.fixture(scope="module")
def stack() -> LayeredCalorimeter:
    """Four layers of 6 x 6 cells."""
    layers = Layer(material("G4_Cu"), 20.0), Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(6, 6))
    return LayeredCalorimeter("small", (), 180.0, 180.0).add_period(4, *layers)


def make(stack: LayeredCalorimeter, n: int = N, *, seed: int, pdg_id: int = -211, energy_gev: float = 10.0) -> Showers:
    """Hits with a peak of width 0.2 in ln E, dense in the middle of the stack."""
    rng = np.random.default_rng(seed)
    shower = np.repeat(np.arange(n), rng.poisson(N_HITS, n))
    ix, iy = (np.clip(np.floor(rng.normal(3.0, 1.2, shower.size)).astype(int), 0, 5) for _ in range(2))
    cell = stack.cell_id(rng.integers(0, 4, shower.size), ix, iy)
    energy = 1.0 * np.exp(0.2 * rng.standard_normal(shower.size))
    return Showers.from_hits(stack, shower, cell, energy, pdg_id=pdg_id, energy_gev=np.full(n, energy_gev))


@pytest.fixture(scope="module")
def truth(stack: LayeredCalorimeter) -> Ageing:
    young = make(stack, seed=1)
    dose = np.bincount(young.cell, weights=young.energy_mev, minlength=stack.n_cells)
    return Ageing(np.arange(stack.n_cells), 1 - 0.2 * dose / dose.max(), detector_digest=stack.digest)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, stack: LayeredCalorimeter, truth: Ageing) -> dict[str, Path]:
    """Both samples and the truth; one cell of the aged detector is dead."""
    folder = tmp_path_factory.mktemp("samples")
    young, other = make(stack, seed=1), make(stack, seed=2)
    aged = age_showers(other, truth, seed=3)
    kept = aged.cell != brightest(young)
    aged = Showers.from_hits(
        stack, aged.shower_index[kept], aged.cell[kept], aged.energy_mev[kept], pdg_id=-211, energy_gev=aged.energy_gev
    )
    write_showers(folder / "young.h5", young)
    write_showers(folder / "aged.h5", aged)
    write_ageing(folder / "truth.parquet", truth)
    return {name: folder / f"{name}.{'parquet' if name == 'truth' else 'h5'}" for name in ("young", "aged", "truth")}


def brightest(showers: Showers) -> int:
    return int(np.bincount(showers.cell, weights=showers.energy_mev).argmax())


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    """The run and what --json printed."""
    out = tmp_path_factory.mktemp("runs") / "estimate"
    return out, run(
        ["estimate", files["young"], files["aged"], "--cells", N_CELLS, "--truth", files["truth"], "--bootstrap", 5, "--out", out]
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "compare"
    words = ["compare", files["young"], files["aged"], "--truth", files["truth"], "--cells", N_CELLS, "--methods", "ratio,cramer"]
    return out, run([*words, "--events", "200,400", "--bootstrap", 3, "--out", out])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out: they take most of the time, and are tested once."""
    monkeypatch.setattr("calolife.cli.ageing_tables._save_figures", lambda *a, **k: [])


def run(words: list[object]) -> dict[str, Any]:
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(["ageing", *map(str, words), "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def test_json_has_the_agreed_keys_and_finite_numbers_for_every_cell(estimated: tuple[Path, dict[str, Any]]) -> None:
    _, found = estimated
    assert list(found)[:6] == ["method", "prior", "n_cells", "seconds", "cells", "score"]
    assert found["method"] == "likelihood"
    assert found["prior"] == "dose"
    assert found["n_cells"] == len(found["cells"]) == N_CELLS
    assert list(found["score"])[:2] == ["mae", "r2"]
    assert {"mae", "r2", "coverage68", "coverage95"} <= set(found["score"])
    for row in found["cells"]:
        assert list(row) == ["cell", "signal_fraction", "uncertainty", "status"]
        assert math.isfinite(row["signal_fraction"])
        assert math.isfinite(row["uncertainty"])
        assert row["status"] in STATUSES


def test_estimate_beats_the_best_constant_and_lists_the_dead_cell(
    estimated: tuple[Path, dict[str, Any]], truth: Ageing, stack: LayeredCalorimeter
) -> None:
    _, found = estimated
    kept = [row["cell"] for row in found["cells"] if row["status"] == "measured"]
    true = truth.at(kept)
    assert found["score"]["mae"] < 0.7 * np.abs(true - np.median(true)).mean()  # far below a method that knows only the mean
    dead = [row["cell"] for row in found["cells"] if row["status"] == "dead"]
    assert dead == [brightest(make(stack, seed=1))] == found["checks"]["dead"]


def test_the_run_keeps_coefficients_checks_and_every_figure_with_its_numbers(estimated: tuple[Path, dict[str, Any]]) -> None:
    out, found = estimated
    stored = read_run(out)
    kept = read_ageing(out)
    assert kept.signal_fraction.tolist() == [row["signal_fraction"] for row in found["cells"]]
    assert pl.read_csv(out / "ageing.csv")["cell"].to_list() == kept.cell.tolist()
    plots = {Path(f).stem for f in stored.files if f.endswith(".png")}
    assert plots == {
        "map", "distribution", "fraction-against-dose", "uncertainty-against-dose", "energy-sums", "found-against-true", "pulls",
    }  # fmt: skip
    assert plots == {Path(f).stem for f in stored.files if f.startswith("plots/") and f.endswith(".csv")}
    assert stored.metrics["mae"].value == pytest.approx(found["score"]["mae"])
    assert json.loads((out / "checks.json").read_text())["dead"] == found["checks"]["dead"]
    assert stored.config["options"]["cells"] == N_CELLS


@pytest.mark.usefixtures("undrawn")
def test_another_truth_changes_the_score_and_nothing_else(
    files: dict[str, Path], estimated: tuple[Path, dict[str, Any]], truth: Ageing, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    pl.DataFrame({"cell": truth.cell, "signal_fraction": truth.signal_fraction[::-1]}).write_csv(other)
    words = ["estimate", files["young"], files["aged"], "--cells", N_CELLS, "--bootstrap", 5]
    swapped = run([*words, "--truth", other, "--out", tmp_path / "swapped"])
    without = run([*words, "--out", tmp_path / "without"])
    assert swapped["cells"] == without["cells"] == estimated[1]["cells"]
    assert swapped["score"]["mae"] != estimated[1]["score"]["mae"]
    assert without["score"] is None
    assert (tmp_path / "without" / "ageing.parquet").read_bytes() == (estimated[0] / "ageing.parquet").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_run_repeats_itself_from_its_config(files: dict[str, Path], estimated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = estimated
    again = tmp_path / "again"
    words = ["ageing", "estimate", files["young"], files["aged"], "--config", out, "--out", again, "--quiet", "--json"]
    with redirect_stdout(io.StringIO()):
        assert main(list(map(str, words))) == 0
    assert (again / "ageing.parquet").read_bytes() == (out / "ageing.parquet").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_all_cells_are_listed_without_the_option_and_in_plain_text(
    files: dict[str, Path], stack: LayeredCalorimeter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ageing", "estimate", files["young"], files["aged"], "--bootstrap", "0", "--prior", "none", "--out", tmp_path / "all"]
    assert main(list(map(str, words))) == 0
    printed, told = capsys.readouterr()
    assert read_ageing(tmp_path / "all").n_cells == stack.n_cells
    assert f"likelihood, no prior: {stack.n_cells} cells of small, {N} + {N} showers" in printed
    assert "no replicas" in told  # what the errors are not


def test_compare_scores_every_method_on_the_same_cells(compared: tuple[Path, dict[str, Any]]) -> None:
    out, found = compared
    names = [row["method"] for row in found["methods"]]
    assert names == ["likelihood (auto)", "likelihood (auto), dose prior", "ratio", "cramer", "best constant"]
    assert found["n_cells"] == N_CELLS - 1  # one is dead
    table = pl.read_parquet(out / "cells.parquet")
    for row in found["methods"]:
        assert row["mae"] == pytest.approx(float((table[row["method"]] - table["true_fraction"]).abs().mean()))
        assert row["mae_over_limit"] == pytest.approx(row["mae"] / found["limit_mae"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert row["verdict"] in ("better", "worse", "no difference")
    assert found["methods"][0]["difference"] == 0
    assert {Path(f).stem for f in read_run(out).files if f.endswith(".png")} == {"methods", "error-against-events"}


def test_error_falls_with_the_number_of_events(compared: tuple[Path, dict[str, Any]]) -> None:
    events = compared[1]["events"]["likelihood (auto)"]
    # twice the events: 1 / sqrt(2) of the error; 29 cells know it to 3 / sqrt(2 * 29) = 39 % of itself
    assert events["400"] / events["200"] == pytest.approx(1 / math.sqrt(2), rel=0.39)


def test_no_constant_is_better_than_the_best_constant(compared: tuple[Path, dict[str, Any]]) -> None:
    out, found = compared
    true = pl.read_parquet(out / "cells.parquet")["true_fraction"].to_numpy()
    tried = [float(np.abs(true - c).mean()) for c in np.linspace(true.min(), true.max(), 200)]
    assert found["methods"][-1]["mae"] <= min(tried) + 1e-12


def test_a_method_whose_library_is_missing_is_left_out_unless_it_is_named(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("calolife.ageing.estimate.METHODS", ("auto", "sinkhorn", "likelihood"))
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setitem(sys.modules, "ot.batch", None)
    words = ["ageing", "compare", files["young"], files["aged"], "--truth", files["truth"], "--cells", 8, "--bootstrap", 0]
    assert main([*map(str, words), "--out", str(tmp_path / "all")]) == 0
    printed, told = capsys.readouterr()
    assert 'sinkhorn left out: method "sinkhorn" needs POT' in told
    assert "likelihood (auto)" in printed
    assert main([*map(str, words), "--methods", "sinkhorn", "--out", str(tmp_path / "named")]) == 2
    assert 'pip install "calolife[transport]"' in capsys.readouterr().err
    assert not list(tmp_path.glob("named*"))


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_wgan_goes_on_where_it_was(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")

    @contextmanager
    def stopped(*, quiet: bool, rate: bool = False) -> Iterator[Callable[[str, float, float], None]]:
        def report(what: str, done: float, total: float) -> None:
            if what == "epochs" and done == 2:
                raise KeyboardInterrupt

        yield report

    words = ["ageing", "estimate", files["young"], files["aged"], "--cells", 8, "--method", "wgan", "--epochs", 3, "--bootstrap", 0]
    words = [*map(str, words), "--quiet", "--json"]
    with monkeypatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setattr("calolife.cli.ageing.progress_bar", stopped)
        assert main([*words, "--out", str(tmp_path / "cut")]) == 130
    assert not (tmp_path / "cut").exists()
    assert list((tmp_path / "cut.partial" / "checkpoint").rglob("*.safetensors"))
    with redirect_stdout(io.StringIO()):
        assert main([*words, "--out", str(tmp_path / "cut")]) == 0
        assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "cut" / "ageing.parquet").read_bytes() == (tmp_path / "whole" / "ageing.parquet").read_bytes()
    assert not (tmp_path / "cut" / "checkpoint").exists()
    assert pl.read_parquet(tmp_path / "cut" / "epochs.parquet")["epoch"].to_list() == [1, 2, 3]


def test_an_interrupt_leaves_nothing(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("calolife.ageing.estimate.estimate_ageing", interrupted)
    assert main(["ageing", "estimate", str(files["young"]), str(files["aged"]), "--out", str(tmp_path / "run"), "--quiet"]) == 130
    assert list(tmp_path.iterdir()) == []


def write_sums(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["layer_energy_mev"] = np.ones((5, 4), np.float32)
        file["true_energy_gev"] = np.ones(5, np.float32)
        file["pdg_id"] = np.full(5, 22, np.int32)
    return path


def with_nan(source: Path, path: Path) -> Path:
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "r+") as file:
        values = file["energy_mev"][()]
        del file["energy_mev"]
        values[3] = np.nan
        file["energy_mev"] = values
    return path


def saved(path: Path, showers: Showers) -> Path:
    write_showers(path, showers)
    return path


def table(path: Path, **columns: object) -> Path:
    pl.DataFrame(columns).write_csv(path)
    return path


def turned(showers: Showers) -> Showers:
    """The same showers in another order."""
    return showers.select(np.arange(showers.n_showers)[::-1])


BAD: dict[str, tuple[Callable[..., list[object]], str]] = {
    "different detectors": (
        lambda f, s, t: [f["young"], saved(t / "b.h5", make(LayeredCalorimeter("other", s.layers, 200.0, 200.0), 50, seed=5))],
        "of one detector",
    ),
    "no events": (lambda f, s, t: [f["young"], saved(t / "b.h5", make(s, seed=5).select(np.zeros(N, bool)))], "holds no showers"),
    "no energy at all": (
        lambda f, s, t: [f["young"], saved(t / "b.h5", Showers.from_hits(s, [0], [0], [0.0], pdg_id=-211, energy_gev=[10.0, 10.0]))],
        "no cell has any energy",
    ),
    "an energy that is no number": (lambda f, s, t: [f["young"], with_nan(f["aged"], t / "b.h5")], "must be finite"),
    "the same file": (lambda f, s, t: [f["young"], f["young"]], "give two samples"),
    "the same showers": (lambda f, s, t: [f["young"], saved(t / "b.h5", turned(make(s, seed=1)))], "hold the same showers"),
    "layer sums": (lambda f, s, t: [f["young"], write_sums(t / "b.h5")], "sums of layers only"),
    "no file": (lambda f, s, t: [f["young"], t / "b.h5"], "b.h5"),
    "simhits and rechits": (
        lambda f, s, t: [f["young"], saved(t / "b.h5", digitise(make(s, seed=5), Readout(noise_mev=0.01, threshold_mev=0.1), seed=1))],
        "calolife showers digitise",
    ),
    "two readouts": (
        lambda f, s, t: [
            saved(t / f"{k}.h5", digitise(make(s, 50, seed=5 + k), Readout(noise_mev=0.01 * k, threshold_mev=0.1), seed=1)) for k in (1, 2)
        ],
        "digitise both alike",
    ),
    "other particles": (lambda f, s, t: [f["young"], saved(t / "b.h5", make(s, seed=5, pdg_id=11))], "one beam"),
    "another energy": (lambda f, s, t: [f["young"], saved(t / "b.h5", make(s, seed=5, energy_gev=50.0))], "one beam"),
    "unknown method": (lambda f, s, t: [f["young"], f["aged"], "--method", "magic"], "auto, ratio, trimmed"),
    "unknown prior": (lambda f, s, t: [f["young"], f["aged"], "--prior", "gut"], "none, dose"),
    "no cells": (lambda f, s, t: [f["young"], f["aged"], "--cells", 0], "give 1 to 144"),
    "more cells than there are": (lambda f, s, t: [f["young"], f["aged"], "--cells", 145], "give 1 to 144"),
    "one replica": (lambda f, s, t: [f["young"], f["aged"], "--bootstrap", 1], "at least 2"),
    "published, but no wgan": (lambda f, s, t: [f["young"], f["aged"], "--published"], "--method wgan"),
    "published, but changed": (
        lambda f, s, t: [f["young"], f["aged"], "--method", "wgan", "--published", "--epochs", 2], "--epochs changes",
    ),
    "truth of another detector": (
        lambda f, s, t: [f["young"], f["aged"], "--truth", other_truth(t / "t.parquet")], "of detector",
    ),
    "truth without its column": (
        lambda f, s, t: [f["young"], f["aged"], "--truth", table(t / "t.csv", cell=[1], r=[0.9])], "no column signal_fraction",
    ),
    "truth of no cell asked for": (
        lambda f, s, t: [f["young"], f["aged"], "--cells", 2, "--truth", table(t / "t.csv", cell=[0], signal_fraction=[0.9])],
        "none of the 2 cells",
    ),
    "mask that is no number": (lambda f, s, t: [f["young"], f["aged"], "--mask", "5,all"], "'all' is not a number"),
    "mask of cells that are not there": (lambda f, s, t: [f["young"], f["aged"], "--mask", "5,144"], "cells 0 to 143"),
    "mask of everything": (lambda f, s, t: [f["young"], f["aged"], "--mask", "0-143"], "takes out all 144 cells"),
    "truth of cells that are not there": (
        lambda f, s, t: [f["young"], f["aged"], "--truth", table(t / "t.csv", cell=[999], signal_fraction=[0.9])], "cells 0 to 143",
    ),
}  # fmt: skip


def other_truth(path: Path) -> Path:
    write_ageing(path, Ageing([1, 2], [0.9, 0.8], detector_digest="0" * 64))
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_2_and_leaves_nothing(
    name: str, files: dict[str, Path], stack: LayeredCalorimeter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    out.mkdir()
    words, said = BAD[name]
    given = [str(w) for w in words(files, stack, inputs)]
    assert main(["ageing", "estimate", *given, "--out", str(out / "run"), "--quiet"]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.count("\n") == 1
    assert told.startswith("calolife: ")
    assert said in told
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--methods", "ratio,magic"], "auto, ratio, trimmed"), (["--methods", ","], "names nothing"),
        (["--events", "200,9999"], "give 50 to 400"), (["--events", "many"], "is not a number"), (["--cells", "0"], "give 1 to 144"),
    ],
)  # fmt: skip
def test_bad_options_of_compare_leave_nothing(
    extra: list[str], said: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ageing", "compare", files["young"], files["aged"], "--truth", files["truth"], *extra, "--out", tmp_path / "run", "--quiet"]
    assert main(list(map(str, words))) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_showers_are_an_estimate_with_remarks(
    stack: LayeredCalorimeter, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in (1, 2):
        few = Showers.from_hits(stack, [0, 0, 1], [70, 71, 70], [1.0 * k, 0.9, 1.2], pdg_id=-211, energy_gev=[10.0, 10.0])
        write_showers(tmp_path / f"{k}.h5", few)
    pair = [tmp_path / "1.h5", tmp_path / "2.h5", "--truth", files["truth"], "--cells", 4, "--bootstrap", 0]
    assert main(["ageing", "estimate", *map(str, pair), "--out", str(tmp_path / "found")]) == 0
    printed, told = capsys.readouterr()
    assert "4 prior-dominated" in printed
    assert "figure uncertainty-against-dose left out" in told
    assert not (tmp_path / "found" / "plots" / "uncertainty-against-dose.png").exists()
    assert main(["ageing", "compare", *map(str, pair), "--methods", "ratio", "--out", str(tmp_path / "compared")]) == 0
    assert "calolife:" not in capsys.readouterr().err  # no warning
    assert main(["ageing", "correct", str(tmp_path / "2.h5"), str(tmp_path / "found"), "--out", str(tmp_path / "healed")]) == 0
    assert "nan" not in capsys.readouterr().out


CRYSTALS = CrystalCalorimeter("matrix", material("G4_PbWO4"), (1, 2, 3), 5)
TILE = LayeredCalorimeter("tile", (Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(1, 1)),), 180.0, 180.0)


@pytest.mark.parametrize("calo", [CRYSTALS, TILE], ids=lambda calo: calo.name)
def test_no_figure_stands_in_the_way_of_few_cells_that_are_all_alike(
    calo: CrystalCalorimeter | LayeredCalorimeter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in (1, 2):
        rng = np.random.default_rng(k)
        shower = np.repeat(np.arange(60), 5)
        cell = rng.integers(0, calo.n_cells, shower.size)
        hits = Showers.from_hits(calo, shower, cell, np.exp(0.2 * rng.normal(size=cell.size)), pdg_id=11, energy_gev=np.full(60, 1.0))
        write_showers(tmp_path / f"{k}.h5", hits)
    write_ageing(tmp_path / "truth.parquet", Ageing(np.arange(calo.n_cells), np.full(calo.n_cells, 0.893)))
    words = [tmp_path / "1.h5", tmp_path / "2.h5", "--truth", tmp_path / "truth.parquet", "--cells", 1, "--bootstrap", 0]
    assert main(["ageing", "estimate", *map(str, words), "--out", str(tmp_path / "found")]) == 0
    assert main(["ageing", "compare", *map(str, words), "--methods", "ratio", "--out", str(tmp_path / "compared")]) == 0
    assert main(["showers", "age", str(tmp_path / "2.h5"), "--max-loss", "0.1", "--out", str(tmp_path / "aged")]) == 0
    printed, told = capsys.readouterr()
    assert "calolife:" not in told
    assert "nan" not in printed
    compared = pl.read_parquet(tmp_path / "compared" / "comparison.parquet")
    assert compared["r2"].is_nan().all()


def test_one_truth_for_all_cells_has_no_r2_in_a_comparison(
    files: dict[str, Path], stack: LayeredCalorimeter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ageing(tmp_path / "t.parquet", Ageing(np.arange(stack.n_cells), np.full(stack.n_cells, 0.893)))
    words = ["ageing", "compare", files["young"], files["aged"], "--truth", tmp_path / "t.parquet", "--cells", 12, "--methods", "ratio"]
    assert main([*map(str, words), "--bootstrap", "0", "--json", "--out", str(tmp_path / "run")]) == 0
    printed, told = capsys.readouterr()
    assert [row["r2"] for row in json.loads(printed)["methods"]] == [None] * 4
    assert "calolife:" not in told  # a best constant that is off by 0 has no place on a logarithmic axis


def test_a_truth_of_some_cells_scores_those(
    estimated: tuple[Path, dict[str, Any]], files: dict[str, Path], stack: LayeredCalorimeter, truth: Ageing, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [row for row in estimated[1]["cells"] if row["status"] == "measured"]
    some = [row["cell"] for row in rows[:5]]
    write_ageing(tmp_path / "some.parquet", truth.only(some))
    words = [files["young"], files["aged"], "--cells", N_CELLS, "--bootstrap", 5, "--json", "--truth", tmp_path / "some.parquet"]
    assert main(["ageing", "estimate", *map(str, words), "--out", str(tmp_path / "some")]) == 0
    printed, told = capsys.readouterr()
    score = json.loads(printed)["score"]
    assert score["n"] == 5
    found = np.array([row["signal_fraction"] for row in rows[:5]])
    assert score["mae"] == pytest.approx(np.abs(found - truth.at(some)).mean())
    assert "lists 5 of the 30 cells; 5 scored" in told
    plots = tmp_path / "some" / "plots"
    assert pl.read_csv(plots / "map.csv").drop_nulls("true_fraction")["cell"].to_list() == some
    assert pl.read_csv(plots / "pulls.csv").height == 5
    # the sums are of the cells with a result: not of the dead one
    young = make(stack, seed=1)
    kept = np.isin(young.cell, [row["cell"] for row in rows])
    want = np.bincount(young.shower_index[kept], young.energy_mev[kept], minlength=N)
    np.testing.assert_allclose(pl.read_csv(plots / "energy-sums.csv")["young_mev"].to_numpy(), want, rtol=1e-6)
    words = [*map(str, words), "--bootstrap", "0", "--methods", "ratio"]
    assert main(["ageing", "compare", *words, "--out", str(tmp_path / "compared")]) == 0
    printed, told = capsys.readouterr()
    assert json.loads(printed)["n_cells"] == 5
    assert "lists 5 of the 30 cells; 5 scored" in told


def test_a_truth_of_the_dead_cell_alone_gives_no_score_and_no_comparison(
    files: dict[str, Path], stack: LayeredCalorimeter, truth: Ageing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ageing(tmp_path / "dead.parquet", truth.only([brightest(make(stack, seed=1))]))
    words = [files["young"], files["aged"], "--cells", 12, "--bootstrap", 0, "--truth", tmp_path / "dead.parquet"]
    assert main(["ageing", "estimate", *map(str, words), "--json", "--out", str(tmp_path / "found")]) == 0
    printed, told = capsys.readouterr()
    assert json.loads(printed)["score"] is None
    assert "there is no score" in told
    assert main(["ageing", "compare", *map(str, words), "--out", str(tmp_path / "compared"), "--quiet"]) == 2
    assert "11 measured, 1 dead" in capsys.readouterr().err.replace("1 dead, 11 measured", "11 measured, 1 dead")
    assert not list(tmp_path.glob("compared*"))


@pytest.mark.usefixtures("undrawn")
def test_masked_cells_are_listed_and_count_for_nothing(files: dict[str, Path], truth: Ageing, tmp_path: Path) -> None:
    words = [files["young"], files["aged"], "--cells", 12, "--bootstrap", 0, "--truth", files["truth"]]
    whole = run(["estimate", *words, "--out", tmp_path / "whole"])
    listed = [row["cell"] for row in whole["cells"] if row["status"] == "measured"]
    # the third one beside two neighbours that may not be among the twelve
    mask = f"{listed[0]},{listed[2]}-{listed[2]}"
    found = run(["estimate", *words, "--mask", mask, "--out", tmp_path / "masked"])
    assert [row["cell"] for row in found["cells"] if row["status"] == "masked"] == [listed[0], listed[2]]
    assert found["n_cells"] == 12
    assert found["score"]["n"] == whole["score"]["n"] - 2
    compared = run(["compare", *words, "--methods", "ratio", "--mask", mask, "--out", tmp_path / "compared"])
    assert compared["n_cells"] == whole["score"]["n"] - 2


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the estimate is asked for; auto takes the trimmed mean, and an adversarial fit is a ratio of means."""
    asked: list[dict[str, Any]] = []
    real = calolife.ageing.estimate.estimate_ageing

    def stand_in(reference: Showers, today: Showers, **options: Any) -> AgeingEstimate:
        asked.append(dict(options))
        took = {"auto": "trimmed", "wgan": "ratio"}.get(options["method"], options["method"])
        made = real(reference, today, **(options | {"method": took, "wgan": None}))
        return replace(made, choice={"likelihood": 0.03, "trimmed": 0.02} if options["method"] == "auto" else {})

    monkeypatch.setattr("calolife.ageing.estimate.estimate_ageing", stand_in)
    return asked


@pytest.mark.usefixtures("undrawn", "chosen")
def test_what_auto_chose_is_told(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", files["young"], files["aged"], "--cells", 5, "--bootstrap", 0]
    found = run([*words, "--out", tmp_path / "json"])
    assert (found["method"], found["choice"]) == ("trimmed", {"likelihood": 0.03, "trimmed": 0.02})
    assert json.loads((tmp_path / "json" / "checks.json").read_text())["choice"] == found["choice"]
    assert run([*words, "--method", "ratio", "--out", tmp_path / "ratio"])["choice"] == {}
    assert main(["ageing", *map(str, words), "--quiet", "--out", str(tmp_path / "text")]) == 0
    assert "auto chose trimmed: errors between halves of the reference trimmed 0.020, likelihood 0.030\n" in capsys.readouterr().out


def test_compare_names_what_auto_chose_and_scores_the_others(chosen: list[dict[str, Any]], files: dict[str, Path], tmp_path: Path) -> None:
    words = ["compare", files["young"], files["aged"], "--cells", 8, "--bootstrap", 0, "--truth", files["truth"], "--events", "200"]
    found = run([*words, "--methods", "trimmed,likelihood,ratio", "--out", tmp_path / "run"])
    names = [row["method"] for row in found["methods"]]
    assert names == ["trimmed (auto)", "trimmed (auto), dose prior", "likelihood", "ratio", "best constant"]
    # with fewer events the same method, whatever auto would take of them
    assert [c["method"] for c in chosen] == ["auto", "trimmed", "auto", "trimmed", "likelihood", "likelihood", "ratio", "ratio"]


def test_compare_reaches_the_published_network_and_the_other_penalties(
    chosen: list[dict[str, Any]], files: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    words = ["compare", files["young"], files["aged"], "--cells", 8, "--bootstrap", 0, "--truth", files["truth"]]
    names = ["wgan", "wgan-published", "wgan-clip", "wgan-spectral"]
    found = run([*words, "--methods", ",".join(names), "--out", tmp_path / "run"])
    assert [row["method"] for row in found["methods"]][2:-1] == names
    plain, published, clip, spectral = (c["wgan"] for c in chosen if c["method"] == "wgan")
    assert plain is None
    assert published.is_published
    assert (clip.penalty, spectral.penalty) == ("clip", "spectral")
    assert len({c["checkpoint_dir"] for c in chosen if c["method"] == "wgan"}) == 4


def test_a_run_that_is_there_is_not_replaced(
    files: dict[str, Path], estimated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = estimated
    before = (out / "ageing.parquet").read_bytes()
    assert main(["ageing", "estimate", str(files["young"]), str(files["aged"]), "--out", str(out), "--quiet"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (out / "ageing.parquet").read_bytes() == before


@pytest.mark.usefixtures("undrawn")
def test_samples_that_tell_no_particle_are_taken_as_one_beam(stack: LayeredCalorimeter, files: dict[str, Path], tmp_path: Path) -> None:
    aged = make(stack, seed=5, pdg_id=0)
    write_showers(tmp_path / "b.h5", replace(aged, origin={}))
    found = run(["estimate", files["young"], tmp_path / "b.h5", "--cells", 3, "--bootstrap", 0, "--out", tmp_path / "run"])
    assert found["n_cells"] == 3
