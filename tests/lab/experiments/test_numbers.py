"""The numbers of a report and the sentences made of them, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from batchnorm.lab.experiments.numbers import best_evaluation, deciding_split, summarize
from batchnorm.lab.experiments.study import read_study
from batchnorm.lab.recording import Recorder
from batchnorm.lab.report.wording import clock, tables, verdict
from lab.synthetic_train import ENVIRONMENT, config, write_records


def test_the_target_is_what_the_first_arm_reached_in_every_run(tmp_path: Path) -> None:
    study = read_study([
        write_records(tmp_path / "a", [0.1, 0.6, 0.8, 0.7], norm="none", seed=0),
        write_records(tmp_path / "b", [0.1, 0.5, 0.6, 0.9], norm="none", seed=1),
        write_records(tmp_path / "c", [0.5, 0.8, 0.9, 0.9], seed=0),
        write_records(tmp_path / "d", [0.9, 0.9, 0.9, 0.9], seed=1),
        write_records(tmp_path / "e", [0.1, 0.1, 0.1, 0.1], seed=2),
    ])  # fmt: skip
    numbers = summarize(study)
    none, batch = numbers.arms
    assert numbers.target == 0.7  # the lower of the accuracies at the end
    assert numbers.marks == [0.7, 0.8, 0.9]  # 95 % nobody reached
    assert [numbers.groups[k].reaches[0].each for k in (0, 1)] == [[30, 40], [20, 10, math.inf]]
    assert (none.steps[0], batch.steps[0]) == (35, 20)  # of 10, 20 and never, the median is 20
    ratio = numbers.groups[1].ratios[0]
    assert (ratio.value, ratio.low, ratio.high) == (1.75, 1.5, 4)
    assert none.final_accuracy is not None
    assert (none.final_accuracy.n, none.final_accuracy.mean) == (2, pytest.approx(0.8))
    assert none.final_accuracy.std == pytest.approx(0.02**0.5)
    assert none.best_accuracy is not None
    assert none.best_accuracy.mean == pytest.approx(0.85)
    assert none.runs[0].best_step == 30
    answer = verdict(study, numbers)
    assert answer.headline == (
        "Batch norm reached the accuracy that no normalization ended with (70.0%) in 1.5 to 4 times fewer steps."
    )
    assert tables(study, numbers)[0].rows == [
        ["no normalization", "35", "35", "not reached"],
        ["batch norm", "20", "20", "30"],
        ["ratio to no normalization", "1.8x (1.5x to 4.0x)", "1.8x (1.5x to 4.0x)", "baseline did not reach it"],
    ]


def test_a_median_run_that_never_arrives_is_said(tmp_path: Path) -> None:
    study = read_study([
        write_records(tmp_path / "a", [0.1, 0.8], norm="none"),
        write_records(tmp_path / "b", [0.5, 0.6], seed=0),
    ])  # fmt: skip
    numbers = summarize(study)
    assert numbers.arms[1].steps == [None]
    assert "Batch norm did not reach" in verdict(study, numbers).headline
    assert tables(study, numbers)[0].rows[1][-1] == "not reached"


def _with_validation(path: Path, rows: list[tuple[float, float, float]]) -> Path:
    recorder = Recorder.create(path, config=config(), environment=ENVIRONMENT)
    for number, (test, validation, seen) in enumerate(rows, start=1):
        at = {"step": number, "epoch": number, "seconds": number}
        for kind, value in (("test", test), ("validation", validation), ("train_evaluation", seen)):
            recorder.metrics(kind, **at, loss=1.0, accuracy=value)
    recorder.end(status="finished", step=len(rows))
    return path


def test_the_best_evaluation_is_chosen_on_validation_data_when_there_are_any(tmp_path: Path) -> None:
    study = read_study([_with_validation(tmp_path / "run", [(0.5, 0.6, 0.7), (0.9, 0.7, 0.8), (0.8, 0.9, 0.95)])])
    numbers = summarize(study)
    assert (numbers.split, numbers.chosen_on) == ("test", "validation")
    (run,) = numbers.arms[0].runs
    assert (run.best_accuracy, run.best_step) == (0.8, 3)  # not the 0.9 that the test data would have chosen
    assert best_evaluation(study.arms[0].runs[0], "test", "test") == (0.9, 2)
    assert run.gap == pytest.approx(0.15)
    assert not any("chosen on the test data" in limit for limit in verdict(study, numbers).limits)


def test_a_part_evaluated_once_gives_way_to_one_evaluated_along_the_way(tmp_path: Path) -> None:
    path = _with_validation(tmp_path / "run", [(0.5, 0.6, 0.7), (0.9, 0.7, 0.8)])
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[1:]))  # the first evaluation on test data goes
    assert deciding_split(read_study([path]).arms) == "validation"


def test_every_run_that_did_not_finish_is_named_with_its_reason(tmp_path: Path) -> None:
    study = read_study([
        write_records(tmp_path / "a", [0.1, 0.8], norm="none"),
        write_records(tmp_path / "b", [0.5], status="diverged", reason="the loss became inf"),
        write_records(tmp_path / "c", [0.5], status="", norm="layer"),
    ])  # fmt: skip
    numbers = summarize(study)
    answer = verdict(study, numbers)
    assert "batch norm, seed 0 diverged at step 10: the loss became inf." in answer.limits
    assert "layer norm, seed 0 was interrupted at step 10." in answer.limits
    assert numbers.arms[1].final_accuracy is None  # a diverged run has no accuracy that counts
    assert numbers.arms[2].final_accuracy is not None
    (runs,) = [table for table in tables(study, numbers) if table.title == "Runs"]
    assert [row[2] for row in runs.rows] == ["finished", "diverged: the loss became inf", "interrupted"]


def test_what_makes_arms_incomparable_is_a_limit(tmp_path: Path) -> None:
    study = read_study([
        write_records(tmp_path / "a", [0.1, 0.8]),
        write_records(tmp_path / "b", [0.5, 0.6], data="mnist", environment={**ENVIRONMENT, "processor": "another"}),
    ])  # fmt: skip
    limits = " ".join(verdict(study, summarize(study)).limits)
    assert "not trained on the same data" in limits
    assert "not run on the same machine" in limits
    assert "same version" not in limits


@pytest.mark.parametrize("accuracy", [[], [None], [0.5]])
def test_runs_of_hardly_any_record_have_words(tmp_path: Path, accuracy: list) -> None:
    study = read_study([write_records(tmp_path / "run", accuracy, status="")])
    numbers = summarize(study)
    answer = verdict(study, numbers)
    expected = {0: "Nothing was trained", 1: "never evaluated" if accuracy == [None] else "was interrupted at 50.0%"}
    assert expected[len(accuracy)] in answer.headline
    assert tables(study, numbers)


def test_two_arms_of_which_one_recorded_nothing(tmp_path: Path) -> None:
    study = read_study([
        write_records(tmp_path / "a", [], norm="none", status="failed", reason="out of memory"),
        write_records(tmp_path / "b", [0.5, 0.6]),
    ])  # fmt: skip
    numbers = summarize(study)
    assert numbers.target is None
    answer = verdict(study, numbers)
    assert answer.headline == "No normalization failed; batch norm ended at 60.0%."
    assert "no normalization, seed 0 failed at step 0: out of memory." in answer.limits


def test_times_are_written_in_units_that_suit_them() -> None:
    assert [clock(t) for t in (None, 2.84, 48, 720, 12_000)] == ["-", "2.8 s", "48 s", "12 min", "3 h 20 min"]


def test_an_arm_no_better_than_guessing_sets_no_target(tmp_path: Path) -> None:
    none = write_records(tmp_path / "a", [0.1, 0.14, 0.1], norm="none")  # of 360 examples and 10 classes
    batch = write_records(tmp_path / "b", [0.1, 0.5, 0.6])
    study = read_study([none, batch])
    numbers = summarize(study)
    assert numbers.target is None
    answer = verdict(study, numbers)
    assert answer.headline == "Batch norm ended at 60.0%; no normalization did no better than guessing, at 10.0%."
    assert any("no normalization did no better than guessing" in limit for limit in answer.limits)
    better = write_records(tmp_path / "c", [0.1, 0.1, 0.16], norm="none")  # beyond three standard errors
    assert summarize(read_study([better, batch])).target == 0.16


def test_a_comparison_says_what_limits_it(tmp_path: Path) -> None:
    none = write_records(tmp_path / "a", [0.1, 0.6], norm="none", lr=0.01, every=50, status="interrupted")
    batch = write_records(tmp_path / "b", [0.5, 0.8], lr=0.1, every=50)
    study = read_study([none, batch])
    numbers = summarize(study)
    limits = " ".join(verdict(study, numbers).limits)
    assert "every 50 steps" in limits
    assert "differ in norm and lr: this page cannot say which" in limits
    assert "over those that were interrupted" in tables(study, numbers)[1].note
    alone = read_study([batch])
    assert "differ in" not in " ".join(verdict(alone, summarize(alone)).limits)
