"""The learning rate of each step: a pure function of the step, so that resuming needs the step and nothing else.

The same formulas as ``batchnorm.reference.schedules`` (equations 126 to 130 of its derivation), written for whole runs:
drops are at shares of the run, and rates of decay are those of an epoch.
"""

import math
from bisect import bisect_right
from collections.abc import Callable

from batchnorm.lab.training.config import TrainConfig

#: From the step, counted from 0, to the learning rate.
Schedule = Callable[[int], float]

DECAY = {"step": 0.1, "exponential": 0.95, "inverse-time": 1.0}


def make_schedule(config: TrainConfig, *, steps: int, steps_per_epoch: int) -> Schedule:
    """Make the learning rate of a run as a function of the step.

    The warm-up comes first; the schedule then begins at its own step 0 and has the steps that are left.

    Parameters
    ----------
    config : TrainConfig
        Resolved: ``lr`` and ``schedule`` are given.
    steps : int
        Steps of the whole run.
    steps_per_epoch : int
        Batches of an epoch.

    Returns
    -------
    callable
        From a step, counted from 0, to its learning rate. No step of a warm-up has a rate of 0.

    References
    ----------
    Loshchilov and Hutter 2017, :arxiv:`1608.03983`: cosine. Goyal et al. 2017, :arxiv:`1706.02677`: warm-up.

    Examples
    --------
    >>> config = TrainConfig(lr=0.8, schedule="step", decay=0.5, milestones=(0.5,), warmup_steps=2)
    >>> rate = make_schedule(config, steps=6, steps_per_epoch=3)
    >>> [rate(step) for step in range(6)]
    [0.4, 0.8, 0.8, 0.8, 0.4, 0.4]
    """
    assert config.lr is not None
    assert config.schedule is not None
    lr, end, warmup = config.lr, config.final_lr, config.warmup_steps
    decay = DECAY.get(config.schedule, 0.0) if config.decay is None else config.decay
    length = max(1, steps - warmup)
    drops = [share * length for share in config.milestones]

    def after(step: int) -> float:
        done = min(step, length) / length
        match config.schedule:
            case "constant":
                return lr
            case "step":
                return lr * float(decay ** bisect_right(drops, step))  # (126)
            case "exponential":
                return lr * math.pow(decay, step / steps_per_epoch)  # (127)
            case "inverse-time":
                return lr / (1 + decay * step / steps_per_epoch)
            case "linear":
                return end + (lr - end) * (1 - done)  # (128) with a power of 1
            case _:
                return end + (lr - end) * (1 + math.cos(math.pi * done)) / 2  # (129)

    return lambda step: after(0) * (step + 1) / warmup if step < warmup else after(step - warmup)  # (130)
