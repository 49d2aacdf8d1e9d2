"""Downloads against a server on this machine that answers as Zenodo does."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calolife.cli import transparency_data
from calolife.errors import FileFormatError
from calolife.transparency import fetch as module
from calolife.transparency.fetch import RELEASE_TITLE, archive_names, fetch


class Zenodo:
    """A record with three archives; `cut` bytes into a transfer, the connection breaks, as often as `n_cuts` says."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.files = {n: rng.bytes(300_000) for n in ("plus_z_7.tar.gz", "plus_z_1.tar.gz", "minus_z_1.tar.gz")}
        self.title, self.number, self.n_cuts, self.cut, self.has_ranges = RELEASE_TITLE, 424242, 0, 1 << 17, True
        self.wrong_md5 = False
        self.asked: list[tuple[str, str | None]] = []
        zenodo = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                zenodo.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.api = f"http://127.0.0.1:{self.server.server_port}/api"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def record(self) -> dict[str, Any]:
        files = [
            {
                "key": name,
                "size": len(data),
                "checksum": "md5:" + ("0" * 32 if self.wrong_md5 else hashlib.md5(data).hexdigest()),
                "links": {"self": f"{self.api}/records/{self.number}/files/{name}/content"},
            }
            for name, data in self.files.items()
        ]
        return {"id": self.number, "doi": f"10.5281/zenodo.{self.number}", "metadata": {"title": self.title}, "files": files}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range")
        self.asked.append((path, wanted))
        if "/content" in path:
            data = self.files[path.split("/")[-2]]
            first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.has_ranges else 0
            request.send_response(206 if first else 200)
            request.send_header("Content-Length", str(len(data) - first))
            request.end_headers()
            if self.n_cuts:
                self.n_cuts -= 1
                request.wfile.write(data[first : first + self.cut])
                request.connection.close()
            else:
                request.wfile.write(data[first:])
            return
        if "?q=" in path:
            body: Any = {"hits": {"hits": [self.record()]}}
        else:
            body = self.record() if path.endswith(str(self.number)) else None
        request.send_response(200 if body is not None else 404)
        request.end_headers()
        request.wfile.write(json.dumps(body).encode())


@pytest.fixture
def zenodo() -> Iterator[Zenodo]:
    server = Zenodo()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.parametrize(
    ("ring", "archives"),
    [
        (1, ("plus_z_1",)), (9, ("plus_z_1",)), (10, ("plus_z_2",)), (66, ("plus_z_7",)), (79, ("plus_z_8",)), (85, ("plus_z_9",)),
        (-85, ("minus_z_1",)), (-76, ("minus_z_1",)), (-75, ("minus_z_2",)), (-66, ("minus_z_2",)), (-1, ("minus_z_9",)),
        (100, ("plus_z_9", "plus_z_10", "plus_z_11", "plus_z_12", "plus_z_13")),
    ],
)  # fmt: skip
def test_a_ring_is_in_the_archive_that_the_releases_metadata_say(ring: int, archives: tuple[str, ...]) -> None:
    assert archive_names([ring]) == archives


def test_rings_of_the_shared_metadata_are_in_their_archive(cms_data: Path) -> None:
    for file in (cms_data / "metadata").glob("metadata_*_z_*.json"):
        rings = {x["xtal_ieta"] for f in json.loads(file.read_text()).values() for x in f["xtal_info"]}
        assert archive_names(rings) == (file.stem.removeprefix("metadata_"),)


def test_only_the_archive_of_the_ring_is_downloaded_and_checked(zenodo: Zenodo, tmp_path: Path) -> None:
    got = fetch(tmp_path / "raw", rings=[66], years=[2016, 2017, 2018], api=zenodo.api)
    assert [p.name for p in got.paths] == ["plus_z_7.tar.gz"]
    assert got.paths[0].read_bytes() == zenodo.files["plus_z_7.tar.gz"]
    assert (got.record, got.n_downloaded) == ("10.5281/zenodo.424242", 1)
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["plus_z_7.tar.gz"]


def test_the_record_is_found_by_title_or_given_by_number_or_doi(zenodo: Zenodo, tmp_path: Path) -> None:
    for record in (None, "424242", "10.5281/zenodo.424242"):
        fetch(tmp_path / "raw", rings=[66], years=[2016], record=record, api=zenodo.api)
    asked = [path for path, _ in zenodo.asked if "content" not in path]
    assert "q=title%3A%22Laser%20response" in asked[0]
    assert asked[1:] == ["/api/records/424242"] * 2


def test_a_file_that_is_there_is_not_downloaded_again(zenodo: Zenodo, tmp_path: Path) -> None:
    fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api)
    zenodo.asked.clear()
    assert fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api).n_downloaded == 0
    assert not [path for path, _ in zenodo.asked if "content" in path]


def test_a_cut_transfer_goes_on_where_it_stopped(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.n_cuts = 2
    got = fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api)
    assert got.paths[0].read_bytes() == zenodo.files["plus_z_7.tar.gz"]
    assert [r for path, r in zenodo.asked if "content" in path] == [None, "bytes=131072-", "bytes=262144-"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(zenodo: Zenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIES", 1)
    zenodo.n_cuts = 1
    with pytest.raises(ConnectionError, match=r"plus_z_7.tar.gz: the transfer broke off .* run the same command again"):
        fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api)
    assert (tmp_path / "plus_z_7.tar.gz.partial").stat().st_size == 131072
    got = fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api)
    assert got.paths[0].read_bytes() == zenodo.files["plus_z_7.tar.gz"]
    assert zenodo.asked[-1][1] == "bytes=131072-"


def test_a_server_without_ranges_is_read_from_the_start(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.n_cuts, zenodo.has_ranges = 1, False
    assert fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api).paths[0].read_bytes() == zenodo.files["plus_z_7.tar.gz"]


def test_years_in_the_archives_names_are_heeded(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.files = {f"plus_z_7_{year}.tar.gz": b"x" * year for year in (2016, 2017, 2018)}
    got = fetch(tmp_path, rings=[66], years=[2016, 2018], api=zenodo.api)
    assert [p.name for p in got.paths] == ["plus_z_7_2016.tar.gz", "plus_z_7_2018.tar.gz"]
    assert got.notes == ()


# ---- bad input


def test_a_wrong_checksum_is_refused_and_the_file_removed(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.wrong_md5 = True
    with pytest.raises(FileFormatError, match="its MD5 is not the one Zenodo lists; the download was removed"):
        fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError) as caught:
        fetch(tmp_path / "raw", rings=[66, -76], years=[2016], api="http://127.0.0.1:9/api")
    line = str(caught.value)
    assert "download minus_z_1.tar.gz, plus_z_7.tar.gz from https://zenodo.org/search?q=Laser%20response" in line
    assert f"put them into {tmp_path / 'raw'}" in line
    assert "then run: calolife transparency ingest" in line
    assert "\n" not in line


@pytest.mark.parametrize(("rings", "it"), [([66], "it"), ([66, -76], "them")])
def test_offline_counts_the_files_to_put_there(tmp_path: Path, rings: list[int], it: str) -> None:
    with pytest.raises(ConnectionError, match=rf"\), put {it} into "):
        fetch(tmp_path / "raw", rings=rings, years=[2016], api="http://127.0.0.1:9/api")


def test_offline_takes_files_that_were_put_there_by_hand(tmp_path: Path) -> None:
    (tmp_path / "plus_z_7.tar.gz").write_bytes(b"by hand")
    got = fetch(tmp_path, rings=[66], years=[2016], api="http://127.0.0.1:9/api")
    assert [p.name for p in got.paths] == ["plus_z_7.tar.gz"]
    assert got.notes == ("Zenodo cannot be reached: the files that are there were not checked",)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"title": "Something else"}, {}, f"Zenodo lists no record titled '{RELEASE_TITLE}'; give --record"),
        ({}, {"record": "999"}, "Zenodo has no record 999; give --record"),
        ({}, {"record": "doi"}, "--record 'doi' is neither a record number nor a Zenodo DOI"),
        ({"files": {"readme.txt": b"x"}}, {}, "has no archive plus_z_7; its files: readme.txt"),
        ({"files": {"plus_z_7_2018.tar.gz": b"x"}}, {}, "has no archive of 2016"),
        ({}, {"rings": [0]}, "ring 0 does not exist"),
        ({}, {"rings": [125]}, "ring 125 does not exist"),
        ({}, {"years": [2016, 2025]}, "year 2025 is not in the release; give 2016, 2017 or 2018"),
    ],
)
def test_a_request_that_cannot_be_met_gives_one_clear_line(
    zenodo: Zenodo, tmp_path: Path, change: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(zenodo, name, value)
    with pytest.raises(ValueError) as caught:
        fetch(tmp_path, **{"rings": [66], "years": [2016], "api": zenodo.api, **arguments})
    assert message in str(caught.value)


def test_a_file_name_that_leaves_the_directory_is_refused(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.files = {"../plus_z_7.tar.gz": b"x"}
    with pytest.raises(FileFormatError, match="whose name leaves the directory"):
        fetch(tmp_path, rings=[66], years=[2016], api=zenodo.api)


@pytest.mark.parametrize(
    ("text", "rings"), [("66", (66,)), ("1-3,-76", (-76, 1, 2, 3)), ("-85--84", (-85, -84)), ("-1-1", (-1, 1)), ("5,5", (5,))]
)
def test_rings_are_written_as_lists_and_ranges(text: str, rings: tuple[int, ...]) -> None:
    assert transparency_data._rings(text) == rings


@pytest.mark.parametrize("text", ["", "x", "3-1", "0", "1.5"])
def test_what_is_no_ring_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--ring"):
        transparency_data._rings(text)
