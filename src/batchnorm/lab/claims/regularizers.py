"""No regularizer, an L2 penalty and dropout on two noisy classes in the plane: gap, test accuracy, boundaries."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.claims.config import RunClaims
from batchnorm.lab.claims.findings import Arrays, Check, Findings, Measurement, Record, spread
from batchnorm.lab.claims.pointsets import Points, generate, load
from batchnorm.lab.claims.regularizers_figures import ARMS, NAMES, figures, window
from batchnorm.lab.errors import DataError
from batchnorm.lab.wording import Table
from batchnorm.reference.initializers import kaiming_normal
from batchnorm.reference.losses import sigmoid_cross_entropy
from batchnorm.reference.networks import Network, fully_connected
from batchnorm.reference.optimizers import sgd
from batchnorm.reference.penalties import l2_penalty
from batchnorm.reference.training import accuracy

HIDDEN, LR, STRENGTH, KEEP_PROB = [20, 3], 0.3, 0.7, 0.86
STEPS, QUICK_STEPS, EVALUATIONS, GRID = 30000, 1500, 60, 121
WEIGHT_SEED, MASK_SEED = 3, 1  # of the published protocol, for seed 0

Array = NDArray[np.float64]


class LegacyMasks:
    """Uniform numbers for masks in the layout of the published protocol, (units, samples), from legacy seeding."""

    def __init__(self, seed: int) -> None:
        self.legacy = np.random.RandomState(seed)

    def random(self, shape: tuple[int, ...]) -> Array:
        """Draw in the published layout, and transpose."""
        return self.legacy.random_sample(shape[::-1]).T


def settings(config: RunClaims) -> dict[str, Any]:
    """Resolve what the experiment depends on, and read the file if there is one.

    Parameters
    ----------
    config : RunClaims
        The command line.

    Returns
    -------
    dict

    Raises
    ------
    DataError
        A file that cannot be used.
    """
    points = load(config.data) if config.data else generate(0)
    return {
        "data": str(config.data.resolve()) if config.data else "generated",
        "train": len(points.y),
        "test": len(points.y_test),
        "steps": QUICK_STEPS if config.quick else STEPS,
        "seeds": config.seeds or (2 if config.quick else 5),
        "hidden": HIDDEN,
        "lr": LR,
        "l2_strength": STRENGTH,
        "keep_prob": KEEP_PROB,
    }


def total(given: Mapping[str, Any]) -> int:
    """Count the measurements: one per seed and arm."""
    return int(given["seeds"]) * len(ARMS)


def measure(given: Mapping[str, Any]) -> Iterator[Measurement]:
    """Train the network 2-20-3-1 in every arm from the same weights.

    Parameters
    ----------
    given : mapping
        From `settings`.

    Yields
    ------
    Measurement
        One record per seed and arm; for seed 0 the probabilities on a grid, and the points.
    """
    for seed in range(given["seeds"]):
        points = points_of(given, seed)
        for arm in ARMS:
            network, curve = train(arm, points, seed, given)
            record = {
                "arm": arm, "seed": seed, "loss": curve[-1, 1], "finite": bool(np.all(np.isfinite(curve))),
                "train": accuracy(network, points.x, points.y), "test": accuracy(network, points.x_test, points.y_test),
            }  # fmt: skip
            arrays = {f"curve/{arm}/{seed}": curve}
            if seed == 0:
                arrays |= {f"scores/{arm}": network.scores(grid(points)).reshape(GRID, GRID)}
                arrays |= dict(points._asdict())
            yield Measurement(f"seed {seed}, {NAMES[arm]}", [record], arrays)


def points_of(given: Mapping[str, Any], seed: int) -> Points:
    """Return the points of a seed: those of the file, or a draw of its own."""
    return generate(seed) if given["data"] == "generated" else load(Path(given["data"]))


def grid(points: Points) -> Array:
    """Return the points of the grid on which boundaries are drawn, shape (GRID * GRID, 2)."""
    left, right, low, high = window(points.x, points.x_test)
    x, y = np.meshgrid(np.linspace(left, right, GRID), np.linspace(low, high, GRID))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def train(arm: str, points: Points, seed: int, given: Mapping[str, Any]) -> tuple[Network, Array]:
    """Train one arm by full-batch gradient descent, as published.

    Parameters
    ----------
    arm : str
        One of none, l2, dropout, and fixed_mask: dropout as published, with the generator seeded again in every step.
    points : Points
        The data.
    seed : int
        0 has the published seeds of weights and masks; k adds k to both.
    given : mapping
        From `settings`.

    Returns
    -------
    network : Network
        Trained.
    curve : ndarray of shape (evaluations, 4)
        Step, loss, training accuracy, test accuracy.
    """
    count, steps = len(points.y), given["steps"]
    penalty = partial(l2_penalty, strength=given["l2_strength"], convention="half_mean", samples=count)
    network = fully_connected(
        2,
        given["hidden"],
        1,
        keep_prob=given["keep_prob"] if arm in ("dropout", "fixed_mask") else 1.0,
        penalty=penalty if arm == "l2" else None,
        initializer=partial(kaiming_normal, activation=None),
        criterion=sigmoid_cross_entropy,
        generator=np.random.RandomState(WEIGHT_SEED + seed),
    )
    masks, target = LegacyMasks(MASK_SEED + seed), points.y[:, None]
    shown = set(np.unique(np.geomspace(1, steps, EVALUATIONS).astype(int)).tolist())
    curve = []
    for step in range(1, steps + 1):
        source = LegacyMasks(MASK_SEED + seed) if arm == "fixed_mask" else masks
        network.generator = cast(Any, source)  # what dropout asks of a generator is `random`
        loss, gradients = network.loss(points.x, target)
        for name, w in network.parameters.items():
            network.parameters[name], _ = sgd(w, gradients[name], lr=given["lr"])
        if step in shown:
            accuracies = accuracy(network, points.x, points.y), accuracy(network, points.x_test, points.y_test)
            curve.append((step, loss, *accuracies))
    return network, np.array(curve, dtype=np.float64)


def find(given: Mapping[str, Any], records: Sequence[Record], arrays: Arrays) -> Findings:
    """Judge what was recorded, and draw it.

    Parameters
    ----------
    given : mapping
        From `settings`.
    records : sequence of dict
        From `measure`.
    arrays : mapping
        Curves, boundaries and points.

    Returns
    -------
    Findings
    """
    checks = judge_records(records)
    gaps = {arm: spread([100 * (r["train"] - r["test"]) for r in records if r["arm"] == arm]) for arm in ARMS}
    tests = {arm: spread([100 * r["test"] for r in records if r["arm"] == arm]) for arm in ARMS}
    own = given["data"] != "generated"
    return Findings(
        headline=f"The gap between training and test accuracy is {gaps['none']} points without a regularizer, "
        f"{gaps['l2']} with L2 and {gaps['dropout']} with dropout; test accuracy {tests['none']}%, {tests['l2']}% and "
        f"{tests['dropout']}%.",
        checks=checks,
        numbers=[("The published code seeds its generator in every step, so the same units of the same samples are "
                 f"dropped throughout. Repeated so: gap {gaps['fixed_mask']} points, test accuracy "
                 f"{tests['fixed_mask']}%.")],
        limits=[
            (f"{given['test']} test points: one of them is {100 / given['test']:.2g} points of accuracy, and the test "
            f"accuracy of one seed has a standard error of about {100 * (0.07 / given['test']) ** 0.5:.1f} points."),
            "Points of a file: seeds differ in weights and masks only." if own else
            "Generated points, not those of the source: each seed draws its own points, weights and masks.",
            "Strength of L2 and rate of dropout are those of the source, tuned for its points.",
        ],
        tables=[_table(records)],
        pictures=figures(given, records, arrays),
        definitions=[
            ("none, L2, dropout", (f"The network 2-20-3-1 (ReLU, ReLU, sigmoid), {given['steps']} full-batch "
             f"steps at {given['lr']}; L2: 0.7 / (2 m) times the sum of squares; dropout keeps {given['keep_prob']}.")),
            ("gap", "Training accuracy minus test accuracy, in points of a percent."),
            ("legacy seeding", ("Weights and masks are drawn as by np.random.seed(3) and seed(1); seed k adds "
             "k to both.")),
        ],
    )  # fmt: skip


def judge_records(records: Sequence[Record]) -> list[Check]:
    """Compare with the arm without a regularizer, seed by seed.

    Parameters
    ----------
    records : sequence of dict
        From `measure`.

    Returns
    -------
    list of Check
        A tie does not pass; a run that was not finite neither.

    Raises
    ------
    DataError
        No arm was trained.
    """
    by = {(r["arm"], r["seed"]): r for r in records}
    seeds = sorted({r["seed"] for r in records})
    if not seeds:
        raise DataError("the run holds no record")
    checks = []
    for arm in ("l2", "dropout"):
        narrower = [100 * (_gap(by["none", seed]) - _gap(by[arm, seed])) for seed in seeds]
        higher = [100 * (by[arm, seed]["test"] - by["none", seed]["test"]) for seed in seeds]
        finite = [bool(by[arm, seed]["finite"]) for seed in seeds]
        for words, values in (("narrower gap", narrower), ("higher test accuracy", higher)):
            passed = [ok and value > 1e-9 for ok, value in zip(finite, values, strict=True)]
            checks.append(Check(f"{NAMES[arm]}: {words}", "difference to none in points, above 0", values, passed))
    return checks


def _gap(record: Record) -> float:
    return float(record["train"] - record["test"])


def _table(records: Sequence[Record]) -> Table:
    rows = []
    for arm in ARMS:
        own = [r for r in records if r["arm"] == arm]
        rows.append(
            [NAMES[arm], spread([100 * r["train"] for r in own]), spread([100 * r["test"] for r in own]),
             spread([100 * _gap(r) for r in own]), spread([r["loss"] for r in own])]
        )  # fmt: skip
    columns = ["arm", "training accuracy (%)", "test accuracy (%)", "gap (points)", "last loss"]
    note = "At the end of training, mean over seeds ± sample standard deviation; the loss is with penalty and masks."
    return Table("Accuracy", columns, rows, note)
