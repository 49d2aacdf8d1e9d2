"""`calolife showers age` and `calolife ageing correct`: the numbers of the functions, the truth kept apart, one line for bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from calolife.ageing.coefficients import Ageing
from calolife.ageing.damage import age_showers, correct_showers, damage_ageing, dose_mev
from calolife.ageing.files import read_ageing, read_truth, write_ageing
from calolife.cli import main
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.runs import read_run
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.files import read_showers, write_showers

TILES = Layer(material("G4_POLYSTYRENE"), 5.0, is_active=True, cells=(6, 6))
STACK = LayeredCalorimeter("small", (), 180.0, 180.0).add_period(4, Layer(material("G4_Cu"), 20.0), TILES)
READOUT = Readout(light_yield_pe_per_mev=10.0, noise_mev=0.1, threshold_mev=0.2, saturation_mev=6.0)
LOSS = ["--max-loss", "0.3", "--scatter", "0.02", "--seed", "7"]


def toy(n: int, *, seed: int) -> Showers:
    """A core in the middle of every layer: the dose differs from cell to cell."""
    rng = np.random.default_rng(seed)
    shower = np.repeat(np.arange(n), rng.poisson(15, n))
    place = np.clip(np.round(rng.normal(2.5, 1.2, (2, shower.size))), 0, 5).astype(int)
    cell = STACK.cell_id(rng.integers(0, 4, shower.size), *place)
    return Showers.from_hits(STACK, shower, cell, rng.exponential(1.5, shower.size), pdg_id=-211, energy_gev=np.full(n, 10.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """young.h5 and today.h5 (simhits), rechits.h5, of 1,200 showers each; an aged run, and an estimate."""
    path = tmp_path_factory.mktemp("aged")
    write_showers(path / "young.h5", toy(1200, seed=1))
    write_showers(path / "today.h5", toy(1200, seed=2))
    write_showers(path / "rechits.h5", digitise(toy(1200, seed=2), READOUT, seed=7))
    command = ["showers", "age", str(path / "today.h5"), "--dose-from", str(path / "young.h5"), *LOSS, "--quiet"]
    assert main([*command, "--out", str(path / "aged")]) == 0
    (path / "estimate").mkdir()
    write_ageing(path / "estimate" / "ageing.parquet", read_truth(path / "aged"))
    return path


def test_the_run_holds_what_the_functions_give(folder: Path) -> None:
    today, ageing = toy(1200, seed=2), damage_ageing(STACK, dose_mev(toy(1200, seed=1)), max_loss=0.3, scatter=0.02, seed=7)
    truth = read_truth(folder / "aged")
    # doses are summed in parts of 1,000 showers
    np.testing.assert_allclose(truth.signal_fraction, ageing.signal_fraction, rtol=1e-12)
    assert (truth.label, truth.detector_digest) == (ageing.label, STACK.digest)
    got, want = read_showers(folder / "aged"), age_showers(today, truth, seed=7)
    np.testing.assert_array_equal(got.energy_mev, want.energy_mev)
    assert (got.kind, got.origin) == ("simhit", want.origin)
    metrics = read_run(folder / "aged").metrics
    assert metrics["visible energy before"].value == pytest.approx(today.visible_mev.mean())
    assert metrics["visible energy after"].value == pytest.approx(want.visible_mev.mean())
    assert metrics["visible energy after"].uncertainty == pytest.approx(want.visible_mev.std(ddof=1) / np.sqrt(1200))
    assert metrics["lowest signal fraction"].value == truth.signal_fraction.min()


def test_the_truth_is_kept_apart_from_the_showers(folder: Path) -> None:
    files = {str(f.relative_to(folder / "aged")) for f in (folder / "aged").rglob("*") if f.is_file()}
    kept = {f for f in files if f.startswith("truth/")}
    assert {"truth/truth.parquet", "truth/truth.csv"} <= kept
    assert files - kept == {
        "showers.h5", "config.json", "metrics.json", "provenance.json", "log.txt", "plots/energy-sums.png", "plots/energy-sums.csv",
    }  # fmt: skip
    # outside, no table has a row per cell
    assert pl.read_csv(folder / "aged" / "plots" / "energy-sums.csv").height == 1200
    assert pl.read_csv(folder / "aged" / "truth" / "truth.csv").height == STACK.n_cells
    drawn = {Path(f).name for f in kept if f.endswith(".png")}
    assert drawn == {"signal-fraction-map.png", "signal-fraction-against-dose.png"}


def test_an_aged_run_repeats_itself_with_config(folder: Path, tmp_path: Path) -> None:
    # also the options that must be typed come from the earlier run
    assert main(["showers", "age", str(folder / "today.h5"), "--config", str(folder / "aged"), "--out", str(tmp_path / "b"), "-q"]) == 0
    for name in ("showers.h5", "truth/truth.parquet", "truth/truth.csv", "metrics.json"):
        assert (folder / "aged" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_rechits_are_aged_in_parts_as_in_one_go(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "age", str(folder / "rechits.h5"), "--law", "sqrt", *LOSS, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "age simhits, then digitise them" in said
    assert "rechits are at the ceiling of 6 MeV" in said
    rechits, truth = read_showers(folder / "rechits.h5"), read_truth(tmp_path / "a")
    n_parts = 2
    assert rechits.n_showers > 1000 * (n_parts - 1)  # what one part of the command holds
    want = age_showers(rechits, truth, seed=7)
    got = read_showers(tmp_path / "a")
    np.testing.assert_array_equal(got.offsets, want.offsets)
    np.testing.assert_array_equal(got.energy_mev, want.energy_mev)
    write_showers(tmp_path / "one-go.h5", want)
    assert (tmp_path / "one-go.h5").read_bytes() == (tmp_path / "a" / "showers.h5").read_bytes()


def test_age_tells_its_result_as_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "age", str(folder / "today.h5"), "--max-loss", "0.107", "--json", "-q", "--out", str(tmp_path / "a")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["truth"] == str(tmp_path / "a" / "truth" / "truth.parquet")
    assert (found["n_showers"], found["n_cells"], found["law"], found["kind"]) == (1200, 144, "linear", "simhit")
    assert found["min_signal_fraction"] == pytest.approx(1 - 0.107)
    assert 0 < found["visible_after_mev"] < found["visible_before_mev"]


@pytest.fixture(scope="module")
def corrected(folder: Path) -> Path:
    command = ["ageing", "correct", str(folder / "aged"), str(folder / "estimate"), "--reference", str(folder / "young.h5"), "-q"]
    assert main([*command, "--out", str(folder / "corrected")]) == 0
    return folder / "corrected"


def test_correcting_by_the_truth_gives_the_young_showers_back(corrected: Path) -> None:
    today = toy(1200, seed=2)
    np.testing.assert_allclose(read_showers(corrected).energy_mev, today.energy_mev, rtol=2.0**-22)
    found = read_run(corrected).metrics
    assert found["visible energy after"].value == pytest.approx(today.visible_mev.mean(), rel=1e-6)
    assert found["width after"].value == pytest.approx(today.visible_mev.std(ddof=1), rel=1e-6)
    # the reference is another sample: the same within 4 standard errors
    for name in ("visible energy", "width"):
        after, young = found[f"{name} after"], found[f"{name} reference"]
        assert after.value == pytest.approx(young.value, abs=4 * np.hypot(after.uncertainty, young.uncertainty))
    assert found["visible energy before"].value < found["visible energy after"].value - 10 * found["visible energy after"].uncertainty
    assert set(pl.read_csv(corrected / "plots" / "energy-sums.csv")["sample"].unique()) == {"young", "aged", "corrected"}
    assert (corrected / "plots" / "energy-sums.png").stat().st_size > 0


def test_a_correction_repeats_itself_with_config(folder: Path, corrected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ageing", "correct", str(folder / "aged"), str(folder / "estimate"), "--json", "--config", str(corrected)]
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["n_corrected"], found["n_left_alone"], found["corrected_energy_fraction"]) == (144, 0, 1.0)
    assert found["reference_mean_mev"] == read_run(corrected).metrics["visible energy reference"].value
    assert "left as they are" not in told.err
    for name in ("showers.h5", "metrics.json", "plots/energy-sums.csv"):
        assert (corrected / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_correct_says_how_many_cells_are_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ageing = Ageing([10, 11, 12, 13], [0.9, 0.9, 0.5, 0.5], status=["measured", "prior-dominated", "dead", "hot"])
    write_ageing(tmp_path / "some.parquet", ageing)
    assert main(["ageing", "correct", str(folder / "today.h5"), str(tmp_path / "some.parquet"), "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr()
    assert "142 of 144 cells are left as they are: 1 dead, 1 hot, 140 not listed" in told.err
    assert "2 cells corrected" in told.out
    np.testing.assert_array_equal(read_showers(tmp_path / "a").energy_mev, correct_showers(toy(1200, seed=2), ageing).energy_mev)


def test_correcting_rechits_says_what_does_not_come_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ageing", "correct", str(folder / "rechits.h5"), str(folder / "estimate"), "--out", str(tmp_path / "a")]) == 0
    assert "what the threshold of 0.2 MeV cut from the aged signal does not come back" in capsys.readouterr().err


# --- bad input: exit code 2, one line that says what to do, nothing left behind


@pytest.fixture(scope="module")
def odd(folder: Path) -> Path:
    """Inputs that something is wrong with."""
    other = replace(STACK, name="other")
    write_showers(folder / "other.h5", replace(toy(20, seed=3), detector=other))
    write_showers(folder / "none.h5", toy(20, seed=3).between(0, 0))
    empty = Showers.from_hits(STACK, [], [], [], pdg_id=-211, energy_gev=np.ones(5))
    write_showers(folder / "no-hits.h5", empty)
    (folder / "text.h5").write_text("no showers", encoding="utf-8")
    write_ageing(folder / "other.parquet", Ageing([1], [0.9], detector_digest=other.digest))
    write_ageing(folder / "large.parquet", Ageing([22_000], [0.9]))
    good = read_ageing(folder / "estimate")
    cut = pl.read_parquet(folder / "estimate" / "ageing.parquet").drop("status")
    cut.write_parquet(folder / "cut.parquet", metadata={"calolife": json.dumps({"format": "calolife ageing", "version": 1})})
    assert good.n_cells == STACK.n_cells
    return folder


AGE = ["showers", "age"]
CORRECT = ["ageing", "correct"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*AGE, "{}/today.h5"], "--max-loss"),
        ([*AGE, "{}/today.h5", "--max-loss", "0"], "max_loss = 0 must be above 0 and below 1"),
        ([*AGE, "{}/today.h5", "--max-loss", "1.5"], "max_loss = 1.5 must be above 0 and below 1"),
        ([*AGE, "{}/today.h5", "--max-loss", "nan"], "max_loss = nan"),
        ([*AGE, "{}/today.h5", "--max-loss", "0.1", "--law", "cubic"], "law 'cubic' is not one of linear, saturating, sqrt"),
        ([*AGE, "{}/today.h5", "--max-loss", "0.1", "--scatter", "-0.01"], "scatter = -0.01 must be from 0"),
        ([*AGE, "{}/none.h5", "--max-loss", "0.1"], "has no showers"),
        ([*AGE, "{}/no-hits.h5", "--max-loss", "0.1"], "there is no dose; give showers with hits"),
        ([*AGE, "{}/today.h5", "--max-loss", "0.1", "--dose-from", "{}/no-hits.h5"], "there is no dose; give showers with hits"),
        ([*AGE, "{}/today.h5", "--max-loss", "0.1", "--dose-from", "{}/other.h5"], "take both from one detector"),
        ([*AGE, "{}/today.h5", "--max-loss", "0.1", "--dose-from", "{}/gone.h5"], "no showers at"),
        ([*AGE, "{}/text.h5", "--max-loss", "0.1"], "is not HDF5"),
        ([*AGE, "{}/gone.h5", "--max-loss", "0.1"], "no showers at"),
        ([*CORRECT, "{}/other.h5", "{}/estimate"], "take both from one detector"),
        ([*CORRECT, "{}/today.h5", "{}/other.parquet"], "take both from one detector"),
        ([*CORRECT, "{}/today.h5", "{}/large.parquet"], "lists cell 22000, detector 'small' has cells 0 to 143"),
        ([*CORRECT, "{}/today.h5", "{}/aged"], "it is a run of aged showers, whose truth is"),
        ([*CORRECT, "{}/today.h5", "{}/gone"], "no ageing at"),
        ([*CORRECT, "{}/today.h5", "{}/today.h5"], "is not Parquet, or damaged"),
        ([*CORRECT, "{}/today.h5", "{}/cut.parquet"], "column status is missing"),
        ([*CORRECT, "{}/none.h5", "{}/estimate"], "has no showers"),
        ([*CORRECT, "{}/today.h5", "{}/estimate", "--reference", "{}/other.h5"], "take both from one detector"),
        ([*CORRECT, "{}/today.h5", "{}/estimate", "--reference", "{}/none.h5"], "has no showers"),
    ],
)
def test_bad_input_is_told_in_one_line(
    argv: list[str], message: str, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([a.format(odd) for a in argv] + ["--quiet", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_neither_replaced_nor_written_into_its_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aged, estimate = str(folder / "aged"), str(folder / "estimate")
    for command in ([*AGE, aged, "--max-loss", "0.1"], [*CORRECT, aged, estimate]):
        for out, message in [(aged, "lies inside"), (f"{aged}/again", "lies inside"), (str(folder), "holds")]:
            assert main([*command, "--quiet", "--force", "--out", out]) == 2
            assert f"{message} the input" in capsys.readouterr().err
    for command in ([*AGE, f"{folder}/today.h5", "--max-loss", "0.1"], [*CORRECT, f"{folder}/today.h5", estimate]):
        assert main([*command, "--quiet", "--out", aged]) == 2
        assert "aged exists; choose another --out, or replace it with --force" in capsys.readouterr().err
    assert main([*CORRECT, aged, estimate, "--quiet", "--out", f"{estimate}/again"]) == 2
    assert "lies inside the input" in capsys.readouterr().err
