"""`calolife detector`: exit codes, JSON, one line per error."""

import json
from pathlib import Path

import pytest

from calolife.cli import main
from calolife.detector.presets import preset_names

LIMITS = ["--budget-chf", "50000", "--max-length-cm", "200", "--size-cm", "50x50"]


def test_list_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "list", "--json"]) == 0
    assert tuple(d["name"] for d in json.loads(capsys.readouterr().out)["detectors"]) == preset_names()
    assert main(["detector", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in preset_names()[:1])


@pytest.mark.parametrize(("name", "cost_chf", "length_cm"), [("pb-scint-fe-v2", 2300.0, 198.6), ("triple-fe-v42", 47192.5, 200.0)])
def test_check_gives_the_published_figures(name: str, cost_chf: float, length_cm: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "check", name, *LIMITS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"cost_chf", "length_cm", "depth_x0", "depth_lambda", "sampling_fraction", "violations", "advice"} <= set(found)
    assert (found["cost_chf"], found["length_cm"], found["violations"]) == (cost_chf, pytest.approx(length_cm), [])


def test_check_that_says_no_prints_its_json_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "check", "pbwo4-fe-v1", *LIMITS, "--json"]) == 1
    assert [text.split()[0] for text in json.loads(capsys.readouterr().out)["violations"]] == ["cost", "length"]
    assert main(["detector", "check", "pbwo4-fe-v1", *LIMITS]) == 1
    assert capsys.readouterr().out.count("broken: ") == 2


def test_check_without_limits_says_that_none_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "check", "pb-scint-60"]) == 0
    assert "no limit given" in capsys.readouterr().err


def test_show_prints_a_line_per_section_and_their_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "show", "triple-fe-v42"]) == 0
    text = capsys.readouterr().out
    for word in ("em", "had-1", "had-2", "had-3", "shim", "total", "60 x (Pb 1.5 + POLYSTYRENE* 2 + PbWO4 1)", "47192.5"):
        assert word in text


def test_show_as_json_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "show", "triple-fe-v42", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(section["cost_chf"] for section in found["sections"]) == pytest.approx(found["cost_chf"])
    assert found["kind"] == "layers"


@pytest.mark.parametrize("name", ["pb-scint-60", "cms-barrel"])
def test_show_draws(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "side.png"
    assert main(["detector", "show", name, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["detector", "show", name, "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["detector", "show", name, "--out", str(out), "--force"]) == 0


def test_a_price_that_is_not_known_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "si.toml"
    path.write_text('name = "si"\nsize_mm = [9, 9]\n[[section]]\nlayers = [{ material = "G4_Si", thickness_mm = 1, active = true }]\n')
    assert main(["detector", "show", str(path)]) == 0
    assert "the price of G4_Si is not known" in capsys.readouterr().out
    assert main(["detector", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost_chf"] is None
    assert main(["detector", "check", str(path), "--budget-chf", "1"]) == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["check", "pb-scnt-60"], "did you mean pb-scint-60?"),
        (["check", "nowhere.toml"], "neither a preset nor a file"),
        (["check", "."], "is a directory"),
        (["check", "pb-scint-60", "--size-cm", "50"], "write 50x50"),
        (["check", "pb-scint-60", "--size-cm", "-5x5"], "write 50x50"),
        (["check", "pb-scint-60", "--size-cm", "0x5"], "must be finite and > 0"),
        (["check", "pb-scint-60", "--budget-chf", "-1"], "must be finite and >= 0"),
        (["check", "pb-scint-60", "--budget-chf", "nan"], "must be finite and >= 0"),
        (["check", "pb-scint-60", "--budget-chf", "cheap"], "--budget-chf"),
        (["check", "pb-scint-60", "--max-length-cm", "0"], "must be finite and > 0"),
        (["show", "pb-scint-60", "--out", "side.gif"], "use one of .png, .pdf, .svg"),
        (["show", "pb-scint-60", "--out", "nowhere/side.png"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
