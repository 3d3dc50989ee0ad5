"""data/download.py against a server in this process that misbehaves in every promised way."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from data.download import DownloadError, fetch
from utils.run import sha256

CHUNK = 1 << 16  # what fetch writes at a time
CONTENT = bytes(range(256)) * 1200  # 4.7 of the chunks in which it is read
KEPT = 2 * CHUNK
HALF = KEPT + 100  # a chunk that did not come whole is dropped
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Answers each path by a function of the request; keeps what was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path and Range header

        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers.get("Range")))
                server.answers.get(self.path, lambda handler: handler.send_error(404))(self)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    for name in ("NO_PROXY", "no_proxy"):  # a proxy could not reach this server
        monkeypatch.setenv(name, "127.0.0.1")
    server = Server()
    yield server
    server.close()


def sends(
    content: bytes = CONTENT, *, ranges: bool = True, stop: int | None = None
) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer with ``content``. ``ranges``: whether it honours Range; ``stop``: break the
    connection of an answer that starts at zero after so many bytes, all of them announced."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range") if ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        handler.wfile.write(content[start : None if start else stop])
        handler.close_connection = True

    return answer


def breaks_once(*, ranges: bool) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that breaks half-way the first time; then it is whole."""
    answers = iter([sends(stop=HALF)])
    return lambda handler: next(answers, sends(ranges=ranges))(handler)


def only_the_target(target: Path) -> bool:
    """The right file has the name, and no other file is left beside it."""
    return target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]


# ---- what goes well ------------------------------------------------------------------------


def test_a_good_file_arrives_and_is_not_fetched_twice(server, tmp_path):
    server.answers["/file"] = sends()
    target = tmp_path / "new" / "folder" / "file.gz"
    assert fetch([f"{server.url}/file"], target, DIGEST) == target
    assert only_the_target(target)
    assert sha256(target) == DIGEST
    assert fetch([f"{server.url}/file"], target, DIGEST) == target
    assert server.requests == [("/file", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up(server, tmp_path, ranges):
    server.answers["/file"] = breaks_once(ranges=ranges)
    fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")
    assert server.requests == [("/file", None), ("/file", f"bytes={KEPT}-")]


def test_a_broken_connection_is_taken_up_by_the_next_source(server, tmp_path):
    server.answers |= {"/a": sends(ranges=False, stop=HALF), "/b": sends()}
    fetch([f"{server.url}/a", f"{server.url}/b"], tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")
    assert server.requests[-1] == ("/b", f"bytes={KEPT}-")


def test_the_next_source_is_used_when_one_has_no_file_or_refuses(server, tmp_path):
    with socket.socket() as closed:  # a port on which nobody listens
        closed.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}/file"
        server.answers["/file"] = sends()
        urls = [f"{server.url}/missing", refusing, f"{server.url}/file"]
        fetch(urls, tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")
    assert server.requests == [("/missing", None), ("/file", None)]


def test_the_next_source_is_used_when_one_sends_something_else(server, tmp_path):
    server.answers |= {"/a": sends(b"<html>Please log in</html>"), "/b": sends()}
    fetch([f"{server.url}/a", f"{server.url}/b"], tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")
    assert server.requests == [("/a", None), ("/b", None)]


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"", CONTENT[:9] + b"?" + CONTENT[10:]])
def test_a_damaged_file_is_fetched_again(server, tmp_path, capsys, damage):
    server.answers["/file"] = sends()
    target = tmp_path / "file"
    target.write_bytes(damage)
    fetch([f"{server.url}/file"], target, DIGEST)
    assert only_the_target(target)
    assert f"{target} is damaged" in capsys.readouterr().out


# ---- what an earlier run left --------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (CONTENT[:1000], ["bytes=1000-"]),
        (CONTENT, [f"bytes={len(CONTENT)}-"]),  # whole, only not renamed
        (b"", [None]),
        (b"garbage", ["bytes=7-", None]),
        (bytes(len(CONTENT)), [f"bytes={len(CONTENT)}-", None]),
        (CONTENT + b"and more", [f"bytes={len(CONTENT) + 8}-", None]),
    ],
    ids=["beginning", "whole", "empty", "garbage", "garbage of full length", "too long"],
)
def test_a_part_of_an_earlier_run_is_used_or_dropped(server, tmp_path, left, asked):
    server.answers["/file"] = sends()
    (tmp_path / "file.part").write_bytes(left)
    fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")
    assert server.requests == [("/file", range_header) for range_header in asked]


# ---- what fails ----------------------------------------------------------------------------


def test_wrong_content_is_refused_and_nothing_is_kept(server, tmp_path):
    server.answers["/file"] = sends(b"another file")
    with pytest.raises(DownloadError) as caught:
        fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert str(caught.value) == (
        f"can't get file:\n"
        f"  - {server.url}/file: what it sent has the wrong SHA-256\n"
        f"  By hand: put the file at {tmp_path / 'file'}\n"
        f"  its SHA-256 is {DIGEST}"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_always_breaks_and_never_is_right_is_given_up(server, tmp_path):
    server.answers["/file"] = sends(bytes(len(CONTENT)), stop=HALF)
    with pytest.raises(DownloadError):
        fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert 2 <= len(server.requests) < 10
    assert not (tmp_path / "file").exists()


def test_a_connection_that_breaks_for_good_leaves_only_the_part(server, tmp_path):
    server.answers["/file"] = sends(ranges=False, stop=HALF)
    with pytest.raises(DownloadError, match=r"/file: the connection broke"):
        fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
    server.answers["/file"] = sends()
    fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")
    assert server.requests[-1] == ("/file", f"bytes={KEPT}-")


def test_each_source_that_failed_is_listed_with_its_reason(server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}/file"
        server.answers["/busy"] = lambda handler: handler.send_error(503)
        urls = [f"{server.url}/missing", f"{server.url}/busy", refusing]
        with pytest.raises(DownloadError) as caught:
            fetch(urls, tmp_path / "file", DIGEST)
    lines = str(caught.value).splitlines()
    assert lines[1:4] == [
        f"  - {server.url}/missing: the server answered 404 Not Found",
        f"  - {server.url}/busy: the server answered 503 Service Unavailable",
        f"  - {refusing}: no connection (is the network on, is the site blocked?)",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_is_given_up(server, tmp_path, monkeypatch):
    def falls_silent(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)
        handler.wfile.flush()
        handler.connection.settimeout(5)
        handler.rfile.read(1)  # until the client hangs up

    monkeypatch.setattr("data.download.TIMEOUT", (1, 0.3))
    server.answers["/file"] = falls_silent
    with pytest.raises(DownloadError, match=r"/file: (the server stopped sending|no connection)"):
        fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("value", ["1", "yes"])
def test_offline_asks_nobody(server, tmp_path, monkeypatch, value):
    server.answers["/file"] = sends()
    monkeypatch.setenv("COURSE_OFFLINE", value)
    with pytest.raises(DownloadError, match="downloads are switched off by COURSE_OFFLINE"):
        fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    (tmp_path / "file").write_bytes(CONTENT)
    assert fetch([f"{server.url}/file"], tmp_path / "file", DIGEST) == tmp_path / "file"
    assert server.requests == []


def test_offline_0_means_online(server, tmp_path, monkeypatch):
    server.answers["/file"] = sends()
    monkeypatch.setenv("COURSE_OFFLINE", "0")
    fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert only_the_target(tmp_path / "file")


def test_a_folder_that_can_not_be_made(server, tmp_path):
    server.answers["/file"] = sends()
    (tmp_path / "taken").write_bytes(b"a file")
    target = tmp_path / "taken" / "folder" / "file"
    with pytest.raises(DownloadError, match=r"can't write .*file\.part: "):
        fetch([f"{server.url}/file"], target, DIGEST)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_told(server, tmp_path):
    server.answers["/file"] = sends()
    os.symlink("/dev/full", tmp_path / "file.part")  # noqa: PTH211 (also on Python 3.11)
    with pytest.raises(DownloadError, match=r"can't write .*file\.part: No space left on device"):
        fetch([f"{server.url}/file"], tmp_path / "file", DIGEST)
    assert not (tmp_path / "file").exists()
