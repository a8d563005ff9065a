"""Im, Tao and Branson: loss surfaces between the ends of optimizers and on random planes, without and with BN."""

import copy
from collections.abc import Iterator, Sequence

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
    number,
    spread,
    style,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.probes.surface import LossSurface, Statistics, Surface, filter_normalized

RATES = {"SGD": 0.1, "momentum": 0.02, "RMSprop": 0.002, "Adam": 0.005}
#: What BN normalizes with on the surface; without BN there is nothing to choose.
ARMS: dict[tuple[str, Statistics], str] = {("none", "batch"): "without BN", ("batch", "batch"): "BN, batch statistics",
        ("batch", "recalibrated"): "BN, recalibrated"}  # fmt: skip
#: A barrier counts from this share of the fall from the loss of guessing to the higher of the two ends.
BARRIER = 0.1


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def relative_barrier(surface: Surface, guessing: float) -> float:
    """Return the barrier of a line over the fall from the loss of guessing to the higher end; inf without a fall."""
    fall = guessing - max(surface.loss[0], surface.loss[-1])
    return surface.barrier / fall if fall > 0 else float("inf")


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train with four optimizers from the same weights; then evaluate line, patch and plane on training images."""
    images = few_images(settings["data"], settings["train"], settings["seen"], settings["side"])
    seen = [(images.x[: settings["seen"]], images.y[: settings["seen"]])]
    # Recalibrated on the images of the surface alone, one batch, BN would use the statistics of that batch again.
    rest = slice(settings["seen"], 6 * settings["seen"])
    others = [(images.x[rest], images.y[rest])]
    guessing, width = float(np.log(images.classes)), settings["width"]
    for seed in range(settings["seeds"]):
        ends: dict[str, list[nn.Module]] = {}
        for norm in ("none", "batch"):
            for optimizer, lr in RATES.items():
                model = network(settings["model"], norm, images, seed=seed, width=width)
                run_out(descend(model, images, steps=settings["steps"], batch=64, lr=lr, seed=seed,
                                optimizer=optimizer))  # fmt: skip
                ends.setdefault(norm, []).append(measure_statistics(model, images.x))
        for (norm, statistics), words in ARMS.items():
            four = ends[norm]
            surfaces = LossSurface(
                copy.deepcopy(four[0]),
                seen,
                _loss,
                statistics=statistics,
                calibration=others,
            )
            lines = [surfaces.linear(four[0], other, settings["points"]) for other in four[1:]]
            patch = surfaces.bilinear(four[0], four[1], four[2], four[3], settings["points"])
            first, second = (filter_normalized(four[1], 2 * seed + k) for k in (0, 1))
            plane = surfaces.plane(four[1], first, second, settings["points"])
            arrays = {"line": lines[-1].loss, "patch": patch.loss, "plane": plane.loss} if seed == 0 else {}
            record = {
                "seed": seed, "norm": norm, "statistics": statistics, "flat_patch": patch.flat_share(),
                "flat_plane": plane.flat_share(),
                "barrier": float(np.mean([relative_barrier(line, guessing) for line in lines])),
            }  # fmt: skip
            yield Measurement(
                f"seed {seed}, {words}", [record], {f"{kind}/{norm}/{statistics}": a for kind, a in arrays.items()}
            )


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    def values(arm: tuple[str, str], key: str) -> list[float]:
        return [r[key] for r in records if (r["norm"], r["statistics"]) == arm]

    none, *normalized = ARMS
    checks = [Check(f"{words}: a barrier between optimizers", "share of the fall from guessing, mean of lines",
                    values(arm, "barrier"), BARRIER) for arm, words in ARMS.items()]  # fmt: skip
    for arm in normalized:
        flat = zip(values(arm, "flat_patch"), values(none, "flat_patch"), strict=True)
        checks.append(Check(f"{ARMS[arm]}: fewer plateaus than without", "difference of the flat share of the patch",
                            [a - b for a, b in flat], 0.0, above=False))  # fmt: skip
    with mpl.rc_context(SETTINGS):
        pictures = [_lines(arrays), _maps(arrays, "patch"), _maps(arrays, "plane")]
    return Findings(
        "Barriers between optimizers: " + ", ".join(f"{spread(values(a, 'barrier'))} {w}" for a, w in ARMS.items())
        + "; flat share of the patch: " + ", ".join(f"{spread(values(a, 'flat_patch'))} {w}" for a, w in ARMS.items())
        + ".",
        checks,
        pictures,
        numbers=[("Flat share of the random plane: "
                  + ", ".join(f"{spread(values(a, 'flat_plane'))} {w}" for a, w in ARMS.items()) + ".")],
        limits=[(f"{settings['points']} points along each axis, {settings['seen']} training images; "
                f"{settings['steps']} steps from one start, at rates that were not tuned.")],
        definitions=[
            ("barrier", "Height of the loss on a line above its chord, over the fall from guessing to the higher end."),
            ("flat share", "Share of points whose loss differs from each neighbour by at most 1 % of the range."),
        ],
    )  # fmt: skip


def _lines(arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, ((norm, statistics), words) in enumerate(ARMS.items()):
        loss = arrays[f"line/{norm}/{statistics}"]
        axes.plot(np.linspace(0, 1, len(loss)), loss, label=words, **style(index))
    axes.set(xlabel="from SGD (0) to Adam (1)", ylabel="training loss", yscale="log")
    axes.legend()
    return Picture("line", "From the end of SGD to that of Adam", "Seed 0.", "Loss on a line, three arms.", figure)


def _maps(arrays: Arrays, kind: str) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    for axes, ((norm, statistics), words) in zip(figure.subplots(1, len(ARMS)), ARMS.items(), strict=True):
        loss: Array = np.log10(np.maximum(arrays[f"{kind}/{norm}/{statistics}"], 1e-6))
        extent = (0, 1, 0, 1) if kind == "patch" else (-1, 1, -1, 1)
        shown = axes.imshow(np.where(np.isfinite(loss), loss, np.nan).T, origin="lower", extent=extent, cmap="viridis")
        figure.colorbar(shown, ax=axes, shrink=0.8)
        axes.set_title(words, loc="left")
        axes.grid(visible=False)
    title = "Patch between four optimizers" if kind == "patch" else "Plane of two filter-normalized directions"
    place = f"Corners: {', '.join(RATES)}" if kind == "patch" else "Center: momentum"
    return Picture(kind, title, f"log10 of the training loss, seed 0. {place}. Each map has its own colours.",
                   f"Three maps of the loss, {title.lower()}.", figure)  # fmt: skip


_SIZES = {"data": "cifar10", "side": 16}
CLAIM = Claim(
    name="optimizer-basins",
    sentence="Optimizers end in different basins, with barriers between them; batch normalization removes plateaus.",
    source="Im, Tao and Branson 2016, arXiv 1612.04010; planes: Li et al. 2018, arXiv 1712.09913",
    protocol="Four optimizers from the same weights; lines and a bilinear patch between their ends, and a plane of "
    "filter-normalized directions; BN by batch statistics and recalibrated at each point.",
    rule=f"Barriers are above {number(BARRIER)} of the fall from guessing, in all three arms; the flat share of the "
    "patch is lower with BN than without, by either statistics.",
    budgets={
        "small": {"seeds": 3, "model": "vgg_small", "train": 2000, "seen": 200, "points": 11, "steps": 200,
                  "width": 0.125, **_SIZES},
        "full": {"seeds": 5, "model": "vgg_small", "train": 50000, "seen": 2000, "points": 50, "steps": 8000,
                 "width": 0.5, **_SIZES},
    },
    cost={"small": "3 min", "full": "about 40 h, estimated"},
    differs="A small VGG (--set model=nin: Network in Network) on some CIFAR-10 images of half the side; rates and "
    "lengths of the published runs are not known.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS),
)  # fmt: skip
