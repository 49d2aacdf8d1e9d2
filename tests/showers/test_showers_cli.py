"""`calolife showers info | convert | digitise`: the same physics as the functions, one run or file written."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from calolife.cli import main
from calolife.detector.layers import Readout
from calolife.runs import read_run
from calolife.showers.calibration import read_out
from calolife.showers.digitise import digitise, draw_cells
from calolife.showers.events import Showers
from calolife.showers.files import read_showers, write_showers

READOUT = ["--light-yield", "8", "--noise", "0.2", "--threshold", "0.5", "--saturation", "6"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, pions: Showers) -> Path:
    path = tmp_path_factory.mktemp("showers") / "pions.h5"
    write_showers(path, pions)
    return path


def test_digitise_writes_the_run_that_the_function_gives(stored: Path, pions: Showers, tmp_path: Path) -> None:
    hot = int(draw_cells(pions.detector, 0.05, seed=4)[0])
    extras = ["--dead-fraction", "0.05", "--hot", str(hot), "--pileup", str(stored), "--pileup-mean", "1.5", "--seed", "4"]
    assert main(["showers", "digitise", str(stored), *READOUT, *extras, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    dead = [c for c in draw_cells(pions.detector, 0.05, seed=4) if c != hot]
    want = digitise(pions, Readout(8.0, 0.2, 0.5, 6.0), seed=4, dead=dead, hot=[hot], pileup=pions, pileup_mean=1.5)
    got = read_showers(tmp_path / "run")
    np.testing.assert_array_equal(got.cell, want.cell)
    np.testing.assert_array_equal(got.energy_mev, want.energy_mev)
    assert (got.kind, got.readout, got.origin) == (want.kind, want.readout, want.origin)
    metrics = read_run(tmp_path / "run").metrics
    assert metrics["read energy"].value == pytest.approx(want.visible_mev.mean())
    # the standard error of the mean over showers
    assert metrics["read energy"].uncertainty == pytest.approx(want.visible_mev.std(ddof=1) / np.sqrt(want.n_showers))


def test_digitise_reads_out_a_detector_in_use(stored: Path, pions: Showers, tmp_path: Path) -> None:
    (tmp_path / "left.csv").write_text("cell,signal_fraction\n7,0.8\n40,0.5\n")
    fraction = np.ones(pions.detector.n_cells)
    fraction[[7, 40]] = 0.8, 0.5
    common = ["--light-yield", "8", "--noise", "0.2", "--threshold", "0.5", "--seed", "4", "--quiet"]
    in_use = ["--signal-fraction", str(tmp_path / "left.csv"), "--intercalibration", "2", "--calibration-seed", "9"]
    in_use += ["--pileup", str(stored), "--pileup-mean", "0:3"]
    for name, more, is_corrected in (("corrected", [], True), ("plain", ["--uncorrected"], False)):
        argv = ["showers", "digitise", str(stored), *common, *in_use, *more, "--out", str(tmp_path / name)]
        assert main(argv) == 0
        want = read_out(
            pions, Readout(8.0, 0.2, 0.5), seed=4, signal_fraction=fraction, is_corrected=is_corrected, intercalibration_percent=2.0,
            calibration_seed=9, pileup=pions, pileup_mean=(0.0, 3.0),
        )  # fmt: skip
        got = read_showers(tmp_path / name)
        np.testing.assert_array_equal(got.cell, want.cell)
        np.testing.assert_array_equal(got.energy_mev, want.energy_mev)
        assert got.origin == want.origin
    argv = ["showers", "digitise", str(stored), "--config", str(tmp_path / "plain"), "--out", str(tmp_path / "again"), "--quiet"]
    assert main(argv) == 0
    assert (tmp_path / "plain" / "showers.h5").read_bytes() == (tmp_path / "again" / "showers.h5").read_bytes()


def test_the_light_that_is_left_is_that_of_aged_showers(stored: Path, pions: Showers, tmp_path: Path) -> None:
    assert main(["showers", "age", str(stored), "--max-loss", "0.3", "--out", str(tmp_path / "aged"), "--quiet"]) == 0
    argv = ["showers", "digitise", str(stored), "--signal-fraction", str(tmp_path / "aged"), "--uncorrected", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    np.testing.assert_allclose(
        read_showers(tmp_path / "run").energy_mev, read_showers(tmp_path / "aged").energy_mev, rtol=1e-6
    )  # an ideal readout of what is left


def test_a_digitised_run_repeats_itself_with_config(stored: Path, tmp_path: Path) -> None:
    assert main(["showers", "digitise", str(stored), *READOUT, "--seed", "4", "--out", str(tmp_path / "a"), "--quiet"]) == 0
    argv = ["showers", "digitise", str(stored), "--config", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--quiet"]
    assert main(argv) == 0
    assert (tmp_path / "a" / "showers.h5").read_bytes() == (tmp_path / "b" / "showers.h5").read_bytes()


def test_the_energy_of_hot_cells_needs_hot_cells(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["showers", "digitise", str(stored), *READOUT, "--quiet"]
    assert main([*command, "--hot-mev", "2", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "name some with --hot, or drop it" in error
    assert error.count("\n") == 1
    assert main([*command, "--hot", "5", "--hot-mev", "2", "--out", str(tmp_path / "hot")]) == 0
    assert main([*command, "--config", str(tmp_path / "hot"), "--out", str(tmp_path / "again")]) == 0
    assert read_run(tmp_path / "again").config["options"]["hot_mev"] == 2
    assert main([*command, "--out", str(tmp_path / "cold")]) == 0
    assert "hot_mev" not in read_run(tmp_path / "cold").config["options"]


def test_info_counts_what_is_there(stored: Path, pions: Showers, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "info", str(stored), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_showers"], found["n_hits"], found["kind"]) == (500, pions.n_hits, "simhit")
    assert found["detector_digest"] == pions.detector.digest
    assert found["origin"] == {"engine": "toy", "seed": 1}
    assert found["visible_mev"]["mean"] == pytest.approx(pions.visible_mev.mean())
    assert found["occupancy"] == pytest.approx(pions.n_hits / 500 / 144)
    assert found["particles"]["pi-"]["n"] == int((pions.pdg_id == -211).sum())


def test_info_is_read_by_people(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "info", str(stored)]) == 0
    printed = capsys.readouterr().out
    assert "500 showers" in printed
    assert "made by: engine toy, seed 1" in printed
    assert "mean visible [MeV]" in printed


def test_info_of_nothing_says_so(pions: Showers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_showers(tmp_path / "none.h5", pions.between(0, 0))
    assert main(["showers", "info", str(tmp_path / "none.h5")]) == 0
    assert "0 showers" in capsys.readouterr().out
    assert main(["showers", "info", str(tmp_path / "none.h5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["visible_mev"] == {"mean": None, "uncertainty": None}


def test_a_way_round_all_formats_changes_no_byte(stored: Path, tmp_path: Path) -> None:
    pytest.importorskip("uproot")
    assert main(["showers", "convert", str(stored), str(tmp_path / "a.root"), "--quiet"]) == 0
    assert main(["showers", "convert", str(tmp_path / "a.root"), str(tmp_path / "b.h5"), "--quiet"]) == 0
    assert (tmp_path / "b.h5").read_bytes() == stored.read_bytes()


def test_the_calochallenge_layout_takes_its_detector_from_the_command(
    stored: Path, pions: Showers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from calolife.detector.presets import to_toml

    (tmp_path / "small.toml").write_text(to_toml(pions.detector))
    assert main(["showers", "convert", str(stored), str(tmp_path / "c.h5"), "--format", "calochallenge", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["showers", "info", str(tmp_path / "c.h5"), "--detector", str(tmp_path / "small.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_hits"] == pions.n_hits


def test_what_was_assumed_is_said(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "digitise", str(stored), "--out", str(tmp_path / "ideal")]) == 0
    assert "the readout is ideal" in capsys.readouterr().err
    assert main(["showers", "digitise", str(stored), "--noise", "0.1", "--out", str(tmp_path / "dense")]) == 0
    assert "each of the 144 cells of every shower is written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["digitise", "IN", "--dead", "3", "--dead-fraction", "0.1", "--out", "OUT"], "both name dead cells"),
        (["digitise", "IN", "--dead", "200", "--out", "OUT"], "--dead: cell 200 is not in the detector"),
        (["digitise", "IN", "--pileup", "IN", "--out", "OUT"], "--pileup and --pileup-mean belong together"),
        (["digitise", "IN", "--pileup", "IN", "--pileup-mean", "60:0", "--out", "OUT"], "it must rise"),
        (["digitise", "IN", "--intercalibration", "30", "--out", "OUT"], "--intercalibration = 30 must be between 0 and 20"),
        (["digitise", "IN", "--saturation", "inf", "--out", "OUT"], "--saturation inf must be a finite number"),
        (["digitise", "IN", "--pileup", "OUT", "--pileup-mean", "3", "--out", "OUT2"], "--pileup: no showers at"),
        (["digitise", "IN", "--pileup", "IN", "--pileup-mean", "few", "--out", "OUT"], "--pileup-mean 'few' is not a number"),
        (["digitise", "IN", "--pileup-mean", "0:60", "--out", "OUT"], "--pileup and --pileup-mean belong together"),
        (["digitise", "IN", "--intercalibration", "30", "--out", "OUT"], "must be between 0 and 20"),
        (["digitise", "IN", "--calibration-seed", "3", "--out", "OUT"], "is the seed of --intercalibration"),
        (["digitise", "IN", "--uncorrected", "--out", "OUT"], "give --signal-fraction, or drop it"),
        (["digitise", "IN", "--signal-fraction", "OUT", "--out", "OUT2"], "no truth at"),
        (["digitise", "IN", "--signal-fraction", "IN", "--out", "OUT"], "is no table of comma-separated values"),
        (["digitise", "IN", "--threshold", "5", "--saturation", "4", "--out", "OUT"], "must be below --saturation"),
        (["digitise", "IN", "--noise", "-1", "--out", "OUT"], "--noise"),
        (["convert", "IN", "OUT.csv"], "no format has the suffix '.csv'"),
        (["convert", "IN", "OUT", "--format", "csv"], "--format 'csv' is not one of calolife, calochallenge, root"),
        (["convert", "IN", "IN"], "exists; choose another name"),
        (["convert", "IN", "OUT.h5", "--format", "root"], "a file of format root must end in .root"),
        (["convert", "IN", "OUT.root", "--format", "calolife"], "a file of format calolife must not end in .root"),
        (["convert", "IN", "OUT/new.root"], "no such directory; make it first"),
        (["convert", "IN", "OUT/new.h5"], "no such directory; make it first"),
        (["digitise", "IN", "--seed", "9" * 25, "--out", "OUT"], "below 2^63"),
        (["digitise", "IN", "--dead-fraction", "0.1", "--seed", "9" * 25, "--out", "OUT"], "below 2^63"),
        (["info", "OUT"], "no showers at"),
        (["info", "IN", "--detector", "cu-scint-24x24"], "was made in detector 'small'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: list[str], words: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.replace("IN", str(stored)).replace("OUT", str(tmp_path / "out")) for a in argv]
    assert main(["showers", *filled]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("calolife: ")
    assert words in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_info_tells_what_a_file_of_layer_sums_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "sums.h5", "w") as file:
        file["layer_energy_mev"], file["true_energy_gev"] = np.ones((4, 3), np.float32), np.array([1.0, 2.0, 3.0, 4.0])
        file["pdg_id"] = np.array([22, 22, 22, -211])
    assert main(["showers", "info", str(tmp_path / "sums.h5")]) == 0
    out = capsys.readouterr().out
    assert "4 showers, the sums of 3 layers each" in out
    assert "energy: 1 to 4 GeV" in out
    assert main(["showers", "info", str(tmp_path / "sums.h5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["particles"]["gamma"]["n"] == 3
