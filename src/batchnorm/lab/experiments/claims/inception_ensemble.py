"""Ioffe and Szegedy, section 4.2.3: six networks with batch normalization, and the mean of their probabilities."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from batchnorm.lab.experiments.bare_loop import few_images
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
from batchnorm.lab.experiments.seven_changes import CHANGES, inception, settings_with, train
from batchnorm.lab.wording import Table

#: Dropout, and factor of the initial weights of convolutions, of each member.
MEMBERS = ((0.0, 1.0), (0.05, 1.0), (0.1, 1.0), (0.0, 1.5), (0.05, 1.5), (0.1, 1.5))


def widened(model: nn.Module, times: float) -> nn.Module:
    """Multiply the weights of convolutions, in place."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(times)
    return model


def probabilities(model: nn.Module, x: Tensor, *, batch: int = 500) -> Tensor:
    """Return the probability of each class, (N, classes), in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part).softmax(1) for part in x.split(batch)])


def right(scores: Tensor, y: Tensor) -> float:
    """Return the percentage of examples whose class has the highest score."""
    return 100 * float((scores.argmax(1) == y).double().mean())


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train six members, each from weights of its own, and classify the test images by all of them."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    sizes = {**settings, "every": settings["steps"] + 1}  # no evaluation on the way
    for seed in range(settings["seeds"]):
        found, single = [], []
        for member, (dropout, times) in enumerate(MEMBERS):
            how = {**settings_with(CHANGES), "times": settings["times"], "dropout": dropout}
            own = len(MEMBERS) * seed + member
            model = widened(inception(images, how, sizes, norm="batch", seed=own), times)
            list(train(model, images, how, sizes, seed=own))
            found.append(probabilities(model, images.x_test))
            single.append(right(found[-1], images.y_test))
            records: list[Record] = []
            if member == len(MEMBERS) - 1:
                together = right(torch.stack(found).mean(0), images.y_test)
                records = [{"seed": seed, "together": together, "best": max(single),
                            "mean": sum(single) / len(single), "test": len(images.y_test)}]  # fmt: skip
            yield Measurement(f"seed {seed}, member {member + 1}", records, {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    shown = {"a member": "mean", "the best member": "best", "all six together": "together"}
    values = {words: [r[key] for r in records] for words, key in shown.items()}
    gain = [r["together"] - r["best"] for r in records]
    return Findings(
        f"The mean probability of six networks is right in {spread(values['all six together'])} % of the test images, "
        f"the best of the six in {spread(values['the best member'])} %.",
        [Check("together above the best member", "points of accuracy", gain, 0.0)],
        [points("ensemble", "Six networks and their mean", "Points: repetitions, six networks each; line: mean.",
                "Accuracy of a member, of the best member, and of all together.", "test accuracy (%)",
                {"Inception, BN-x30": values})],
        tables=[Table("Accuracy", ["classified by", "accuracy (%)"],
                      [[words, spread(each)] for words, each in values.items()],
                      "Mean over repetitions ± standard deviation.")],
        limits=["The best member is chosen on the test images that judge it, which favours it.",
                f"{records[0]['test']:,} test images; {settings['steps']} steps."],
    )  # fmt: skip


_SIZES = {"data": "cifar10", "batch": 32, "lr": 0.01, "times": 30.0}
CLAIM = Claim(
    name="inception-ensemble",
    sentence="The mean of the class probabilities of six networks with batch normalization classifies better than any "
    "of the six.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.2.3",
    protocol="Six BN-x30 networks that differ in their seed, in dropout (0, 5 or 10 %) and in the size of their "
    "initial weights; arithmetic mean of their class probabilities.",
    rule="The accuracy of the mean is above that of the best of the six.",
    budgets={
        "small": {"seeds": 3, "train": 2000, "test": 2000, "side": 16, "width": 0.125, "steps": 200, **_SIZES},
        "full": {"seeds": 3, "train": 50000, "test": 10000, "side": 32, "width": 0.5, "steps": 20000, **_SIZES},
    },
    cost={"small": "4 min", "full": "about 45 h, estimated"},
    published="An error of 4.9 % (top 5) on the validation set of ImageNet and 4.82 % on its test set.",
    differs="CIFAR-10 and accuracy at 1. Which member had which variation is not published; statistics per activation "
    "in the last hidden layers, one of the variations there, are left out.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(MEMBERS),
)  # fmt: skip
