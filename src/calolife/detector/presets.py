"""Detectors by name or from a TOML file, and back to TOML."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout, describe_materials, fold_periods
from calolife.detector.materials import Material, material, material_names, mixture
from calolife.errors import FileFormatError

__all__ = ["Detector", "from_toml", "load_detector", "preset_names", "to_toml"]

Detector = LayeredCalorimeter | CrystalCalorimeter

_LAYERED_KEYS = ("kind", "name", "size_mm", "readout", "custom_material", "section")
_SECTION_KEYS = ("name", "repeat", "layers")
_LAYER_KEYS = ("material", "thickness_mm", "active", "cells", "cell_mm")
_CRYSTAL_KEYS = (
    "kind", "name", "material", "ieta", "n_phi", "is_phi_periodic", "crystal_size_mm", "length_mm", "gap_mm", "eta_module_ends",
    "eta_module_gap_mm", "phi_module_crystals", "phi_module_gap_mm", "upstream_x0", "readout", "custom_material",
)  # fmt: skip
_MATERIAL_KEYS = tuple(f.name for f in fields(Material))
_READOUT_KEYS = tuple(f.name for f in fields(Readout))
_TILING_MM = 1e-6  # chosen: a picometre-scale rounding of size / cell_mm is not a cell that does not tile
_MAX_LAYERS = 100_000  # chosen: more is a slip of the keyboard, and would fill the memory


def preset_names() -> tuple[str, ...]:
    """Names of the detectors that come with calolife.

    Examples
    --------
    >>> "cu-scint-24x24" in preset_names()
    True
    """
    folder = files("calolife").joinpath("data", "detectors")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_detector(name_or_path: str | Path) -> Detector:
    """A detector that comes with calolife, or one described in a TOML file.

    Parameters
    ----------
    name_or_path : str or Path
        A preset's name, or a file.

    Returns
    -------
    LayeredCalorimeter or CrystalCalorimeter

    Raises
    ------
    ValueError
        Neither a preset nor a file.
    FileFormatError
        A file that is not a detector; the message says where.

    Examples
    --------
    >>> load_detector("pb-scint-fe-v2").cost_chf
    2300.0
    """
    if isinstance(name_or_path, str) and name_or_path in preset_names():
        return _preset(name_or_path)
    path = Path(name_or_path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give a preset's name or a TOML file: {', '.join(preset_names())}")
    if not path.exists():
        near = get_close_matches(str(name_or_path), preset_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(preset_names())}"
        raise ValueError(f"{name_or_path} is neither a preset nor a file; {hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not text in UTF-8; a detector is a TOML file") from None
    return from_toml(text, what=str(path))


@cache
def _preset(name: str) -> Detector:
    text = files("calolife").joinpath("data", "detectors", f"{name}.toml").read_text(encoding="utf-8")
    return from_toml(text, what=name)


def from_toml(text: str, *, what: str = "detector") -> Detector:
    """The detector that a TOML text describes.

    Parameters
    ----------
    text : str
    what : str
        Where the text is from, for messages.

    Returns
    -------
    LayeredCalorimeter or CrystalCalorimeter
        Crystals if ``kind = "crystals"``.

    Raises
    ------
    FileFormatError
        Not TOML, a key that is not known (the message names the nearest), a value of the wrong type, cells that do not tile, nothing
        active, a number out of range.

    Examples
    --------
    >>> calo = from_toml('''
    ... name = "mine"
    ... size_mm = [500, 500]
    ... [[section]]
    ... name = "em"
    ... repeat = 60
    ... layers = [
    ...   { material = "G4_Pb", thickness_mm = 2 },
    ...   { material = "G4_POLYSTYRENE", thickness_mm = 2, active = true, cells = [10, 10] },
    ... ]
    ... ''')
    >>> calo.n_layers
    120
    """
    try:
        table = tomllib.loads(text)
    except ValueError as error:
        raise FileFormatError(f"{what} is not TOML: {error}") from None
    except RecursionError:
        raise FileFormatError(f"{what} is not a detector: its brackets nest too deep") from None
    try:
        kind = _take(table, "kind", str, default="layers")
        if kind not in ("layers", "crystals"):
            raise ValueError(f'kind = "{kind}" is not "layers" or "crystals"')
        return _layered(table) if kind == "layers" else _crystals(table)
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{what}: {error}") from None


def to_toml(detector: Detector) -> str:
    """The TOML text that describes a detector; `from_toml` gives the same detector back.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter

    Returns
    -------
    str

    Examples
    --------
    >>> print(to_toml(LayeredCalorimeter("slab", (), 100.0, 100.0).add_layer("G4_PbWO4", 230.0, is_active=True)))
    name = "slab"
    size_mm = [100.0, 100.0]
    <BLANKLINE>
    [[section]]
    layers = [
      { material = "G4_PbWO4", thickness_mm = 230.0, active = true },
    ]
    <BLANKLINE>
    """
    lines = [] if isinstance(detector, LayeredCalorimeter) else ['kind = "crystals"']
    lines.append(f"name = {_value(detector.name)}")
    if isinstance(detector, LayeredCalorimeter):
        lines.append(f"size_mm = {_value([detector.size_x_mm, detector.size_y_mm])}")
        used = [layer.material for layer in detector.layers]
    else:
        lines.append(f"material = {_value(detector.material.name)}")
        lines.append(f"ieta = {_value([detector.ieta[0], detector.ieta[-1]])}")
        lines += [f"{key} = {_value(getattr(detector, key))}" for key in _CRYSTAL_KEYS[4:-2]]
        used = [detector.material]
    changed = {key: v for key, v in asdict(detector.readout).items() if v != getattr(Readout(), key)}
    if changed:
        lines += ["", "[readout]", *(f"{key} = {_value(v)}" for key, v in changed.items())]
    for described in describe_materials(used):
        lines += ["", "[[custom_material]]"]
        lines += [f"{key} = {_value(v)}" for key, v in described.items() if v is not None and v != ()]
    if isinstance(detector, LayeredCalorimeter):
        for section, layers in groupby(detector.layers, key=lambda layer: layer.section):
            for repeat, period in fold_periods(tuple(layers)):
                lines += ["", "[[section]]"]
                if section:
                    lines.append(f"name = {_value(section)}")
                if repeat > 1:
                    lines.append(f"repeat = {repeat}")
                lines += ["layers = [", *(f"  {_layer_line(layer)}," for layer in period), "]"]
    return "\n".join(lines) + "\n"


# --- reading


def _layered(table: Mapping[str, Any]) -> LayeredCalorimeter:
    _only(table, _LAYERED_KEYS, "the top of the file")
    own = _own_materials(table)
    size = _take(table, "size_mm", list)
    if len(size) != 2:
        raise ValueError(f"size_mm = {size} must be two lengths: [500, 500]")
    size_x_mm, size_y_mm = (_number(v, "size_mm") for v in size)
    calo = LayeredCalorimeter(_take(table, "name", str), (), size_x_mm, size_y_mm, _readout(table))
    blocks = _take(table, "section", list)
    for i, block in enumerate(blocks):
        where = f"section {i + 1}"
        if not isinstance(block, dict):
            raise ValueError(f"{where} is not a table; write [[section]] above it")
        _only(block, _SECTION_KEYS, where)
        name = _take(block, "name", str, default="", where=where)
        where = f"section {i + 1} ({name})" if name else where
        repeat = _take(block, "repeat", int, default=1, where=where)
        described = _take(block, "layers", list, where=where)
        if repeat < 1 or not described:
            raise ValueError(f"{where}: repeat = {repeat} of {len(described)} layers adds nothing; both must be >= 1")
        if calo.n_layers + repeat * len(described) > _MAX_LAYERS:
            raise ValueError(f"{where}: repeat = {repeat} makes more than {_MAX_LAYERS} layers")
        layers = [
            _layer(layer, own, calo, section=name, where=f"{where}, layer {k + 1}" if len(described) > 1 else where)
            for k, layer in enumerate(described)
        ]
        calo = calo.add_period(repeat, *layers)
    calo.require_active()
    return calo


def _layer(described: Any, own: Mapping[str, Material], calo: LayeredCalorimeter, *, section: str, where: str) -> Layer:
    if not isinstance(described, dict):
        raise ValueError(f'{where} is not a table; write {{ material = "G4_Pb", thickness_mm = 2.0 }}')
    _only(described, _LAYER_KEYS, where)
    thickness_mm = _number(_take(described, "thickness_mm", (int, float), where=where), f"{where}: thickness_mm")
    try:
        of = _material(_take(described, "material", str), own)
        cells = _cells(described, calo)
        return Layer(of, thickness_mm, _take(described, "active", bool, default=False), cells, section)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _cells(described: Mapping[str, Any], calo: LayeredCalorimeter) -> tuple[int, int]:
    if "cells" in described and "cell_mm" in described:
        raise ValueError("cells and cell_mm both say how the layer is divided; keep one")
    if "cell_mm" in described:
        given = described["cell_mm"]
        pair = given if isinstance(given, list) else [given, given]
        if len(pair) != 2:
            raise ValueError(f"cell_mm = {given} must be one length, or two: along x and along y")
        counts = []
        for value, size_mm, axis in zip(pair, (calo.size_x_mm, calo.size_y_mm), "xy", strict=True):
            cell_mm = _number(value, "cell_mm")
            n = round(size_mm / cell_mm) if math.isfinite(cell_mm) and 0 < cell_mm <= 2 * size_mm else 0
            if n < 1 or abs(n * cell_mm - size_mm) > _TILING_MM:
                fits = size_mm / max(n, 1)
                raise ValueError(
                    f"cells of {cell_mm:g} mm do not tile the {size_mm:g} mm along {axis}; take one that divides it, such as {fits:.6g} mm"
                )
            counts.append(n)
        return counts[0], counts[1]
    cells = _take(described, "cells", list, default=[1, 1])
    if len(cells) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in cells):
        raise ValueError(f"cells = {cells} must be two whole numbers: along x and along y, [10, 10]")
    return cells[0], cells[1]


def _crystals(table: Mapping[str, Any]) -> CrystalCalorimeter:
    _only(table, _CRYSTAL_KEYS, "the top of the file")
    ends = _take(table, "ieta", list)
    if len(ends) != 2 or any(isinstance(i, bool) or not isinstance(i, int) for i in ends) or ends[0] > ends[1]:
        raise ValueError(f"ieta = {ends} must be the first and the last row, ascending: [-85, 85]")
    if ends[1] - ends[0] >= _MAX_LAYERS:
        raise ValueError(f"ieta = {ends} makes more than {_MAX_LAYERS} rows")
    default = CrystalCalorimeter("default", material("G4_PbWO4"), (1,), 1)
    numbers = {
        key: _number(_take(table, key, (int, float), default=getattr(default, key)), key)
        for key in ("crystal_size_mm", "length_mm", "gap_mm", "eta_module_gap_mm", "phi_module_gap_mm")
    }
    module_ends = _take(table, "eta_module_ends", list, default=[])
    if any(isinstance(i, bool) or not isinstance(i, int) for i in module_ends):
        raise ValueError(f"eta_module_ends = {module_ends} must be whole numbers: [25, 45, 65]")
    upstream = _take(table, "upstream_x0", list, default=[])
    if any(not isinstance(point, list) or len(point) != 2 for point in upstream):
        raise ValueError(f"upstream_x0 = {upstream} must be pairs of abs(eta) and X0: [[0.0, 0.4], [1.4, 1.8]]")
    return CrystalCalorimeter(
        name=_take(table, "name", str),
        material=_material(_take(table, "material", str, default="G4_PbWO4"), _own_materials(table)),
        ieta=tuple(i for i in range(ends[0], ends[1] + 1) if i != 0 or ends == [0, 0]),
        n_phi=_take(table, "n_phi", int),
        is_phi_periodic=_take(table, "is_phi_periodic", bool, default=False),
        eta_module_ends=tuple(module_ends),
        phi_module_crystals=_take(table, "phi_module_crystals", int, default=0),
        upstream_x0=tuple((_number(eta, "upstream_x0"), _number(depth, "upstream_x0")) for eta, depth in upstream),
        readout=_readout(table),
        **numbers,
    )


def _readout(table: Mapping[str, Any]) -> Readout:
    described = _take(table, "readout", dict, default={})
    _only(described, _READOUT_KEYS, "readout")
    return replace(Readout(), **{key: _number(value, f"readout: {key}") for key, value in described.items()})


def _own_materials(table: Mapping[str, Any]) -> dict[str, Material]:
    """Materials that the file itself describes: by mass fractions, or by all their numbers."""
    own: dict[str, Material] = {}
    needed = _MATERIAL_KEYS[1:9]
    for i, entry in enumerate(_take(table, "custom_material", list, default=[])):
        where = f"custom_material {i + 1}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is not a table; write [[custom_material]] above it")
        _only(entry, _MATERIAL_KEYS, where)
        name = _take(entry, "name", str, where=where)
        where = f"material {name}"
        if name in material_names() or name in own:
            raise ValueError(f"{where} is already there; give yours another name")
        pairs = _take(entry, "fractions", (list, dict), default=[], where=where)
        if isinstance(pairs, list) and any(not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) for pair in pairs):
            raise ValueError(f"{where}: fractions must be a table such as {{ G4_Cu = 0.7, G4_Zn = 0.3 }}")
        fractions = {part: _number(w, f"{where}: fractions") for part, w in dict(pairs).items()}
        numbers = {key: _number(v, f"{where}: {key}") for key, v in entry.items() if key not in ("name", "fractions")}
        if "x0_cm" in numbers:
            if missing := [key for key in needed if key not in numbers]:
                raise ValueError(f"{where}: {missing[0]} is missing; give all of {', '.join(needed)}, or fractions and a density")
            own[name] = Material(name=name, **numbers, fractions=tuple(fractions.items()))
            continue
        if "density_g_cm3" not in numbers:
            raise ValueError(f"{where}: density_g_cm3 is missing")
        if extra := [key for key in numbers if key not in ("density_g_cm3", "birks_mm_per_mev", "price_chf_per_cm_m2")]:
            raise ValueError(f"{where}: {extra[0]} follows from the fractions; leave it out, or give all of {', '.join(needed)}")
        own[name] = mixture(name, {_material(part, own): w for part, w in fractions.items()}, **numbers)
    return own


def _material(name: str, own: Mapping[str, Material]) -> Material:
    return own[name] if name in own else material(name)


def _only(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")


def _take(table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], *, default: Any = None, where: str = "") -> Any:
    at = f"{where}: " if where else ""
    if key not in table:
        if default is None:
            raise ValueError(f"{at}{key} is missing")
        return default
    value = table[key]
    # TOML's true is an int to Python
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}
        name = wanted.get(kind, "a number") if isinstance(kind, type) else ("a table" if dict in kind else "a number")
        raise ValueError(f"{at}{key} = {value!r} must be {name}")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what} = {value!r} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} is a whole number too large to be true") from None


# --- writing


def _layer_line(layer: Layer) -> str:
    parts = [f"material = {_value(layer.material.name)}", f"thickness_mm = {_value(layer.thickness_mm)}"]
    if layer.is_active:
        parts.append("active = true")
    if layer.cells != (1, 1):
        parts.append(f"cells = {_value(layer.cells)}")
    return "{ " + ", ".join(parts) + " }"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes as JSON does, and DEL too
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value) if isinstance(value, int) else repr(float(value))
