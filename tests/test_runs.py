"""Run directories: nothing half-written under a run's name, nothing lost, nothing overwritten by accident."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from calolife.errors import FileFormatError
from calolife.runs import Metric, log, new_run, read_run, write_metrics, write_plot

CONFIG = {"command": "transparency train", "options": {"model": "ridge", "train": "2016"}}


def make(path: Path, **options) -> None:
    with new_run(path, config=CONFIG, seed=3, **options) as run:
        write_metrics(run, {"mape": Metric(0.1, 0.01, "%", 12), "fit": Metric(2.0, math.nan, "s", 1)})
        (run.path / "model.json").write_text("{}")


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    make(tmp_path / "a")
    stored = read_run(tmp_path / "a")
    assert stored.config == CONFIG
    assert stored.metrics["mape"] == Metric(0.1, 0.01, "%", 12)
    assert math.isnan(stored.metrics["fit"].uncertainty)
    assert stored.provenance["seed"] == 3
    assert set(stored.files) == {"model.json", "log.txt"}


def test_records_are_strict_json(tmp_path: Path) -> None:
    make(tmp_path / "a")

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    for name in ("config.json", "metrics.json", "provenance.json"):
        json.loads((tmp_path / "a" / name).read_text(), parse_constant=refuse)


def test_the_name_appears_only_when_all_is_done(tmp_path: Path) -> None:
    with new_run(tmp_path / "a", config=CONFIG) as run:
        assert not (tmp_path / "a").exists()
        assert run.path == tmp_path / "a.partial"
    assert not (tmp_path / "a.partial").exists()
    assert (tmp_path / "a").is_dir()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ValueError, match="exists; choose another --out, or replace it with --force"):
        make(tmp_path / "a")


def test_force_replaces_a_run(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "old.txt").write_text("old")
    make(tmp_path / "a", force=True)
    assert "old.txt" not in read_run(tmp_path / "a").files
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_force_does_not_replace_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match="not a run directory"):
        make(tmp_path / "thesis", force=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_failed_replacement_leaves_the_old_run(tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = read_run(tmp_path / "a")
    with pytest.raises(RuntimeError), new_run(tmp_path / "a", config=CONFIG, force=True):
        raise RuntimeError("disk full")
    assert read_run(tmp_path / "a") == before


def test_a_failure_without_work_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such crystal"), new_run(tmp_path / "a", config=CONFIG):
        raise ValueError("no such crystal")
    assert list(tmp_path.iterdir()) == []


def fail_after_checkpoint(path: Path, error: BaseException) -> None:
    with new_run(path, config=CONFIG) as run:
        (run.path / "checkpoint").write_text("epoch 3")
        raise error


def test_an_interrupted_run_is_taken_up_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        fail_after_checkpoint(tmp_path / "a", KeyboardInterrupt())
    assert "give the same command again" in stop.value.__notes__[0]
    with new_run(tmp_path / "a", config=CONFIG) as run:
        assert run.is_resumed
        assert (run.path / "checkpoint").read_text() == "epoch 3"


def test_unfinished_work_of_other_options_is_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_after_checkpoint(tmp_path / "a", RuntimeError("killed"))
    with pytest.raises(ValueError, match="unfinished run of other options"), new_run(tmp_path / "a", config={"options": {"model": "lstm"}}):
        pass
    with new_run(tmp_path / "a", config={"options": {"model": "lstm"}}, force=True) as run:
        assert not run.is_resumed
        assert not (run.path / "checkpoint").exists()


def test_a_killed_process_leaves_its_checkpoint_to_the_next(tmp_path: Path) -> None:
    program = (
        "import time, pathlib\nfrom calolife.runs import new_run\n"
        f"with new_run(pathlib.Path({str(tmp_path / 'a')!r}), config={CONFIG!r}) as run:\n"
        "    (run.path / 'checkpoint').write_text('epoch 7')\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    checkpoint = tmp_path / "a.partial" / "checkpoint"
    for _ in range(600):
        if checkpoint.exists() and checkpoint.read_text():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with new_run(tmp_path / "a", config=CONFIG) as run:
        assert run.is_resumed
        assert checkpoint.read_text() == "epoch 7"


def test_provenance_names_the_input_by_its_content(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("1")
    make(tmp_path / "a", inputs=[data])
    data.write_text("2")
    make(tmp_path / "b", inputs=[data])
    one, two = (read_run(tmp_path / name).provenance["inputs"][str(data)] for name in "ab")
    assert one.startswith("sha256:")
    assert one != two


def test_the_hash_of_a_directory_sees_every_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "ring=66").mkdir(parents=True)
    (data / "ring=66" / "a").write_text("1")
    make(tmp_path / "a", inputs=[data])
    (data / "ring=66" / "a").write_text("2")
    make(tmp_path / "b", inputs=[data])
    one, two = (read_run(tmp_path / name).provenance["inputs"][str(data)] for name in "ab")
    assert one != two


def test_a_plot_comes_with_its_numbers(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    numbers = pl.DataFrame({"horizon_h": [6.0, 24.0], "mape_percent": [0.08, 0.1]})
    with new_run(tmp_path / "a", config=CONFIG) as run:
        write_plot(run, "horizon", Figure().add_subplot(), numbers)
    assert pl.read_csv(tmp_path / "a" / "plots" / "horizon.csv").equals(numbers)
    assert (tmp_path / "a" / "plots" / "horizon.png").read_bytes()[:4] == b"\x89PNG"


def test_the_log_keeps_its_lines(tmp_path: Path) -> None:
    with new_run(tmp_path / "a", config=CONFIG) as run:
        log(run, "fitted in 3 s")
    lines = (tmp_path / "a" / "log.txt").read_text().splitlines()
    assert lines[1].endswith("fitted in 3 s")
    assert lines[-1].endswith("done")


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"is not a run directory: it has no config\.json"):
        read_run(tmp_path)


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no run at"):
        read_run(tmp_path / "nothing")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "metrics.json").write_text('{"mape": ')
    with pytest.raises(FileFormatError, match=r"metrics\.json is not a JSON object"):
        read_run(tmp_path / "a")
