"""The numbers of a report and the sentences made of them, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchnorm.lab.recording import Recorder
from batchnorm.lab.report.arms import read_arms
from batchnorm.lab.report.numbers import best_evaluation, deciding_part, summarize
from batchnorm.lab.report.wording import clock, tables, verdict
from lab.synthetic_train import ENVIRONMENT, config, write_records


def test_the_target_is_what_the_first_arm_reached_in_every_run(tmp_path: Path) -> None:
    arms = read_arms([
        write_records(tmp_path / "a", [0.1, 0.6, 0.8, 0.7], norm="none", seed=0),
        write_records(tmp_path / "b", [0.1, 0.5, 0.6, 0.9], norm="none", seed=1),
        write_records(tmp_path / "c", [0.5, 0.8, 0.9, 0.9], seed=0),
        write_records(tmp_path / "d", [0.9, 0.9, 0.9, 0.9], seed=1),
        write_records(tmp_path / "e", [0.1, 0.1, 0.1, 0.1], seed=2),
    ])  # fmt: skip
    numbers = summarize(arms)
    none, batch = numbers.arms
    assert numbers.target == 0.8
    assert [run.target_step for run in none.runs] == [30, 40]
    assert [run.target_step for run in batch.runs] == [20, 10, None]
    assert (none.target_step, batch.target_step) == (35, 20)  # of 10, 20 and never, the median is 20
    assert (none.target_seconds, batch.target_seconds, batch.reached) == (3.5, 2.0, 2)
    assert none.final_accuracy is not None
    assert (none.final_accuracy.n, none.final_accuracy.mean) == (2, pytest.approx(0.8))
    assert none.final_accuracy.std == pytest.approx(0.02**0.5)
    assert none.best_accuracy is not None
    assert none.best_accuracy.mean == pytest.approx(0.85)
    assert none.runs[0].best_step == 30
    answer = verdict(arms, numbers)
    assert "norm=batch reached the best accuracy of norm=none (80.0%) in 1.8 times fewer steps" in answer.headline
    row = tables(numbers)[0].rows[1]
    assert row[0] == "norm=batch"
    assert row[-2:] == ["20 (2 of 3)", "2 s"]


def test_a_median_run_that_never_arrives_is_said(tmp_path: Path) -> None:
    arms = read_arms([
        write_records(tmp_path / "a", [0.1, 0.8], norm="none"),
        write_records(tmp_path / "b", [0.5, 0.6], seed=0),
    ])  # fmt: skip
    numbers = summarize(arms)
    assert numbers.arms[1].target_step is None
    assert "norm=batch did not reach" in verdict(arms, numbers).headline
    assert tables(numbers)[0].rows[1][-2:] == ["not reached", "-"]


def _with_validation(path: Path, rows: list[tuple[float, float, float]]) -> Path:
    recorder = Recorder.create(path, config=config(), environment=ENVIRONMENT)
    for number, (test, validation, seen) in enumerate(rows, start=1):
        at = {"step": number, "epoch": number, "seconds": number}
        for kind, value in (("test", test), ("validation", validation), ("train_evaluation", seen)):
            recorder.metrics(kind, **at, loss=1.0, accuracy=value)
    recorder.end(status="finished", step=len(rows))
    return path


def test_the_best_evaluation_is_chosen_on_validation_data_when_there_are_any(tmp_path: Path) -> None:
    arms = read_arms([_with_validation(tmp_path / "run", [(0.5, 0.6, 0.7), (0.9, 0.7, 0.8), (0.8, 0.9, 0.95)])])
    numbers = summarize(arms)
    assert (numbers.part, numbers.chosen_on) == ("test", "validation")
    (run,) = numbers.arms[0].runs
    assert (run.best_accuracy, run.best_step) == (0.8, 3)  # not the 0.9 that the test data would have chosen
    assert best_evaluation(arms[0].runs[0], "test", "test") == (0.9, 2)
    assert run.gap == pytest.approx(0.15)
    assert not any("chosen on the test data" in limit for limit in verdict(arms, numbers).limits)


def test_a_part_evaluated_once_gives_way_to_one_evaluated_along_the_way(tmp_path: Path) -> None:
    path = _with_validation(tmp_path / "run", [(0.5, 0.6, 0.7), (0.9, 0.7, 0.8)])
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[1:]))  # the first evaluation on test data goes
    assert deciding_part(read_arms([path])) == "validation"


def test_every_run_that_did_not_finish_is_named_with_its_reason(tmp_path: Path) -> None:
    arms = read_arms([
        write_records(tmp_path / "a", [0.1, 0.8], norm="none"),
        write_records(tmp_path / "b", [0.5], status="diverged", reason="the loss became inf"),
        write_records(tmp_path / "c", [0.5], status="", norm="layer"),
    ])  # fmt: skip
    numbers = summarize(arms)
    answer = verdict(arms, numbers)
    assert "norm=batch, seed 0 diverged at step 10: the loss became inf." in answer.limits
    assert "norm=layer, seed 0 was interrupted at step 10." in answer.limits
    assert numbers.arms[1].final_accuracy is None  # a diverged run has no accuracy that counts
    assert numbers.arms[2].final_accuracy is not None
    (runs,) = [table for table in tables(numbers) if table.title == "Runs"]
    assert [row[2] for row in runs.rows] == ["finished", "diverged: the loss became inf", "interrupted"]


def test_what_makes_arms_incomparable_is_a_limit(tmp_path: Path) -> None:
    arms = read_arms([
        write_records(tmp_path / "a", [0.1, 0.8]),
        write_records(tmp_path / "b", [0.5, 0.6], data="mnist", environment={**ENVIRONMENT, "processor": "another"}),
    ])  # fmt: skip
    limits = " ".join(verdict(arms, summarize(arms)).limits)
    assert "not trained on the same data" in limits
    assert "not run on the same machine" in limits
    assert "same version" not in limits


@pytest.mark.parametrize("accuracy", [[], [None], [0.5]])
def test_runs_of_hardly_any_record_have_words(tmp_path: Path, accuracy: list) -> None:
    arms = read_arms([write_records(tmp_path / "run", accuracy, status="")])
    numbers = summarize(arms)
    answer = verdict(arms, numbers)
    expected = {0: "Nothing was trained", 1: "never evaluated" if accuracy == [None] else "was interrupted at 50.0%"}
    assert expected[len(accuracy)] in answer.headline
    assert tables(numbers)


def test_two_arms_of_which_one_recorded_nothing(tmp_path: Path) -> None:
    arms = read_arms([
        write_records(tmp_path / "a", [], norm="none", status="failed", reason="out of memory"),
        write_records(tmp_path / "b", [0.5, 0.6]),
    ])  # fmt: skip
    numbers = summarize(arms)
    assert numbers.target is None
    answer = verdict(arms, numbers)
    assert answer.headline == "norm=batch ended highest, at 60.0% test accuracy."
    assert "norm=none, seed 0 failed at step 0: out of memory." in answer.limits


def test_times_are_written_in_units_that_suit_them() -> None:
    assert [clock(t) for t in (None, 2.84, 48, 720, 12_000)] == ["-", "2.8 s", "48 s", "12 min", "3 h 20 min"]


def test_an_arm_no_better_than_guessing_sets_no_target(tmp_path: Path) -> None:
    none = write_records(tmp_path / "a", [0.1, 0.14, 0.1], norm="none")  # of 360 examples and 10 classes
    batch = write_records(tmp_path / "b", [0.1, 0.5, 0.6])
    arms = read_arms([none, batch])
    numbers = summarize(arms)
    assert numbers.target is None
    answer = verdict(arms, numbers)
    assert answer.headline == "norm=batch ended highest, at 60.0% test accuracy."
    assert any("norm=none did no better than guessing" in limit for limit in answer.limits)
    better = write_records(tmp_path / "c", [0.1, 0.16, 0.1], norm="none")  # beyond three standard errors
    assert summarize(read_arms([better, batch])).target == 0.16


def test_a_comparison_says_what_limits_it(tmp_path: Path) -> None:
    none = write_records(tmp_path / "a", [0.1, 0.6], norm="none", lr=0.01, every=50, status="interrupted")
    batch = write_records(tmp_path / "b", [0.5, 0.8], lr=0.1, every=50)
    arms = read_arms([none, batch])
    numbers = summarize(arms)
    limits = " ".join(verdict(arms, numbers).limits)
    assert "every 50 steps" in limits
    assert "differ in norm and lr: this page cannot say which" in limits
    assert "over those that were interrupted" in tables(numbers)[0].note
    alone = read_arms([batch])
    assert "differ in" not in " ".join(verdict(alone, summarize(alone)).limits)
