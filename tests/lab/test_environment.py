"""What a run says about where it was made."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm.lab.environment import _commit, environment, load, memory, running_processes


def test_names_versions_machine_and_time():
    found = environment(threads=3)
    assert json.loads(json.dumps(found)) == found
    assert (found["batchnorm"], found["torch"], found["numpy"]) == (
        batchnorm.__version__,
        torch.__version__,
        np.__version__,
    )
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["date"])) < timedelta(minutes=1)
    assert found["threads"] == 3
    assert environment()["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert found["processor"]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say")
def test_names_what_else_the_machine_did():
    found = environment()
    assert found["load"] >= 0
    assert found["running_processes"] >= 1
    assert 0 < found["memory_available_gb"] <= found["memory_gb"]


def test_load_is_none_where_the_system_has_none(monkeypatch):
    monkeypatch.delattr("os.getloadavg")
    assert load() is None
    assert environment()["load"] is None


def machine(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:        8000 kB\nMemFree:         1000 kB\nMemAvailable:    6000 kB\nHugePages_Total:    0\n"


def test_memory_is_that_of_the_machine(tmp_path):
    assert memory(tmp_path) == (None, None)
    assert memory(machine(tmp_path, proc__meminfo=MEMINFO)) == (8_192_000, 6_144_000)
    unlimited = {"sys__fs__cgroup__memory.max": "max\n", "sys__fs__cgroup__memory.current": "5000\n"}
    assert memory(machine(tmp_path, **unlimited)) == (8_192_000, 6_144_000)


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cache"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory__", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_memory_is_that_of_the_container_where_it_is_less(tmp_path, folder, limit, used, cache):
    group = f"sys__fs__cgroup__{folder}"
    machine(tmp_path, **{"proc__meminfo": MEMINFO, group + limit: "4000000\n", group + used: "3000000\n"})
    assert memory(tmp_path) == (4_000_000, 1_000_000)
    machine(tmp_path, **{group + "memory.stat": f"anon 1\n{cache} 2500000\n"})  # files, which are given up
    assert memory(tmp_path) == (4_000_000, 3_500_000)
    machine(tmp_path, **{group + used: "9000000\n"})
    assert memory(tmp_path).available == 0
    (tmp_path / "proc/meminfo").unlink()
    assert memory(tmp_path).total == 4_000_000


def test_running_processes_are_counted(tmp_path):
    assert running_processes(tmp_path) is None
    for name in ("1", "23", "self", "4x"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    assert running_processes(tmp_path) == 2


def git(folder, *arguments):
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_is_that_of_the_checkout_and_says_when_it_was_changed(tmp_path):
    try:
        git(tmp_path, "init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    file = Path(tmp_path / "__init__.py")
    file.write_text("a = 1\n")
    assert _commit(file) is None  # lies in a checkout, but is not part of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert _commit(file) == commit
    file.write_text("a = 2\n")
    assert _commit(file) == f"{commit}-dirty"


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _commit(tmp_path / "__init__.py") is None
    monkeypatch.setenv("PATH", "")  # no git at all
    assert _commit(tmp_path / "__init__.py") is None
