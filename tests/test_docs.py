"""Every command and every Python block of the README and the docs runs as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from calolife.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> list[str]:
    return [line for text in blocks(page, "bash") for line in text.splitlines() if line.strip()]


def is_install(command: str) -> bool:
    return command.startswith("pip install ")


def needs_network(command: str) -> bool:
    return command.startswith("calolife transparency fetch ")


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_commands_run_as_written(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lines = [c for c in commands(page) if not is_install(c) and not needs_network(c)]
    if any("CALOLIFE_DATA" in line for line in lines):
        request.getfixturevalue("cms_data")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(lines)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)


def test_install_lines_name_what_is_here() -> None:
    lines = [c for page in PAGES for c in commands(page) if is_install(c)]
    assert len(lines) == 2
    for line in lines:
        install, then = line.split(" && ")
        words = shlex.split(install)
        assert words[:3] == ["pip", "install", "-c"]
        assert (ROOT / words[3]).is_file()
        assert words[4] in {".", ".[dev]"}
        assert then in {"calolife demo", "pytest"}


@pytest.mark.parametrize("command", [c for p in PAGES for c in commands(p) if needs_network(c)])
def test_commands_that_need_the_network_parse(command: str) -> None:
    words = shlex.split(command)[1:]
    verb = typer.main.get_command(app).commands["transparency"].commands[words[1]]
    verb.make_context(words[1], words[2:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_public_name_has_an_example() -> None:
    import calolife

    text = "\n".join(t for page in PAGES for t in blocks(page, "python"))
    assert [name for name in dir(calolife) if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.slow
def test_the_demo_leaves_a_run_worth_showing(tmp_path: Path) -> None:
    from calolife.cli import main
    from calolife.runs import read_run

    assert main(["demo", "--out", str(tmp_path / "demo-run"), "--quiet"]) == 0
    stored = read_run(tmp_path / "demo-run")
    plots = {Path(f).stem for f in stored.files if f.endswith(".png")}
    assert {"forecast", "response", "coverage", "error-against-horizon"} <= plots
    mape = {name: m.value for name, m in stored.metrics.items()}
    # a trained model that does not beat repeating the last reading is not worth showing
    assert mape["mape default window 2017"] < mape["mape persistence window 2017"]
    assert mape["mape default free-run 2017"] < mape["mape persistence free-run 2017"]
