"""Pairs and their statistics, on clocks that the test winds."""

import itertools
from collections import Counter

import pytest

from batchnorm.lab.bench.measure import MIN_WARM_UP, Arm, Samples, Spread, interleave, ratios


class Clock:
    """Time passes only when an arm is called."""

    def __init__(self):
        self.now = 100.0
        self.order = []

    def __call__(self):
        return self.now

    def arm(self, name, durations, reset=lambda: None):
        durations = itertools.repeat(durations) if isinstance(durations, float) else iter(durations)

        def call():
            self.order.append(name)
            self.now += next(durations)

        return Arm(call, reset)


def samples(*seconds):
    return Samples(seconds, 1, 0.0)


def test_percentiles_interpolate_and_one_value_is_its_own_spread():
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Spread(2.0, 3.5, 5.0)


def test_every_pair_holds_each_arm_once_in_an_order_that_changes():
    clock = Clock()
    arms = {name: clock.arm(name, 1.0) for name in ("torch", "batchnorm", "copy")}
    measured = interleave(arms, 20, min_sample=0.5, clock=clock)
    timed = clock.order[-60:]
    pairs = [tuple(timed[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(pair) == ["batchnorm", "copy", "torch"] for pair in pairs)
    assert len(set(pairs)) > 3
    firsts = Counter(pair[0] for pair in pairs)
    assert min(firsts.values()) >= 2
    assert all(arm.seconds == (1.0,) * 20 for arm in measured.values())


def test_warm_up_is_not_among_the_samples():
    clock = Clock()
    slow_at_first = clock.arm("torch", [9.0] * MIN_WARM_UP + [1.0] * 100)
    assert interleave({"torch": slow_at_first}, 4, min_sample=0.5, clock=clock)["torch"].seconds == (1.0,) * 4


def test_quick_calls_are_repeated_until_a_sample_is_long_enough():
    clock = Clock()
    quick, slow = (
        interleave({"a": clock.arm("a", duration)}, 3, min_sample=2.0, clock=clock)["a"] for duration in (0.015625, 4.0)
    )
    assert quick.repeats * 0.015625 >= 2.0
    assert quick.repeats <= 1.3 * 2.0 / 0.015625
    assert quick.seconds == (0.015625,) * 3  # of one call
    assert slow.repeats == 1


def test_a_clock_that_stands_still_ends_the_warm_up():
    clock = Clock()
    assert interleave({"a": clock.arm("a", 0.0)}, 1, min_sample=1.0, clock=clock)["a"].repeats == 10_000


def test_reset_runs_before_each_call_and_is_not_timed():
    clock = Clock()
    resets = []

    def reset():
        resets.append(len(clock.order))
        clock.now += 1000.0

    measured = interleave({"a": clock.arm("a", 1.0, reset)}, 3, min_sample=0.5, clock=clock)
    assert measured["a"].seconds == (1.0,) * 3
    assert resets == list(range(len(clock.order)))


def test_a_ratio_is_taken_inside_a_pair_so_a_machine_that_slows_down_does_not_move_it():
    torch = samples(2.0, 4.0, 8.0, 16.0, 32.0)
    ours = samples(1.0, 2.0, 4.0, 8.0, 16.0)
    assert ratios(torch, ours) == Spread(2.0, 2.0, 2.0)
    assert Spread.of(torch.seconds).median / Spread.of(ours.seconds[:3]).median == 4.0  # what unpaired medians say


def test_pairs_of_unequal_number_do_not_pair():
    with pytest.raises(ValueError, match="zip"):
        ratios(samples(1.0), samples(1.0, 2.0))
