"""Wu and Johnson: one network, two domains; statistics shared or separate, in training and in inference."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

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

KINDS = ("shared", "separate")


def domains(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return images as they are, and as the other domain has them: inverted, fainter and brighter."""
    return x, 1.5 - 0.5 * x


class TwoDomains(nn.Module):
    """A network for batches of which the second half is seen in the other domain.

    Parameters
    ----------
    inner : Module
        The network.
    separate : bool
        Whether each domain goes through it by itself, so that batch statistics are its own.
    """

    def __init__(self, inner: nn.Module, *, separate: bool) -> None:
        super().__init__()
        self.inner, self.separate = inner, separate

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        half = len(x) // 2
        first, second = domains(x)[0][:half], domains(x)[1][half:]
        if self.separate:
            return torch.cat([self.inner(first), self.inner(second)])
        logits: Tensor = self.inner(torch.cat([first, second]))
        return logits


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train with shared and with separate statistics; test each with shared and with separate population statistics."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    seen, tests = domains(images.x), domains(images.x_test)
    for seed in range(settings["seeds"]):
        for training in KINDS:
            inner = network("vgg_small", "batch", images, seed=seed, width=settings["width"])
            model = TwoDomains(inner, separate=training == "separate")
            run_out(
                descend(model, images, steps=settings["steps"], batch=settings["batch"], lr=settings["lr"], seed=seed)
            )
            records: list[Record] = []
            for inference in KINDS:
                data = (torch.cat(seen),) * 2 if inference == "shared" else seen
                tested = [measure_statistics(copy.deepcopy(inner), x, batch=len(x)) for x in data]
                right = [accuracy(one, x, images.y_test) for one, x in zip(tested, tests, strict=True)]
                records.append({"seed": seed, "training": training, "inference": inference,
                                "accuracy": 100 * sum(right) / len(right)})  # fmt: skip
            yield Measurement(f"seed {seed}, {training} in training", records, {})


def _find(_settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    def right(training: str, inference: str) -> list[float]:
        return [r["accuracy"] for r in records if (r["training"], r["inference"]) == (training, inference)]

    return Findings(
        "Test accuracy in %, statistics in training/inference: " + ", ".join(
            f"{a}/{b} {spread(right(a, b))}" for a in KINDS for b in KINDS) + ".",
        [Check(f"{one} in training: better with {one} in inference", f"points of accuracy above {other}",
               [a - b for a, b in zip(right(one, one), right(one, other), strict=True)], 0.0)
         for one, other in (KINDS, KINDS[::-1])],
        [points("accuracy", "Test accuracy", "Mean over both domains. Points: seeds; line: mean.",
                "Test accuracy for shared and separate statistics in training and inference.", "accuracy in %",
                {f"{a} in training": {f"{b} in inference": right(a, b) for b in KINDS} for a in KINDS})],
        limits=["The second domain is made: the same pictures inverted, fainter and brighter."],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16, "batch": 128, "lr": 0.1}
CLAIM = Claim(
    name="domain-statistics",
    sentence="A network for several domains needs statistics in inference that are shared or separate as they were in "
    "training; mixed choices fail.",
    source="Wu and Johnson 2021, arXiv 2105.07576, section 5",
    protocol="Half of each batch in another domain, normalized together or by itself; population statistics of both "
    "domains together or of each.",
    rule="With either choice in training the same choice in inference has the higher accuracy, seed by seed.",
    budgets={
        "small": {"seeds": 5, "train": 2000, "test": 2000, "steps": 150, "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "train": 50000, "test": 10000, "steps": 4000, "width": 0.5, **_SIZES},
    },
    cost={"small": "2 min", "full": "about 3 h, estimated"},
    differs="A small VGG on images in two made domains instead of the shared head of RetinaNet on five feature levels.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(KINDS),
)
