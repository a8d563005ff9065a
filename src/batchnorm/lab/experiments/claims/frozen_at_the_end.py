"""Wu and Johnson: freeze the statistics for the last steps when few samples are normalized together."""

from collections.abc import Iterator, Sequence

from batchnorm import freeze
from batchnorm.lab.experiments.bare_loop import accuracy, descend, few_images, measure_statistics, network
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

ARMS = {False: "batch statistics to the end", True: "frozen for the last fifth"}
FROZEN_SHARE = 0.2


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train twice with every size; both arms are the same until one is frozen."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    steps = settings["steps"]
    start = round(steps * (1 - FROZEN_SHARE))
    for seed in range(settings["seeds"]):
        for size in settings["sizes"]:
            records: list[Record] = []
            for frozen in ARMS:
                model = network("vgg_small", "batch", images, seed=seed, ghost=size, width=settings["width"])
                taken = descend(model, images, steps=steps, batch=settings["batch"], lr=settings["lr"], seed=seed)
                for step, _ in enumerate(taken, start=1):
                    if frozen and step == start:
                        freeze(measure_statistics(model, images.x), inplace=True)
                if not frozen:
                    measure_statistics(model, images.x)
                error = 100 * (1 - accuracy(model, images.x_test, images.y_test))
                records.append({"seed": seed, "size": size, "frozen": frozen, "error": error})
            yield Measurement(f"seed {seed}, {size} samples", records, {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    def errors(frozen: bool, size: int) -> list[float]:
        return [r["error"] for r in records if (r["frozen"], r["size"]) == (frozen, size)]

    sizes = settings["sizes"]
    return Findings(
        "Test error in %: " + "; ".join(
            f"with {n} samples {spread(errors(False, n))}, frozen at the end {spread(errors(True, n))}" for n in sizes
        ) + ".",
        [Check(f"{n} samples: frozen ends lower", "points of test error, frozen minus not",
               [a - b for a, b in zip(errors(True, n), errors(False, n), strict=True)], 0.0, above=False)
         for n in sizes],
        [points("error", "Test error", "Points: seeds; line: mean. Population statistics in both arms.",
                "Test error with and without frozen statistics at the end, by normalization size.", "error in %",
                {words: {f"{n} samples": errors(frozen, n) for n in sizes} for frozen, words in ARMS.items()})],
        limits=[f"{settings['steps']} steps on {settings['train']:,} images."],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16, "batch": 256, "lr": 0.1, "sizes": [2, 4]}
CLAIM = Claim(
    name="frozen-at-the-end",
    sentence="When few samples are normalized together, freezing the statistics for the last part of the training "
    "lowers the test error.",
    source="Wu and Johnson 2021, arXiv 2105.07576, section 4",
    protocol="Ghost batches of 2 and 4; after four fifths of the steps one arm gets population statistics, and trains "
    "on with them fixed, weight and bias still learning.",
    rule="The test error is lower when frozen, seed by seed, for both sizes.",
    budgets={
        "small": {"seeds": 5, "train": 2000, "test": 2000, "steps": 100, "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "train": 50000, "test": 10000, "steps": 4000, "width": 0.5, **_SIZES},
    },
    cost={"small": "2 min", "full": "about 6 h, estimated"},
    differs="A small VGG on some CIFAR-10 images of half the side instead of ResNet-50 on ImageNet; frozen for a "
    "fifth of the steps, there for 20 of 100 epochs.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(settings["sizes"]),
)
