"""Where files lie, how they get there, and that both are atomic."""

import hashlib
import http.server
import io
import sys
import threading
from pathlib import Path

import pooch
import pytest

from batchnorm.lab.data import verified
from batchnorm.lab.errors import DataError

CONTENT = b"published" * 100_000


@pytest.fixture
def server():
    """A web server on this machine that has one file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/file"
        running.shutdown()
        thread.join()


def checksum(algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"


def test_root_is_the_option_else_the_environment_else_the_cache(monkeypatch):
    monkeypatch.setenv("BATCHNORM_DATA", "/from/environment")
    assert verified.data_root(Path("/from/option")) == Path("/from/option")
    assert verified.data_root() == Path("/from/environment")
    monkeypatch.delenv("BATCHNORM_DATA")
    assert verified.data_root() == Path(pooch.os_cache("batchnorm"))


def test_every_checksum_must_match(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    assert verified.read(file, [checksum(), checksum("md5")]) == CONTENT
    with pytest.raises(DataError, match=r"its MD5 must be 0; got .* over 900000 bytes"):
        verified.read(file, [checksum(), "md5:0"])


def test_a_download_is_whole_and_in_its_place(tmp_path, server, capfd):
    file = tmp_path / "a" / "b" / "file"
    verified.download(file, server, checksum(), what="some set", instead="try again")
    assert file.read_bytes() == CONTENT
    assert [entry.name for entry in file.parent.iterdir()] == ["file"]
    # Quiet, as this is no terminal.
    assert capfd.readouterr() == ("", "")


def test_a_download_that_is_another_file_leaves_nothing(tmp_path, server):
    file = tmp_path / "file"
    with pytest.raises(
        DataError, match=r"file of some set; .* downloading http://.* failed: ValueError: .*; try again"
    ):
        verified.download(file, server, "sha256:00", what="some set", instead="try again")
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_a_bar_shows_how_far_the_download_is(tmp_path, server, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    verified.download(tmp_path / "file", server, checksum(), what="some set", instead="try again")
    assert "file" in terminal.getvalue()
    assert "900.0/900.0 kB" in terminal.getvalue()
