"""Santurkar et al., section 3.3: l1, l2 and l-infinity norms train a deep linear network as BN does."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    curves,
    number,
    spread,
)
from batchnorm.lab.experiments.deep_linear import descend, gaussian_problem, linear_network
from batchnorm.lab.experiments.series import Track, combine

ARMS = {"none": "without", "batch": "BN", "l1": "l1", "l2": "l2", "linf": "l-infinity"}


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train every arm at every rate on the same data from the same weights."""
    for seed in range(settings["seeds"]):
        problem = gaussian_problem(settings["examples"], settings["units"], seed)
        for norm in ARMS:
            records, arrays = [], {}
            for lr in settings["lr"]:
                network = linear_network(norm, settings["depth"], settings["units"], seed)
                losses, _ = descend(network, problem, steps=settings["steps"], lr=lr)
                records.append({"seed": seed, "norm": norm, "lr": lr, "loss": float(losses[-1])})
                arrays[f"{norm}/{lr}/{seed}"] = losses
            yield Measurement(f"seed {seed}, {ARMS[norm]}", records, arrays)


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    seeds = range(settings["seeds"])

    def ends(norm: str, lr: float) -> list[float]:
        each = [r["loss"] for r in records if (r["norm"], r["lr"]) == (norm, lr)]
        return [math.inf if math.isnan(loss) else loss for loss in each]  # JSON has no infinity

    best = {norm: min(settings["lr"], key=lambda lr: float(np.mean(ends(norm, lr)))) for norm in ARMS}
    loss = {norm: ends(norm, best[norm]) for norm in ARMS}
    edges = [words for norm, words in ARMS.items() if best[norm] in (settings["lr"][0], settings["lr"][-1])]
    steps = np.arange(settings["steps"] + 1, dtype=np.float64)
    lines = {}
    for norm, words in ARMS.items():
        tracks = [Track(steps, steps, steps, arrays[f"{norm}/{best[norm]}/{seed}"]) for seed in seeds]
        if (made := combine(tracks)) is not None:
            lines[f"{words}, rate {number(best[norm])}"] = made
    return Findings(
        "Loss at the end, over that of a network that gives 0: "
        + "; ".join(f"{words} {spread(loss[norm])}" for norm, words in ARMS.items())
        + ".",
        [Check(f"{ARMS[norm]} ends lower than without", "logarithm (base 10) of the ratio of losses",
               [float(np.log10(a / b)) for a, b in zip(loss[norm], loss["none"], strict=True)], 0.0, above=False)
         for norm in ARMS if norm != "none"],
        [curves("loss", "Loss, each at its best rate", "Over the loss of a network that gives 0. Line: mean over "
                "seeds; band: lowest to highest.", "Loss over steps of five deep linear networks.", "relative loss",
                lines, log=True)],
        limits=[f"The best rate of {words} is at the edge of the grid." for words in edges],
        numbers=["The best rate has the lowest mean loss at the end, which also judges it."],
    )  # fmt: skip


_SIZES = {"depth": 25, "units": 10, "lr": [0.0001, 0.001, 0.01, 0.1]}
CLAIM = Claim(
    name="other-norms",
    sentence="Batch normalization is not special: normalizing by l1, l2 or l-infinity norms improves the training of a "
    "deep linear network, too.",
    source="Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 3.3",
    protocol="25 linear layers of 10 units on Gaussian inputs, targets from a random matrix, full-batch descent at "
    "each rate of a grid, all from the same weights.",
    rule="At the end the loss with BN and with each of the three other norms is lower than without any, each at its "
    "best rate.",
    budgets={
        "small": {"seeds": 5, "examples": 500, "steps": 300, **_SIZES},
        "full": {"seeds": 10, "examples": 1000, "steps": 10000, **_SIZES},
    },
    cost={"small": "2 min", "full": "2 h, estimated"},
    differs="Each at the best of four rates instead of 1e-6 for all; the loss is the mean over examples; 300 steps at "
    "the small budget, there 10,000.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS),
)
