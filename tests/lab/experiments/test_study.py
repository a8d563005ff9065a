"""Which runs are one arm, what the arms are called, and which directories are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchnorm.lab.errors import OutputError
from batchnorm.lab.experiments.study import read_study
from lab.synthetic_train import write_records


def arms_of(tmp_path: Path, *settings: dict) -> list:
    return read_study([write_records(tmp_path / str(i), [0.5, 0.6], **given) for i, given in enumerate(settings)]).arms


def test_runs_that_differ_in_the_seed_alone_are_one_arm(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"seed": 10}, {"norm": "none", "seed": 1}, {"seed": 9}, {"norm": "none", "seed": 0})
    assert [arm.name for arm in arms] == [
        "no normalization",
        "batch norm",
    ]  # what others are measured against comes first
    assert [[run.config["config"]["seed"] for run in arm.runs] for arm in arms] == [[0, 1], [9, 10]]
    assert [arm.settings for arm in arms] == [{"norm": "none"}, {"norm": "batch"}]


def test_where_to_and_how_often_makes_no_arm(tmp_path: Path) -> None:
    (arm,) = arms_of(tmp_path, {"out": "a", "log_every": 10}, {"seed": 1, "out": "b", "log_every": 20})
    assert arm.name == "mlp, batch norm"


def test_an_arm_is_named_by_every_setting_that_differs(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, {"lr": 0.1}, {"lr": 0.5, "momentum": 0.5})
    assert [arm.name for arm in arms] == ["lr 0.1, momentum 0.9", "lr 0.5, momentum 0.5"]


def test_a_long_name_stays_unique_and_says_that_there_is_more(tmp_path: Path) -> None:
    far = {"model": "b", "norm": "none", "optimizer": "adam", "lr": 0.2, "epochs": 3}
    arms = arms_of(tmp_path, {**far, "l1": 0.5}, {**far, "l1": 0.7}, {})
    assert [arm.name for arm in arms] == [
        "b, no normalization, adam, lr 0.2, l1 0.5 and 1 more",
        "b, no normalization, adam, lr 0.2, l1 0.7 and 1 more",
        "mlp, batch norm, sgd, lr 0.1, l1 - and 1 more",
    ]


def test_means_are_over_the_finished_runs_then_the_interrupted_ones(tmp_path: Path) -> None:
    paths = [
        write_records(tmp_path / "a", [0.5], seed=0, status="diverged"),
        write_records(tmp_path / "b", [0.5], seed=1, status="interrupted"),
        write_records(tmp_path / "c", [0.5], seed=2),
    ]
    (arm,) = read_study(paths).arms
    assert [run.status for run in arm.basis] == ["finished"]
    assert [run.status for run in arm.others] == ["diverged", "interrupted"]
    (arm,) = read_study(paths[:2]).arms
    assert [run.status for run in arm.basis] == ["interrupted"]
    (arm,) = read_study(paths[:1]).arms
    assert [run.status for run in arm.basis] == ["diverged"]


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    run = write_records(tmp_path / "run", [0.5])
    with pytest.raises(OutputError, match="at least one"):
        read_study([])
    with pytest.raises(OutputError, match="does not exist"):
        read_study([run, tmp_path / "absent"])
    with pytest.raises(OutputError, match="is given twice"):
        read_study([run, tmp_path / "." / "run"])
    other = write_records(tmp_path / "other", [0.5], kind="elsewhere", norm="none")
    (other / "metrics.jsonl").write_text('{"kind":"elsewhere","step":1,"epoch":1.0,"seconds":1.0,"reward":3.0}\n')
    with pytest.raises(OutputError, match="no quantity in common"):
        read_study([run, other])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", '{"kind":"train","loss":1}'),
        ("metrics.jsonl", '{"step":1}'),
        ("metrics.jsonl", "[1, 2]"),
        ("metrics.jsonl", '{"kind":"train","step":"1"}'),
        ("probes.jsonl", '{"probe":"running","step":1}'),
        ("probes.jsonl", "{"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, name: str, line: str) -> None:
    run = write_records(tmp_path / "run", [0.5])
    with (run / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(OutputError, match=rf"{name}.*is damaged"):
        read_study([run])
