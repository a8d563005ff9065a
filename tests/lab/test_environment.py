"""What a run says about where it was made."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm.lab.environment import _commit, environment


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
