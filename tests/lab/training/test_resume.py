"""Killed anywhere and resumed, a run is bit for bit the run that was never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import batchnorm
from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.recording import read_train_run
from batchnorm.lab.training import Interrupted, train
from batchnorm.lab.training.progress import Progress
from batchnorm.lab.training.run import Talk
from lab.training.runs import assert_same_run, config, points, without_times

TESTS = Path(__file__).parents[2]
draw = random.Random(5)
#: A run has 6 checkpoints (each one rename, two fsyncs), some 25 records and 24 steps. The first four renames make the
#: directory; the last checkpoint is that of the last step.
KILLS = [
    *("fsync:1", "fsync:2", "fsync:12", "replace:5", "replace:8", "line:1", "step:1"),
    *(f"fsync:{draw.randint(3, 11)}" for _ in range(3)),
    *(f"line:{draw.randint(2, 20)}" for _ in range(3)),
    *(f"step:{draw.randint(2, 24)}" for _ in range(2)),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(config(path), dataset=points())
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were killed."""
    directory = tmp_path_factory.mktemp("killed")
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(directory), *KILLS],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(batchnorm.__file__).parents[1]), str(TESTS)])},
    )
    return directory


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole: Path, killed: Path, kill: str) -> None:
    path = killed / kill.replace(":", "-")
    assert not (path / "status.json").exists()  # it had no time to say how it ended
    outcome = train(resume=path, dataset=points())
    assert (outcome.status, outcome.step) == ("finished", 24)
    assert_same_run(path, whole)


def test_the_comparison_would_see_another_random_state(whole: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), dataset=points(), talk=_ctrl_c_after(12))
    monkeypatch.setattr("batchnorm.lab.training.loop.restore_random_state", lambda _state: torch.manual_seed(1))
    train(resume=tmp_path / "run", dataset=points())
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", whole)


def _ctrl_c_after(step: int, said: Callable[[str], None] = lambda _: None) -> Talk:
    """Send this process one Ctrl-C when it reports ``step``, a multiple of a cadence: the next step is its last."""
    reports = []

    def report(progress: Progress) -> None:
        if progress.step == step and not reports:
            reports.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    return Talk(said, report)


@pytest.mark.parametrize("step", [1, 13, 21])
def test_ctrl_c_ends_the_step_writes_a_checkpoint_and_is_resumed_exactly(whole, tmp_path, step) -> None:
    path = tmp_path / "run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as interruption:
        train(config(path), dataset=points(), talk=_ctrl_c_after(step - 1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert interruption.value.outcome.step == step
    run = read_train_run(path)
    assert (run.status, run.step) == ("interrupted", step)
    assert (path / "weights.safetensors").is_file()
    train(resume=path, dataset=points())
    assert_same_run(path, whole)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(whole, tmp_path) -> None:
    path, said = tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(config(path), dataset=points(), talk=_ctrl_c_after(16))
    before, last = sorted((path / "checkpoints").iterdir())
    assert (before.name[:13], last.name[:13]) == ("step-00000015", "step-00000017")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    train(resume=path, dataset=points(), talk=Talk(say=said.append))
    assert f"{last} is damaged" in said[0]
    assert_same_run(path, whole)


def test_without_any_whole_checkpoint_nothing_is_begun_over_the_records(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(config(path), dataset=points())
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(b"")
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(OutputError, match="none of them is whole"):
        train(resume=path, dataset=points())
    assert (path / "metrics.jsonl").read_bytes() == before


def test_a_changed_setting_is_refused_by_name(whole: Path) -> None:
    with pytest.raises(LabError, match=r"dropout.*, lr \(was 0.001, now 0.5\)") as error:
        train(config(whole, lr=0.5, dropout=0.1), resume=whole, dataset=points())
    assert "batch_size" not in str(error.value)


def test_a_finished_run_goes_on_only_for_longer(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is at step 24 of 24; to go on, give more --epochs or --steps"):
        train(resume=whole, dataset=points())
    constant = {"schedule": "constant", "warmup_steps": 0}
    train(config(tmp_path / "long", steps=36, **constant), dataset=points())
    train(config(tmp_path / "short", **constant), dataset=points())
    longer = config(tmp_path / "short", steps=36, log_every=2, **constant)
    assert train(longer, resume=tmp_path / "short", dataset=points()).step == 36
    one, other = (read_train_run(tmp_path / name) for name in ("long", "short"))
    last = [without_times(run.of_kind("test"))[-1] for run in (one, other)]
    assert last[0] == last[1]
    assert other.config["config"]["steps"] == 36
    assert other.config["resumed"][0]["step"] == 24
    assert set(other.config["resumed"][0]["changed"]) == {"steps", "log_every"}


def test_what_was_given_as_objects_is_resumed_with_the_same_objects(tmp_path: Path) -> None:
    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 8), batchnorm.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        return torch.nn.Sequential(*layers)

    plain = {"model": "mine", "hidden": None, "dropout": 0.0}
    train(config(tmp_path / "whole", **plain), dataset=points(), model=network())
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run", **plain), dataset=points(), model=network(), talk=_ctrl_c_after(8))
    train(resume=tmp_path / "run", dataset=points(), model=network())
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert read_train_run(tmp_path / "run").config["model"]["name"] == "Sequential"
