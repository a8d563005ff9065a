"""Whitening beside batch normalization: what it costs, and what gradient descent gains from it."""

import time
from collections.abc import Callable, Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

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
from batchnorm.lab.wording import Table
from batchnorm.reference import batch_norm, descent, whitening

NAMES = {"raw": "raw", "batch": "after BN", "zca": "whitened"}
STYLES = {"raw": style(2), "batch": style(1), "zca": style(0)}
EPS = 1e-8  # small against the variances, so that what is whitened is white
NOISE_STD, IDENTITY = 0.1, 1e-3


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Time both, forward and backward; then train a linear model on raw, normalized and whitened inputs."""
    for channels in settings["channels"]:
        yield Measurement(f"cost, {channels} channels", _cost(settings, channels), {})
    for seed in range(settings["seeds"]):
        yield _effect(settings, seed)


def _cost(settings: Settings, channels: int) -> list[Record]:
    draw = np.random.default_rng(channels)
    x, dy = draw.standard_normal((2, settings["count"], channels))
    arms: dict[str, Callable[[], object]] = {
        "batch": lambda: batch_norm.backward(dy, batch_norm.forward_train(x)[1]),
        "zca": lambda: whitening.backward(dy, whitening.forward(x, method="zca", eps=1e-5)[1]),
    }
    for run in arms.values():
        run()  # the first call pays for memory and threads
    operations = whitening.cost(settings["count"], channels)
    records = []
    for repeat in range(settings["repeats"]):  # in random order, so that what slows the machine slows both
        for arm in draw.permutation(sorted(arms)):
            start = time.perf_counter()
            arms[str(arm)]()
            records.append({"kind": "cost", "channels": channels, "repeat": repeat, "arm": str(arm),
                            "seconds": time.perf_counter() - start,
                            "operations": operations.zca if arm == "zca" else operations.batch_norm})  # fmt: skip
    return records


def _effect(settings: Settings, seed: int) -> Measurement:
    x, y = data(settings, seed)
    inputs = {
        "raw": x,
        "batch": batch_norm.forward_train(x, eps=EPS)[0],
        "zca": whitening.forward(x, method="zca", eps=EPS)[0],
    }
    records: list[Record] = []
    arrays: dict[str, Array] = {}
    for name, features in inputs.items():
        covariance = np.cov(features.T, bias=True)
        condition, steps, curve = train(features, y, limit=settings["limit"], excess=settings["excess"])
        off = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance))) - np.eye(len(covariance))
        records.append({"kind": "effect", "seed": seed, "input": name, "condition": condition, "steps": steps,
                        "correlation": np.abs(off).max(),
                        "from_identity": np.abs(covariance - np.eye(len(covariance))).max()})  # fmt: skip
        if seed == 0:
            arrays |= {f"covariance/{name}": covariance, f"curve/{name}": curve}
    return Measurement(f"effect, seed {seed}", records, arrays)


def data(settings: Settings, seed: int) -> tuple[Array, Array]:
    """Draw correlated features of different sizes and means, and a noisy linear target.

    Parameters
    ----------
    settings : mapping
        ``features`` and ``samples``.
    seed : int
        Of the draw.

    Returns
    -------
    x : ndarray of shape (samples, features)
        A few common factors plus noise of each feature; sizes that differ tenfold.
    y : ndarray of shape (samples,)
        The target.
    """
    draw, features = np.random.default_rng(seed), settings["features"]
    factors = draw.standard_normal((settings["samples"], features // 4))
    mixed = factors @ draw.standard_normal((features // 4, features))
    mixed += 1.0 * draw.standard_normal(mixed.shape)
    x: Array = mixed * np.geomspace(0.3, 3.0, features) + draw.standard_normal(features)
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, standardized @ draw.standard_normal(features) + NOISE_STD * draw.standard_normal(len(x))


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
    lowest = loss.value(np.asarray(np.linalg.lstsq(rows, y, rcond=None)[0], dtype=np.float64))
    path = descent.stochastic_descend(
        loss, np.zeros(rows.shape[1]), batch_size=len(rows), epochs=limit,
        lr=2.0 / (curvatures[0] + curvatures[-1]), generator=np.random.default_rng(0),
    )  # fmt: skip
    left: Array = (path.values - lowest) / (path.values[0] - lowest)
    done = np.flatnonzero(left <= excess)
    return float(curvatures[-1] / curvatures[0]), float(done[0]) if len(done) else np.inf, left


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    costs, effects = ([r for r in records if r["kind"] == kind] for kind in ("cost", "effect"))
    ratios = _cost_ratios(costs)
    few, many = min(ratios), max(ratios)
    values = {
        (name, key): [settings["limit"] if key == "steps" and not np.isfinite(r[key]) else r[key]
                      for r in effects if r["input"] == name]
        for name in NAMES for key in ("steps", "condition", "correlation", "from_identity")
    }  # fmt: skip
    same = [abs(a - b) for a, b in zip(values["batch", "correlation"], values["raw", "correlation"], strict=True)]
    checks = [
        Check("whitened: covariance is the identity", "largest "
                                                      "difference", values["zca", "from_identity"], IDENTITY, False),
        Check("BN: correlations stay", "change of the largest one", same, IDENTITY, False),
        *(Check(f"{NAMES[quick]}: fewer steps than {NAMES[slow]}", "log2 of the ratio of steps",
                (_log2(values[quick, "steps"]) - _log2(values[slow, "steps"])).tolist(), 0.0, False)
          for quick, slow in (("zca", "batch"), ("batch", "raw"))),
        Check("whitening: cost factor grows", f"log2 of the time over BN, {many} features against {few}",
              [float(np.log2(b / a)) for a, b in zip(ratios[few], ratios[many], strict=True)], 0.0),
    ]  # fmt: skip
    with mpl.rc_context(SETTINGS):
        pictures = [_cost_picture(settings, costs), _covariance(arrays), _training(settings, effects, arrays)]
    return Findings(
        f"With {many} features whitening takes {np.median(ratios[many]):.0f} times as long as batch "
        "normalization; gradient "
        f"descent then needs {spread(values['zca', 'steps'])} steps, {spread(values['batch', 'steps'])} after BN, "
        f"{spread(values['raw', 'steps'])} on raw inputs.",
        checks,
        pictures,
        numbers=["Condition number of the loss: " + ", ".join(
            f"{spread(values[name, 'condition'])} {words}" for name, words in NAMES.items()) + "."],
        limits=[("Times are of the NumPy textbook on this machine: an eigendecomposition against a few passes over an "
                "array. Compiled kernels would move both, BN further."),
                ("The inputs of a linear model, whitened once: the gain inside a network, where statistics "
                 "move and are "
                "those of a batch, is another question.")],
        tables=[_cost_table(costs), Table(
            "Effect", ["inputs", "largest correlation", "condition number", "steps until done"],
            [[words, *(spread(values[name, key]) for key in ("correlation", "condition", "steps"))]
             for name, words in NAMES.items()], "Mean over seeds ± sample standard deviation.")],
        definitions=[
            ("whitened", "ZCA: multiplied by the inverse root of the covariance matrix, which makes it the identity."),
            ("operations", "Of one forward, counted (equations 82 and 83 of the derivation)."),
            ("done", (f"Within {settings['excess']:g} of the initial excess over the lowest loss; otherwise the limit, "
             f"{settings['limit']:,} steps. The rate is the best constant one, known for a quadratic loss.")),
            ("condition number", "Largest over smallest curvature of the loss."),
        ],
    )  # fmt: skip


def _log2(steps: Sequence[float]) -> Array:
    return np.log2(np.maximum(steps, 1))


def _cost_ratios(costs: Sequence[Record]) -> dict[int, list[float]]:
    """Divide the time of whitening by that of BN, inside each pair."""
    seconds = {(r["channels"], r["repeat"], r["arm"]): r["seconds"] for r in costs}
    found: dict[int, list[float]] = {}
    for channels, repeat, arm in sorted(seconds):
        if arm == "zca":
            ratio = seconds[channels, repeat, "zca"] / seconds[channels, repeat, "batch"]
            found.setdefault(channels, []).append(ratio)
    return found


def _cost_table(costs: Sequence[Record]) -> Table:
    rows = []
    for channels, ratios in _cost_ratios(costs).items():
        here = [r for r in costs if r["channels"] == channels]
        work = {r["arm"]: r["operations"] for r in here}
        times = {arm: 1e3 * np.median([r["seconds"] for r in here if r["arm"] == arm]) for arm in work}
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        rows.append([str(channels), f"{work['batch']:,}", f"{work['zca']:,}", number(times["batch"]),
                     number(times["zca"]), f"{middle:.1f} ({low:.1f} to {high:.1f})"])  # fmt: skip
    columns = ["features", "operations, BN", "operations, ZCA", "ms, BN", "ms, ZCA", "ratio of time"]
    return Table("Cost", columns, rows, "Times are medians; the ratio of time is inside a pair: median and quartiles.")


def _cost_picture(settings: Settings, costs: Sequence[Record]) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(panels, ("operations", "seconds"), ("operations of a forward", "seconds"), strict=True):
        for arm, words in (("batch", "BN"), ("zca", "whitened")):
            rows = [[r[key] for r in costs if (r["arm"], r["channels"]) == (arm, n)] for n in settings["channels"]]
            low, middle, high = np.array([np.percentile(row, [25, 50, 75]) for row in rows]).T
            axes.plot(settings["channels"], middle, label=words, **STYLES[arm])
            axes.fill_between(settings["channels"], low, high, color=STYLES[arm]["color"], alpha=0.2, lw=0)
        axes.set(xscale="log", yscale="log", xlabel="features", ylabel=label)
        axes.legend(loc="upper left")
    return Picture("cost", "What whitening costs", f"A batch of {settings['count']} rows. Line: median, band: "
                                                   "quartiles of "
                   f"{settings['repeats']} interleaved measurements, forward and backward.",
                   "Operations and seconds against the number of features, BN and whitening.", figure)  # fmt: skip


def _covariance(arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
    for axes, (name, words) in zip(figure.subplots(1, 3), NAMES.items(), strict=True):
        matrix = arrays[f"covariance/{name}"]
        bound = np.abs(matrix).max()
        figure.colorbar(axes.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound), ax=axes, shrink=0.85)
        axes.set(xticks=[], yticks=[])
        axes.set_title(words, loc="left")
        axes.grid(visible=False)
    return Picture("covariance", "Covariance of the inputs", "Seed 0. BN makes the diagonal 1 and leaves the "
                                                             "correlations; "
                   "ZCA leaves the diagonal only.", "Three covariance matrices as colours: raw, after BN, whitened.",
                   figure)  # fmt: skip


def _training(settings: Settings, effects: Sequence[Record], arrays: Arrays) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, words in NAMES.items():
        curve = arrays[f"curve/{name}"]
        floor = np.maximum(curve, settings["excess"] / 30)
        left.plot(np.arange(len(curve)) + 1, floor, label=words, **{**STYLES[name], "marker": None})
        rows = [r for r in effects if r["input"] == name]
        steps = [max(r["steps"], 1) if np.isfinite(r["steps"]) else settings["limit"] for r in rows]
        right.plot([r["condition"] for r in rows], steps, label=words, **{**STYLES[name], "linestyle": ""})
    left.axhline(settings["excess"], color="#888888", ls=":", lw=1)
    left.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="share of the excess loss left")
    right.set(xscale="log", yscale="log", xlabel="condition number", ylabel="steps until done")
    left.legend(loc="lower left")
    return Picture("training", "What whitening gains", "Full-batch gradient descent on a linear model, at the "
                                                       "best constant "
                   "rate of each. Left: seed 0 (dotted: done). Right: one point per seed.",
                   "Training curves and steps against condition number for raw, normalized and whitened inputs.",
                   figure)  # fmt: skip


_SIZES = {"count": 1024, "features": 16, "samples": 512, "excess": 1e-3}
CLAIM = Claim(
    name="whitening",
    sentence="Whitening conditions the inputs better than batch normalization, and costs a factor that grows with the "
    "number of features.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, sections 2 and 3; Huang et al. 2018, arXiv 1804.08450",
    protocol="Interleaved times of both; then a linear model on correlated inputs, raw, normalized and whitened.",
    rule="The covariance is the identity after whitening and keeps its correlations after BN; fewer steps "
    "whitened than "
    "after BN, and after BN than raw; a ratio of times that grows with the features.",
    budgets={
        "small": {"seeds": 3, "channels": [8, 16, 32, 64], "repeats": 5, "limit": 3000, **_SIZES},
        "full": {"seeds": 5, "channels": [8, 16, 32, 64, 128, 256, 512], "repeats": 9, "limit": 30000, **_SIZES},
    },
    cost={"small": "3 s", "full": "1 min"},
    measure=_measure,
    find_in_records=_find,
    total=lambda settings: len(settings["channels"]) + int(settings["seeds"]),
)
