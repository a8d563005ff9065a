"""Ioffe and Szegedy, section 4.2.1: what each of the seven changes is worth, by leaving it out."""

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.experiments.bare_loop import few_images
from batchnorm.lab.experiments.claims.form import (
    COLORS,
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    spread,
)
from batchnorm.lab.experiments.seven_changes import CHANGES, CHOICES, curve_of, settings_with
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table

ALL, NONE = "all seven", "none (BN-Baseline)"


def arms() -> dict[str, list[str]]:
    """Return the changes that are made, by arm: all, none, and all but one."""
    return {ALL: list(CHANGES), NONE: [], **{name: [one for one in CHANGES if one != name] for name in CHANGES}}


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train all arms from the same weights."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    for seed in range(settings["seeds"]):
        for arm, changes in arms().items():
            found = curve_of(images, settings_with(changes), settings, norm="batch", seed=seed)
            # Steps after a loss that was not finite count as guessing.
            lacking = settings["steps"] // settings["every"] - len(found.accuracy)
            accuracy = [*found.accuracy, *[1 / images.classes] * lacking]
            record = {"seed": seed, "arm": arm, "way": 100 * float(np.mean(accuracy)), "end": 100 * accuracy[-1]}
            yield Measurement(f"seed {seed}, {arm}", [record], {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    def values(arm: str, key: str) -> list[float]:
        return [r[key] for r in records if r["arm"] == arm]

    def worth(arm: str, key: str) -> list[float]:
        return [a - b for a, b in zip(values(ALL, key), values(arm, key), strict=True)]

    words = {name: one.words for name, one in CHANGES.items()}
    together = worth(NONE, "way")
    with mpl.rc_context(SETTINGS):
        picture = _bars({**{words[name]: worth(name, "way") for name in CHANGES}, "all seven": together})
    best = max(CHANGES, key=lambda name: float(np.mean(worth(name, "way"))))
    return Findings(
        f"Together the seven changes are worth {spread(together)} points of test accuracy over the first "
        f"{settings['steps']} steps; by itself most is the {words[best]}, {spread(worth(best, 'way'))}.",
        [Check(f"{words[name]}: helps", "points, with it minus without", worth(name, "way"), 0.0) for name in CHANGES],
        [picture],
        tables=[Table("What each change is worth", ["change", "on the way (points)", "at the end (points)"],
                      [*([words[name], spread(worth(name, "way")), spread(worth(name, "end"))] for name in CHANGES),
                       ["all seven", spread(together), spread(worth(NONE, "end"))]],
                      "Test accuracy with all seven changes minus that without this one, seed by seed; mean ± standard "
                      "deviation.")],
        numbers=[CHOICES],
        limits=["All seven together are not the sum of each: a change may need another."],
        definitions=[("on the way", (f"Mean test accuracy of the evaluations, every {settings['every']} steps: higher "
                      "where a network learns sooner."))],
    )  # fmt: skip


def _bars(worth: dict[str, list[float]]) -> Picture:
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, each in enumerate(worth.values()):
        axes.barh(place, float(np.mean(each)), color=COLORS[1], alpha=0.45, hatch="//" if place == len(CHANGES) else "")
        axes.scatter(each, [place] * len(each), color="#222222", s=14, zorder=3)
    axes.axvline(0, color="#555555", lw=0.9)
    axes.set_yticks(range(len(worth)), list(worth))
    axes.invert_yaxis()
    axes.set_xlabel("points of test accuracy on the way, with the change minus without")
    return Picture("worth", "What each change is worth", "Bar: mean; points: seeds.",
                   "Bars of the worth of each of seven changes, and of all together.", figure)  # fmt: skip


_SIZES = {"data": "cifar10", "batch": 32, "lr": 0.01}
CLAIM = Claim(
    name="inception-changes",
    sentence="Each of the seven changes helps Inception with batch normalization to learn sooner: a higher rate, no "
    "dropout, a fifth of the L2 penalty, a faster decay, no local response normalization, more thorough shuffling, "
    "less photometric distortion.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.2.1",
    protocol="Inception with all seven changes (BN-x5), with none, and with all but one, from the same weights.",
    rule="Test accuracy, averaged over the evaluations on the way, with all seven minus without this one is above 0, "
    "for each of the seven.",
    budgets={
        "small": {"seeds": 4, "train": 2000, "test": 500, "side": 16, "width": 0.125, "steps": 120, "every": 20,
                  **_SIZES},
        "full": {"seeds": 5, "train": 50000, "test": 10000, "side": 32, "width": 0.5, "steps": 20000, "every": 500,
                 **_SIZES},
    },
    cost={"small": "4 min", "full": "about 100 h, estimated"},
    differs="The paper gives no numbers for single changes, except about 1 % for shuffling. The network and the data "
    "are small, and an epoch has 62 steps: what shuffling, L2 and decay do shows in longer training.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(arms()),
)  # fmt: skip
