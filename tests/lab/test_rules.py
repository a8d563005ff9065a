"""The definition of each printed number, on cases worked out by hand; ties and edges change no ratio unseen."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from batchnorm.lab import rules
from batchnorm.lab.rules import Best, Ratio, Reach, Spread

INF = math.inf
STEPS = np.array([0.0, 10, 20, 30])


def _reach(curves: dict[float, list[list[float]]], mark: float) -> Reach:
    found = {lr: [rules.steps_to(STEPS, np.array(one), mark) for one in each] for lr, each in curves.items()}
    return rules.reach(found, tuned=True)


def test_steps_count_from_the_first_evaluation_at_the_target_but_never_before_training() -> None:
    accuracy = np.array([0.9, 0.5, 0.9, 0.8])
    assert rules.steps_to(STEPS, accuracy, 0.9) == 20
    assert rules.steps_to(STEPS, accuracy, 0.91) == INF


def test_the_target_is_reached_by_every_seed_of_the_baseline_at_its_best_rate() -> None:
    assert rules.target({0.1: [0.7, 0.9], 1.0: [0.8, 0.85], 3.0: []}) == 0.8
    assert rules.target({0.1: []}) is None


def test_a_tie_between_two_rates_changes_no_ratio() -> None:
    # Both rates end with the same accuracy; one gets there twice as soon. Whichever is called best, the ratio stays.
    none = {1.0: [[0.1, 0.5, 0.8, 0.9]], 3.0: [[0.1, 0.5, 0.9, 0.9]]}
    batch = {1.0: [[0.1, 0.9, 0.9, 0.95]]}
    losses = {1.0: 0.3, 3.0: 0.2}
    finals = {lr: [one[-1] for one in each] for lr, each in none.items()}
    ratios = []
    for swapped in (losses, {1.0: 0.2, 3.0: 0.3}):
        best = rules.best_over(finals, swapped, 0.01)
        assert best is not None
        assert best.ties == [3.0 if best.value == 1.0 else 1.0]
        target = rules.target(finals)
        assert target == 0.9
        ratios.append(rules.ratio(partial(_reach, none), partial(_reach, batch), target, 0.01).value)
    assert ratios == [2.0, 2.0]
    # The ratio at the rate that is called best, as one might take it, flips between 3 and 2.
    naive = [_reach({lr: none[lr]}, 0.9).steps for lr in (1.0, 3.0)]
    assert naive == [30, 20]


def test_the_interval_holds_single_seeds_and_targets_one_example_away() -> None:
    none = {1.0: [[0.1, 0.5, 0.8, 0.9], [0.1, 0.5, 0.9, 0.91]]}
    batch = {1.0: [[0.1, 0.9, 0.9, 0.95], [0.1, 0.9, 0.91, 0.95]]}
    found = rules.ratio(partial(_reach, none), partial(_reach, batch), 0.9, 0.005)
    # Medians 25 and 10; seeds 30/10 and 20/10; one example more: none 30 in one of two seeds only, so never.
    assert found == Ratio(2.5, 2.0, 3.0, "")
    far = rules.ratio(partial(_reach, none), partial(_reach, batch), 0.99, 0.005)
    assert far == Ratio(None, None, None, "baseline")


def test_a_best_rate_at_the_edge_of_the_grid_is_said() -> None:
    finals = {0.1: [0.9], 1.0: [0.8], 10.0: [0.7]}
    assert rules.best_over(finals, {}, 0.01) == Best(0.1, [], edge=True)
    assert rules.best_over({**finals, 1.0: [0.95]}, {}, 0.01) == Best(1.0, [], edge=False)
    assert rules.best_over({0.1: [0.9]}, {}, 0.01) == Best(0.1, [], edge=False)
    assert rules.best_over({0.1: []}, {}, 0.01) is None  # diverged
    assert rules.reach({0.1: [30], 1.0: [20], 10.0: [40]}, tuned=True) == Reach(1.0, 20, [20], edge=False)
    assert rules.reach({0.1: [10], 1.0: [20]}, tuned=True) == Reach(0.1, 10, [10], edge=True)
    assert rules.reach({0.1: [10], 1.0: [10], 10.0: [20]}, tuned=True) == Reach(1.0, 10, [10], edge=False)


def test_a_median_seed_that_never_arrives_is_not_reached() -> None:
    assert rules.median([10, None, 20]) == 20
    assert rules.median([10, None, None]) is None
    assert rules.reach({1.0: [10, INF, INF]}, tuned=False) == Reach(None, None, [10, INF, INF], edge=False)


def test_guessing_is_three_standard_errors_above_chance() -> None:
    assert rules.guessing_accuracy(10, 360) == pytest.approx(0.1 + 3 * math.sqrt(0.09 / 360))


def test_divergence_is_far_above_guessing_and_above_the_beginning() -> None:
    assert rules.diverged(2 * math.log(10), 2.3, 10) == ""
    assert "more than 2 times that of guessing, 2.3" in rules.diverged(4.7, 2.3, 10)
    assert rules.diverged(4.7, 5.0, 10) == ""  # it ends high because it began there


def test_spread_leaves_out_what_is_missing() -> None:
    assert rules.spread([1.0, None, 3.0, math.nan]) == Spread(2, 2.0, pytest.approx(math.sqrt(2)), 1.0, 3.0)
    assert rules.spread([1.0]) == Spread(1, 1.0, None, 1.0, 1.0)
    assert rules.spread([None]) is None


def test_times_are_compared_inside_pairs() -> None:
    assert rules.time_ratio({1: 1.0, 2: 10.0, 3: 1.0}, {1: 2.0, 2: 20.0, 4: 9.0}) == (2, 2, 2)
    assert rules.time_ratio({1: 1.0}, {2: 1.0}) is None


def test_drift_adds_up_every_move_of_the_median() -> None:
    np.testing.assert_allclose(rules.drift(np.array([[0.0, 1], [1, 1], [-1, 1]])), [3, 0])


def test_running_statistics_count_when_less_than_a_hundredth_of_their_start_is_left() -> None:
    step = rules.settled_step(0.1)
    assert 0.9**step < 0.01 <= 0.9 ** (step - 1)
    assert rules.settled_step(1.0) == 1
