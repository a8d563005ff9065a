"""Bjorck et al.: batch normalization gains by the large learning rates that it allows, not at the same small one."""

from collections.abc import Iterator, Sequence

import numpy as np

from batchnorm.lab.experiments.bare_loop import accuracy, descend, few_images, measure_statistics, network, run_out
from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    number,
    points,
    spread,
)

NORMS = {"none": "without BN", "batch": "with BN"}
#: Points of test accuracy that count as the same.
SAME = 2.0


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train both networks at every rate from the same weights, in the same order."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    for seed in range(settings["seeds"]):
        for lr in settings["lr"]:
            records: list[Record] = []
            for norm in NORMS:
                model = network("vgg_small", norm, images, seed=seed, width=settings["width"])
                loss = run_out(
                    descend(model, images, steps=settings["steps"], batch=settings["batch"], lr=lr, seed=seed)
                )
                if np.isfinite(loss):  # else every class is as likely, and there is nothing to measure
                    measure_statistics(model, images.x)
                right = accuracy(model, images.x_test, images.y_test)
                records.append({"seed": seed, "norm": norm, "lr": lr, "loss": loss, "accuracy": 100 * right})
            yield Measurement(f"seed {seed}, rate {number(lr)}", records, {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    rates = settings["lr"]
    values = {norm: {lr: [r["accuracy"] for r in records if (r["norm"], r["lr"]) == (norm, lr)] for lr in rates}
              for norm in NORMS}  # fmt: skip
    best = {norm: max(rates, key=lambda lr: sum(by_rate[lr])) for norm, by_rate in values.items()}
    low = min(rates)

    def less(first: Sequence[float], second: Sequence[float]) -> list[float]:
        return [a - b for a, b in zip(first, second, strict=True)]

    at_low = less(values["batch"][low], values["none"][low])
    at_best = less(values["batch"][best["batch"]], values["none"][best["none"]])
    seeds = range(settings["seeds"])
    own = {norm: [max(rates, key=lambda lr: by_rate[lr][k]) for k in seeds] for norm, by_rate in values.items()}
    decades = [float(np.log10(a / b)) for a, b in zip(own["batch"], own["none"], strict=True)]
    edges = [words for norm, words in NORMS.items() if best[norm] in (rates[0], rates[-1])]
    return Findings(
        f"At the rate {number(low)} BN gains {spread(at_low)} points of test accuracy, each at its best rate "
        f"({number(best['none'])} without, {number(best['batch'])} with) {spread(at_best)}.",
        [Check(f"rate {number(low)}: the same", "absolute difference in points", [abs(v) for v in at_low], SAME, False),
         Check("best rates: BN is higher", "difference in points", at_best, 0.0),
         Check("BN's best rate is the larger", "decades above that without BN, best of each seed", decades, 0.0)],
        [points("accuracy", "Accuracy by learning rate", "Points: seeds; line: mean. Population statistics.",
                "Test accuracy against the learning rate, without and with BN.", "accuracy in %",
                {words: {number(lr): each for lr, each in values[norm].items()} for norm, words in NORMS.items()})],
        limits=[f"The best rate {words} is at the edge of the grid." for words in edges],
        numbers=["The best rate has the highest mean over seeds, on the test data that also judge it."],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16, "batch": 128, "lr": [0.001, 0.01, 0.1, 1.0]}
CLAIM = Claim(
    name="large-rates",
    sentence="At a low learning rate networks with and without batch normalization reach the same accuracy; the gain "
    "comes from the larger rates that it allows.",
    source="Bjorck, Gomes, Selman and Weinberger 2018, arXiv 1806.02375",
    protocol="Both from the same weights at each rate of a grid; population statistics are measured after training.",
    rule="At the lowest rate the test accuracies differ by less than 2 points; at the best rate of each BN is higher, "
    "and its best rate is the larger one.",
    budgets={
        "small": {"seeds": 3, "train": 2000, "test": 2000, "steps": 200, "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "train": 50000, "test": 10000, "steps": 8000, "width": 0.5, **_SIZES},
    },
    cost={"small": "2 min", "full": "about 10 h, estimated"},
    differs="A small VGG on some CIFAR-10 images of half the side, without augmentation and weight decay, the rate "
    "falling linearly; there a ResNet of 110 layers, dropped on plateaus, and trained much longer at the low rates.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(settings["lr"]),
)
