"""What is written is what is read; what is not asked for is not touched."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.errors import FileFormatError
from calolife.storage import describe, iter_rings, load_model_state, read_history, ring_years, save_model, write_history
from calolife.transparency.history import Block, TransparencyHistory


def block(ring: int, year: int, *, n_crystals: int = 3, n: int = 30, seed: int = 0) -> Block:
    rng = np.random.default_rng([abs(ring), year, seed])
    time_s = np.datetime64(f"{year}-05-01", "s").astype(float) + 2400.0 * np.arange(n) + ring
    first = 30600 + 360 * (ring - 1) if ring > 0 else 360 * (-ring - 1)
    ids = first + np.arange(n_crystals) + 10 * seed
    flag = rng.integers(0, 8, (n_crystals, n)).astype(np.uint8)
    return Block(
        year, ids, np.full(n_crystals, ring), ids - first + 1, time_s,
        np.r_[rng.uniform(0, 0.02, n - 1), 0.0], rng.uniform(0.6, 1.0, (n_crystals, n)), flag,
    )  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    blocks = [block(ring, year) for ring in (-85, 1, 66) for year in (2016, 2017)]
    write_history(TransparencyHistory(tuple(blocks)), tmp_path / "data", provenance={"made": "by a test"})
    return tmp_path / "data"


def assert_same(got: TransparencyHistory, want: TransparencyHistory) -> None:
    assert len(got.blocks) == len(want.blocks)
    for a, b in zip(got.blocks, want.blocks, strict=True):
        assert a.year == b.year
        for name in ("xtal_id", "ieta", "iphi", "time_s", "lumi_ifb", "transparency", "flag"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([-85, -1, 1, 66]), st.integers(0, 3))
def test_write_then_read_is_the_identity(tmp_path_factory: pytest.TempPathFactory, n_crystals: int, n: int, ring: int, seed: int) -> None:
    history = TransparencyHistory((block(ring, 2016, n_crystals=n_crystals, n=n), block(ring, 2017, n=n, seed=seed)))
    path = tmp_path_factory.mktemp("data") / "set"
    write_history(history, path, provenance={})
    assert_same(read_history(path), history)


def test_crystals_on_one_grid_share_a_block_and_others_do_not(tmp_path: Path) -> None:
    same, other = block(66, 2016), block(66, 2016, seed=1)
    shifted = Block(2016, [54020], [66], [21], other.time_s + 60.0, other.lumi_ifb, other.transparency[:1])
    brighter = Block(2016, [54030], [66], [31], same.time_s, 2 * same.lumi_ifb, same.transparency[:1])
    write_history(TransparencyHistory((same, shifted, brighter)), tmp_path / "set", provenance={})
    assert [b.xtal_id.tolist() for b in read_history(tmp_path / "set").blocks] == [[54000, 54001, 54002], [54020], [54030]]


def test_crystals_that_take_turns_on_two_grids_are_told_apart(tmp_path: Path) -> None:
    a, b = block(66, 2016, n_crystals=4), block(66, 2016, n_crystals=4, seed=1)
    even = Block(2016, [54000, 54002], [66, 66], [1, 3], a.time_s, a.lumi_ifb, a.transparency[:2])
    odd = Block(2016, [54001, 54003], [66, 66], [2, 4], b.time_s + 1, b.lumi_ifb, b.transparency[:2])
    history = TransparencyHistory((even, odd))
    write_history(history, tmp_path / "set", provenance={})
    assert_same(read_history(tmp_path / "set"), history)


def test_reading_a_selection_is_selecting_after_reading(dataset: Path) -> None:
    whole = read_history(dataset)
    picked = read_history(dataset, years=[2017], xtal_ids=[54001, 30600], ieta=[1, 66])
    assert_same(picked, whole.select(years=[2017], xtal_ids=[54001, 30600], ieta=[1, 66]))


def test_only_partitions_that_are_asked_for_are_opened(dataset: Path) -> None:
    for part in ring_years(dataset):
        if (part.ieta, part.year) != (66, 2017):
            part.path.write_bytes(b"broken")
    assert read_history(dataset, years=[2017], ieta=[66]).n_readings == 90


def test_only_row_groups_with_the_crystal_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_history(TransparencyHistory((block(66, 2016, n_crystals=100),)), tmp_path / "set", provenance={})
    decoded: list[int] = []
    original = pq.ParquetFile.read_row_groups

    def counting(self: pq.ParquetFile, groups: list[int], **options: Any) -> Any:
        decoded.extend(groups)
        return original(self, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counting)
    assert read_history(tmp_path / "set", xtal_ids=[54040]).n_readings == 30
    assert decoded == [1]


def test_rings_come_one_after_the_other_with_all_their_years(dataset: Path) -> None:
    rings = list(iter_rings(dataset))
    assert [{int(e) for b in h.blocks for e in b.ieta} for h in rings] == [{-85}, {1}, {66}]
    assert [h.years for h in rings] == [(2016, 2017)] * 3
    assert_same(TransparencyHistory(tuple(b for h in rings for b in h.blocks)), read_history(dataset))


def test_rings_of_a_generator_are_written_as_they_come(tmp_path: Path) -> None:
    write_history((TransparencyHistory((block(ring, 2016),)) for ring in (1, 2, 3)), tmp_path / "set", provenance={})
    assert len(list(iter_rings(tmp_path / "set"))) == 3


def test_other_tools_read_the_same_numbers(dataset: Path) -> None:
    import polars as pl

    table = pl.read_parquet(dataset / "**/*.parquet", hive_partitioning=True).filter(pl.col("ieta") == 66, pl.col("year") == 2017)
    assert table.columns[:4] == ["xtal_id", "iphi", "time", "transparency"]
    want = read_history(dataset, ieta=[66], years=[2017]).blocks[0]
    np.testing.assert_array_equal(table["transparency"].to_numpy().reshape(3, -1), want.transparency)
    assert table["lumi_ifb"].sum() == pytest.approx(3 * want.lumi_ifb.sum())


def test_units_and_provenance_travel_in_the_file(dataset: Path) -> None:
    import json

    about = json.loads(pq.read_schema(ring_years(dataset)[0].path).metadata[b"calolife"])
    assert about["units"]["lumi_ifb"].startswith("1/fb delivered between this reading and")
    assert about["provenance"] == {"made": "by a test"}


def test_info_counts_the_same_from_a_dataset_and_from_files(cms_data: Path, tmp_path: Path) -> None:
    from calolife.transparency.ingest import ingest

    ingest([cms_data], tmp_path / "set")
    names = ("ieta", "year", "n_crystals", "n_readings", "n_reordered", "n_laser_flip", "n_pre_beam_step", "first_reading", "lumi_ifb")
    stored, direct = ([{n: p[n] for n in names} for p in describe(x)["partitions"]] for x in (tmp_path / "set", cms_data))
    assert stored == direct
    assert [p["n_readings"] for p in stored] == [2 * 5621, 2 * 5544, 2 * 5846]


# ---- bad input


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"years": [2019]}, "has no readings of year 2019; it has years 2016, 2017"),
        ({"ieta": [67]}, "has no readings of ring 67; it has rings -85, 1, 66"),
        ({"xtal_ids": [54000, 54359]}, "has no readings of crystal 54359 in 2016, 2017"),
    ],
)
def test_what_is_not_there_is_named(dataset: Path, selection: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_history(dataset, **selection)


def test_a_damaged_part_is_named(dataset: Path) -> None:
    part = ring_years(dataset)[0].path
    part.write_bytes(part.read_bytes()[:500])
    with pytest.raises(FileFormatError, match=r"ieta=-85/year=2016/part-0.parquet is damaged"):
        read_history(dataset)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [(lambda part: part.unlink(), "missing"), (lambda part: part.write_bytes(part.read_bytes()[:-1]), "damaged")],
    ids=["deleted", "cut"],
)
@pytest.mark.parametrize("read", [describe, read_history, lambda path: list(iter_rings(path))], ids=["info", "read", "rings"])
def test_a_part_that_is_gone_or_cut_is_not_counted_as_there(dataset: Path, spoil: Any, what: str, read: Any) -> None:
    spoil(ring_years(dataset)[3].path)
    with pytest.raises(FileFormatError, match=rf"ieta=1/year=2017/part-0.parquet is {what}"):
        read(dataset)


def test_a_newer_dataset_asks_for_a_newer_calolife(dataset: Path) -> None:
    record = dataset / "dataset.json"
    record.write_text(record.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(FileFormatError, match="dataset version 2; this calolife reads version 1"):
        read_history(dataset)


def test_a_dataset_is_not_overwritten(dataset: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a dataset already"):
        write_history(TransparencyHistory((block(66, 2016),)), dataset, provenance={})


def test_readings_to_come_are_not_written(tmp_path: Path) -> None:
    future = Block(2016, [54000], [66], [1], [0.0, 1.0], [0.0, 0.0], [[0.9, np.nan]])
    with pytest.raises(ValueError, match="transparency holds NaN"):
        write_history(TransparencyHistory((future,)), tmp_path / "set", provenance={})


def test_a_ring_and_year_cannot_come_twice(tmp_path: Path) -> None:
    twice = [TransparencyHistory((block(66, 2016),)), TransparencyHistory((block(66, 2016, seed=1),))]
    with pytest.raises(ValueError, match="ring 66 of 2016 comes twice"):
        write_history(twice, tmp_path / "set", provenance={})


# ---- models


@dataclass(frozen=True, eq=False)
class Toy:
    name: ClassVar[str] = "toy"
    arrays: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.arrays, self.meta


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {"b": rng.normal(size=(3, 4)), "a": np.arange(5), "scalar": np.float64(2.5), "f": np.asfortranarray(rng.normal(size=(2, 3)))}
    meta = {"years": [2016], "tau_s": 0.1 + 0.2}
    save_model(Toy(arrays, meta), tmp_path)
    name, got, got_meta = load_model_state(tmp_path)
    assert (name, got_meta) == ("toy", meta)
    assert got.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(got[key], value)
        assert got[key].shape == np.shape(value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "model.json").unlink(), "model.json is missing"),
        (lambda d: (d / "model.json").write_text("{"), "model.json is damaged: not JSON"),
        (lambda d: (d / "model.json").write_text("{}"), "model.json is not a calolife model"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing; train the model again"),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "model.safetensors is damaged"),
    ],
)
def test_a_broken_model_says_what_is_wrong(tmp_path: Path, spoil: Any, message: str) -> None:
    save_model(Toy({"a": np.ones(3)}, {}), tmp_path)
    spoil(tmp_path)
    with pytest.raises(FileFormatError, match=message):
        load_model_state(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_model(Toy({"a": np.ones(3)}, {}), tmp_path / "x")
    save_model(Toy({"a": np.zeros(3)}, {}), tmp_path / "y")
    (tmp_path / "x" / "model.safetensors").replace(tmp_path / "y" / "model.safetensors")
    with pytest.raises(FileFormatError, match="is not the one that model"):
        load_model_state(tmp_path / "y")
