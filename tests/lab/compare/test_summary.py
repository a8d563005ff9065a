"""The numbers of a run against values worked out by hand, on runs of a few records."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from batchnorm.lab.compare.artefacts import RunWriter, read_run
from batchnorm.lab.compare.summary import summarize
from batchnorm.lab.compare.wording import diverged, tables, verdict
from batchnorm.lab.wording import factor
from lab.compare.synthetic import ENVIRONMENT, config, record, write_run, write_trial


@pytest.fixture
def writer(tmp_path):
    return RunWriter.create(tmp_path / "run", config=config(), environment=ENVIRONMENT)


def summary_of(writer):
    return summarize(read_run(writer.path))


def test_ratio_is_steps_without_over_steps_with_per_seed_then_median_and_range(writer):
    # Evaluations at 10, 20, 30, 40. Targets 0.8, 0.6, 0.9: each seed has its own.
    write_trial(writer, "none", [0.2, 0.5, 0.7, 0.8], seed=0)  # reaches its own end at 40
    write_trial(writer, "batch", [0.8, 0.9, 0.9, 0.9], seed=0)  # 10: ratio 4
    write_trial(writer, "none", [0.2, 0.5, 0.7, 0.6], seed=1)  # at or above 0.6 first at 30
    write_trial(writer, "batch", [0.3, 0.6, 0.9, 0.9], seed=1)  # 20: ratio 1.5
    write_trial(writer, "none", [0.2, 0.5, 0.7, 0.9], seed=2)  # 40
    write_trial(writer, "batch", [0.3, 0.9, 0.9, 0.9], seed=2)  # 20: ratio 2
    (matched,) = summary_of(writer).matched
    assert [(p.target, p.none_steps, p.batch_steps, p.ratio) for p in matched.pairs] == [
        (0.8, 40, 10, 4.0),
        (0.6, 30, 20, 1.5),
        (0.9, 40, 20, 2.0),
    ]
    assert (matched.ratio, matched.ratio_low, matched.ratio_high) == (2.0, 1.5, 4.0)
    assert (matched.none_steps, matched.batch_steps, matched.reached, matched.targets) == (40, 20, 3, 3)
    assert matched.target == pytest.approx((0.8 + 0.6 + 0.9) / 3)
    assert matched.gain == pytest.approx((0.1 + 0.3 + 0.0) / 3)


def test_a_seed_that_never_reaches_ranks_last_and_is_never_a_number(writer):
    for seed in range(3):
        write_trial(writer, "none", [0.2, 0.8], seed=seed)
    write_trial(writer, "batch", [0.8, 0.9], seed=0)  # ratio 2
    write_trial(writer, "batch", [0.3, 0.8], seed=1)  # ratio 1
    write_trial(writer, "batch", [0.3, 0.7], seed=2)  # not reached
    (matched,) = summary_of(writer).matched
    assert [pair.outcome for pair in matched.pairs] == ["reached", "reached", "not reached"]
    assert (matched.ratio, matched.ratio_low, matched.ratio_high, matched.reached) == (1.0, 1.0, 2.0, 2)
    assert matched.pairs[2].ratio is None
    assert "not reached in 1 seed" in verdict(summary_of(writer)).numbers[0]


def test_a_majority_that_never_reaches_has_no_median(writer):
    for seed in range(3):
        write_trial(writer, "none", [0.2, 0.8], seed=seed)
        write_trial(writer, "batch", [0.9, 0.9] if seed == 0 else [0.3, 0.7], seed=seed)
    summary = summary_of(writer)
    assert (summary.matched[0].ratio, summary.matched[0].batch_steps, summary.time_ratio) == (None, None, None)
    assert verdict(summary).headline.startswith("With BN the network did not reach")
    assert "in 2 of 3 seeds" in verdict(summary).headline
    assert tables(summary)[0].rows[0][5] == "not reached"


def test_a_diverged_arm_without_bn_has_no_target_and_the_batch_arm_survives(writer):
    write_trial(writer, "none", [0.2, 0.8], status="diverged")
    write_trial(writer, "batch", [0.8, 0.9])
    summary = summary_of(writer)
    assert summary.best_lr == {"none": None, "batch": 0.1}
    assert summary.best is None
    (pair,) = summary.matched[0].pairs
    assert (pair.outcome, pair.target, pair.ratio) == ("diverged", None, None)
    assert "without BN diverged" in verdict(summary).headline
    assert "with BN the network ended at 90.0%" in verdict(summary).headline
    assert diverged(summary) == ["without BN at learning rate 0.1, 1 of 1 trial (seed 0: for the test: diverged)"]
    assert summary.arm("none", 0.1).accuracy_mean is None


def test_an_arm_without_bn_that_stays_at_chance_sets_no_target(writer):
    write_trial(writer, "none", [0.10, 0.1135])  # chance is 0.1; nothing learned below 0.19
    write_trial(writer, "batch", [0.8, 0.9])
    summary = summary_of(writer)
    assert summary.matched[0].pairs[0].outcome == "learned nothing"
    assert verdict(summary).headline == (
        "Without BN the network learned nothing in 100 steps: it ended at 11.3%, and chance is 10.0%. "
        "With BN it ended at 90.0%."
    )


def test_best_rate_is_highest_accuracy_then_lower_loss_then_lower_rate_and_never_one_that_diverged(writer):
    write_trial(writer, "none", [0.8], lr=0.1, test_loss=0.5)
    write_trial(writer, "none", [0.8], lr=0.2, test_loss=0.4)
    write_trial(writer, "none", [0.8], lr=0.4, test_loss=0.4)
    write_trial(writer, "none", [0.95], lr=0.8, seed=0)
    write_trial(writer, "none", [0.95], lr=0.8, seed=1, status="diverged")
    write_trial(writer, "batch", [0.7], lr=0.1)
    write_trial(writer, "batch", [0.9], lr=0.8)
    summary = summary_of(writer)
    assert summary.best_lr == {"none": 0.2, "batch": 0.8}
    assert (summary.best.none_lr, summary.best.batch_lr, summary.best.pairs[0].target) == (0.2, 0.8, 0.8)


def test_drift_and_spread_by_hand_and_the_unit_is_the_one_with_median_drift(writer):
    def q(*medians):  # percentiles with spread 2, 4, 6 for the three units
        width = np.array([1.0, 2.0, 3.0])
        return np.array([medians - width, medians, medians + width])

    for norm, scale in (("none", 1.0), ("batch", 0.5)):
        trial = writer.trial(norm=norm, lr=0.1, seed=0)
        trial.record(record(0, 0.1, percentiles=q(50, 50, 50)))  # before the running statistics have settled
        for step, medians in ((50, (0, 0, 0)), (60, (1, 5, -3)), (70, (-1, 4, 0))):
            trial.record(record(step, 0.8, percentiles=q(*(scale * np.array(medians)))))
        trial.end(status="finished", step=70)
    summary = summary_of(writer)
    assert summary.settled_step == 44  # 0.9**44 < 0.01 < 0.9**43
    none, batch = summary.arms
    # Drift per unit: 1 + 2, 5 + 1, 3 + 3. Median 6. Relative to the spread: 3/2, 6/4, 6/6. Median 1.5.
    assert (none.drift, none.spread, none.drift_per_spread) == (6.0, 4.0, 1.5)
    assert (batch.drift, batch.spread, batch.drift_per_spread) == (3.0, 4.0, 0.75)
    assert (summary.shown.unit, summary.shown.units, summary.shown.lr) == (1, 3, {"none": 0.1, "batch": 0.1})


def test_time_is_paired_by_interval(writer):
    for norm, seconds in (("none", (1.0, 2.0, 4.0)), ("batch", (2.0, 3.0, 4.0))):
        trial = writer.trial(norm=norm, lr=0.1, seed=0)
        for number, value in enumerate(seconds, start=1):
            trial.record(record(10 * number, 0.8, step_seconds=value))
        trial.end(status="finished", step=30)
    timing = summary_of(writer).timing
    assert (timing.seconds, timing.ratio) == ({"none": 2.0, "batch": 3.0}, 1.5)  # ratios 2, 1.5, 1
    assert (timing.ratio_low, timing.ratio_high) == (1.25, 1.75)


def test_curves_are_mean_and_range_over_seeds_and_the_std_is_the_sample_s(writer):
    write_trial(writer, "batch", [0.2, 0.6], seed=0)
    write_trial(writer, "batch", [0.4, 1.0], seed=1)
    (arm,) = summary_of(writer).arms
    assert arm.accuracy.steps == [10, 20]
    np.testing.assert_allclose(
        [arm.accuracy.mean, arm.accuracy.low, arm.accuracy.high], [[0.3, 0.8], [0.2, 0.6], [0.4, 1.0]]
    )
    assert arm.accuracy_mean == pytest.approx(0.8)
    assert arm.accuracy_std == pytest.approx(np.sqrt(0.08))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_one_arm_alone_has_nothing_to_compare_with(writer, norm):
    write_trial(writer, norm, [0.5, 0.7])
    summary = summary_of(writer)
    assert (summary.matched, summary.best) == ([], None)
    assert verdict(summary).headline.startswith("Only one arm was run")
    assert summary.shown.lr == {norm: 0.1}


def test_an_interrupted_run_gives_the_numbers_so_far(writer):
    write_trial(writer, "none", [0.5, 0.7], status="interrupted")
    write_trial(writer, "batch", [0.8, 0.9], status="interrupted")
    writer.trial(norm="none", lr=0.5, seed=0)  # nothing recorded yet
    writer.finish("interrupted")
    summary = summary_of(writer)
    assert (summary.status, summary.best.ratio) == ("interrupted", 2.0)
    assert "interrupted" in verdict(summary).limits[0]


def test_a_trial_with_a_single_record_and_a_run_with_none(tmp_path, writer):
    write_trial(writer, "none", [0.5])
    write_trial(writer, "batch", [0.5])
    summary = summary_of(writer)
    assert (summary.best.ratio, summary.grid, summary.arms[0].drift, summary.shown) == (1.0, [], None, None)
    assert "about as many steps" in verdict(summary).headline
    empty = RunWriter.create(tmp_path / "empty", config=config(), environment={})
    assert verdict(summary_of(empty)).headline == "Nothing was recorded before the run ended."


def test_a_slower_batch_arm_is_said_to_be_slower(writer):
    write_trial(writer, "none", [0.8, 0.8, 0.8, 0.8])
    write_trial(writer, "batch", [0.2, 0.4, 0.6, 0.8])
    assert verdict(summary_of(writer)).headline.startswith("With BN the network needed 4.0 times more steps to reach")


def test_summary_json_tables_and_sentences_hold_the_same_numbers(tmp_path):
    path = write_run(tmp_path / "run", evaluations=20)
    summary = summarize(read_run(path))
    summary.write(path / "summary.json")
    stored = json.loads((path / "summary.json").read_text())
    assert stored == json.loads(json.dumps(asdict(summary)))
    comparison, arms = tables(summary)
    assert comparison.rows[0][5] == factor(stored["best"]["ratio"])
    assert [row[3].split("%")[0] for row in arms.rows] == [
        f"{100 * arm['accuracy_mean']:.1f}" for arm in stored["arms"]
    ]
    assert factor(stored["best"]["ratio"])[:-1] in verdict(summary).headline
    assert all(len(row) == len(table.columns) for table in (comparison, arms) for row in table.rows)
