"""Storage: exactly one writer of a name wins, nothing is ever half there, and failures are sentences."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets import Storage
from pipeline.targets.errors import StorageError, UserError

Place = tuple[str, dict[str, Any]]


def names(storage: Storage, prefix: str) -> list[str]:
    return sorted(entry.name for entry in storage.list(prefix))


def test_a_name_is_published_once_and_keeps_its_first_bytes(place: Place) -> None:
    storage = Storage(*place)
    assert storage.put_if_absent("commits/a.json", b"first")
    assert not storage.put_if_absent("commits/a.json", b"second")
    assert storage.read("commits/a.json") == b"first"


def test_what_was_uploaded_is_listed_with_its_size_and_age(place: Place) -> None:
    storage = Storage(*place)
    with storage.upload("shards/ab/x.parquet") as file:
        file.write(b"12345")
        file.write(b"678")
    (entry,) = storage.list("shards/")
    assert (entry.name, entry.size) == ("shards/ab/x.parquet", 8)
    assert abs(entry.modified - time.time()) < 60
    assert storage.read(entry.name) == b"12345678"
    with storage.open(entry.name) as file:
        file.seek(3)
        assert file.read(2) == b"45"
    assert names(storage, "tmp/") == names(storage, "nothing/") == []


def test_an_upload_that_raises_leaves_nothing_and_its_error_is_kept(place: Place) -> None:
    storage = Storage(*place)

    def upload() -> None:
        with storage.upload("shards/ab/x.parquet") as file:
            file.write(b"half")
            raise FileNotFoundError("a corpus file, not ours")

    with pytest.raises(FileNotFoundError, match="corpus"):
        upload()
    assert names(storage, "shards/") == names(storage, "tmp/") == []


def test_what_is_absent_is_file_not_found_and_deleting_it_is_no_error(place: Place) -> None:
    storage = Storage(*place)
    storage.put_if_absent("b", b"1")
    with pytest.raises(FileNotFoundError):
        storage.read("a")
    with pytest.raises(FileNotFoundError):
        storage.open("a")
    assert list(storage.read_many(["a", "b"])) == [("a", None), ("b", b"1")]
    storage.delete(["a", "b", "c"])
    assert list(storage.read_many(["b"])) == [("b", None)]


def test_a_listing_is_never_stale(place: Place) -> None:
    here, elsewhere = Storage(*place), Storage(*place)
    assert names(here, "commits/") == []
    elsewhere.put_if_absent("commits/a", b"")
    assert names(here, "commits/") == ["commits/a"]
    elsewhere.delete(["commits/a"])
    assert names(here, "commits/") == []


def test_a_listing_of_several_pages_is_whole(s3_bucket_url: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.targets.storage.PAGE_ENTRIES", 10)
    storage = Storage(*s3_bucket_url)
    for i in range(25):
        storage.put_if_absent(f"commits/{i}", b"")
    assert names(storage, "commits/") == sorted(f"commits/{i}" for i in range(25))
    storage.delete([f"commits/{i}" for i in range(25)])
    assert names(storage, "commits/") == []


def test_of_many_threads_exactly_one_publishes(place: Place) -> None:
    storage = Storage(*place)
    with ThreadPoolExecutor(8) as pool:
        for turn in range(8):
            barrier = threading.Barrier(8)

            def publish(writer: int, turn: int = turn, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return storage.put_if_absent(f"commits/{turn}", bytes([writer]) * 100)

            won = list(pool.map(publish, range(8)))
            assert won.count(True) == 1
            assert storage.read(f"commits/{turn}") == bytes([won.index(True)]) * 100


def test_of_many_processes_exactly_one_publishes(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pipeline.targets import Storage\n"
        "storage = Storage(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "start = float(sys.stdin.readline())\n"
        "for turn in range(30):\n"
        "    while time.time() < start + turn * 0.01: pass\n"
        "    print(turn, storage.put_if_absent(f'commits/{turn}', sys.argv[2].encode() * 1000))\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "store"), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    start = time.time() + 0.2
    outputs = [writer.communicate(f"{start}\n")[0].splitlines() for writer in writers]
    winners = Counter(line.split()[0] for lines in outputs for line in lines if line.endswith("True"))
    assert winners == {str(turn): 1 for turn in range(30)}
    storage = Storage(str(tmp_path / "store"))
    for number, lines in enumerate(outputs):
        for turn in (line.split()[0] for line in lines if line.endswith("True")):
            assert storage.read(f"commits/{turn}") == str(number).encode() * 1000
    assert names(storage, "tmp/") == []


def test_a_probe_passes_and_leaves_nothing(place: Place) -> None:
    storage = Storage(*place)
    storage.probe()
    assert names(storage, "tmp/") == []


class Forgetful(BaseHTTPRequestHandler):
    """As much of an S3 server as a probe needs, that ignores If-None-Match, as rclone's and s3rver do."""

    held: dict[str, bytes]
    busy: int
    conditional = False

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.conditional and self.headers["If-None-Match"] == "*":
            if type(self).busy:
                type(self).busy -= 1
                return self.answer(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
            if self.path in self.held:
                return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        self.held[self.path] = data
        return self.answer(200, b"")

    def do_HEAD(self) -> None:
        self.answer(200 if self.path in self.held else 404, b"")

    def do_GET(self) -> None:
        self.answer(200 if self.path in self.held else 404, self.held.get(self.path, b""))

    def do_POST(self) -> None:
        self.answer(200, b"<DeleteResult></DeleteResult>")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Terse(Forgetful):
    """One that honours it, tells only the status, as Ceph's does, and is busy at first, as S3 can be."""

    conditional = True


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (request.param,), {"held": {}, "busy": 2, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def keys_for(endpoint: str) -> dict[str, Any]:
    pytest.importorskip("s3fs")
    return {"endpoint_url": endpoint, "key": "k" * 9, "secret": "s" * 9}


@pytest.mark.parametrize("server_url", [Forgetful], indirect=True)
def test_a_server_that_overwrites_in_spite_of_if_none_match_is_refused(server_url: str) -> None:
    with pytest.raises(StorageError, match="two writers could both win"):
        Storage("s3://bucket/store", keys_for(server_url)).probe()


@pytest.mark.parametrize("server_url", [Terse], indirect=True)
def test_a_server_that_answers_no_more_than_412_or_409_is_understood(server_url: str) -> None:
    storage = Storage("s3://bucket/store", keys_for(server_url))
    assert storage.put_if_absent("a", b"first")
    assert not storage.put_if_absent("a", b"second")
    assert storage.read("a") == b"first"
    storage.probe()


def test_storage_without_an_atomic_put_if_absent_is_refused() -> None:
    with pytest.raises(StorageError, match="memory storage has no atomic put-if-absent"):
        Storage("memory://store").probe()


def sentence_of(action: Callable[[], object], storage: Storage) -> str:
    with pytest.raises(StorageError) as caught:
        action()
    message = str(caught.value)
    assert storage.url in message
    assert "\n" not in message
    return message


def test_a_full_disk_is_a_sentence_and_what_was_published_stays(tiny_disk: Path) -> None:
    storage = Storage(str(tiny_disk / "store"))
    storage.put_if_absent("commits/a", b"whole")

    def fill() -> None:
        with storage.upload("shards/ab/x") as file:
            for _ in range(20):
                file.write(b"x" * 50_000)

    assert "full" in sentence_of(fill, storage)
    assert "full" in sentence_of(lambda: storage.put_if_absent("commits/b", b"x" * 1_000_000), storage)
    assert names(storage, "") == ["commits/a"]
    assert storage.read("commits/a") == b"whole"
    assert storage.put_if_absent("commits/b", b"small")


def test_an_unwritable_place_is_a_sentence(read_only: Path) -> None:
    storage = Storage(str(read_only / "store"))
    assert "read-only" in sentence_of(storage.probe, storage)


def test_a_file_where_a_folder_is_needed_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    storage = Storage(str(tmp_path / "store"))
    assert "a file stands where" in sentence_of(storage.probe, storage)


def test_a_missing_bucket_is_a_sentence(s3_options: dict[str, Any]) -> None:
    storage = Storage("s3://no-such-bucket/store", s3_options)
    assert "no such bucket" in sentence_of(storage.probe, storage)


def test_credentials_are_in_no_url_and_no_message(s3_options: dict[str, Any]) -> None:
    secret = "hush-hush"
    with pytest.raises(UserError) as caught:
        Storage(f"s3://someone:{secret}@bucket/store")
    assert secret not in str(caught.value)
    storage = Storage("s3://bucket/store", {"client_kwargs": {"aws_secret_access_key": secret}})

    def fail() -> None:
        with storage.failures("read"):
            raise RuntimeError(f"the server says {secret} is wrong")

    assert secret not in sentence_of(fail, storage)
    assert "the server says *** is wrong" in sentence_of(fail, storage)


def test_a_local_url_is_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "store")
    assert {Storage(url).url for url in ("store", "./store/", f"file://{expected}", expected)} == {expected}
    assert Storage("s3://bucket/a/").url == "s3://bucket/a"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd"])
def test_a_name_that_leaves_the_store_is_refused(tmp_path: Path, name: str) -> None:
    storage = Storage(str(tmp_path / "store"))
    for action in (storage.read, storage.open, lambda n: storage.put_if_absent(n, b"")):
        with pytest.raises(StorageError, match="leave the store"):
            action(name)


def test_storage_works_on_after_a_fork(place: Place) -> None:
    storage = Storage(*place)
    storage.put_if_absent("a", b"parent")
    child = os.fork()
    if child == 0:
        # Straight out: this process has no business in pytest.
        os._exit(0 if storage.read("a") == b"parent" and storage.put_if_absent("b", b"child") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read("b") == b"child"
