"""L1, L2, dropout, Cutout, Mixup, stochastic depth and batch normalization on images: one by one and together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from batchnorm.lab.data.augmentation import Augmentation, mixed
from batchnorm.lab.experiments.bare_loop import accuracy, descend, few_images, network, run_out
from batchnorm.lab.experiments.claims.form import (
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    spread,
    style,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table

NORMS = {"none": "without BN", "batch": "with BN"}
REGULARIZERS = ("L1", "L2", "dropout", "Cutout", "Mixup", "stochastic depth")
#: Times the accuracy of guessing on its training images, from which a network with nothing has learned something.
LEARNED = 2.0
ARMS = ("nothing", *REGULARIZERS, "all six")


def changed(settings: Settings, which: Sequence[str], classes: int, seed: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return what Cutout and Mixup do to a batch, as far as they are asked for."""
    augmentation = Augmentation(cutout=settings["cutout"] if "Cutout" in which else 0,
                                mixup=settings["mixup"] if "Mixup" in which else 0.0)  # fmt: skip

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        draw = augmentation.draw(len(x), tuple(x.shape[1:]), seed, 0, step)
        x = draw.change(x)
        if draw.partners is None:
            return x, y
        target = functional.one_hot(y, classes).to(x)
        return mixed(x, x[draw.partners], draw.share), mixed(target, target[draw.partners], draw.share)

    return change


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train every arm from the same weights on the same few images."""
    images = few_images(settings["data"], settings["train"], settings["test"], settings["side"])
    for seed in range(settings["seeds"]):
        for arm in ARMS:
            which = REGULARIZERS if arm == "all six" else (arm,)
            records: list[Record] = []
            for norm in NORMS:
                # Branches start at zero, or the network does not train without BN.
                options: dict[str, Any] = {"zero_init_residual": True}
                if "dropout" in which:
                    options["dropout"] = settings["dropout"]
                if "stochastic depth" in which:
                    options["stochastic_depth"] = settings["stochastic_depth"]
                model = network(settings["model"], norm, images, seed=seed, width=settings["width"], **options)
                loss = run_out(descend(
                    model, images, steps=settings["steps"], batch=settings["batch"], lr=settings["lr"], seed=seed,
                    l1=settings["l1"] if "L1" in which else 0.0, l2=settings["l2"] if "L2" in which else 0.0,
                    changed=changed(settings, which, images.classes, seed)))  # fmt: skip
                found = [100 * accuracy(model, x, y) if np.isfinite(loss) else 100 / images.classes
                         for x, y in ((images.x, images.y), (images.x_test, images.y_test))]  # fmt: skip
                records.append({"seed": seed, "arm": arm, "norm": norm, "train": found[0], "test": found[1],
                                "classes": images.classes})  # fmt: skip
            yield Measurement(f"seed {seed}, {arm}", records, {})


def _find(settings: Settings, records: Sequence[Record], _arrays: Arrays) -> Findings:
    guessing = 100 / records[0]["classes"]

    def values(arm: str, norm: str, key: str) -> list[float]:
        own = [r for r in records if (r["arm"], r["norm"]) == (arm, norm)]
        return [r["train"] - r["test"] if key == "gap" else r[key] for r in own]

    def against_nothing(arm: str, norm: str, key: str) -> list[float]:
        nothing = zip(values("nothing", "none", "train"), values("nothing", "none", key), strict=True)
        learned = [value if train > LEARNED * guessing else np.nan for train, value in nothing]
        return [a - b for a, b in zip(values(arm, norm, key), learned, strict=True)]

    single = {**{arm: (arm, "none") for arm in REGULARIZERS}, "batch normalization": ("nothing", "batch")}
    together = against_nothing("all six", "batch", "test")
    best = max(single, key=lambda name: float(np.mean(np.nan_to_num(against_nothing(*single[name], "test")))))
    with mpl.rc_context(SETTINGS):
        picture = _picture({key: {norm: {arm: values(arm, norm, key) for arm in ARMS} for norm in NORMS}
                            for key in ("test", "gap")})  # fmt: skip
    return Findings(
        f"Alone, {best} gains most: {spread(against_nothing(*single[best], 'test'))} points of test accuracy; all "
        f"seven together gain {spread(together)}.",
        [*(Check(f"{name}: narrower gap", "points, with it minus with nothing", against_nothing(*one, "gap"), 0.0,
                 above=False) for name, one in single.items()),
         Check("all seven: higher test accuracy", "points, with all minus with nothing", together, 0.0)],
        [picture],
        tables=[Table("Accuracy", ["regularizer", "BN", "training (%)", "test (%)", "gap (points)"],
                      [[arm, words, *(spread(values(arm, norm, key)) for key in ("train", "test", "gap"))]
                       for arm in ARMS for norm, words in NORMS.items()],
                      "At the end, in evaluation mode, on unchanged images; mean over seeds ± standard deviation.")],
        limits=[(f"{settings['train']} training images, {settings['steps']} steps. Strengths are those of papers or "
                 f"common ones, and were not tuned: L1 {settings['l1']:g}, L2 {settings['l2']:g}, dropout "
                 f"{settings['dropout']:g}, Cutout {settings['cutout']} of {settings['side']} pixels, Mixup "
                 f"{settings['mixup']:g}, stochastic depth {settings['stochastic_depth']:g}.")],
        definitions=[("gap", ("Training accuracy minus test accuracy. A network that does not learn has none, too: look"
                              " at both accuracies."))],
    )  # fmt: skip


def _picture(values: dict[str, dict[str, dict[str, list[float]]]]) -> Picture:
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    titles = {"test": "test accuracy (%)", "gap": "gap, training minus test (points)"}
    for axes, (key, words) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for index, (norm, arm) in enumerate(NORMS.items()):
            look = {key: style(index)[key] for key in ("color", "marker")}
            for place, each in enumerate(values[key][norm].values()):
                axes.scatter(each, [place + 0.2 * index] * len(each), s=12, alpha=0.4, **look)
                axes.scatter([np.mean(each)], [place + 0.2 * index], s=48, label=arm if place == 0 else None, **look)
        axes.set_title(words, loc="left")
        axes.set_yticks(range(len(ARMS)), ARMS)
    figure.axes[0].invert_yaxis()
    figure.axes[0].legend()
    return Picture("regularizers", "One by one and together", "Small points: seeds; large: mean.",
                   "Test accuracy and gap of eight arms, without and with BN.", figure)  # fmt: skip


_SIZES = {"data": "cifar10", "model": "resnet20", "side": 16, "batch": 50, "lr": 0.01, "l1": 1e-5, "l2": 5e-4,
          "dropout": 0.5, "cutout": 8, "mixup": 1.0, "stochastic_depth": 0.5}  # fmt: skip
CLAIM = Claim(
    name="image-regularizers",
    sentence="L1 and L2 penalties, dropout, Cutout, Mixup, stochastic depth and batch normalization each narrow the "
    "gap between training and test accuracy on images; together they raise the test accuracy.",
    source="course notes on regularization; Cutout: arXiv 1708.04552; Mixup: arXiv 1710.09412; stochastic depth: arXiv "
    "1603.09382; dropout: Srivastava et al. 2014, JMLR 15",
    protocol="A residual network, whose branches start at zero, on few images: with nothing, each and all six, without "
    "and with BN.",
    rule="Against the network without BN and with nothing, seed by seed: the gap is narrower with each of the seven, "
    "the test accuracy is higher with all seven.",
    budgets={"small": {"seeds": 3, "train": 500, "test": 2000, "steps": 200, "width": 0.5, **_SIZES},
             "full": {"seeds": 5, "train": 5000, "test": 10000, "steps": 8000, "width": 1.0, **_SIZES}},
    cost={"small": "3 min", "full": "25 h, estimated"},
    differs="Few CIFAR-10 images of half the side; the papers train for hundreds of epochs on all.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS),
)  # fmt: skip
