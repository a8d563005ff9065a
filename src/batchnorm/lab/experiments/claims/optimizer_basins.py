"""Im, Tao and Branson: loss surfaces between the ends of optimizers and on random planes, without and with BN."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.lab.experiments.bare_loop import descend, few_images, measure_statistics, network, run_out
from batchnorm.lab.experiments.claims.form import (
    Array,
    Arrays,
    Check,
    Claim,
    Findings,
    Measurement,
    Record,
    Settings,
    Terrain,
    number,
    spread,
    style,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table
from batchnorm.probes.surface import LossSurface, Statistics, Surface, filter_normalized

RATES = {"SGD": 0.1, "momentum": 0.02, "RMSprop": 0.002, "Adam": 0.005}
#: What BN normalizes with on the surface; without BN there is nothing to choose.
ARMS: dict[tuple[str, Statistics], str] = {("none", "batch"): "without BN", ("batch", "batch"): "BN, batch statistics",
        ("batch", "recalibrated"): "BN, recalibrated"}  # fmt: skip
#: A barrier counts from this share of the fall from the loss of guessing to the higher of the two ends.
BARRIER = 0.1


class Map(NamedTuple):
    """One kind of surface: title, what lies where, range of its axes, and corners for the view that can be turned."""

    title: str
    place: str
    extent: tuple[float, float, float, float]
    corners: list[str]


MAPS = {
    "patch": Map("Patch between four optimizers", f"Corners: {', '.join(RATES)}.", (0, 1, 0, 1),
                 ["SGD", "momentum", "Adam", "RMSprop"]),
    "triangle": Map("Triangle between three", "Corners: SGD, momentum (right), Adam (top).", (0, 1, 0, 1),
                    ["SGD", "momentum", "", "Adam"]),
    "plane": Map("Plane of two filter-normalized directions", "Center: momentum.", (-1, 1, -1, 1), [""] * 4),
}  # fmt: skip


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def relative_barrier(surface: Surface, guessing: float) -> float:
    """Return the barrier of a line over the fall from the loss of guessing to the higher end; inf without a fall."""
    fall = guessing - max(surface.loss[0], surface.loss[-1])
    return surface.barrier / fall if fall > 0 else float("inf")


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train with four optimizers from the same weights; then evaluate surfaces on training images."""
    images = few_images(settings["data"], settings["train"], settings["seen"], settings["side"])
    seen = [(images.x[: settings["seen"]], images.y[: settings["seen"]])]
    # Recalibrated on the images of the surface alone, one batch, BN would use the statistics of that batch again.
    rest = slice(settings["seen"], 6 * settings["seen"])
    others = [(images.x[rest], images.y[rest])]
    for seed, kind in itertools.product(range(settings["seeds"]), settings["models"]):
        ends: dict[str, list[nn.Module]] = {}
        for norm in ("none", "batch"):
            for optimizer, lr in RATES.items():
                model = network(kind, norm, images, seed=seed, width=settings["width"])
                run_out(descend(model, images, steps=settings["steps"], batch=64, lr=lr, seed=seed,
                                optimizer=optimizer))  # fmt: skip
                ends.setdefault(norm, []).append(measure_statistics(model, images.x))
        for (norm, statistics), words in ARMS.items():
            four = ends[norm]
            surfaces = LossSurface(copy.deepcopy(four[0]), seen, _loss, statistics=statistics, calibration=others)
            first, second = (filter_normalized(four[1], 2 * seed + k) for k in (0, 1))
            found = {
                **{
                    f"line {k}": surfaces.linear(four[0], other, settings["points"]) for k, other in enumerate(four[1:])
                },
                "patch": surfaces.bilinear(four[0], four[1], four[2], four[3], settings["points"]),
                "plane": surfaces.plane(four[1], first, second, settings["points"]),
            }
            if seed == 0:  # for the picture alone
                found["triangle"] = surfaces.barycentric(four[0], four[1], four[3], settings["points"])
            barriers = [relative_barrier(found[f"line {k}"], float(np.log(images.classes))) for k in range(3)]
            record = {
                "seed": seed, "model": kind, "norm": norm, "statistics": statistics,
                "flat_patch": found["patch"].flat_share(), "flat_plane": found["plane"].flat_share(),
                "barrier": float(np.mean(barriers)),
            }  # fmt: skip
            arrays = {f"{name}/{kind}/{norm}/{statistics}": one.loss for name, one in found.items()}
            yield Measurement(f"seed {seed}, {kind}, {words}", [record], arrays if seed == 0 else {})


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    def values(model: str, arm: tuple[str, str], key: str) -> list[float]:
        return [r[key] for r in records if (r["model"], r["norm"], r["statistics"]) == (model, *arm)]

    none, *normalized = ARMS
    checks, said, pictures, terrains = [], [], [], []
    for model in settings["models"]:
        checks += [Check(f"{model}, {words}: a barrier between optimizers", "share of the fall, mean of lines",
                         values(model, arm, "barrier"), BARRIER) for arm, words in ARMS.items()]  # fmt: skip
        for arm in normalized:
            flat = zip(values(model, arm, "flat_patch"), values(model, none, "flat_patch"), strict=True)
            checks.append(Check(f"{model}, {ARMS[arm]}: fewer plateaus", "flat share of the patch, minus without BN",
                                [a - b for a, b in flat], 0.0, above=False))  # fmt: skip
        said.append(f"{model}: " + ", ".join(
            f"{words} {spread(values(model, arm, 'barrier'))} and {spread(values(model, arm, 'flat_patch'))}"
            for arm, words in ARMS.items()))  # fmt: skip
        with mpl.rc_context(SETTINGS):
            pictures += [_lines(arrays, model), *(_maps(arrays, model, kind) for kind in MAPS)]
        terrains += [
            Terrain(f"{MAPS[kind].title}, {model}, {words}", "training loss",
                    _log(arrays[f"{kind}/{model}/{norm}/{statistics}"]), MAPS[kind].corners)
            for kind in MAPS for (norm, statistics), words in ARMS.items()
        ]  # fmt: skip
    rows = [[model, words, *(spread(values(model, arm, key)) for key in ("barrier", "flat_patch", "flat_plane"))]
            for model in settings["models"] for arm, words in ARMS.items()]  # fmt: skip
    return Findings(
        "Barriers between optimizers and flat share of the patch: " + "; ".join(said) + ".",
        checks,
        pictures,
        limits=[(f"{settings['points']} points along each axis, {settings['seen']} training images; "
                f"{settings['steps']} steps from one start, at rates that were not tuned.")],
        tables=[Table("Surfaces", ["network", "arm", "barrier", "flat patch", "flat plane"], rows, "Over seeds.")],
        definitions=[
            ("barrier", "Height of the loss on a line above its chord, over the fall from guessing to the higher end."),
            ("flat share", "Share of points whose loss differs from each neighbour by at most 1 % of the range."),
            ("batch statistics, recalibrated", ("What BN normalizes with at a point of a surface: the images that are "
             "evaluated, or the population of others, measured anew at each point.")),
        ],
        surfaces=terrains,
    )  # fmt: skip


def _log(loss: Array) -> Array:
    return np.where(np.isfinite(loss), np.log10(np.maximum(loss, 1e-6)), np.nan)


def _lines(arrays: Arrays, model: str) -> Picture:
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    for k, (axes, end) in enumerate(zip(figure.subplots(1, 3, sharey=True), list(RATES)[1:], strict=True)):
        for index, ((norm, statistics), words) in enumerate(ARMS.items()):
            loss = arrays[f"line {k}/{model}/{norm}/{statistics}"]
            axes.plot(np.linspace(0, 1, len(loss)), loss, label=words, **style(index))
        axes.set(xlabel=f"from SGD (0) to {end} (1)", yscale="log")
    figure.axes[0].set_ylabel("training loss")
    figure.axes[0].legend()
    return Picture(f"line-{model}", f"{model}: from the end of SGD to the others", "Seed 0.",
                   "Loss on three lines, three arms.", figure)  # fmt: skip


def _maps(arrays: Arrays, model: str, kind: str) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    for axes, ((norm, statistics), words) in zip(figure.subplots(1, len(ARMS)), ARMS.items(), strict=True):
        loss = _log(arrays[f"{kind}/{model}/{norm}/{statistics}"])
        shown = axes.imshow(loss.T, origin="lower", extent=MAPS[kind].extent, cmap="viridis")
        figure.colorbar(shown, ax=axes, shrink=0.8)
        axes.set_title(words, loc="left")
        axes.grid(visible=False)
    return Picture(f"{kind}-{model}", f"{model}: {MAPS[kind].title.lower()}",
                   f"log10 of the training loss, seed 0. {MAPS[kind].place} Each map has its own colours.",
                   f"Three maps of the loss, {MAPS[kind].title.lower()}.", figure)  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16}
CLAIM = Claim(
    name="optimizer-basins",
    sentence="Optimizers end in different basins, with barriers between them; batch normalization removes plateaus.",
    source="Im, Tao and Branson 2016, arXiv 1612.04010; planes: Li et al. 2018, arXiv 1712.09913",
    protocol="VGG and NIN, four optimizers from the same weights; lines, a triangle and a bilinear patch between their "
    "ends, and a plane of filter-normalized directions; BN by batch statistics and recalibrated at each point.",
    rule=f"For each network: barriers are above {number(BARRIER)} of the fall from guessing, in all three arms; the "
    "flat share of the patch is lower with BN than without, by either statistics.",
    budgets={
        "small": {"seeds": 3, "models": ["vgg_small", "nin"], "train": 2000, "seen": 200, "points": 9, "steps": 150,
                  "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "models": ["vgg_small", "nin"], "train": 50000, "seen": 2000, "points": 50, "steps": 8000,
                 "width": 0.5, **_SIZES},
    },
    cost={"small": "4 min, estimated", "full": "about 80 h, estimated"},
    differs="A small VGG and a Network in Network on some CIFAR-10 images of half the side; rates and "
    "lengths of the published runs are not known.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS) * len(settings["models"]),
)  # fmt: skip
