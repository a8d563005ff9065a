"""The whole suite, small: processes, files, exit codes. No test looks at a time."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import batchnorm
from batchnorm.lab import cli
from batchnorm.lab.bench import machine, rows, run
from batchnorm.lab.bench.rows import OperationRow
from batchnorm.lab.errors import LabError
from lab.bench.measured import operation

SOURCE = Path(batchnorm.__file__).parents[1]
TINY = ("bench", "--quick", "--shapes", "4x3x5x5", "--pairs", "2", "--threads", "1")


def environment():
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


def bench(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "batchnorm", *arguments],
        capture_output=True, text=True, cwd=cwd, check=False, timeout=300, env=environment(),
    )  # fmt: skip


def test_a_quick_run_prints_its_tables_and_leaves_its_rows(tmp_path):
    done = bench(*TINY, "--out", "results.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == "results: results.csv"
    assert "BN + ReLU, forward and backward, tuned allocation" in done.stdout
    measured = rows.read(tmp_path / "results.csv", OperationRow)
    assert {row.case for row in measured} == {
        (allocation, op, "4x3x5x5", layout, "float32")
        for allocation in ("default", "tuned")
        for op in ("bn", "bn_relu", "bn_add_relu", "eval_bn_relu")
        for layout in ("contiguous", "channels_last")
    }
    for row in measured:
        assert row.arm in ("torch", "torch_inplace", "batchnorm", "copy")
        assert row.pairs == 2
        assert row.threads == 1
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert bool(row.backend) == (row.arm == "batchnorm")
    assert "NOT MET" not in done.stdout  # goals are for the page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "64"], "shapes must look like 64x64x56x56 or 256x1000, two to five sizes above 0; got '64'"),
        (["--shapes", "1x8"], "shapes must leave at least two values per channel"),
        (["--shapes", "2x3", "--layouts", "channels_last"], "layouts must fit a shape: channels_last exists for four"),
        (["--shapes", "2x3", "2x3"], "shapes must hold at least one value, and each once; got 2x3 2x3"),
        (["--pairs", "1"], "pairs must be at least 2; got 1"),
        (["--ops", "gelu"], "invalid choice 'gelu' for argument '--ops'"),
        (["--out", "results.txt"], "out must name a .csv file; got results.txt"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("batchnorm: error: ")
    assert message in line
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_allocation_is_what_its_name_says():
    assert machine.process_environment("default", {"HOME": "/"}) == {"HOME": "/"}
    with pytest.raises(LabError, match="unset MALLOC_ARENA_MAX"):
        machine.process_environment("default", {"MALLOC_ARENA_MAX": "1"})
    with pytest.raises(LabError, match="unset LD_PRELOAD"):
        machine.process_environment("tuned", {"LD_PRELOAD": "/lib/libjemalloc.so"})


def test_tuned_needs_glibc(monkeypatch):
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(LabError, match="try --allocations default"):
        machine.process_environment("tuned", {})


def test_the_machine_is_read_from_where_linux_describes_it(tmp_path):
    cache = tmp_path / "devices/system/cpu/cpu0/cache"
    for number, (level, size) in enumerate([("1", "48K"), ("2", "2048K"), ("3", "32768K")]):
        (cache / f"index{number}").mkdir(parents=True)
        (cache / f"index{number}/level").write_text(level + "\n")
        (cache / f"index{number}/size").write_text(size + "\n")
    pages = tmp_path / "kernel/mm/transparent_hugepage"
    pages.mkdir(parents=True)
    (pages / "enabled").write_text("always [madvise] never\n")
    assert machine.cache_size(2, tmp_path) == 2**21
    assert machine.cache_size(3, tmp_path) == 2**25
    assert machine.huge_pages(tmp_path) == "madvise"
    assert (machine.cache_size(3, tmp_path / "no"), machine.huge_pages(tmp_path / "no")) == (0, "")


def say(monkeypatch, *lines, then="pass"):
    """Put a process in the place of the one that measures; {date} is that of its task."""
    said = "".join(f"print({line!r}.replace('DATE', date))\n" for line in lines)
    program = f"import json, sys; date = json.load(sys.stdin)['date']\n{said}{then}"
    suite = run.Suite("operations", OperationRow, (sys.executable, "-c", program), 1)
    monkeypatch.setattr(run, "operations", lambda _config: suite)


ROWS = json.dumps(
    {"event": "rows", "case": "one", "rows": [{**dataclasses.asdict(operation(date="DATE")), "faults": None}]}
)
ONE = ["bench", "--shapes", "2x3", "--allocations", "default", "--out"]


def test_a_red_gate_prints_no_number_leaves_no_row_and_exits_1(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.csv"
    rows.open_results(path, OperationRow)
    rows.append(path, [operation(date="before")])
    say(monkeypatch, ROWS, '{"event": "red", "why": "dx is off"}')
    assert cli.main([*ONE, str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"measuring into {path}\n"
    assert printed.err == "batchnorm: a wrong answer, so no numbers: dx is off\n"
    assert rows.read(path, OperationRow) == [operation(date="before")]


def test_a_process_that_dies_is_reported_and_its_rows_are_kept(tmp_path, monkeypatch, capsys):
    say(monkeypatch, "something a library said", ROWS, then="sys.exit(7)")
    assert cli.main([*ONE, str(tmp_path / "results.csv")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("something a library said\n")
    assert "the process that measures failed with exit code 7" in error
    assert len(rows.read(tmp_path / "results.csv", OperationRow)) == 1


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal there only")
def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(tmp_path):
    path = tmp_path / "results.csv"
    with subprocess.Popen(
        [sys.executable, "-m", "batchnorm", *TINY, "--pairs", "300", "--out", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    ) as process:  # fmt: skip
        while not (path.exists() and path.read_text().count("\n") > 3):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "batchnorm: interrupted; what was measured is kept\n"
    assert "BN, forward and backward, default allocation" in out
    assert rows.read(path, OperationRow)
    deadline = time.monotonic() + 20  # an orphan that has ended is there until the system collects it
    while _is_there(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_there(process.pid)


def _is_there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
