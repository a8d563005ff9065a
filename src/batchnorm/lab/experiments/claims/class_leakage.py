"""Wu and Johnson: statistics of samples of one class tell the class; in inference that is missing."""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from batchnorm.lab.experiments.bare_loop import (
    accuracy,
    descend,
    few_images,
    measure_statistics,
    network,
    run_out,
)
from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    points,
    spread,
)

#: Whether a batch is sorted by class, and whether it is normalized as a whole.
ARMS = {"sorted": (True, False), "shuffled": (False, False), "sorted, whole": (True, True)}
COLLAPSE, SAME = 20.0, 5.0


def by_class(classes: Tensor, chosen: Tensor) -> Tensor:
    """Return the same examples in the order of their classes."""
    return chosen[classes[chosen].argsort(stable=True)]


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train every arm on the same batches; test as in training, and with population statistics."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    in_order = images.y_test.argsort(stable=True)
    for seed in range(settings["seeds"]):
        for arm, (is_sorted, whole) in ARMS.items():
            ghost = 0 if whole else settings["size"]
            model = network("vgg_small", "batch", images, seed=seed, ghost=ghost, width=settings["width"])
            run_out(descend(model, images, steps=settings["steps"], batch=settings["batch"], lr=settings["lr"],
                            seed=seed, arranged=partial(by_class, images.y) if is_sorted else None))  # fmt: skip
            # Whole batches hold all classes in training; so they must here.
            as_trained = in_order if is_sorted and not whole else slice(None)
            x, y = images.x_test[as_trained], images.y_test[as_trained]
            measure_statistics(model, images.x)
            record = {
                "seed": seed, "arm": arm,
                "as_trained": 100 * accuracy(model, x, y, training=True, batch=settings["batch"]),
                "inference": 100 * accuracy(model, images.x_test, images.y_test),
            }  # fmt: skip
            yield Measurement(f"seed {seed}, {arm}", [record], {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    values = {key: {arm: [r[key] for r in records if r["arm"] == arm] for arm in ARMS}
              for key in ("as_trained", "inference")}  # fmt: skip
    lost = {
        arm: [a - b for a, b in zip(values["as_trained"][arm], values["inference"][arm], strict=True)] for arm in ARMS
    }
    remedy = [a - b for a, b in zip(values["inference"]["sorted, whole"], values["inference"]["sorted"], strict=True)]
    return Findings(
        f"With groups of one class the test accuracy is {spread(values['as_trained']['sorted'])} % as in training and "
        f"{spread(values['inference']['sorted'])} % in inference; shuffled "
        f"{spread(values['as_trained']['shuffled'])} % and {spread(values['inference']['shuffled'])} %.",
        [Check("sorted: collapses in inference", "points of accuracy lost", lost["sorted"], COLLAPSE),
         Check("shuffled: does not", "points of accuracy lost", lost["shuffled"], SAME, above=False),
         Check("sorted, normalized as a whole: does not", "points above sorted in inference", remedy, COLLAPSE)],
        [points("accuracy", "Test accuracy", "Points: seeds; line: mean. As trained: groups and batch statistics as in "
                "training. Inference: population statistics.", "Accuracy as trained and in inference of three arms.",
                "accuracy in %", {"as trained": values["as_trained"], "inference": values["inference"]})],
        definitions=[("sorted", (f"Each batch of {settings['batch']} is ordered by class and normalized in groups of "
                      f"{settings['size']}: most groups are of one class. The optimizer sees the same batches."))],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16, "batch": 200, "size": 20, "lr": 0.1}
CLAIM = Claim(
    name="class-leakage",
    sentence="When the samples that are normalized together share their class, their statistics give it away in "
    "training, and inference collapses; shuffling, or normalizing over all, is the remedy.",
    source="Wu and Johnson 2021, arXiv 2105.07576, section 6",
    protocol="Batches of the optimizer with all classes, normalized in groups: of sorted samples, of shuffled ones, "
    "and sorted but as a whole.",
    rule="Sorted loses more than 20 points of test accuracy from the statistics of training to population statistics, "
    "shuffled fewer than 5; normalized as a whole it ends more than 20 points higher.",
    budgets={
        "small": {"seeds": 5, "train": 2000, "test": 2000, "steps": 100, "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "train": 50000, "test": 10000, "steps": 4000, "width": 0.5, **_SIZES},
    },
    cost={"small": "2 min", "full": "about 6 h, estimated"},
    differs="Classification with sorted batches, which the paper names beside the heads of R-CNN and contrastive "
    "learning that it measures.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS),
)
