"""Several processes: the curve of one, statistics of each, and the same network in all of them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import batchnorm
import batchnorm.lab.errors
from batchnorm.lab.data import Loader
from batchnorm.lab.recording import read_train_run
from batchnorm.lab.training import train
from lab.training.ranks import network
from lab.training.runs import plain, points, without_times

TESTS = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes on one machine made."""
    directory = tmp_path_factory.mktemp("two")
    program = [str(Path(__file__).with_name("ranks.py")), str(directory)]
    done = subprocess.run(
        [*LAUNCH, *program],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(batchnorm.__file__).parents[1]), str(TESTS)]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


def _ranks(directory: Path, norm: str) -> list[dict[str, Any]]:
    return [torch.load(directory / f"{norm}-{rank}.pt", weights_only=True) for rank in range(2)]


def test_without_batch_normalization_two_processes_train_as_one_with_the_joint_batch(two: Path, tmp_path: Path) -> None:
    train(plain(tmp_path / "run", "none"), dataset=points(), model=network("none"))
    one, other = read_train_run(tmp_path / "run"), read_train_run(two / "none")
    for kind in ("train", "test", "train_evaluation"):
        losses = [torch.tensor([record["loss"] for record in run.of_kind(kind)]) for run in (one, other)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    weights = [load_file(path / "weights.safetensors") for path in (tmp_path / "run", two / "none")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_population_statistics_are_those_of_all_processes(two: Path) -> None:
    one, other = _ranks(two, "longer")
    assert one["scores"] == other["scores"]
    running = _ranks(two, "batch")[0]
    torch.testing.assert_close(one["model"], running["model"], rtol=0, atol=0)  # measured on a copy
    assert one["scores"]["test"]["loss"] != running["scores"]["test"]["loss"]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_all_processes_end_with_the_same_network_and_the_same_scores(two: Path, norm: str) -> None:
    one, other = _ranks(two, norm)
    assert one["scores"] == other["scores"]
    for name, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][name], rtol=0, atol=0, msg=name)
    saved = load_file(two / norm / "weights.safetensors")
    torch.testing.assert_close(saved, dict(one["model"]), rtol=0, atol=0)


def test_running_statistics_are_the_mean_of_what_each_process_saw(two: Path) -> None:
    # The same training in this process: two copies of the layer see a half each, the gradient is their mean.
    model, config = network("batch"), plain(Path(), "batch")
    halves = [model, copy.deepcopy(model)]
    dataset = points()
    loader = Loader(dataset.train, config.batch_size, seed=0, classes=3)
    velocity = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    batches = [batch for epoch in range(2) for batch in loader.epoch(epoch)][: config.steps]
    for batch in batches:
        for half, x, y in zip(halves, batch.x.chunk(2), batch.y.chunk(2), strict=True):
            half.zero_grad()
            torch.nn.functional.cross_entropy(half(x), y).backward()
        with torch.no_grad():
            for (name, one), (_, other) in zip(*(half.named_parameters() for half in halves), strict=True):
                velocity[name].mul_(config.momentum).add_((one.grad + other.grad) / 2)
                for parameter in (one, other):
                    parameter.sub_(config.lr * velocity[name])
    found = _ranks(two, "batch")[0]["model"]
    for name in ("1.running_mean", "1.running_var"):
        mean = (halves[0].state_dict()[name] + halves[1].state_dict()[name]) / 2
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-5)
        with pytest.raises(AssertionError):  # what DDP does by itself: those of rank 0
            torch.testing.assert_close(found[name], halves[0].state_dict()[name], rtol=1e-4, atol=1e-5)
    assert found["1.num_batches_tracked"] == config.steps


def test_two_processes_resume_and_write_once(two: Path) -> None:
    run = read_train_run(two / "longer")
    assert (run.status, run.step) == ("finished", 12)
    assert [record["step"] for record in run.of_kind("train")] == list(range(1, 13))
    assert run.environment["processes"] == 2
    assert json.loads((two / "longer/config.json").read_text())["resumed"][0]["changed"] == ["steps"]


def test_one_process_does_not_go_on_with_the_run_of_two(two: Path) -> None:
    with pytest.raises(batchnorm.lab.errors.LabError, match="as many processes as it began with, 2; got 1"):
        train(
            plain(two / "longer", "batch", steps=20, statistics="population"),
            resume=two / "longer",
            dataset=points(),
            model=network("batch"),
        )
    assert without_times(read_train_run(two / "longer").of_kind("train"))[-1]["step"] == 12


@pytest.mark.parametrize("setting", [("--lr", "-1"), ("--model", "nix")])  # before and after there is a group
def test_what_is_wrong_for_all_processes_is_said_once(setting: tuple[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*LAUNCH, "-m", "batchnorm", "train", *setting],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(batchnorm.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("batchnorm: error: ") == 1
    assert not list(tmp_path.iterdir())
