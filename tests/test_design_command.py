"""`calolife detector optimise`: a budget and a length in, a detector that keeps them out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from calolife.cli import main
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.presets import load_detector, to_toml
from calolife.runs import read_run

LIMITS = ["--budget-chf", "5000", "--max-length-cm", "40", "--size-cm", "20x20"]
BEAM = ["--particles", "gamma", "--energy", "1:5", "--showers", "300"]
SMALL = ["detector", "optimise", *LIMITS, *BEAM, "--quiet"]


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stack that fits into the small limits."""
    calo = LayeredCalorimeter("sandwich", (), 200.0, 200.0)
    for _ in range(20):
        calo = calo.add_layer("G4_Pb", 5.0).add_layer("G4_POLYSTYRENE", 5.0, is_active=True, cells=(4, 4))
    path = tmp_path_factory.mktemp("detectors") / "sandwich.toml"
    path.write_text(to_toml(calo), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rival: str) -> Path:
    out = tmp_path_factory.mktemp("runs") / "search"
    more = ["--trials", "20", "--confirm", "fast", "--confirm-best", "2", "--confirm-showers", "300", "--against", rival]
    assert main([*SMALL, *more, "--out", str(out)]) == 0
    return out


def test_a_run_holds_detectors_drawings_the_front_and_the_history(run: Path) -> None:
    stored = read_run(run)
    names = {Path(f).stem for f in stored.files if f.startswith("designs/")}
    assert len(names) == 6
    assert set(stored.files) == {
        "log.txt", "best.toml", "results.json", "history.parquet", "history.csv", "figures.parquet", "figures.csv",
        *(f"designs/{name}.toml" for name in names),
        *(f"plots/{name}.{kind}" for name in {*names, "pareto", "history", "comparison"} for kind in ("png", "csv")),
    }  # fmt: skip
    history = pl.read_parquet(run / "history.parquet")
    assert history["trial"].to_list() == list(range(20))
    assert history.filter("is_on_front").height >= 1
    document = json.loads((run / "results.json").read_text())
    assert document["reference"] == "sandwich"
    assert document["confirmed_by"] == "fast"
    best = document["best"]
    assert load_detector(run / "best.toml").name == best
    ratio = stored.metrics[f"ratio mean-sigma-eff {best} sandwich fast confirmed"]
    assert ratio.n == 300
    assert 0 < ratio.uncertainty < 0.5


def test_the_check_accepts_every_design(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in [run / "best.toml", *(run / "designs").iterdir()]:
        assert main(["detector", "check", str(path), *LIMITS, "--quiet"]) == 0
        assert "within all limits" in capsys.readouterr().out


def test_designs_have_the_cells_of_the_published_stacks(run: Path) -> None:
    best = load_detector(run / "best.toml")
    assert isinstance(best, LayeredCalorimeter)
    assert {layer.cells for layer in best.layers if layer.is_active} == {(10, 10)}


def same(one: Path, two: Path) -> bool:
    return all(
        (one / name).read_bytes() == (two / name).read_bytes() for name in ("history.csv", "figures.csv", "results.json", "best.toml")
    )


def test_config_repeats_a_search_with_other_workers(run: Path, tmp_path: Path) -> None:
    again = ["detector", "optimise", "--config", str(run), "--workers", "2", "--quiet", "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert same(run, tmp_path / "again")


def test_json_is_one_document(rival: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--trials", "3", "--against", rival, "--objective", "rel-loss", "--out", str(tmp_path / "run"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["objective"] == "rel-loss"
    figures = document["rounds"][0]["figures"]
    assert {"detector", "figure", "value", "error", "unit", "n", "ratio", "ratio_low", "ratio_high"} <= set(figures[0])


def test_both_rounds_of_one_engine_are_told_apart(run: Path) -> None:
    figures = pl.read_parquet(run / "figures.parquet")
    assert figures.unique(["round", "detector", "figure"]).height == figures.height
    assert figures.group_by("round").agg(pl.col("n").unique()).sort("round")["n"].to_list() == [[900], [300]]


def test_a_design_of_an_earlier_search_needs_a_name_of_its_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--trials", "2", "--out", str(tmp_path / "run"), "--against", str(run / "best.toml")]) == 2
    assert "change it in the file" in capsys.readouterr().err


def test_without_a_published_stack_in_the_limits_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["detector", "optimise", *LIMITS, *BEAM[:4], "--showers", "60", "--trials", "2", "--pareto", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err.count("is not compared with") == 3
    assert "ratio" not in printed.out
    assert not any("ratio" in name for name in read_run(tmp_path / "run").metrics)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "int"])
def test_a_stopped_search_goes_on_to_the_same_run(run: Path, rival: str, how: signal.Signals, tmp_path: Path) -> None:
    more = ["--trials", "20", "--confirm", "fast", "--confirm-best", "2", "--confirm-showers", "300", "--against", rival]
    command = [*SMALL, *more, "--workers", "2", "--out", str(tmp_path / "search")]
    script = tmp_path / "command.py"
    script.write_text(
        f"import sys\nfrom calolife.cli import main\nif __name__ == '__main__':\n    sys.exit(main({command!r}))\n", encoding="utf-8"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    trials = tmp_path / "search.partial" / "trials"
    end = time.monotonic() + 100
    while len(list(trials.glob("*.json"))) < 4 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert len(list(trials.glob("*.json"))) >= 4
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "give the same command again" in told
    psutil.wait_procs(children, timeout=30)
    assert not any(child.is_running() for child in children)
    assert main(command) == 0
    assert same(run, tmp_path / "search")


@pytest.mark.slow
def test_geant4_confirms(rival: str, tmp_path: Path) -> None:
    pytest.importorskip("calzone", reason='calzone is not installed: pip install "calolife[geant4]"')
    if not os.environ.get("GEANT4_DATA_DIR"):
        pytest.skip("set GEANT4_DATA_DIR to the folder of Geant4's data; python -m calzone download FOLDER gets them")
    more = ["--trials", "3", "--confirm", "geant4", "--confirm-best", "1", "--confirm-showers", "60", "--against", rival]
    assert main([*SMALL, *more, "--out", str(tmp_path / "run")]) == 0
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert document["confirmed_by"] == "geant4"
    assert [r["engine"] for r in document["rounds"]] == ["fast", "geant4"]


BAD = {
    "no money": (["--budget-chf", "0"], "budget_chf"),
    "money owed": (["--budget-chf", "-5"], "budget_chf"),
    "no room": (["--max-length-cm", "0.05"], "no room for one layer"),
    "no length": (["--max-length-cm", "nan"], "max_length_cm"),
    "a size that is no size": (["--size-cm", "50"], "50x50"),
    "a flat size": (["--size-cm", "0x50"], "size_cm"),
    "unknown particle": (["--particles", "pion"], "did you mean"),
    "half a mixture": (["--particles", "mix:gamma=0.5"], "add up to"),
    "an energy range that falls": (["--energy", "5:1"], "rise"),
    "an energy that is none": (["--energy", "a lot"], "1:100"),
    "no trials": (["--trials", "0"], "--trials"),
    "too few showers": (["--showers", "10"], "too few"),
    "unknown objective": (["--objective", "beauty"], "mean-sigma-eff"),
    "unknown engine": (["--engine", "slow"], "fast, geant4"),
    "unknown confirmation": (["--confirm", "beam test"], "fast, geant4"),
    "nothing to confirm": (["--confirm", "fast", "--confirm-best", "0"], "--confirm-best"),
    "too few showers to confirm": (["--confirm", "fast", "--confirm-showers", "10"], "too few"),
    "Birks' law in between": (["--birks", "half"], "on or off"),
    "unknown rival": (["--against", "pb-scint-fe-v3"], "did you mean"),
    "crystals": (["--against", "pbwo4-5x5"], "crystals"),
    "a rival over the limits": (["--against", "pb-scint-60"], "not within the limits"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, hint = BAD[name]
    assert main([*SMALL, "--trials", "2", "--out", str(tmp_path / "run"), *more]) == 2
    told = capsys.readouterr().err.strip()
    assert hint in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


def test_an_unfinished_search_of_other_options_is_not_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partial = tmp_path / "run.partial"
    (partial / "trials").mkdir(parents=True)
    (partial / "trials" / "000000.json").write_text("{}", encoding="utf-8")
    (partial / "config.json").write_text("{}", encoding="utf-8")
    assert main([*SMALL, "--trials", "2", "--out", str(tmp_path / "run")]) == 2
    assert "unfinished run of other options" in capsys.readouterr().err
    assert (partial / "trials" / "000000.json").exists()
