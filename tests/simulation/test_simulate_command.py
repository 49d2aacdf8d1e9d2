"""`calolife showers simulate`: one sample, whoever simulates it and however often it was stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from calolife.cli import main
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.presets import to_toml
from calolife.runs import read_run
from calolife.showers.files import read_showers

# what an engine simulates quickly, and three parts of it
N = {"fast": 5_000, "geant4": 1_200}
BEAM = {
    "fast": ["--particle", "mix:mu-=0.5,mu+=0.5", "--energy", "5:10", "--beam-spot-mm", "20", "--angle-deg", "0:5"],
    "geant4": ["--particle", "mix:e-=0.5,gamma=0.5", "--energy", "0.02:0.05", "--beam-spot-mm", "20", "--angle-deg", "0:5"],
}


@pytest.fixture(params=["fast", "geant4"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "geant4":
        request.getfixturevalue("geant4_data")
    return str(request.param)


@pytest.fixture
def detector(tmp_path: Path, sandwich: LayeredCalorimeter) -> str:
    path = tmp_path / "sandwich.toml"
    path.write_text(to_toml(sandwich), encoding="utf-8")
    return str(path)


def simulate(detector: str, engine: str, out: Path, *more: str, n: int | None = None) -> list[str]:
    sample = ["--engine", engine, "-n", str(n or N[engine]), "--seed", "3", *BEAM[engine]]
    return ["showers", "simulate", detector, *sample, "--out", str(out), "--quiet", *more]


def test_the_file_does_not_depend_on_workers(detector: str, engine: str, tmp_path: Path) -> None:
    assert main(simulate(detector, engine, tmp_path / "one")) == 0
    assert main(simulate(detector, engine, tmp_path / "two", "--workers", "2")) == 0
    assert (tmp_path / "one" / "showers.h5").read_bytes() == (tmp_path / "two" / "showers.h5").read_bytes()
    assert read_run(tmp_path / "one").config == read_run(tmp_path / "two").config


def test_a_run_holds_showers_metrics_and_plots_with_their_numbers(
    detector: str, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(simulate(detector, engine, tmp_path / "run", "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    run, showers = read_run(tmp_path / "run"), read_showers(tmp_path / "run" / "showers.h5")
    assert set(run.files) == {
        "log.txt", "showers.h5", "plots/visible_energy.png", "plots/visible_energy.csv",
        "plots/layer_profile.png", "plots/layer_profile.csv",
    }  # fmt: skip
    assert showers.n_showers == N[engine] == run.metrics["visible"].n == printed["n_showers"]
    assert run.metrics["visible"].value == pytest.approx(showers.visible_mev.mean()) == printed["visible"]
    assert run.provenance["inputs"][detector].startswith("sha256:")
    counts = np.loadtxt(tmp_path / "run" / "plots" / "visible_energy.csv", delimiter=",", skiprows=1)
    assert counts[:, 2].sum() == showers.n_showers
    layers = np.loadtxt(tmp_path / "run" / "plots" / "layer_profile.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(layers[:, 1], showers.layer_energy_mev().mean(axis=0))
    assert main(["showers", "simulate", detector, "--config", str(tmp_path / "run"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again" / "showers.h5").read_bytes() == (tmp_path / "run" / "showers.h5").read_bytes()


def test_crystals_with_gaps_are_hit_at_an_angle_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["showers", "simulate", "pbwo4-5x5", "-n", "20", "--energy", "1:2"]
    assert main([*command, "--out", str(tmp_path / "tilted")]) == 0
    assert "come in at 3 degrees" in capsys.readouterr().err
    assert read_run(tmp_path / "tilted").config["options"]["angle_deg"] == "3"
    cos_angle = read_showers(tmp_path / "tilted" / "showers.h5").direction[:, 2]
    np.testing.assert_allclose(cos_angle, np.cos(np.radians(3.0)), rtol=1e-6)
    assert main([*command, "--angle-deg", "0", "--out", str(tmp_path / "straight")]) == 0
    assert main([*command, "--config", str(tmp_path / "straight"), "--out", str(tmp_path / "again")]) == 0
    assert main([*command, "--quiet", "--out", str(tmp_path / "silent")]) == 0
    assert "degrees" not in capsys.readouterr().err
    assert (read_showers(tmp_path / "again" / "showers.h5").direction[:, 2] == 1).all()
    head = (tmp_path / "again" / "plots" / "visible_energy.csv").read_text().split()[0]
    assert head == "from_fraction,to_fraction,showers"


def test_a_fast_run_from_before_names_what_belongs_to_geant4(detector: str, tmp_path: Path) -> None:
    run, old = tmp_path / "run", tmp_path / "old.json"
    command = ["showers", "simulate", detector, "-n", "20", "--quiet"]
    assert main([*command, "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    assert not {"physics", "cut_mm"} & set(config["options"])
    config["options"] |= {"physics": "FTFP_BERT", "cut_mm": 0.7}
    old.write_text(json.dumps(config), encoding="utf-8")
    assert main([*command, "--config", str(old), "--out", str(tmp_path / "again")]) == 0
    assert (run / "showers.h5").read_bytes() == (tmp_path / "again" / "showers.h5").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 1), (signal.SIGINT, 2)], ids=["kill-2", "int-1", "int-2"]
)
def test_a_stopped_run_goes_on_to_the_same_file(detector: str, engine: str, how: signal.Signals, workers: int, tmp_path: Path) -> None:
    n = 8 * N[engine]
    command = simulate(detector, engine, tmp_path / "run", "--workers", str(workers), n=n)
    script = tmp_path / "command.py"
    script.write_text(
        f"import sys\nfrom calolife.cli import main\nif __name__ == '__main__':\n    sys.exit(main({command!r}))\n", encoding="utf-8"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "run.partial" / "parts"
    try:
        end = time.monotonic() + 100
        while len(list(parts.glob("*.h5"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (tmp_path / "run").exists()
    if how is signal.SIGINT:
        assert process.returncode == 130, error
        assert error.count("\n") == 1, error
        assert "interrupted; unfinished work is kept in" in error
    # a worker sees that its parent has gone once Geant4 lets go of its batch
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
    made = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.h5")}
    assert len(made) >= 2
    assert main(simulate(detector, engine, tmp_path / "run", n=n + 1)) == 2  # not the same run
    assert main(simulate(detector, engine, tmp_path / "run", n=n)) == 0
    assert main(simulate(detector, engine, tmp_path / "whole", n=n)) == 0
    assert (tmp_path / "run" / "showers.h5").read_bytes() == (tmp_path / "whole" / "showers.h5").read_bytes()
    # finished parts were kept, not made again
    assert "resumed" in (tmp_path / "run" / "log.txt").read_text()


def test_finished_parts_are_not_simulated_again(detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calolife.detector.presets import load_detector
    from calolife.simulation import production

    calls: list[tuple[int, int]] = []

    def stand_in(sample: production.Production, path: Path, start: int, stop: int) -> int:
        calls.append((start, stop))
        path.touch()
        return stop - start

    monkeypatch.setattr(production, "_simulate_part", stand_in)
    sample = production.Production(load_detector(detector), 100, particle="e-", energy_gev=500.0, engine="geant4")
    told: list[float] = []
    paths = production.simulate_parts(sample, tmp_path / "parts", workers=1, tell=lambda what, done, total: told.append(done))
    assert len(paths) == len(calls) == 25
    assert told == list(range(0, 101, 4))
    paths[7].unlink()
    calls.clear()
    told.clear()
    assert production.simulate_parts(sample, tmp_path / "parts", workers=1, tell=lambda what, done, total: told.append(done)) == paths
    assert calls == [(28, 32)]
    assert told == [96, 100]


def test_a_damaged_part_is_removed_and_made_again(tmp_path: Path) -> None:
    from calolife.detector.presets import load_detector
    from calolife.errors import FileFormatError
    from calolife.simulation import production

    sample = production.Production(load_detector("pbwo4-5x5"), 5, particle="e-", energy_gev=1.0)
    (path,) = production.simulate_parts(sample, tmp_path, workers=1, tell=lambda what, done, total: None)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="was damaged and is removed; repeat the command"):
        production.read_part(path)
    production.simulate_parts(sample, tmp_path, workers=1, tell=lambda what, done, total: None)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("nowhere", "nowhere is neither a preset nor a file"),
        ("pbwo4-5x5 --particle kaon", "unknown particle 'kaon'"),
        ("pbwo4-5x5 --particle mix:e-=0.5", "the fractions add up to 0.5; they must add up to 1"),
        ("pbwo4-5x5 --energy 0", "--energy = 0 GeV; a kinetic energy must be > 0"),
        ("pbwo4-5x5 --energy -5", "a kinetic energy must be > 0"),
        ("pbwo4-5x5 --energy 100:1", "--energy = 100 to 1 GeV; a range must rise"),
        ("pbwo4-5x5 --energy ten", "--energy 'ten' is not a number or a range; write 10 or 1:100"),
        ("pbwo4-5x5 --energy 1:2:3", "--energy '1:2:3' is not a number or a range"),
        ("pbwo4-5x5 --angle-deg 0:95", "must lie in 0 to below 90"),
        ("pbwo4-5x5 --beam-spot-mm -3", "--beam-spot-mm = -3"),
        ("pbwo4-5x5 --position-mm 5", "--position-mm '5' is not two numbers; write X:Y"),
        ("pbwo4-5x5 --position-mm 5000:0", "beside the detector"),
        ("pbwo4-5x5 --engine geant5", "engine 'geant5' is not one of fast, geant4"),
        ("pbwo4-5x5 --birks maybe", "--birks 'maybe' is not on or off"),
        ("cu-scint-24x24 --pt 5", "is made of layers and has no eta; give --energy, not --pt"),
        ("pbwo4-5x5 --engine geant4 --physics QGSP", "--physics 'QGSP' is not one of FTFP_BERT, QGSP_BERT"),
        ("pbwo4-5x5 --engine geant4 --cut-mm 0", "--cut-mm = 0; the production cut must be finite and > 0"),
        ("pbwo4-5x5 --engine geant4 --cut-mm nan", "--cut-mm = nan; the production cut must be finite and > 0"),
        ("pbwo4-5x5 --physics FTFP_BERT", "--physics belongs to --engine geant4"),
        ("pbwo4-5x5 --cut-mm 0.7 --engine fast", "--cut-mm belongs to --engine geant4"),
        ("pbwo4-5x5 --seed 99999999999999999999", "the seed below 2^63"),
        ("pbwo4-5x5 --beam-spot-mm 1e20", "--beam-spot-mm = 1e+20"),
        ("pbwo4-5x5 --particle electron", "unknown particle 'electron'; did you mean 'e-'?"),
        ("pbwo4-5x5 -n 1000000000000", "ask for at least one and at most 1000000000 a run"),
        ("pbwo4-5x5 -n 0", "-n"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "geant4" in argv:
        pytest.importorskip("calzone")
    monkeypatch.chdir(tmp_path)
    assert main(["showers", "simulate", *argv.split(), "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("calolife: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())
