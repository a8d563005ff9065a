"""Wu and Johnson: which number of samples that are normalized together ends with the lowest error."""

from collections.abc import Iterator, Sequence

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

ERRORS = {"train_batch": "training data, batch statistics", "test_batch": "test data, batch statistics",
          "test_population": "test data, population statistics"}  # fmt: skip


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train with every size from the same weights, in the same order."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    batch = settings["batch"]
    for seed in range(settings["seeds"]):
        for size in settings["sizes"]:
            ghost = size if size < batch else 0
            model = network("vgg_small", "batch", images, seed=seed, ghost=ghost, width=settings["width"])
            run_out(descend(model, images, steps=settings["steps"], batch=batch, lr=settings["lr"], seed=seed))
            measure_statistics(model, images.x)
            right = {
                "train_batch": accuracy(model, images.x, images.y, training=True, batch=batch),
                "test_batch": accuracy(model, images.x_test, images.y_test, training=True, batch=batch),
                "test_population": accuracy(model, images.x_test, images.y_test),
            }
            errors = {key: 100 * (1 - value) for key, value in right.items()}
            yield Measurement(f"seed {seed}, {size} samples", [{"seed": seed, "size": size, **errors}], {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    sizes, middle = sorted(settings["sizes"]), settings["middle"]
    values = {key: {size: [r[key] for r in records if r["size"] == size] for size in sizes} for key in ERRORS}
    error = values["test_population"]
    absent = [float("nan")] * settings["seeds"]

    def over_middle(size: int) -> list[float]:
        return [a - b for a, b in zip(error[size], error.get(middle, absent), strict=True)]

    return Findings(
        f"The test error is {spread(error[sizes[0]])} % with {sizes[0]} samples normalized together, "
        f"{spread(error.get(middle, absent))} % with {middle}, {spread(error[sizes[-1]])} % with all {sizes[-1]}.",
        [Check(f"{words}: higher error than {middle}", "points of test error above it, population statistics",
               over_middle(size), 0.0)
         for words, size in ((f"{sizes[0]} samples", sizes[0]), (f"{sizes[-1]} samples", sizes[-1]))],
        [points("error", "Error by normalization size", "Points: seeds; line: mean. Steps and batches of the optimizer "
                "are the same for all sizes.", "Three errors against the number of samples normalized together.",
                "error in %", {ERRORS[key]: {str(n): each for n, each in by.items()} for key, by in values.items()})],
        limits=[(f"{settings['train']:,} training images, {settings['steps']} steps: how much regularization helps "
                 "depends on both.")],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16, "batch": 256, "lr": 0.1, "middle": 32, "sizes": [2, 8, 32, 128, 256]}
CLAIM = Claim(
    name="normalization-size",
    sentence="The lowest test error comes from normalizing neither very few samples together nor very many.",
    source="Wu and Johnson 2021, arXiv 2105.07576, section 4.1",
    protocol="One batch of the optimizer, normalized in groups of 2 to all samples (ghost batches); population "
    "statistics are measured layer by layer after training.",
    rule="The test error with 32 samples is below that with the fewest and below that with all, seed by seed.",
    budgets={
        "small": {"seeds": 3, "train": 2000, "test": 2000, "steps": 100, "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "train": 50000, "test": 10000, "steps": 4000, "width": 0.5, **_SIZES},
    },
    cost={"small": "2 min", "full": "about 10 h, estimated"},
    published="The best validation error at 32 to 128 samples.",
    differs="A small VGG on some CIFAR-10 images of half the side instead of ResNet-50 on ImageNet, no augmentation; "
    "at most 256 samples are normalized together, not 1024.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(settings["sizes"]),
)
