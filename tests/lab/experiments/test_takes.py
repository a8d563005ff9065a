"""Who has a cell: one process, until it gives it back or is gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from batchnorm.lab.experiments import takes
from batchnorm.lab.experiments.takes import STALE, take


def _cell(tmp_path: Path) -> Path:
    (tmp_path / "cells").mkdir(exist_ok=True)
    return tmp_path / "cells/one"


def _note(cell: Path) -> Path:
    return cell.parent.parent / f"takes/{cell.name}.json"


def _begun(cell: Path) -> None:
    (cell / "config.json").write_text("{}")


def test_a_cell_is_taken_once_and_again_when_it_was_given_back(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    mine = take(cell)
    assert mine is not None
    with mine:
        assert cell.is_dir()
        assert take(cell) is None
        _begun(cell)
    assert not _note(cell).exists()
    assert take(cell) is not None


def test_of_many_processes_exactly_one_gets_a_cell(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        got = pool.map(_try, [cell] * 40)
    assert sum(got) == 1


def _try(cell: Path) -> bool:
    return take(cell) is not None


def test_a_cell_of_a_process_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_try, args=(cell,))
    process.start()
    process.join()
    assert take(cell) is not None


def test_a_cell_of_another_machine_is_taken_over_when_its_note_is_old(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    assert take(cell) is not None
    note = _note(cell)
    note.write_text(json.dumps({"host": "elsewhere", "process": os.getpid(), "token": "theirs"}))
    assert take(cell) is None
    then = time.time() - STALE - 1
    os.utime(note, (then, then))
    assert take(cell) is not None


def test_a_process_killed_before_its_note_blocks_a_cell_for_a_while_only(tmp_path: Path) -> None:
    cell = _cell(tmp_path)
    cell.mkdir()
    assert take(cell) is None
    then = time.time() - STALE - 1
    os.utime(cell, (then, then))
    assert take(cell) is not None


def test_a_take_is_kept_alive_and_sees_that_it_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takes, "BEAT", 0.01)
    cell = _cell(tmp_path)
    mine = take(cell)
    assert mine is not None
    note = _note(cell)
    with mine:
        os.utime(note, (0, 0))
        deadline = time.monotonic() + 10
        while note.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert note.stat().st_mtime > 0
        note.write_text(json.dumps({"token": "theirs"}))
        while not mine.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert mine.lost
    assert note.exists()  # it is theirs
