"""No regularizer, an L2 penalty and dropout on two noisy classes in the plane: gap, test accuracy, boundaries."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from batchnorm.lab.data.arrays import read as read_arrays
from batchnorm.lab.errors import DataError
from batchnorm.lab.experiments.claims.form import (
    COLORS,
    Array,
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
from batchnorm.reference.initializers import kaiming_normal
from batchnorm.reference.losses import sigmoid_cross_entropy
from batchnorm.reference.networks import Network, fully_connected
from batchnorm.reference.optimizers import sgd
from batchnorm.reference.penalties import l2_penalty
from batchnorm.reference.training import accuracy

ARMS = {"none": "none", "l2": "L2", "dropout": "dropout", "fixed_mask": "dropout, one mask"}
EVALUATIONS, GRID = 60, 121
TRAIN, TEST = 211, 200
WEIGHT_SEED, MASK_SEED = 3, 1  # of the published protocol, for seed 0


class Points(NamedTuple):
    """Points of shape (N, 2) and classes 0 or 1 of shape (N,), to train on and to test on."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


def generate(seed: int) -> Points:
    """Draw two classes on the two sides of a wavy line, mixed near it.

    Parameters
    ----------
    seed : int
        Of the draw.

    Returns
    -------
    Points
        211 and 200 points in a square of side 1.2, as many as in the source.
    """
    draw = np.random.default_rng([seed, 20])
    x = draw.uniform(-0.6, 0.6, (TRAIN + TEST, 2))
    above = x[:, 1] + 0.5 * x[:, 0] - 0.12 * np.sin(6 * x[:, 0])
    y = (draw.random(len(x)) < 1 / (1 + np.exp(-18 * above))).astype(np.float64)
    return Points(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def load(path: Path) -> Points:
    """Read points from a file.

    Parameters
    ----------
    path : Path
        As for :func:`batchnorm.lab.data.arrays.read`, with points of two coordinates in two classes, and a test set.

    Returns
    -------
    Points
        The larger of the two numbers is class 1.

    Raises
    ------
    DataError
        A file that is missing, damaged, or holds something else.
    """
    found = read_arrays(path)
    if len(found.labels) != 2 or found.test is None:
        raise DataError(
            f"{path} must hold two classes, and points to test on; got {len(found.labels)} classes"
            f"{'' if found.test else ' and none to test on'}; give X, y, Xval, yval or Xtrain, ytrain, Xtest, ytest"
        )
    for raw in (found.train, found.test):
        if raw.x.ndim != 2 or raw.x.shape[1] != 2 or not np.isfinite(raw.x).all():
            raise DataError(
                f"{path}: {raw.x_name} must hold finite numbers of shape (N, 2) or (2, N), with one class for each of "
                f"the N; got shape {raw.x.shape}"
            )
    (x, y, *_), (x_test, y_test, *_) = found.train, found.test
    return Points(*(values.astype(np.float64) for values in (x, y, x_test, y_test)))


class LegacyMasks:
    """Uniform numbers for masks in the layout of the published protocol, (units, samples), from legacy seeding."""

    def __init__(self, seed: int) -> None:
        self.legacy = np.random.RandomState(seed)

    def random(self, shape: tuple[int, ...]) -> Array:
        """Draw in the published layout, and transpose."""
        return self.legacy.random_sample(shape[::-1]).T


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Train the network in every arm from the same weights; of seed 0 keep scores on a grid, and the points."""
    for seed in range(settings["seeds"]):
        points = generate(seed) if settings["data"] == "generated" else load(Path(settings["data"]))
        for arm, words in ARMS.items():
            network, curve = train(arm, points, seed, settings)
            record = {
                "arm": arm, "seed": seed, "loss": curve[-1, 1],
                "train": accuracy(network, points.x, points.y), "test": accuracy(network, points.x_test, points.y_test),
            }  # fmt: skip
            arrays = {f"curve/{arm}/{seed}": curve}
            if seed == 0:
                left, right, low, high = _window(points.x, points.x_test)
                x, y = np.meshgrid(np.linspace(left, right, GRID), np.linspace(low, high, GRID))
                scores = network.scores(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(GRID, GRID)
                arrays |= {f"scores/{arm}": scores, **points._asdict()}
            yield Measurement(f"seed {seed}, {words}", [record], arrays)


def train(arm: str, points: Points, seed: int, settings: Settings) -> tuple[Network, Array]:
    """Train one arm by full-batch gradient descent, as published.

    Parameters
    ----------
    arm : str
        One of none, l2, dropout, and fixed_mask: dropout as published, with the generator seeded again in every step.
    points : Points
        The data.
    seed : int
        0 has the published seeds of weights and masks; k adds k to both.
    settings : mapping
        Of the claim.

    Returns
    -------
    network : Network
        Trained.
    curve : ndarray of shape (evaluations, 4)
        Step, loss, training accuracy, test accuracy.
    """
    count, steps = len(points.y), settings["steps"]
    penalty = partial(l2_penalty, strength=settings["l2_strength"], convention="half_mean", samples=count)
    network = fully_connected(
        2, settings["hidden"], 1, keep_prob=settings["keep_prob"] if arm in ("dropout", "fixed_mask") else 1.0,
        penalty=penalty if arm == "l2" else None, initializer=partial(kaiming_normal, activation=None),
        criterion=sigmoid_cross_entropy, generator=np.random.RandomState(WEIGHT_SEED + seed),
    )  # fmt: skip
    masks, target = LegacyMasks(MASK_SEED + seed), points.y[:, None]
    shown = set(np.unique(np.geomspace(1, steps, EVALUATIONS).astype(int)).tolist())
    curve = []
    for step in range(1, steps + 1):
        source = LegacyMasks(MASK_SEED + seed) if arm == "fixed_mask" else masks
        network.generator = cast(Any, source)  # what dropout asks of a generator is `random`
        loss, gradients = network.loss(points.x, target)
        for name, w in network.parameters.items():
            network.parameters[name], _ = sgd(w, gradients[name], lr=settings["lr"])
        if step in shown:
            accuracies = accuracy(network, points.x, points.y), accuracy(network, points.x_test, points.y_test)
            curve.append((step, loss, *accuracies))
    return network, np.array(curve, dtype=np.float64)


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    def each(arm: str, key: str) -> list[float]:
        own = [r for r in records if r["arm"] == arm]
        return [100 * (r["train"] - r["test"] if key == "gap" else r[key]) for r in own]

    def against(arm: str, key: str) -> list[float]:
        ends = [r["loss"] for r in records if r["arm"] == arm]  # a run that was not finite keeps no bound
        pairs = zip(each(arm, key), each("none", key), ends, strict=True)
        return [a - b if np.isfinite(loss) else np.inf for a, b, loss in pairs]

    checks = [
        check
        for arm in ("l2", "dropout")
        for check in (
            Check(f"{ARMS[arm]}: narrower gap", "difference to none in points", against(arm, "gap"), 0.0, above=False),
            Check(f"{ARMS[arm]}: higher test accuracy", "difference to none in points", against(arm, "test"), 0.0),
        )
    ]
    test = len(arrays["y_test"])
    with mpl.rc_context(SETTINGS):
        pictures = [_boundaries(records, arrays), _curves(settings, arrays)]
    return Findings(
        "The gap between training and test accuracy is {} points without a regularizer, {} with L2 and {} "
        "with dropout; "
        "test accuracy {}%, {}% and {}%.".format(
            *(spread(each(arm, key)) for key in ("gap", "test") for arm in ("none", "l2", "dropout"))),
        checks,
        pictures,
        numbers=[("The published code seeds its generator in every step, so the same units of the same "
                  "samples are dropped "
                 f"throughout. Repeated so: gap {spread(each('fixed_mask', 'gap'))} points, test accuracy "
                 f"{spread(each('fixed_mask', 'test'))}%.")],
        limits=[(f"{test} test points: one is {100 / test:.2g} points of accuracy, and the test accuracy of "
                 "one seed has a "
                f"standard error of about {100 * (0.07 / test) ** 0.5:.1f} points."),
                "Generated points, not those of the source: each seed draws its own points, weights and masks."
                if settings["data"] == "generated" else
                "Points of a file: seeds differ in weights and masks only.",
                "Strength of L2 and rate of dropout are those of the source, tuned for its points."],
        tables=[Table("Accuracy", ["arm", "training accuracy (%)", "test accuracy (%)", "gap (points)"],
                      [[words, *(spread(each(arm, key)) for key in ("train", "test", "gap"))]
                       for arm, words in ARMS.items()],
                      "At the end of training, mean over seeds ± sample standard deviation.")],
        definitions=[("none, L2, dropout", (f"The network 2-20-3-1 (ReLU, ReLU, sigmoid), {settings['steps']} "
                                            "full-batch "
                      f"steps at {settings['lr']}; L2: {settings['l2_strength']} / (2 m) times the sum of "
                      "squares; dropout "
                      f"keeps {settings['keep_prob']}.")),
                     ("gap", "Training accuracy minus test accuracy, in points of a percent."),
                     ("legacy seeding", ("Weights and masks are drawn as by np.random.seed(3) and seed(1); "
                                        "seed k adds k."))],
    )  # fmt: skip


def _window(*points: Array) -> tuple[float, float, float, float]:
    """Return left, right, low and high of a picture with all points in it."""
    every = np.concatenate(points)
    low, high = every.min(axis=0), every.max(axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-9)
    (left, bottom), (right, top) = low - margin, high + margin
    return float(left), float(right), float(bottom), float(top)


def _boundaries(records: Sequence[Record], arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 5.9), layout="constrained")
    extent = _window(arrays["x"], arrays["x_test"])
    own = {r["arm"]: r for r in records if r["seed"] == 0}
    lines = (("x", "y", "train", "training"), ("x_test", "y_test", "test", "test"))
    grid = figure.subplots(2, len(ARMS), sharex=True, sharey=True)
    for line, (x, y, key, words) in zip(grid, lines, strict=True):
        for axes, arm in zip(line, ARMS, strict=True):
            scores = arrays[f"scores/{arm}"]
            steps = [np.linspace(extent[i], extent[i + 1], scores.shape[0]) for i in (0, 2)]
            axes.contourf(
                *steps, np.where(scores > 0, 1.0, 0.0), levels=[-0.5, 0.5, 1.5], colors=COLORS[:2], alpha=0.16
            )
            for label, mark in ((0, "o"), (1, "^")):
                axes.plot(*arrays[x][arrays[y] == label].T, mark, color=COLORS[label], ms=2.8, alpha=0.85)
            axes.set_title(f"{ARMS[arm]}: {100 * own[arm][key]:.1f}%", loc="left")
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
        line[0].set_ylabel(f"{words} points")
    return Picture("boundaries", "Decision boundaries", "Seed 0. Above the training points, below the test "
                                                        "points, over the "
                   "same boundary of each arm, with the accuracy on the points shown.",
                   "Decision boundaries of four arms over training and test points of two "
                   "classes.", figure)  # fmt: skip


def _curves(settings: Settings, arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for index, (arm, words) in enumerate(ARMS.items()):
        curves = np.array([arrays[f"curve/{arm}/{seed}"] for seed in range(settings["seeds"])])
        for axes, column in zip(panels, (2, 3), strict=True):
            mean = 100 * curves[:, :, column].mean(axis=0)
            axes.plot(curves[0, :, 0], mean, label=words, markevery=6, **style(index))
    for axes, words in zip(panels, ("training", "test"), strict=True):
        axes.set_title(f"{words} accuracy", loc="left")
        axes.set(xscale="log", xlabel="step")
    panels[0].set_ylabel("accuracy (%)")
    panels[0].legend(loc="lower right")
    return Picture("curves", "Over training", "Mean over seeds of the accuracy at test time. Where the left "
                                              "keeps rising and "
                   "the right falls, the network learns the noise.",
                   "Training and test accuracy against steps, four arms.", figure)  # fmt: skip


_PROTOCOL = {"data": "generated", "hidden": [20, 3], "lr": 0.3, "l2_strength": 0.7, "keep_prob": 0.86}
CLAIM = Claim(
    name="regularizers",
    sentence="On two noisy classes in the plane an L2 penalty and dropout narrow the gap between training and test "
    "accuracy, and raise the test accuracy.",
    source="deeplearning.ai course notes on regularization; Srivastava et al. 2014, JMLR 15",
    protocol="A network 2-20-3-1 by full-batch descent without a regularizer, with L2 and with dropout, from the same "
    "weights; `--set data=FILE` takes your own points (X, y, Xval, yval or Xtrain, ytrain, Xtest, ytest).",
    rule="Against the same network without a regularizer, seed by seed: the mean difference of the gap is "
    "below 0, that of "
    "the test accuracy above 0.",
    budgets={"small": {"seeds": 5, "steps": 6000, **_PROTOCOL}, "full": {"seeds": 5, "steps": 30000, **_PROTOCOL}},
    cost={"small": "1 min", "full": "5 min"},
    differs="Generated points instead of the source's file, which is not free; small budget: 1500 steps "
    "instead of 30000.",
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: int(settings["seeds"]) * len(ARMS),
)
