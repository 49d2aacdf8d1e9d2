"""Signal fractions on disk: nothing is lost, and a file that is no truth says why."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.ageing.coefficients import STATUSES, Ageing
from calolife.ageing.files import read_ageing, read_truth, write_ageing
from calolife.errors import FileFormatError

COLUMNS = ("cell", "signal_fraction", "uncertainty", "status", "own_fraction", "own_uncertainty")
DIGEST = "5" * 64


def example() -> Ageing:
    return Ageing(
        [0, 7, 22_000], [0.9, 1.2, 1 / 3], [0.01, np.nan, 0.0], ["measured", "dead", "prior-dominated"], [0.8, np.nan, 0.4],
        [0.1, np.nan, 0.2], label="an example: 10 % µ", detector_digest=DIGEST,
    )  # fmt: skip


def same(a: Ageing, b: Ageing) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.label, a.detector_digest) == (b.label, b.detector_digest)


def test_save_and_load_is_identity(tmp_path: Path) -> None:
    write_ageing(tmp_path / "ageing.parquet", example())
    same(read_ageing(tmp_path / "ageing.parquet"), example())
    same(read_ageing(tmp_path), example())
    same(read_truth(tmp_path / "ageing.parquet"), example())


@settings(deadline=None, max_examples=25)  # the first example loads polars
@given(st.data())
def test_save_and_load_is_identity_for_any_ageing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    cells = sorted(data.draw(st.sets(st.integers(0, 2**31 - 1), max_size=6)))
    n = len(cells)

    def numbers(low: float, nan: bool) -> list[float]:
        value = st.floats(low, 1e6, exclude_min=low == 0)
        return data.draw(st.lists(st.one_of(value, st.just(np.nan)) if nan else value, min_size=n, max_size=n))

    status = data.draw(st.lists(st.sampled_from(STATUSES), min_size=n, max_size=n))
    a = Ageing(
        np.array(cells, dtype=np.int64), numbers(1e-6, False), numbers(0, True), np.array(status, dtype=np.str_), numbers(1e-6, True),
        numbers(0, True), label=data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), detector_digest=DIGEST,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("ageing") / "ageing.parquet"
    write_ageing(path, a)
    same(read_ageing(path), a)


def test_the_csv_beside_it_holds_the_same_numbers(tmp_path: Path) -> None:
    write_ageing(tmp_path / "truth.parquet", example())
    table = pl.read_csv(tmp_path / "truth.csv")
    assert table.columns == ["cell", "signal_fraction", "coefficient", "uncertainty", "status", "own_fraction", "own_uncertainty"]
    np.testing.assert_array_equal(table["coefficient"].to_numpy(), example().coefficient)
    found = read_truth(tmp_path / "truth.csv")
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(example(), name), err_msg=name)


def test_the_same_ageing_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_ageing(tmp_path / f"{name}.parquet", example())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.parquet", "b.csv", "b.parquet"]


def test_only_parquet_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        write_ageing(tmp_path / "ageing.csv", example())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_truth_needs_two_columns_in_any_order(suffix: str, tmp_path: Path) -> None:
    table = pl.DataFrame({"note": ["x", "y", "z"], "signal_fraction": [0.7, 0.8, 1.0], "cell": [9, 3, 4]})
    path = tmp_path / f"truth{suffix}"
    table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    found = read_truth(path)
    assert (found.cell.tolist(), found.signal_fraction.tolist()) == ([3, 4, 9], [0.8, 1.0, 0.7])
    assert found.uncertainty.tolist() == [0.0, 0.0, 0.0]


def test_truth_is_found_in_its_run(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    write_ageing(tmp_path / "truth" / "truth.parquet", example())
    same(read_truth(tmp_path), example())
    with pytest.raises(FileFormatError, match=r"has no ageing\.parquet; it is a run of aged showers, whose truth is"):
        read_ageing(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("cell,signal_fraction\n", "lists no cell"),
        ("cell,fraction\n1,0.9\n", "no column signal_fraction; its columns are cell, fraction"),
        ("id,signal_fraction\n1,0.9\n", "no column cell"),
        ("cell,signal_fraction\n1,0.9\n2,0.8\n1,0.9\n", "lists cell 1 twice"),
        ("cell,signal_fraction\n1,0.9\n2,NaN\n", "signal_fraction of cell 2 is nan or missing"),
        ("cell,signal_fraction\n1,0.9\n2,\n", "signal_fraction of cell 2 is nan or missing"),
        ("cell,signal_fraction\n1,inf\n", "signal_fraction of cell 1 is inf"),
        ("cell,signal_fraction\n1,0.0\n", "signal_fraction of cell 1 is 0; it must be > 0"),
        ("cell,signal_fraction\n1,-0.5\n", "must be > 0"),
        ("cell,signal_fraction\n-1,0.5\n", "cell of row 1 is -1; cell numbers are whole and >= 0"),
        ("cell,signal_fraction\n1.5,0.5\n", "cell of row 1 is 1.5"),
        ("cell,signal_fraction\n,0.5\n1,0.4\n", "cell of row 1 is nan"),
        ("cell,signal_fraction\n1,high\n", "column signal_fraction holds 'high'; it must hold numbers"),
        ("cell,signal_fraction,status\n1,0.5,odd\n", "status 'odd' is not one of measured"),
        ("cell,signal_fraction,uncertainty\n1,0.5,-1\n", "uncertainty of cell 1 is -1"),
    ],
)
def test_a_table_that_is_no_truth_says_why(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match=message) as told:
        read_truth(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_not_there_or_not_a_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no truth at"):
        read_truth(tmp_path / "truth.csv")
    with pytest.raises(FileFormatError, match="no ageing at"):
        read_ageing(tmp_path / "run")
    with pytest.raises(FileFormatError, match=r"has no truth/truth\.parquet"):
        read_truth(tmp_path)
    with pytest.raises(FileFormatError, match=r"has no ageing\.parquet; give a run of"):
        read_ageing(tmp_path)
    (tmp_path / "truth.parquet").write_bytes(b"cell,signal_fraction\n1,0.9\n")
    for reader in (read_truth, read_ageing):
        with pytest.raises(FileFormatError, match="not Parquet, or damaged"):
            reader(tmp_path / "truth.parquet")
    (tmp_path / "truth.csv").write_bytes(bytes(range(128, 256)) * 20)
    with pytest.raises(FileFormatError, match=r"no table of comma-separated values|no column cell"):
        read_truth(tmp_path / "truth.csv")


def test_a_table_of_others_is_truth_but_no_estimate(tmp_path: Path) -> None:
    pl.DataFrame({"cell": [1], "signal_fraction": [0.9]}).write_parquet(tmp_path / "ageing.parquet")
    with pytest.raises(FileFormatError, match="no ageing that calolife wrote"):
        read_ageing(tmp_path)
    assert read_truth(tmp_path).n_cells == 1


def test_an_unfinished_run_says_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    with pytest.raises(FileFormatError, match=r"run\.partial is unfinished"):
        read_ageing(tmp_path / "run")
