"""Time arms side by side: paired samples in random order, and what their ratios say.

On a machine that is shared, or that changes its clock, two runs one after the other compare the hours and not the code.
Here every pair holds one sample of each arm, seconds at most apart, in an order drawn anew for each pair; a ratio is
taken inside a pair and only then the median over pairs.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

try:
    import resource
except ImportError:  # Windows has no such counter
    resource = None  # type: ignore[assignment]

MIN_SAMPLE = 2e-3  # seconds: thousands of times the clock's resolution and its cost
MIN_WARM_UP = 3  # calls: the first one compiles, allocates and faults memory in
MAX_REPEATS = 10_000


@dataclass(frozen=True)
class Arm:
    """One of the things compared: what is timed, and what is called before each call, outside the timing."""

    call: Callable[[], None]
    reset: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Spread:
    """Percentiles of some samples."""

    p20: float
    median: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize at least one value, interpolating linearly between neighbours."""
        low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), [20, 50, 80])
        return cls(float(low), float(middle), float(high))


@dataclass(frozen=True)
class Samples:
    """The measurements of one arm.

    ``seconds`` of one call, the mean over the ``repeats`` of a sample: one value per pair. ``faults``: page faults of
    one call (without I/O), the median over pairs; NaN where they cannot be counted.
    """

    seconds: tuple[float, ...]
    repeats: int
    faults: float


def interleave(
    arms: Mapping[str, Arm],
    pairs: int,
    *,
    min_sample: float = MIN_SAMPLE,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, Samples]:
    """Measure ``arms`` in pairs (or triples, ...): each holds one sample of every arm, in random order.

    Warm-up is not among the ``pairs`` samples. A sample lasts at least ``min_sample`` seconds of ``clock``: quick calls
    are repeated. ``seed`` fixes the order.
    """
    order = random.Random(seed)  # noqa: S311  # nothing secret
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of one arm's sample would be counted against it
    try:
        repeats = {name: _warm_up(arm, min_sample, clock) for name, arm in arms.items()}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        faults: dict[str, list[float]] = {name: [] for name in arms}
        names = list(arms)
        for _ in range(pairs):
            order.shuffle(names)
            for name in names:
                before = _page_faults()
                seconds[name].append(_sample(arms[name], repeats[name], clock))
                faults[name].append((_page_faults() - before) / repeats[name])
    finally:
        if collecting:
            gc.enable()
    return {name: Samples(tuple(seconds[name]), repeats[name], Spread.of(faults[name]).median) for name in arms}


def ratios(of: Samples, to: Samples) -> Spread:
    """Divide the times of ``of`` by those of ``to``, pair by pair: how many times longer it takes."""
    return Spread.of([a / b for a, b in zip(of.seconds, to.seconds, strict=True)])


def _warm_up(arm: Arm, min_sample: float, clock: Callable[[], float]) -> int:
    """Call until ``arm`` is warm, and return how many calls make a sample."""
    for _ in range(MIN_WARM_UP):
        _sample(arm, 1, clock)
    repeats = 1
    while repeats < MAX_REPEATS:
        total = _sample(arm, repeats, clock) * repeats
        if total >= min_sample:
            return repeats
        # A quarter more than the last sample asks for, or the next may just miss; at most tenfold, as it may be off.
        wanted = 1.25 * repeats * min_sample / total if total > 0 else math.inf
        repeats = min(MAX_REPEATS, 10 * repeats, math.ceil(wanted) if math.isfinite(wanted) else MAX_REPEATS)
    return repeats


def _sample(arm: Arm, repeats: int, clock: Callable[[], float]) -> float:
    total = 0.0
    for _ in range(repeats):
        arm.reset()
        start = clock()
        arm.call()
        total += clock() - start
    return total / repeats


def _page_faults() -> float:
    return math.nan if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
