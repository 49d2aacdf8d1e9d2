"""Who may import whom, read from the source; and what a bare import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "calolife"
MODULES = sorted(SOURCE.rglob("*.py"))
# the few shared modules below the stages: each may import only those before it
PLOTS = ("plots", "plots_energy", "plots_ageing", "plots_methods", "plots_clusters", "plots_crystals", "plots_zee")
BASE = ("errors", "training", "storage", "runs", *PLOTS, "data")
STAGES = {
    "detector": set(),
    "showers": {"detector"},
    "simulation": {"detector", "showers"},
    "energy": {"detector", "showers"},
    "ageing": {"detector", "showers"},
    "transparency": set(),
}
# zee: the electrons of a Z are simulated, read out, clustered and measured
MEETING_PLACES = {"design", "report", "zee", "cli"}
HEAVY = (
    "torch",
    "dask",
    "distributed",
    "matplotlib",
    "mplhep",
    "polars",
    "pyarrow",
    "lightgbm",
    "optuna",
    "pooch",
    "safetensors",
    "h5py",
    "pandas",
)


def room(module: Path) -> str:
    parts = module.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(module: Path) -> set[str]:
    """Rooms of calolife that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write it from calolife"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found.update(name.split(".")[1] for name in names if name.startswith("calolife."))
    return found - {room(module)}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_a_module_imports_only_what_stands_below_it(module: Path) -> None:
    here, used = room(module), imports(module)
    if here in MEETING_PLACES or here == "__init__":
        allowed = {*BASE, *STAGES, *(MEETING_PLACES - {"cli"})}
    elif here in STAGES:
        allowed = {*BASE, *STAGES[here]}
    elif here in {"storage", *PLOTS}:  # they read, write and draw the stages' types
        allowed = {*BASE, *STAGES}
    else:
        allowed = {"errors"}
    assert used <= allowed, f"{here} may not import {sorted(used - allowed)}"


def test_training_knows_no_physics() -> None:
    assert imports(SOURCE / "training.py") <= {"errors"}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) != "cli"], ids=lambda m: str(m.relative_to(SOURCE)))
def test_nothing_imports_the_command_line(module: Path) -> None:
    assert "cli" not in imports(module)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) != "cli"], ids=lambda m: str(m.relative_to(SOURCE)))
def test_only_the_command_line_prints(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in calls


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_every_module_names_what_it_offers(module: Path) -> None:
    if module.stat().st_size == 0:
        pytest.skip("an empty package file offers nothing")
    tree = ast.parse(module.read_text(encoding="utf-8"))
    names = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    assert "__all__" in names


@pytest.mark.parametrize(
    "statement", ["import calolife", "import sys; from calolife.cli import main; sys.argv = ['calolife', '--help']; assert main() == 0"]
)
def test_import_and_help_load_nothing_heavy(statement: str) -> None:
    program = f"{statement}\nimport sys\nprint('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_public_names_are_frozen() -> None:
    import calolife

    # adding a name needs an example in docs/
    assert dir(calolife) == [
        "Block",
        "CrystalCalorimeter",
        "FileFormatError",
        "Forecast",
        "Layer",
        "LayeredCalorimeter",
        "Material",
        "MissingExtraError",
        "NotConvergedError",
        "Particles",
        "Readout",
        "Showers",
        "TransparencyHistory",
        "backtest",
        "check_limits",
        "digitise",
        "fit_model",
        "load_detector",
        "load_model",
        "material",
        "new_run",
        "read_history",
        "read_run",
        "read_showers",
        "sample_particles",
        "save_model",
        "simulate_history",
        "simulate_showers",
        "write_showers",
    ]


def test_every_public_name_loads() -> None:
    import calolife

    assert [name for name in dir(calolife) if getattr(calolife, name, None) is None] == []
