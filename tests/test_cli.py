"""The command line: exit codes, one line per error, one JSON document, the same options everywhere."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer

from calolife.cli import app, main
from calolife.cli.options import parse_duration, parse_numbers, parse_time, parse_years, print_table
from calolife.transparency.history import Block, Forecast

SHARED = {
    "--seed": "Seed of every random number",
    "--config": "Take the options of an earlier run",
    "--workers": "Results do not depend on it",
    "--device": "Device of the networks",
    "--quiet": "No progress and no remarks",
    "--json": "Print the result as one JSON document",
    "--debug": "Show the traceback",
    "--force": "Replace an earlier run",
}


def commands() -> dict[str, object]:
    root = typer.main.get_command(app)
    found = {}
    for name, command in root.commands.items():
        for verb, inner in getattr(command, "commands", {"": command}).items():
            found[f"{name} {verb}".strip()] = inner
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_csv: Path) -> Path:
    """A ridge fitted to the toy's 2016, by the command."""
    out = tmp_path_factory.mktemp("runs") / "model"
    assert main(["transparency", "train", str(toy_csv), "--model", "ridge", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def forecast_run(tmp_path_factory: pytest.TempPathFactory, toy_csv: Path, trained: Path) -> Path:
    """Five days from day 30 of the toy's 2017, with the nominal week planned."""
    out = tmp_path_factory.mktemp("runs") / "ahead"
    argv = ["transparency", "forecast", str(trained), str(toy_csv), "--future", "nominal-week", "--from", "2017-01-31", "--horizon", "5d"]
    assert main([*argv, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("name", ["", *commands()])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    assert "Usage: calolife" in capsys.readouterr().out


@pytest.mark.parametrize("name", commands())
def test_shared_options_mean_the_same_everywhere(name: str) -> None:
    for parameter in commands()[name].params:
        for flag in set(parameter.opts) & set(SHARED):
            assert SHARED[flag] in parameter.help


@pytest.mark.parametrize("name", commands())
def test_every_command_can_be_quiet_speak_json_and_be_debugged(name: str) -> None:
    flags = {flag for parameter in commands()[name].params for flag in parameter.opts}
    assert {"--quiet", "--json", "--debug"} <= flags


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "transparency" in capsys.readouterr().out


def test_backtest_json_is_one_document_in_the_agreed_form(toy_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["transparency", "backtest", str(toy_csv), "--models", "ridge,persistence", "--train", "2016", "--test", "2017", "--json"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    keys = {"model", "mode", "year", "crystal", "mape_percent", "skill", "coverage68", "coverage95"}
    assert all(keys <= set(row) for row in document["results"])
    assert all({"model", "mode", "year", "mape_percent"} <= set(row) for row in document["mean"])
    assert {row["mode"] for row in document["results"]} == {"window", "free-run"}
    assert {row["crystal"] for row in document["results"]} == {54000, 54001, 54002}
    assert not any(row["model"].endswith("-leak") for row in document["mean"])


def test_a_backtest_prints_the_published_tasks(toy_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transparency", "backtest", str(toy_csv), "--models", "ridge", "--train", "2016", "--test", "2017", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert all(task in printed for task in ("next-fill", "recovery", "year-to-year"))


def test_a_table_keeps_its_units(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("times [s]", ["model", "fit [s]"], [["a", "1"]])
    printed = capsys.readouterr().out
    assert "times [s]" in printed
    assert "fit [s]" in printed


def test_drawn_curves_are_of_forecasts_that_saw_no_target(toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calolife.transparency.baselines import Ridge

    is_hidden = []
    forecast = Ridge.forecast

    def watched(self: Ridge, block: Block, *, origins: np.ndarray, horizon: int) -> Forecast:
        if block.year == 2017:
            is_hidden.append(bool(np.isnan(block.transparency[:, origins.max() :]).all()))
        return forecast(self, block, origins=origins, horizon=horizon)

    monkeypatch.setattr(Ridge, "forecast", watched)
    argv = ["transparency", "backtest", str(toy_csv), "--models", "ridge", "--test", "2017", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(argv) == 0
    assert is_hidden
    assert all(is_hidden)


def test_leaky_rows_come_only_when_asked_for_and_are_named(toy_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "transparency",
        "backtest",
        str(toy_csv),
        "--models",
        "ridge",
        "--test",
        "2017",
        "--mode",
        "free-run",
        "--json",
        "--published-leak",
    ]
    assert main(argv) == 0
    mean = {row["model"]: row for row in json.loads(capsys.readouterr().out)["mean"]}
    assert set(mean) == {"ridge", "ridge-leak"}
    assert mean["ridge-leak"]["leak"]
    assert not mean["ridge"]["leak"]


def test_default_stands_for_a_model_of_each_mode(
    toy_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from calolife.transparency import forecasters

    monkeypatch.setitem(forecasters.DEFAULT_MODEL, "window", "ridge")
    monkeypatch.setitem(forecasters.DEFAULT_MODEL, "free-run", "persistence")
    argv = ["transparency", "backtest", str(toy_csv), "--models", "default,ridge,persistence", "--test", "2017", "--json"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    mape = {(row["model"], row["mode"]): row["mape_percent"] for row in document["mean"]}
    assert mape["default", "window"] == mape["ridge", "window"]
    assert mape["default", "free-run"] == mape["persistence", "free-run"]
    assert document["default"] == {"window": "ridge", "free-run": "persistence"}


def test_a_backtest_run_keeps_plots_and_their_numbers(toy_csv: Path, tmp_path: Path) -> None:
    argv = ["transparency", "backtest", str(toy_csv), "--models", "ridge,persistence", "--test", "2017", "--mode", "window"]
    assert main([*argv, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    plots = {p.stem for p in (tmp_path / "run" / "plots").glob("*.png")}
    assert {"response", "mape-window-2017", "curves-window-2017", "coverage", "error-against-horizon"} <= plots
    assert plots == {p.stem for p in (tmp_path / "run" / "plots").glob("*.csv")}


def test_a_run_repeats_itself_with_config(trained: Path, tmp_path: Path) -> None:
    assert main(["transparency", "train", "--config", str(trained), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "config.json").read_text() == (trained / "config.json").read_text()


def test_an_option_given_wins_over_the_config(trained: Path, tmp_path: Path) -> None:
    argv = ["transparency", "train", "--config", str(trained), "--model", "persistence", "--out", str(tmp_path / "b"), "--quiet"]
    assert main(argv) == 0
    assert json.loads((tmp_path / "b" / "config.json").read_text())["options"]["model"] == "persistence"


def test_a_forecast_holds_every_crystal_and_step(forecast_run: Path) -> None:
    ahead = pl.read_parquet(forecast_run / "forecast.parquet")
    assert ahead["xtal_id"].unique().sort().to_list() == [54000, 54001, 54002]
    assert ahead["time"].min() > pl.Series(["2017-01-31T00:00:00Z"]).str.to_datetime(time_zone="UTC")[0]
    assert (ahead["lower95"] <= ahead["lower68"]).all()
    assert (ahead["lower68"] <= ahead["transparency"]).all()
    assert ahead.group_by("xtal_id").len()["len"].n_unique() == 1


def test_readings_after_now_move_no_forecast(forecast_run: Path, trained: Path, toy_csv: Path, tmp_path: Path) -> None:
    for csv in toy_csv.glob("*2017.csv"):
        lines = csv.read_text().splitlines()
        first_unseen = next(i for i, line in enumerate(lines) if i and line.split(",")[3] > "2017-01-31 00:00:00")
        later = [",".join([*line.split(",")[:-1], "0.8"]) for line in lines[first_unseen:]]
        (tmp_path / csv.name).write_text("\n".join(lines[:first_unseen] + later) + "\n")
    argv = ["transparency", "forecast", str(trained), str(tmp_path), "--future", "nominal-week", "--from", "2017-01-31", "--horizon", "5d"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "forecast.csv").read_text() == (forecast_run / "forecast.csv").read_text()


def test_a_forecast_is_rescored_with_planned_and_delivered_luminosity(
    forecast_run: Path, toy_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transparency", "rescore", str(forecast_run), str(toy_csv), "--out", str(tmp_path / "r"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {(row["luminosity"], row["xtal_id"]) for row in rows} == {
        (s, x) for s in ("planned", "delivered") for x in (54000, 54001, 54002)
    }
    assert all(row["n_readings"] == 5 * 24 for row in rows)
    # the toy delivers 0.36 /fb a day, the nominal week twice that: knowing it must help
    mape = {s: sum(row["mape_percent"] for row in rows if row["luminosity"] == s) for s in ("planned", "delivered")}
    assert mape["delivered"] < mape["planned"]
    assert (tmp_path / "r" / "scores.parquet").exists()


def test_show_prints_options_numbers_and_files(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "transparency train" in out
    assert "fit_seconds" in out
    assert "model.safetensors" in out


def test_show_json_is_one_document(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(trained), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["options"]["model"] == "ridge"


def _bad(name: str, argv: str, message: str) -> object:
    return pytest.param(argv, message, id=name)


BAD_INPUT = [
    _bad("unknown verb", "transparency trian DATA", "no such command 'trian'. Did you mean 'train'?"),
    _bad("unknown option", "transparency backtest DATA --modle ridge", "no such option: --modle"),
    _bad("no data", "transparency backtest", "missing argument"),
    _bad("no out", "transparency train DATA", "missing option '--out'"),
    _bad("data that is not there", "transparency backtest nowhere", "nowhere"),
    _bad("an empty directory as data", "transparency backtest EMPTY", "."),
    _bad("a file that is no reading file", "transparency backtest WRONG", "wrong.csv"),
    _bad("unknown model", "transparency backtest DATA --models ridgee", "model 'ridgee' is not one of default,"),
    _bad("no model", "transparency backtest DATA --models ,", "names nothing; give one or more"),
    _bad("unknown mode", "transparency backtest DATA --mode windows", "--mode 'windows' is not one of window, free-run"),
    _bad("years in words", "transparency backtest DATA --train all", "--train 'all': 'all' is not a number; write 1,2,3 or 1-3"),
    _bad("years backwards", "transparency backtest DATA --test 2018-2017", "2018-2017 runs backwards; write 2017-2018"),
    _bad("a year of no data taking", "transparency backtest DATA --test 1817", "1817 is not a year of data taking"),
    _bad("a year the data lacks", "transparency backtest DATA --test 2018", "no readings of year 2018"),
    _bad("a crystal the data lacks", "transparency backtest DATA --test 2017 --crystals 61200", "no readings of crystal 61200"),
    _bad("a ring the data lacks", "transparency backtest DATA --test 2017 --ring 1", "no readings of ring 1"),
    _bad("an endless range", "transparency backtest DATA --crystals 1-9999999", "more than a million numbers"),
    _bad("unknown device", "transparency backtest DATA --test 2017 --device gpu", "--device 'gpu' is not one of auto, cpu, cuda"),
    _bad("a negative seed", "transparency backtest DATA --seed -1", "--seed"),
    _bad("unknown strategy", "transparency train DATA --model lstm --strategy student --out new", "student"),
    _bad("teacher forcing above 1", "transparency train DATA --model lstm --strategy mixed --teacher-forcing 1.5 --out new", "1.5"),
    _bad(
        "a run of that name", "transparency train DATA --model ridge --out RUN", "exists; choose another --out, or replace it with --force"
    ),
    _bad(
        "out is no run",
        "transparency train DATA --model ridge --force --out EMPTY",
        "exists and is not a run directory; choose another --out",
    ),
    _bad("config of another command", "transparency train --config AHEAD --out new", "belongs to 'calolife transparency forecast', not to"),
    _bad("config that is not there", "transparency train --config nowhere --out new", "give a run directory or its config.json"),
    _bad("config that is no JSON", "transparency train --config WRONG --out new", "not JSON; give a run directory or its config.json"),
    _bad("future without luminosity", "transparency forecast RUN DATA --out new", "a forecast needs the luminosity to come: give --future"),
    _bad("plan without luminosity", "transparency forecast RUN DATA --future NOLUMI --out new", "no column lumi_ifb"),
    _bad("unknown plan", "transparency forecast RUN DATA --future hl-lhc --out new", "hl-lhc is neither a file nor a named schedule"),
    _bad("plan too short", "transparency forecast RUN DATA --future SHORT --from 2017-01-31 --out new", "give a longer schedule"),
    _bad(
        "a horizon without unit", "transparency forecast RUN DATA --future stop --horizon 30 --out new", "--horizon '30' is not a duration"
    ),
    _bad(
        "a horizon below the step",
        "transparency forecast RUN DATA --future stop --horizon 1h --every 2h --out new",
        "give a longer horizon",
    ),
    _bad("now that is no time", "transparency forecast RUN DATA --future stop --from noon --out new", "--from 'noon' is not a time"),
    _bad("now before the data", "transparency forecast RUN DATA --future stop --from 2012-01-01 --out new", "no readings up to 2012-01-01"),
    _bad(
        "now with too few readings",
        "transparency forecast RUN DATA --future stop --from 2016-01-01T20:00 --out new",
        "fewer than 24 readings",
    ),
    _bad("a run that is not there", "transparency forecast nowhere DATA --future stop --out new", "nowhere"),
    _bad("a run without a model", "transparency forecast EMPTY DATA --future stop --out new", "model.json"),
    _bad("a damaged model", "transparency forecast DAMAGED DATA --future stop --out new", "train the model again"),
    _bad("rescoring what is no forecast", "transparency rescore RUN DATA", "holds no forecast"),
    _bad("showing what is no run", "show EMPTY", "is not a run directory: it has no config.json"),
    _bad("a scan of one reading", "transparency scan DATA --lengths 1 --test 2017", "give two readings or more"),
]


@pytest.mark.parametrize(("argv", "message"), BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: str, message: str, toy_csv: Path, trained: Path, forecast_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing here")
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    (tmp_path / "nolumi.csv").write_text("time,intensity\n2017-01-31T00:00:00Z,1\n2017-02-01T00:00:00Z,1\n")
    (tmp_path / "short.csv").write_text("time,lumi_ifb\n2017-01-31T00:00:00Z,0.5\n2017-02-01T00:00:00Z,0.5\n")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.json").write_bytes((trained / "model.json").read_bytes())
    (damaged / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:100])
    names = {
        "DATA": toy_csv, "RUN": trained, "AHEAD": forecast_run, "EMPTY": "empty", "WRONG": "wrong.csv",
        "NOLUMI": "nolumi.csv", "SHORT": "short.csv", "DAMAGED": "damaged",
    }  # fmt: skip
    capfd.readouterr()
    assert main([str(names.get(word, word)) for word in argv.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("calolife: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.partial").exists()


def test_a_data_directory_of_someone_else_is_left_alone(toy_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["transparency", "train", str(toy_csv), "--model", "ridge", "--force", "--out", str(tmp_path)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_training_says_how_to_go_on(
    toy_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import calolife.transparency.studies as studies

    whole = studies.fit_named

    def stopped(*args: object, tell: Callable[[str, float, float], None], **options: object) -> object:
        def stop(what: str, done: float, total: float) -> None:
            if done == 1:
                raise KeyboardInterrupt

        return whole(*args, tell=stop, **options)

    argv = ["transparency", "train", str(toy_csv), "--model", "lstm", "--hidden", "4", "--epochs", "2", "--out", str(tmp_path / "a")]
    with monkeypatch.context() as patch:
        patch.setattr(studies, "fit_named", stopped)
        assert main(argv) == 130
    assert re.search(r"interrupted; unfinished work is kept in .*a\.partial: give the same command again to go on", capsys.readouterr().err)
    assert main(argv) == 0
    assert "taking up the training" in capsys.readouterr().err
    assert main([*argv[:-1], str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_the_installed_command_answers() -> None:
    done = subprocess.run([Path(sys.executable).parent / "calolife", "--help"], capture_output=True, text=True, check=True)
    assert "transparency" in done.stdout


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", (3,)), ("3-5", (3, 4, 5)), ("5,3-4,3", (3, 4, 5)), ("-2--1", (-2, -1)), (" 7 , 8 ", (7, 8))]
)
def test_lists_and_ranges_of_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_numbers(text, what="--x") == numbers


def test_years_of_a_range() -> None:
    assert parse_years("2016-2018", what="--train") == (2016, 2017, 2018)


@pytest.mark.parametrize(("text", "seconds"), [("12h", 43200.0), ("30d", 2592000.0), ("2w", 1209600.0), ("0.5d", 43200.0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, what="--horizon") == seconds


def test_a_time_without_offset_is_utc() -> None:
    assert parse_time("2018-06-01T12:00", what="--from") == parse_time("2018-06-01T14:00+02:00", what="--from")
