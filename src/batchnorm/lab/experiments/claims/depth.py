"""He et al. and Huang et al.: residual and densely connected networks of several depths, without and with BN."""

import math
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from batchnorm.lab.experiments.bare_loop import Images, descend, few_images
from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    number,
    spread,
    style,
)
from batchnorm.lab.models import Normalization
from batchnorm.lab.models.densenet import DenseNet, Parts
from batchnorm.lab.models.initializers import initialize
from batchnorm.lab.models.recipe import Recipe
from batchnorm.lab.models.resnet_cifar import CifarResNet
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table

NORMS = {"none": "without BN", "batch": "with BN"}
KINDS = {"residual": "residual network", "dense": "densely connected network"}


def network(kind: str, depth: int, norm: str, images: Images, settings: Settings, *, seed: int) -> nn.Module:
    """Build a network of so many layers: 6n + 2 of a residual one, 3n + 4 of a densely connected one."""
    recipe = Recipe(Normalization(norm), tuple(images.x.shape[1:]), images.classes,
                    width=settings["width"] if kind == "residual" else 1.0)  # fmt: skip
    if kind == "residual":
        made: nn.Module = CifarResNet(recipe, depth)
    else:
        stem = Parts(conv0=recipe.conv(images.x.shape[1], 16, 3))
        made = DenseNet(recipe, stem, 16, ((depth - 4) // 3,) * 3, settings["growth"], compression=False)
    initialize(made, "kaiming_normal", scale=recipe.nonlinearity.gain, seed=seed)
    return made


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train every network at each rate from the same weights."""
    images = few_images(settings["data"], settings["train"], 10, settings["side"])
    guessing = math.log(images.classes)
    for seed in range(settings["seeds"]):
        for kind in KINDS:
            for depth in settings[kind]:
                records: list[Record] = []
                for norm in NORMS:
                    for lr in settings["lr"]:
                        model = network(kind, depth, norm, images, settings, seed=seed)
                        losses = list(descend(model, images, steps=settings["steps"], batch=settings["batch"], lr=lr,
                                              seed=seed))  # fmt: skip
                        end = float(np.mean(losses[-settings["steps"] // 10 :]))
                        # A training that diverged is worth as much as guessing.
                        records.append({"seed": seed, "kind": kind, "depth": depth, "norm": norm, "lr": lr,
                                        "loss": end if end < guessing else guessing})  # fmt: skip
                yield Measurement(f"seed {seed}, {KINDS[kind]} of {depth} layers", records, {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    best: dict[tuple[str, int, str], tuple[float, list[float]]] = {}
    for kind in KINDS:
        for depth in settings[kind]:
            for norm in NORMS:
                by_rate = {lr: [r["loss"] for r in records if (r["kind"], r["depth"], r["norm"], r["lr"])
                                == (kind, depth, norm, lr)] for lr in settings["lr"]}  # fmt: skip
                lr = min(by_rate, key=lambda one: sum(by_rate[one]))
                best[kind, depth, norm] = lr, by_rate[lr]
    gain = {(kind, depth): [a - b for a, b in zip(best[kind, depth, "none"][1], best[kind, depth, "batch"][1],
                                                  strict=True)]
            for kind in KINDS for depth in settings[kind]}  # fmt: skip
    checks, words = [], []
    for kind, name in KINDS.items():
        low, high = min(settings[kind]), max(settings[kind])
        more = [a - b for a, b in zip(gain[kind, high], gain[kind, low], strict=True)]
        checks += [
            Check(
                f"{name}, {high} layers: lower loss with BN", "training loss, without minus with", gain[kind, high], 0.0
            ),
            Check(f"{name}: BN gains more at {high} than at {low} layers", "difference of what it gains", more, 0.0),
        ]
        words.append(f"{spread(gain[kind, low])} at {low} layers and {spread(gain[kind, high])} at {high} of a {name}")
    with mpl.rc_context(SETTINGS):
        picture = _picture(settings, best)
    return Findings(
        f"BN lowers the training loss after {settings['steps']} steps by {'; by '.join(words)}.",
        checks,
        [picture],
        tables=[Table("Training loss at the end", ["network", "layers", "BN", "best rate", "loss"],
                      [[KINDS[kind], str(depth), NORMS[norm], number(lr), spread(each)]
                       for (kind, depth, norm), (lr, each) in best.items()],
                      "Each at the rate with the lowest mean loss; mean over seeds ± standard deviation, over the last "
                      "tenth of the steps. A network that diverged counts as guessing.")],
        limits=[(f"{settings['steps']} steps; rates {', '.join(map(number, settings['lr']))}. Training loss: "
                 "what is measured is how well the network trains, not how well it generalizes.")],
    )  # fmt: skip


def _picture(settings: Settings, best: dict[tuple[str, int, str], tuple[float, list[float]]]) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    for axes, (kind, name) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        for index, (norm, words) in enumerate(NORMS.items()):
            each = np.array([best[kind, depth, norm][1] for depth in settings[kind]])
            axes.plot(settings[kind], each.mean(axis=1), label=words, **style(index))
            axes.fill_between(
                settings[kind], each.min(axis=1), each.max(axis=1), color=style(index)["color"], alpha=0.15
            )
        axes.set(xlabel="layers", title=name)
    figure.axes[0].set_ylabel("training loss at the end")
    figure.axes[0].legend()
    return Picture("depth", "Training loss by depth", "Each at its best rate. Line: mean over seeds; band: range.",
                   "Training loss against depth, two kinds of networks, without and with BN.", figure)  # fmt: skip


_SIZES = {"data": "cifar10", "lr": [0.01, 0.1]}
CLAIM = Claim(
    name="depth",
    sentence="The deeper a residual or densely connected network, the more it gains from batch normalization.",
    source="networks: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2; Huang, Liu, van der Maaten and "
    "Weinberger 2017, arXiv 1608.06993, section 4; BN with depth: Bjorck et al. 2018, arXiv 1806.02375",
    protocol="Networks of three depths of either kind, without and with BN, from the same weights, each at the better "
    "of two learning rates.",
    rule="In the deepest network of each kind the training loss is lower with BN, and BN lowers it by more than in the "
    "shallowest.",
    budgets={
        "small": {"seeds": 3, "train": 2000, "side": 16, "width": 0.5, "growth": 6, "residual": [8, 20, 44],
                  "dense": [7, 13, 19], "steps": 100, "batch": 32, **_SIZES},
        "full": {"seeds": 3, "train": 50000, "side": 32, "width": 1.0, "growth": 12, "residual": [20, 56, 110],
                 "dense": [16, 40, 64], "steps": 8000, "batch": 128, **_SIZES},
    },
    cost={"small": "3 min", "full": "about 300 h, estimated"},
    differs="The papers train all their networks with BN: what they would do without is the question here. Small "
    "images and few steps.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * sum(len(settings[kind]) for kind in KINDS),
)  # fmt: skip
