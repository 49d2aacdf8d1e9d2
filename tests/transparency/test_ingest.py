"""Readings in: nothing is dropped, moved or relabelled without a word."""

import gzip
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from calolife.errors import FileFormatError
from calolife.storage import describe, read_history, ring_years
from calolife.transparency.cleaning import clean_readings
from calolife.transparency.history import FLAG_LASER_FLIP, FLAG_PRE_BEAM_STEP, FLAG_REORDERED
from calolife.transparency.ingest import ingest
from calolife.transparency.release import N_CRYSTALS, barrel_rings, read_metadata, row_batches

RAW = "xtal_id,start_ts,stop_ts,laser_datetime,calibration,time,int_deliv_inv_ub"
SKIM = ",xtal_id,time,laser_datetime,int_deliv_inv_ub,deltat,delta_lumi,calibration"


def text(time_s: float) -> str:
    return str(np.datetime64(int(time_s), "s")).replace("T", " ")


def ring_csv(*, xtal_ids=(54000, 54001), start="2017-05-01", n=40, matched: str | None = None, first_inv_ub=0.0) -> str:
    """A ring file in the release's columns: a reading every 40 minutes, 5e6 /ub in each interval."""
    begin = np.datetime64(start, "s").astype(float)
    lines = [RAW]
    for x in xtal_ids:
        for i in range(n):
            at = begin + 2400 * i
            lines.append(
                f"{x},{text(at - 1200)},{text(at + 1200)},{text(at)},{0.98 - 1e-4 * i:.6f},{matched or text(at)},{first_inv_ub + 5e6 * i}"
            )
    return "\n".join(lines) + "\n"


def edited(csv: str, line: int, **cells: object) -> str:
    """The same file with some cells of one line (1 is the header) replaced."""
    lines = csv.splitlines()
    names = lines[0].split(",")
    row = lines[line - 1].split(",")
    for name, value in cells.items():
        row[names.index(name)] = str(value)
    lines[line - 1] = ",".join(row)
    return "\n".join(lines) + "\n"


def metadata_of(ring: int, xtal_ids, *, file="plus_z/ring_66.csv", iz=1) -> str:
    info = [{"xtal_id": x, "xtal_ieta": ring, "xtal_iphi": i + 1} for i, x in enumerate(xtal_ids)]
    return json.dumps({file: {"xtal_info": info, "iz": iz, "eta": 1.15, "eta_ring": 13.0}})


def tar_gz(path: Path, members: dict[str, str | bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def quarantine(out: Path) -> pl.DataFrame:
    return pl.read_csv(out / "quarantine.csv", infer_schema=False)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# ---- what must be conserved


@pytest.mark.parametrize("bad", [{"calibration": "nan"}, {"int_deliv_inv_ub": "nan"}, {"laser_datetime": "yesterday"}])
def test_luminosity_is_conserved_when_a_row_is_set_aside(tmp_path: Path, bad: dict[str, str]) -> None:
    source = written(tmp_path / "ring_66_2017.csv", edited(ring_csv(), 12, **bad))
    ingest([source], tmp_path / "out")
    history = read_history(tmp_path / "out")
    whole, short = (history.series(x, 2017) for x in (54001, 54000))
    assert short.n_readings == whole.n_readings - 1
    assert short.lumi_ifb.sum() == pytest.approx(39 * 0.005, rel=1e-12)
    assert whole.lumi_ifb.sum() == pytest.approx(39 * 0.005, rel=1e-12)


def test_luminosity_runs_from_a_reading_to_the_next_one(tmp_path: Path) -> None:
    source = written(tmp_path / "ring_66_2017.csv", edited(ring_csv(n=4), 3, int_deliv_inv_ub=9e6))
    ingest([source], tmp_path / "out")
    block = read_history(tmp_path / "out").series(54000, 2017)
    np.testing.assert_allclose(block.lumi_ifb, [0.009, 0.001, 0.005, 0.0], rtol=1e-12)


def test_readings_out_of_order_are_sorted_counted_and_flagged(tmp_path: Path) -> None:
    lines = ring_csv(xtal_ids=(54000,)).splitlines()
    moved = [*lines[:10], *lines[15:18], *lines[10:15], *lines[18:]]
    in_order = written(tmp_path / "a" / "ring_66_2017.csv", "\n".join(lines) + "\n")
    shuffled = written(tmp_path / "b" / "ring_66_2017.csv", "\n".join(moved) + "\n")
    expected, summary = ingest([in_order], tmp_path / "x"), ingest([shuffled], tmp_path / "y")
    assert (expected.n_reordered, summary.n_reordered) == (0, 5)
    assert summary.set_aside == {}
    want, got = read_history(tmp_path / "x").blocks[0], read_history(tmp_path / "y").blocks[0]
    np.testing.assert_array_equal(got.time_s, want.time_s)
    np.testing.assert_array_equal(got.lumi_ifb, want.lumi_ifb)
    np.testing.assert_array_equal(got.transparency, want.transparency)
    assert np.flatnonzero(got.flag[0] & FLAG_REORDERED).tolist() == [9, 10, 11, 12, 13]


def test_rows_by_time_and_rows_by_crystal_give_the_same_dataset(tmp_path: Path) -> None:
    lines = ring_csv(xtal_ids=(54000, 54001, 54002)).splitlines()
    rows = [lines[1 + 40 * c + i] for i in range(40) for c in range(3)]
    ingest([written(tmp_path / "a" / "ring_66_2017.csv", "\n".join(lines) + "\n")], tmp_path / "x")
    ingest([written(tmp_path / "b" / "ring_66_2017.csv", "\n".join([lines[0], *rows]) + "\n")], tmp_path / "y")
    want, got = read_history(tmp_path / "x").blocks, read_history(tmp_path / "y").blocks
    assert len(want) == len(got) == 1
    np.testing.assert_array_equal(got[0].transparency, want[0].transparency)
    assert not (got[0].flag & FLAG_REORDERED).any()


# ---- what must be set aside, with its reason


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"calibration": "nan"}, "NaN calibration"),
        ({"calibration": ""}, "NaN calibration"),
        ({"calibration": "oops"}, "NaN calibration"),
        ({"calibration": 0.5}, "calibration <= 0.5"),
        ({"calibration": -1}, "calibration <= 0.5"),
        ({"calibration": "inf"}, "infinite calibration"),
        ({"laser_datetime": "31/12/2017 10:00"}, "unparsable time"),
        ({"laser_datetime": ""}, "unparsable time"),
        ({"time": "2017-13-01 00:00:00"}, "unparsable time"),
        ({"int_deliv_inv_ub": "nan"}, "NaN luminosity"),
        ({"int_deliv_inv_ub": -5}, "negative luminosity"),
        ({"int_deliv_inv_ub": 1e6}, "negative luminosity"),
        ({"int_deliv_inv_ub": 1e12}, "negative luminosity"),
        ({"xtal_id": 75848}, "bad xtal_id"),
        ({"xtal_id": "x"}, "bad xtal_id"),
        ({"laser_datetime": "2017-05-01 06:00:00"}, "conflict"),
        (
            {"laser_datetime": "2017-05-01 06:00:00", "time": "2017-05-01 06:00:00", "calibration": 0.9791, "int_deliv_inv_ub": 45e6},
            "duplicate",
        ),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(tmp_path: Path, cells: dict[str, object], reason: str) -> None:
    source = written(tmp_path / "ring_66_2017.csv", edited(ring_csv(), 12, **cells))
    summary = ingest([source], tmp_path / "out")
    assert summary.set_aside == {reason: 1}
    assert (summary.n_rows, summary.n_readings) == (80, 79)
    listed = quarantine(tmp_path / "out")
    assert listed.select("file", "row", "reason").rows() == [("ring_66_2017.csv", "12", reason)]


def test_of_two_readings_at_one_time_the_first_stays(tmp_path: Path) -> None:
    csv = edited(ring_csv(xtal_ids=(54000,)), 13, laser_datetime="2017-05-01 06:40:00", calibration=0.9)
    ingest([written(tmp_path / "ring_66_2017.csv", csv)], tmp_path / "out")
    block = read_history(tmp_path / "out").blocks[0]
    assert block.transparency[0, 10] == 0.979
    assert quarantine(tmp_path / "out").rows() == [
        ("ring_66_2017.csv", "13", "conflict", "54000", "2017-05-01 06:40:00", "0.9", "55000000.0")
    ]


def test_one_high_counter_costs_one_reading_not_all_that_follow() -> None:
    counter = np.r_[np.arange(50.0), 1e6, np.arange(51.0, 100.0)]
    n = counter.size
    cleaned = clean_readings(
        np.full(n, 7, np.int32), np.arange(n) * 10**9, transparency=np.full(n, 0.9), counter_inv_ub=counter,
        source=np.zeros(n, np.int32), flag=np.zeros(n, np.uint8),
    )  # fmt: skip
    assert cleaned.stepped_back.tolist() == [50]
    assert (cleaned.lumi_ifb >= 0).all()


def test_a_skim_whose_own_step_is_negative_is_set_aside(tmp_path: Path) -> None:
    rows = [f"{i},54000,2017-05-01 00:00:00,2017-05-01 {i:02d}:00:00,{1e6 * i},3600.0,1000000.0,0.97" for i in range(10)]
    rows[4] = rows[4].replace("1000000.0,0.97", "-7.0,0.97")
    rows[6] = rows[6].replace("1000000.0,0.97", "7.0,0.97")
    summary = ingest([written(tmp_path / "df_skimmed_xtal_54000_2017.csv", "\n".join([SKIM, *rows]))], tmp_path / "out")
    assert summary.set_aside == {"negative luminosity": 1}
    assert any("delta_lumi is not the step of int_deliv_inv_ub in 2 rows" in n for n in summary.notes)
    assert read_history(tmp_path / "out").blocks[0].lumi_ifb.sum() == pytest.approx(0.009)


def test_a_stray_quote_or_blank_line_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    lines = ring_csv().splitlines()
    lines[11] = '"' + lines[11]
    lines.insert(20, "")
    lines.insert(21, "broken")
    summary = ingest([written(tmp_path / "ring_66_2017.csv", "\n".join(lines))], tmp_path / "out")
    assert summary.n_readings == 80
    assert quarantine(tmp_path / "out").select("row", "reason").rows() == [("22", "bad xtal_id")]


# ---- files that are not what they should be
# ruff: noqa: E501 - one line a case reads best


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def bad_files(folder: Path) -> dict[str, tuple[list[Path], str]]:
    good = ring_csv()
    rng = np.random.default_rng(1)
    noisy = good + "".join(
        f"54002,,,2017-05-01 00:00:{i % 60:02d},{v},2017-05-01 00:00:00,0\n" for i, v in enumerate(rng.uniform(0.6, 1, 9000))
    )
    link = folder / "link.tar.gz"
    with tarfile.open(link, "w:gz") as archive:
        member = tarfile.TarInfo("plus_z/ring_1.csv")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    endcap = good.replace("54000,", "70875,").replace("54001,", "70876,")
    broken_crc = tar_gz(folder / "crc.tar.gz", {"plus_z/ring_66.csv": noisy})
    data = bytearray(broken_crc.read_bytes())
    data[-8] ^= 0xFF
    broken_crc.write_bytes(bytes(data))
    return {
        "truncated archive": ([cut(tar_gz(folder / "t.tar.gz", {"plus_z/ring_66.csv": noisy}), 0.6)], "t.tar.gz is cut short; download it again"),
        "damaged archive": ([broken_crc], "crc.tar.gz is damaged or not gzip"),
        "not an archive": ([written(folder / "n.tar.gz", b"hello world" * 99)], "n.tar.gz is damaged or not gzip"),
        "archive without readings": ([tar_gz(folder / "w.tar.gz", {"readme.txt": "hi"})], "w.tar.gz holds no CSV"),
        "path leaving the archive": ([tar_gz(folder / "e.tar.gz", {"../ring_66.csv": good})], "member '../ring_66.csv' leaves the archive"),
        "absolute path in an archive": ([tar_gz(folder / "a.tar.gz", {"/tmp/ring_66.csv": good})], "member '/tmp/ring_66.csv' leaves the archive"),
        "link in an archive": ([link], "is a link to '/etc/passwd'"),
        "wrong header in an archive": ([tar_gz(folder / "h.tar.gz", {"plus_z/ring_66.csv": "a,b\n1,2\n"})], "h.tar.gz:plus_z/ring_66.csv has no column xtal_id"),
        "empty member": ([tar_gz(folder / "m.tar.gz", {"plus_z/ring_66.csv": ""})], "m.tar.gz:plus_z/ring_66.csv is empty"),
        "column renamed": ([written(folder / "c.csv", good.replace("calibration", "calibrations"))], "c.csv has no column calibration: it has xtal_id, start_ts"),
        "nearest column": ([written(folder / "c2.csv", good.replace("calibration", "calibrations"))], "rename calibrations to calibration"),
        "no header": ([written(folder / "nh.csv", good.split("\n", 1)[1])], "nh.csv has no column xtal_id"),
        "column twice": ([written(folder / "tw.csv", good.replace("start_ts", "xtal_id"))], "tw.csv has the column xtal_id 2 times"),
        "empty file": ([written(folder / "empty.csv", "")], "empty.csv is empty; download it again"),
        "header and no row": ([written(folder / "rows.csv", RAW + "\n")], "rows.csv has a header and no readings"),
        "not a CSV": ([written(folder / "bin.csv", bytes(range(256)) * 9)], "bin.csv is not a CSV with readings"),
        "truncated gzip": ([cut(written(folder / "g.csv.gz", gzip.compress(noisy.encode())), 0.7)], "g.csv.gz is cut short"),
        "missing file": ([folder / "nothing.csv"], "nothing.csv: no such file or directory"),
        "other kind of file": ([written(folder / "plot.png", "x")], "plot.png is neither a CSV, a tar archive nor a metadata JSON"),
        "endcap without metadata": ([written(folder / "ec_2017.csv", endcap)], "the ring of endcap crystal 70875 (and 1 more) is not known; add the release's metadata"),
        "metadata alone": ([written(folder / "meta.json", metadata_of(66, (54000,)))], "meta.json only says where crystals sit"),
        "directory without readings": ([written(folder / "d" / "notes.txt", "x").parent], "no file of readings in"),
        "metadata that contradicts itself": (
            [written(folder / "m1.json", metadata_of(66, (54000,))), written(folder / "m2.json", metadata_of(67, (54000,))), written(folder / "ok_2017.csv", good)],
            "puts crystal 54000 at (ieta, iphi) (67, 1)",
        ),
        "metadata of no crystal": ([written(folder / "m3.json", metadata_of(660, (54000,))), written(folder / "ok2_2017.csv", good)], "is not a crystal; xtal_id is 0 to 75847"),
        "nothing usable": ([written(folder / "none_2017.csv", good.replace(",0.9", ",0.1"))], "no usable reading in"),
    }  # fmt: skip


CASES = (
    "truncated archive", "damaged archive", "not an archive", "archive without readings", "path leaving the archive",
    "absolute path in an archive", "link in an archive", "wrong header in an archive", "empty member", "column renamed", "nearest column",
    "no header", "column twice", "empty file", "header and no row", "not a CSV", "truncated gzip", "missing file", "other kind of file",
    "endcap without metadata", "metadata alone", "directory without readings", "metadata that contradicts itself", "metadata of no crystal",
    "nothing usable",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gives_one_clear_line(tmp_path: Path, case: str) -> None:
    files = bad_files(tmp_path)
    assert set(files) == set(CASES)
    paths, message = files[case]
    with pytest.raises(FileFormatError) as caught:
        ingest(paths, tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def big_csv() -> bytes:
    # digits that gzip cannot shrink to less than tarfile reads ahead: the damage shows when a member is read
    rng = np.random.default_rng(2)
    rows = "".join(
        f"54000,,,{text(1.4936e9 + 60 * i)},{v:.16f},2017-05-01 00:00:00,{60.0 * i}\n" for i, v in enumerate(rng.uniform(0.6, 1, 300_000))
    )
    return (RAW + "\n" + rows).encode()


def flipped(data: bytes, at: float) -> bytes:
    changed = bytearray(data)
    changed[int(at * len(data))] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize("read", ["ingest", "read_history", "info"])
@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        (".tar.gz", lambda data: data[: len(data) // 2]),
        (".tar.gz", lambda data: data[:-4]),
        (".tar.gz", lambda data: flipped(data, 0.5)),
        (".tar", lambda data: data[: len(data) // 2]),
        (".tar", lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512)),
    ],
    ids=["half an archive", "four bytes short", "one bit flipped", "half a plain tar", "plain tar without its end"],
)
def test_a_damaged_archive_is_named_in_one_line(tmp_path: Path, big_csv: bytes, ending: str, damage, read: str) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz" if ending == ".tar.gz" else "w") as archive:
        member = tarfile.TarInfo("plus_z/ring_66.csv")
        member.size = len(big_csv)
        archive.addfile(member, io.BytesIO(big_csv))
    path = written(tmp_path / f"plus_z_7_2017{ending}", damage(whole.getvalue()))
    verbs = {"ingest": lambda: ingest([path], tmp_path / "out"), "read_history": lambda: read_history(path), "info": lambda: describe(path)}
    with pytest.raises(FileFormatError) as caught:
        verbs[read]()
    assert str(caught.value).startswith(f"{path} is ")
    assert str(caught.value).endswith("; download it again")
    assert "\n" not in str(caught.value)


def test_a_plain_tar_and_a_gzipped_one_give_the_same_readings(tmp_path: Path) -> None:
    packed = tar_gz(
        tmp_path / "plus_z_7_2017.tar.gz", {"plus_z/ring_66.csv": ring_csv(), "plus_z/ring_67.csv": ring_csv(xtal_ids=(54360,))}
    )
    plain = written(tmp_path / "plus_z_7_2017.tar", gzip.decompress(packed.read_bytes()))
    for got, want in zip(read_history(plain).blocks, read_history(packed).blocks, strict=True):
        np.testing.assert_array_equal(got.transparency, want.transparency)


def test_a_failed_first_ingest_leaves_nothing_behind(tmp_path: Path) -> None:
    good = written(tmp_path / "ring_66_2017.csv", ring_csv())
    bad = written(tmp_path / "z.csv", f"{RAW}\n70875,,,2017-05-01 00:00:00,0.9,2017-05-01 00:00:00,0\n")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "out", tmp_path / "empty"):
        with pytest.raises(FileFormatError, match="endcap crystal 70875 is not known"):
            ingest([good, bad], out)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_failed_ingest_leaves_an_existing_dataset_as_it_was(tmp_path: Path) -> None:
    ingest([written(tmp_path / "ring_66_2017.csv", ring_csv())], tmp_path / "out")
    before = tree(tmp_path / "out")
    more = written(tmp_path / "ring_66_2018.csv", ring_csv(start="2018-05-01"))
    with pytest.raises(FileFormatError, match="cut short"):
        ingest(
            [more, cut(tar_gz(tmp_path / "z.tar.gz", {"plus_z/ring_67.csv": ring_csv(xtal_ids=range(54360, 54460))}), 0.5)],
            tmp_path / "out",
        )
    assert tree(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".ingest").exists()


@pytest.mark.parametrize("was_there", [False, True])
def test_groups_taken_in_before_a_bad_file_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_there: bool) -> None:
    monkeypatch.setattr("calolife.transparency.ingest._GROUP_BYTES", 1)
    out = tmp_path / "out"
    if was_there:
        ingest([written(tmp_path / "ring_66_2016.csv", ring_csv(start="2016-05-01"))], out)
    good = written(tmp_path / "ring_66_2017.csv", ring_csv())
    bad = cut(tar_gz(tmp_path / "z.tar.gz", {"plus_z/ring_67.csv": ring_csv(xtal_ids=range(54360, 54460))}), 0.5)
    with pytest.raises(FileFormatError, match="cut short"):
        ingest([good, bad], out)
    if was_there:
        assert read_history(out).years == (2016, 2017)
    else:
        with pytest.raises(FileFormatError, match="did not end"):
            read_history(out)
    assert ingest([good], out).n_new_sources == 0
    assert 2017 in read_history(out).years


def test_an_output_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "out" / "thesis.tex", "x")
    with pytest.raises(FileFormatError, match=r"is not empty \(thesis.tex\) and not a dataset"):
        ingest([written(tmp_path / "ring_66_2017.csv", ring_csv())], tmp_path / "out")


# ---- where crystals sit, and which year it is


def test_the_barrel_numbering_is_the_metadatas(cms_data: Path) -> None:
    rings = barrel_rings()
    for file in sorted((cms_data / "metadata").glob("metadata_*.json")):
        places = read_metadata(file.read_bytes(), name=file.name)
        assert places is not None
        for xtal_id, place in places.items():
            assert (rings.ieta[xtal_id], rings.iphi[xtal_id]) == place


def test_every_barrel_ring_has_360_crystals() -> None:
    rings = barrel_rings()
    found, count = np.unique(rings.ieta[:61200], return_counts=True)
    assert found.tolist() == [e for e in range(-85, 86) if e]
    assert (count == 360).all()
    assert rings.ieta.size == N_CRYSTALS


@pytest.mark.parametrize("metadata_first", [True, False])
def test_the_ieta_of_the_metadata_is_trusted_over_file_name_and_iz(tmp_path: Path, metadata_first: bool) -> None:
    ids = (27005, 27006)
    csv = ("minus_z/ring_-10.csv", ring_csv(xtal_ids=ids))
    about = ("metadata_minus_z_1.json", metadata_of(-76, ids, file="minus_z/ring_-10.csv", iz=1))
    archive = tar_gz(tmp_path / "minus_z_1_2017.tar.gz", dict([about, csv] if metadata_first else [csv, about]))
    summary = ingest([archive], tmp_path / "out")
    assert summary.ieta == (-76,)
    assert read_history(tmp_path / "out").blocks[0].iphi.tolist() == [1, 2]


def test_endcap_crystals_get_rings_by_radius_from_their_metadata(tmp_path: Path) -> None:
    info = [{"xtal_id": 70875, "xtal_ix": 35, "xtal_iy": 47}, {"xtal_id": 75779, "xtal_ix": 97, "xtal_iy": 57}]
    about = json.dumps({"plus_z/ring_120.csv": {"xtal_info": info, "iz": 1, "eta": 2.0, "eta_ring": 23.0}})
    archive = tar_gz(tmp_path / "plus_z_13_2017.tar.gz", {"plus_z/ring_120.csv": ring_csv(xtal_ids=(70875, 75779)), "metadata.json": about})
    assert ingest([archive], tmp_path / "out").ieta == (89, 120)  # 46.95 and 15.89 crystals from the beam


def test_a_year_is_the_files_label_not_the_calendars(tmp_path: Path) -> None:
    source = written(tmp_path / "ring_66_2018.csv", ring_csv(start="2018-12-31", n=80))
    summary = ingest([source], tmp_path / "out")
    assert (summary.years, summary.notes) == ((2018,), ())
    assert read_history(tmp_path / "out").blocks[0].time_s[-1] > np.datetime64("2019-01-01", "s").astype(float)


@pytest.mark.parametrize("matched", ["2018-12-02 16:09:58", None])
def test_without_a_label_a_run_into_the_next_year_keeps_the_counters_year(tmp_path: Path, matched: str | None) -> None:
    source = written(tmp_path / "plus_z" / "ring_66.csv", ring_csv(start="2018-12-31", n=80, matched=matched))
    summary = ingest([source], tmp_path / "out")
    assert summary.years == (2018,)
    assert summary.notes == ("ring_66.csv has no year in its name: labelled by the start of the luminosity counter (2018)",)


def test_a_file_with_all_years_is_split_where_the_counter_starts_anew(tmp_path: Path) -> None:
    csv = ring_csv(start="2016-05-01") + ring_csv(start="2017-05-01").split("\n", 1)[1]
    summary = ingest([tar_gz(tmp_path / "plus_z_7.tar.gz", {"plus_z/ring_66.csv": csv})], tmp_path / "out")
    assert summary.years == (2016, 2017)
    assert summary.set_aside == {}
    for year in (2016, 2017):
        assert read_history(tmp_path / "out").series(54000, year).lumi_ifb.sum() == pytest.approx(39 * 0.005)


# ---- again, and after a kill


def test_a_second_ingest_does_nothing_and_says_so(tmp_path: Path) -> None:
    source = written(tmp_path / "ring_66_2017.csv", edited(ring_csv(), 12, calibration="nan"))
    first = ingest([source], tmp_path / "out")
    before = tree(tmp_path / "out")
    second = ingest([source], tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert second.notes == (f"nothing to do: {tmp_path / 'out'} has all of it",)
    assert (first.n_new_sources, second.n_new_sources) == (1, 0)
    assert (second.n_readings, second.set_aside) == (first.n_readings, first.set_aside)


def test_readings_that_come_later_join_the_year_they_belong_to(tmp_path: Path) -> None:
    lines = ring_csv(xtal_ids=(54000,)).splitlines()
    early = written(tmp_path / "a" / "ring_66_2017.csv", "\n".join(lines[:26]))
    late = written(tmp_path / "b" / "ring_66_2017.csv", "\n".join([lines[0], *lines[24:]]))
    ingest([early], tmp_path / "out")
    summary = ingest([late], tmp_path / "out")
    assert summary.set_aside == {"duplicate": 2}
    ingest([written(tmp_path / "c" / "ring_66_2017.csv", "\n".join(lines))], tmp_path / "whole")
    got, want = read_history(tmp_path / "out").blocks[0], read_history(tmp_path / "whole").blocks[0]
    np.testing.assert_array_equal(got.time_s, want.time_s)
    np.testing.assert_array_equal(got.lumi_ifb, want.lumi_ifb)


def test_corrected_values_are_a_conflict_and_the_way_to_take_them_is_said(tmp_path: Path) -> None:
    csv = ring_csv()
    ingest([written(tmp_path / "a" / "ring_66_2017.csv", csv)], tmp_path / "out")
    before = read_history(tmp_path / "out")
    corrected = written(tmp_path / "b" / "ring_66_2017.csv", edited(edited(csv, 12, calibration=0.95), 20, int_deliv_inv_ub=91e6))
    summary = ingest([corrected], tmp_path / "out")
    assert summary.set_aside == {"conflict": 2, "duplicate": 78}
    assert quarantine(tmp_path / "out").filter(pl.col("reason") == "conflict")["row"].to_list() == ["12", "20"]
    (note,) = (n for n in summary.notes if "conflict" in n)
    assert "already holds other values for these readings" in note
    assert "into a new --out" in note
    np.testing.assert_array_equal(read_history(tmp_path / "out").blocks[0].transparency, before.blocks[0].transparency)


def test_an_ingest_that_did_not_end_is_not_read_as_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = written(tmp_path / "ring_66_2017.csv", ring_csv())

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("calolife.transparency.ingest._merge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest([good], tmp_path / "out")
    with pytest.raises(FileFormatError, match="did not end; run the same"):
        read_history(tmp_path / "out")
    assert ingest([good], tmp_path / "out").n_readings == 80


KILLED = """
import os, signal, sys
from calolife import storage
from calolife.transparency import ingest as module

step, wanted = 0, int(sys.argv[1])

def dying(function):
    def call(*args, **kwargs):
        global step
        step += 1
        if step == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        return result
    return call

# every place where something durable happens
for name in ("_parse_csv", "_labels", "_stage", "_merge_ring_year", "_set_aside_rows", "write_ring_year", "write_dataset_record", "_merge"):
    setattr(module, name, dying(getattr(module, name)))
module.shutil.rmtree = dying(module.shutil.rmtree)
module._GROUP_BYTES = 1
module.ingest(sys.argv[3:], sys.argv[2])
print(step)
"""


def test_kill_9_and_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "ring_66_2017.csv", edited(ring_csv(), 12, calibration="nan")),
        tar_gz(tmp_path / "plus_z_7.tar.gz", {"plus_z/ring_66.csv": edited(ring_csv(xtal_ids=(54001, 54002)), 5, int_deliv_inv_ub=1e12)}),
    ]

    def run(wanted: int, out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", KILLED, str(wanted), str(out), *map(str, paths)], capture_output=True, text=True)

    whole = run(0, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    want, n_steps = tree(tmp_path / "whole"), int(whole.stdout)
    assert n_steps >= 15
    # every fourth step keeps the test at some seconds
    for wanted in range(1, n_steps + 1, 4):
        out = tmp_path / f"killed_{wanted}"
        assert run(wanted, out).returncode == -signal.SIGKILL
        after = run(0, out)
        assert after.returncode == 0, after.stderr
        assert tree(out) == want, f"killed at step {wanted}"


def test_kill_9_at_any_moment_and_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    source = written(tmp_path / "ring_66_2017.csv", ring_csv(xtal_ids=range(54000, 54360), n=60))
    command = [sys.executable, "-c", "import sys; from calolife.transparency.ingest import ingest; ingest(sys.argv[2:], sys.argv[1])"]
    subprocess.run([*command, str(tmp_path / "whole"), str(source)], check=True)
    process = subprocess.Popen([*command, str(tmp_path / "out"), str(source)])
    while not (tmp_path / "out" / ".ingest").exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    subprocess.run([*command, str(tmp_path / "out"), str(source)], check=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


# ---- directories and the real data


def test_a_directory_is_walked_and_what_is_skipped_is_said(tmp_path: Path) -> None:
    written(tmp_path / "in" / "2017" / "ring_66.csv", ring_csv())
    written(tmp_path / "in" / "metadata.json", metadata_of(66, (54000,)))
    written(tmp_path / "in" / "df_columns.json", '{"xtal_id": "number"}')
    written(tmp_path / "in" / "README.md", "x")
    summary = ingest([tmp_path / "in"], tmp_path / "out")
    assert summary.years == (2017,)
    assert [n.rpartition("/")[2] for n in summary.notes] == [
        "README.md: skipped, not a file of readings",
        "df_columns.json: skipped, not the release's metadata",
        "metadata.json: used to place 1 crystals",
    ]


def test_metadata_given_to_a_dataset_alone_change_nothing_and_say_so(tmp_path: Path) -> None:
    ingest([written(tmp_path / "ring_66_2017.csv", ring_csv())], tmp_path / "out")
    before = tree(tmp_path / "out")
    summary = ingest([written(tmp_path / "metadata.json", metadata_of(66, (54000,)))], tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert "no file of readings given: only metadata" in summary.notes


def test_pieces_of_a_file_keep_their_line_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calolife.transparency.release.BATCH_BYTES", 100)
    csv = ring_csv(n=600)
    pieces = list(row_batches(io.BytesIO(csv.encode()), name="x"))
    assert len(pieces) > 100
    assert b"".join(p for _, _, p in pieces) == csv.split("\n", 1)[1].encode()
    for _, line, piece in pieces:
        assert csv.splitlines()[line - 1] == piece.decode().splitlines()[0]


def test_the_real_skims_keep_every_reading(cms_data: Path, tmp_path: Path) -> None:
    summary = ingest([cms_data], tmp_path / "out")
    history = read_history(tmp_path / "out")
    for year, n, lumi in ((2016, 5621, 41.444), (2017, 5544, 51.669), (2018, 5846, 67.848)):
        for xtal_id in (54000, 54001):
            block = history.series(xtal_id, year)
            assert block.n_readings == n
            assert block.lumi_ifb.sum() == pytest.approx(lumi, abs=5e-4)  # as released, to the digits quoted
    assert summary.set_aside == {}
    assert summary.n_reordered == 2 * 49  # eight backward steps on 17 and 18 March 2018
    assert len(history.blocks) == 3
    assert [r.ieta for r in ring_years(tmp_path / "out")] == [66, 66, 66]


def test_the_skims_own_luminosity_steps_are_ours(cms_data: Path) -> None:
    history = read_history(cms_data)
    for xtal_id, year in ((54000, 2016), (54001, 2017)):
        skim = pl.read_csv(cms_data / f"df_skimmed_xtal_{xtal_id}_{year}.csv")
        np.testing.assert_allclose(history.series(xtal_id, year).lumi_ifb, skim["delta_lumi"].to_numpy() / 1e9, rtol=1e-12)


def test_the_laser_flips_of_june_2017_and_the_steps_before_beam_are_flagged(cms_data: Path) -> None:
    history = read_history(cms_data)
    first, last = (np.datetime64(d, "s").astype(float) for d in ("2017-06-13", "2017-06-17"))
    for xtal_id in (54000, 54001):
        block = history.series(xtal_id, 2017)
        flipped = (block.flag[0] & FLAG_LASER_FLIP) > 0
        inside = (block.time_s > first) & (block.time_s < last)
        assert flipped[inside].sum() == flipped.sum() == 23
        # the flagged readings lie 2.2 % above their neighbours on the other state
        assert np.median(block.transparency[0, flipped]) / np.median(block.transparency[0, inside & ~flipped]) == pytest.approx(
            1.022, abs=0.004
        )
        for year, day in ((2017, "2017-05-06"), (2018, "2018-03-28")):
            block = history.series(xtal_id, year)
            steps = block.time_s[(block.flag[0] & FLAG_PRE_BEAM_STEP) > 0]
            assert [str(np.datetime64(int(t), "s"))[:10] for t in steps] == [day]
        assert not (history.series(xtal_id, 2016).flag & (FLAG_LASER_FLIP | FLAG_PRE_BEAM_STEP)).any()


def test_files_are_read_in_memory_as_the_dataset_holds_them(cms_data: Path, tmp_path: Path) -> None:
    ingest([cms_data], tmp_path / "out")
    for stored, direct in zip(read_history(tmp_path / "out").blocks, read_history(cms_data).blocks, strict=True):
        for name in ("xtal_id", "ieta", "iphi", "time_s", "lumi_ifb", "transparency", "flag"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(direct, name))


def test_bad_rows_of_files_read_in_memory_are_warned_about(tmp_path: Path) -> None:
    source = written(tmp_path / "ring_66_2017.csv", edited(ring_csv(), 12, calibration="nan"))
    with pytest.warns(UserWarning, match=r"bad rows left out \(NaN calibration: 1\)"):
        history = read_history(source)
    assert history.n_readings == 79


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from calolife.transparency.ingest import ingest; ingest(sys.argv[2:], sys.argv[1]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )

    def peak_mib(n_rings: int) -> int:
        folder = tmp_path / f"rings_{n_rings}"
        for ring in range(n_rings):
            written(folder / f"ring_{ring + 1}_2017.csv", ring_csv(xtal_ids=range(30600 + 360 * ring, 30960 + 360 * ring), n=150))
        done = subprocess.run([sys.executable, "-c", code, str(folder / "out"), str(folder)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    few, many = peak_mib(1), peak_mib(6)
    print(f"peak {few} MiB for 6 MB, {many} MiB for 36 MB")
    assert many < few + 40  # chosen: less than the 30 MB of CSV that came on top, parsed
