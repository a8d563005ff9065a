"""A plan that runs: each cell is the training it would be alone, whatever takes turns with it or stops it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from batchnorm.lab.experiments.plan import Plan, missing, store
from batchnorm.lab.experiments.run import Watch, run_plan, take_turns
from batchnorm.lab.recording import read_train_run
from batchnorm.lab.report import make_report
from batchnorm.lab.training import train
from batchnorm.lab.training.run import Training
from lab.experiments.plans import plan
from lab.training.runs import assert_same_run


def _stored(path: Path, **settings) -> Plan:
    made = plan(**settings)
    store(made, path, head={"command": "batchnorm compare"}, environment={})
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that nothing happened to."""
    path = tmp_path_factory.mktemp("plans") / "whole"
    _stored(path)
    assert run_plan(path)
    return path


def _assert_same(path: Path, other: Path) -> None:
    for cell in plan().cells:
        assert_same_run(cell.directory(path), cell.directory(other))


def test_a_cell_is_bit_for_bit_the_training_alone(whole: Path, tmp_path: Path) -> None:
    for cell in plan().cells[:4]:
        train(replace(cell.config, out=tmp_path / cell.name))
        assert_same_run(cell.directory(whole), tmp_path / cell.name)


def test_turns_without_their_own_random_state_would_be_seen(whole: Path, tmp_path: Path) -> None:
    group = plan().groups[0]
    loops = [iter(Training(replace(cell.config, out=tmp_path / cell.name))) for cell in group]
    for _ in zip(*loops, strict=True):  # both draw their dropout from one generator
        pass
    with pytest.raises(AssertionError):
        assert_same_run(group[0].directory(whole), tmp_path / group[0].name)
    right = [Training(replace(cell.config, out=tmp_path / f"right-{cell.name}")) for cell in group]
    take_turns(right)
    assert_same_run(group[0].directory(whole), right[0].path)


@pytest.mark.parametrize("at", [(0, 4), (5, 8), (7, 0)])
def test_an_interrupted_plan_goes_on_with_what_is_missing(whole: Path, tmp_path: Path, at: tuple[int, int]) -> None:
    path, seen = tmp_path / "plan", []
    made = _stored(path)
    number, step = at

    def press(cell, progress) -> None:
        if cell == made.cells[number] and progress.step == step and not seen:
            seen.append(cell)
            os.kill(os.getpid(), signal.SIGINT)

    assert not run_plan(path, watch=Watch(press))
    waiting = missing(made, path)
    assert made.cells[number] in waiting
    finished = {cell.name: cell.directory(path) for cell in made.cells if cell not in waiting}
    times = {name: (directory / "metrics.jsonl").stat().st_mtime_ns for name, directory in finished.items()}
    make_report([path])  # of what there is
    assert run_plan(path)
    assert missing(made, path) == []
    assert times == {name: (directory / "metrics.jsonl").stat().st_mtime_ns for name, directory in finished.items()}
    _assert_same(path, whole)


def test_several_processes_share_the_cells(whole: Path, tmp_path: Path) -> None:
    _stored(tmp_path / "plan")
    assert run_plan(tmp_path / "plan", workers=2)
    _assert_same(tmp_path / "plan", whole)
    assert not list((tmp_path / "plan/takes").iterdir())  # every cell was given back


def test_a_cell_that_diverged_is_done_and_the_others_go_on(tmp_path: Path) -> None:
    made = plan()
    axes = {**made.axes, "lr": {"1": {"lr": 1.0}, "1e30": {"lr": 1e30}}}
    made = replace(made, axes=axes)
    store(made, tmp_path / "plan", head={"command": ""}, environment={})
    assert run_plan(tmp_path / "plan")
    statuses = {cell.labels["lr"]: read_train_run(cell.directory(tmp_path / "plan")).status for cell in made.cells[:4]}
    assert statuses["1"] == "finished"
    assert missing(made, tmp_path / "plan") == []
    report = make_report([tmp_path / "plan"])
    assert report.numbers.groups[0].best is not None
    assert report.numbers.groups[0].best.value == 1.0


def test_the_page_of_a_plan_knows_its_axes(whole: Path) -> None:
    report = make_report([whole])
    assert [group.name for group in report.study.groups] == ["no normalization", "batch norm"]
    assert list(report.study.groups[0].arms) == [0.1, 1.0]
    assert [len(arm.runs) for arm in report.study.arms] == [2] * 4
    text = report.page.read_text()
    assert "Which is quicker?" in text
    assert "fewest steps" in text  # the rule
    assert "batchnorm compare" in text
