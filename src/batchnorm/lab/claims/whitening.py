"""Whitening beside batch normalization: what it costs, and what gradient descent gains from it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.claims.config import RunClaims
from batchnorm.lab.claims.findings import Arrays, Check, Findings, Measurement, Record, number, spread
from batchnorm.lab.claims.whitening_figures import INPUTS, NAMES, figures
from batchnorm.lab.wording import Table
from batchnorm.reference import batch_norm, descent, whitening

COUNT = 1024
FEATURES, SAMPLES = 16, 512
EPS = 1e-8  # small against the variances, so that what is whitened is white
NOISE_STD = 0.1
IDENTITY = 1e-3

Array = NDArray[np.float64]


def settings(config: RunClaims) -> dict[str, Any]:
    """Resolve what the experiment depends on.

    Parameters
    ----------
    config : RunClaims
        The command line.

    Returns
    -------
    dict
    """
    return {
        "channels": [8, 16, 32, 64] if config.quick else [8, 16, 32, 64, 128, 256, 512],
        "count": COUNT,
        "repeats": 5 if config.quick else 9,
        "features": FEATURES,
        "samples": SAMPLES,
        "seeds": config.seeds or (2 if config.quick else 5),
        "limit": 3000 if config.quick else 30000,
        "excess": 1e-3,
        "eps": EPS,
    }


def total(given: Mapping[str, Any]) -> int:
    """Count the measurements: one per number of channels, one per seed."""
    return len(given["channels"]) + int(given["seeds"])


def measure(given: Mapping[str, Any]) -> Iterator[Measurement]:
    """Time both, forward and backward; then train a linear model on raw, normalized and whitened inputs.

    Parameters
    ----------
    given : mapping
        From `settings`.

    Yields
    ------
    Measurement
        Records of kind "cost" (one per number of channels and repeat) and "effect" (one per seed and input).
    """
    for channels in given["channels"]:
        yield Measurement(f"cost, {channels} channels", _cost(given, channels), {})
    for seed in range(given["seeds"]):
        yield _effect(given, seed)


def _cost(given: Mapping[str, Any], channels: int) -> list[Record]:
    draw = np.random.default_rng(channels)
    x, dy = draw.standard_normal((2, given["count"], channels))

    def normalize() -> object:
        return batch_norm.backward(dy, batch_norm.forward_train(x)[1])

    def whiten() -> object:
        return whitening.backward(dy, whitening.forward(x, method="zca", eps=1e-5)[1])

    arms = {"batch": normalize, "zca": whiten}
    for run in arms.values():
        run()  # the first call pays for memory and threads
    operations = whitening.cost(given["count"], channels)
    work = {"batch": operations.batch_norm, "zca": operations.zca}
    records = []
    for repeat in range(given["repeats"]):  # one after the other, so that what slows the machine slows both
        for arm in draw.permutation(sorted(arms)):
            seconds = _seconds(arms[str(arm)])
            records.append(
                {"kind": "cost", "channels": channels, "repeat": repeat, "arm": str(arm), "seconds": seconds,
                 "operations": work[str(arm)]}
            )  # fmt: skip
    return records


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _effect(given: Mapping[str, Any], seed: int) -> Measurement:
    x, y = data(given, seed)
    inputs = {
        "raw": x,
        "batch": batch_norm.forward_train(x, eps=given["eps"])[0],
        "zca": whitening.forward(x, method="zca", eps=given["eps"])[0],
    }
    records: list[Record] = []
    arrays: dict[str, Array] = {}
    for name, features in inputs.items():
        covariance = np.cov(features.T, bias=True)
        condition, steps, curve = train(features, y, limit=given["limit"], excess=given["excess"])
        off = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance))) - np.eye(len(covariance))
        records.append(
            {"kind": "effect", "seed": seed, "input": name, "condition": condition, "steps": steps,
             "correlation": np.abs(off).max(), "from_identity": np.abs(covariance - np.eye(len(covariance))).max()}
        )  # fmt: skip
        if seed == 0:
            arrays |= {f"covariance/{name}": covariance, f"curve/{name}": curve}
    return Measurement(f"effect, seed {seed}", records, arrays)


def data(given: Mapping[str, Any], seed: int) -> tuple[Array, Array]:
    """Draw correlated features of different sizes and means, and a noisy linear target.

    Parameters
    ----------
    given : mapping
        From `settings`.
    seed : int
        Of the draw.

    Returns
    -------
    x : ndarray of shape (samples, features)
        A few common factors plus noise of each feature; sizes that differ tenfold.
    y : ndarray of shape (samples,)
        The target.
    """
    draw, features = np.random.default_rng(seed), given["features"]
    factors = draw.standard_normal((given["samples"], features // 4))
    mixed = factors @ draw.standard_normal((features // 4, features))
    mixed += 1.0 * draw.standard_normal(mixed.shape)
    x: Array = mixed * np.geomspace(0.3, 3.0, features) + draw.standard_normal(features)
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    y = standardized @ draw.standard_normal(features) + NOISE_STD * draw.standard_normal(len(x))
    return x, y


def train(x: Array, y: Array, *, limit: int, excess: float) -> tuple[float, float, Array]:
    """Descend the squared error of a linear model with bias, at the best constant rate there is.

    The loss is quadratic, so that rate is known: 2 over the sum of the smallest and the largest curvature.

    Parameters
    ----------
    x : ndarray of shape (samples, features)
        Inputs.
    y : ndarray of shape (samples,)
        Targets.
    limit : int
        Most steps.
    excess : float
        Share of the initial excess over the lowest loss at which the training is done.

    Returns
    -------
    condition : float
        Largest over smallest curvature.
    steps : float
        inf if the limit came first.
    curve : ndarray of shape (limit + 1,)
        The share of the excess that is left after each step.
    """
    rows: Array = np.hstack([x, np.ones((len(x), 1))])
    curvatures = np.linalg.eigvalsh(rows.T @ rows / len(rows))
    loss = descent.least_squares(rows, y)
    solution: Array = np.asarray(np.linalg.lstsq(rows, y, rcond=None)[0], dtype=np.float64)
    lowest = loss.value(solution)
    path = descent.stochastic_descend(
        loss, np.zeros(rows.shape[1]), batch_size=len(rows), epochs=limit,
        lr=2.0 / (curvatures[0] + curvatures[-1]), generator=np.random.default_rng(0),
    )  # fmt: skip
    left: Array = (path.values - lowest) / (path.values[0] - lowest)
    done = np.flatnonzero(left <= excess)
    return float(curvatures[-1] / curvatures[0]), float(done[0]) if len(done) else np.inf, left


def find(given: Mapping[str, Any], records: Sequence[Record], arrays: Arrays) -> Findings:
    """Judge what was recorded, and draw it.

    Parameters
    ----------
    given : mapping
        From `settings`.
    records : sequence of dict
        From `measure`.
    arrays : mapping
        Covariances and curves of seed 0.

    Returns
    -------
    Findings
    """
    costs, effects = ([r for r in records if r["kind"] == kind] for kind in ("cost", "effect"))
    checks = judge_records(costs, effects, given["limit"])
    ratios = cost_ratios(costs)
    few, many = min(ratios), max(ratios)
    steps = {name: _values(effects, name, "steps") for name in INPUTS}
    return Findings(
        headline=f"With {many} features whitening takes {np.median(ratios[many]):.0f} times as long as batch "
        f"normalization; gradient descent then needs {spread(steps['zca'])} steps, {spread(steps['batch'])} after BN, "
        f"{spread(steps['raw'])} on raw inputs.",
        checks=checks,
        numbers=[
            (f"Time of whitening over BN, forward and backward: {np.median(ratios[few]):.1f} with {few} features, "
            f"{np.median(ratios[many]):.0f} with {many}."),
            (f"Condition number of the loss: {spread(_values(effects, 'raw', 'condition'))} raw, "
            f"{spread(_values(effects, 'batch', 'condition'))} after BN, "
            f"{spread(_values(effects, 'zca', 'condition'))} whitened."),
        ],
        limits=[
            ("Times are of the NumPy textbook on this machine: an eigendecomposition against a few passes over an "
            "array. Compiled kernels would move both, BN further."),
            ("The inputs of a linear model, whitened once: the gain inside a network, where statistics move and are "
            "those of a batch, is another question."),
        ],
        tables=[_cost_table(costs), _effect_table(effects)],
        pictures=figures(given, costs, effects, arrays),
        definitions=[
            ("whitened", "ZCA: multiplied by the inverse root of the covariance matrix, which makes it the identity."),
            ("time", (f"Forward and backward of a batch of {given['count']}, both in turn in random order; median of "
             f"{given['repeats']}, and ratios inside a pair.")),
            ("operations", "Of one forward, counted (equations 82 and 83 of the derivation)."),
            ("done", (f"The loss is within {given['excess']:g} of its initial excess over the lowest loss. The "
             "learning rate is the best constant one, which is known for a quadratic loss.")),
            ("condition number", "Largest over smallest curvature of the loss."),
        ],
    )  # fmt: skip


def judge_records(costs: Sequence[Record], effects: Sequence[Record], limit: int) -> list[Check]:
    """Make the checks from the records.

    Parameters
    ----------
    costs, effects : sequence of dict
        From `measure`, by kind.
    limit : int
        What a training counts that was not done.

    Returns
    -------
    list of Check
    """
    off = _values(effects, "zca", "from_identity")
    same = [abs(a - b) for a, b in zip(*(_values(effects, n, "correlation") for n in ("batch", "raw")), strict=True)]
    checks = [
        Check("whitened: covariance is the identity", f"largest difference, below {IDENTITY:g}", off,
              [value < IDENTITY for value in off]),
        Check("BN: correlations stay", f"change of the largest one, below {IDENTITY:g}", same,
              [value < IDENTITY for value in same]),
    ]  # fmt: skip
    for quick, slow in (("zca", "batch"), ("batch", "raw")):
        pairs = list(zip(_values(effects, quick, "steps"), _values(effects, slow, "steps"), strict=True))
        ratios = [max(min(a, limit), 1) / max(min(b, limit), 1) for a, b in pairs]
        name = f"{NAMES[quick]}: fewer steps than {NAMES[slow]}"
        checks.append(Check(name, "ratio of steps, below 1", ratios, [a < b for a, b in pairs]))
    ratios_by_size = cost_ratios(costs)
    growth = [
        b / a for a, b in zip(ratios_by_size[min(ratios_by_size)], ratios_by_size[max(ratios_by_size)], strict=True)
    ]
    rule = f"time over BN, {max(ratios_by_size)} features against {min(ratios_by_size)}: ratio above 1"
    checks.append(Check("whitening: cost factor grows", rule, growth, [value > 1 for value in growth]))
    return checks


def cost_ratios(costs: Sequence[Record]) -> dict[int, list[float]]:
    """Divide the time of whitening by that of BN, inside each pair.

    Parameters
    ----------
    costs : sequence of dict
        From `measure`.

    Returns
    -------
    dict of int to list of float
        By number of channels.
    """
    seconds = {(r["channels"], r["repeat"], r["arm"]): r["seconds"] for r in costs}
    found: dict[int, list[float]] = {}
    for channels, repeat, arm in sorted(seconds):
        if arm == "zca":
            ratio = seconds[channels, repeat, "zca"] / seconds[channels, repeat, "batch"]
            found.setdefault(channels, []).append(ratio)
    return found


def _values(effects: Sequence[Record], name: str, key: str) -> list[float]:
    return [np.inf if np.isnan(r[key]) else r[key] for r in effects if r["input"] == name]


def _cost_table(costs: Sequence[Record]) -> Table:
    rows = []
    for channels, ratios in cost_ratios(costs).items():
        here = [r for r in costs if r["channels"] == channels]
        work = {r["arm"]: r["operations"] for r in here}
        times = {arm: 1e3 * np.median([r["seconds"] for r in here if r["arm"] == arm]) for arm in ("batch", "zca")}
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        rows.append(
            [str(channels), f"{work['batch']:,}", f"{work['zca']:,}", f"{work['zca'] / work['batch']:.0f}",
             number(times["batch"]), number(times["zca"]), f"{middle:.1f} ({low:.1f} to {high:.1f})"]
        )  # fmt: skip
    columns = ["features", "operations, BN", "operations, ZCA", "ratio", "ms, BN", "ms, ZCA", "ratio of time"]
    return Table("Cost", columns, rows, "Times are medians; the ratio of time is inside a pair: median and quartiles.")


def _effect_table(effects: Sequence[Record]) -> Table:
    rows = [
        [NAMES[name], *(spread(_values(effects, name, key)) for key in ("correlation", "condition", "steps"))]
        for name in INPUTS
    ]
    columns = ["inputs", "largest correlation", "condition number", "steps until done"]
    return Table("Effect", columns, rows, "Mean over seeds ± sample standard deviation.")
