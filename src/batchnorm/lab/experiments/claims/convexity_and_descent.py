"""Convexity, step sizes, stochastic descent and schedules: what course notes say of gradient descent, measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

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
from batchnorm.reference import descent, schedules
from batchnorm.reference.schedules import Schedule

BOWL = descent.quadratic(10.0)
NOT_CONVEX = (descent.WAVES, descent.SADDLE, descent.ROSENBROCK)
#: Times 1 / L, with L the largest curvature.
STEP_SIZES = {"small": 0.2, "below 2 / L": 1.9, "above 2 / L": 2.1}
#: From steps to the factor of the rate.
SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda _steps: lambda _step: 1.0,
    "step": lambda steps: partial(schedules.step_decay, lr=1.0, period=max(1, steps // 4)),
    "cosine": lambda steps: partial(schedules.cosine_decay, lr=1.0, steps=steps),
    "linear": lambda steps: partial(schedules.polynomial_decay, lr=1.0, steps=steps),
}


def gap(function: descent.Function, draw: np.random.Generator, points: int) -> float:
    """Return the largest excess over chords between random points, over the range of the values there."""
    ends = draw.uniform(-2, 2, (points, len(function.start)))
    return descent.convexity_gap(function.value, ends) / float(np.ptp(function.value(ends)))


def ends_of(function: descent.Function, starts: Array, *, lr: float, steps: int) -> Array:
    """Return where descents from several starts end, (starts, D)."""
    return np.array([descent.descend(function, start, steps=steps, lr=lr).points[-1] for start in starts])


def excess(settings: Settings, seed: int, *, batch: int, schedule: str) -> Array:
    """Return the loss of a linear model above its minimum after each step of stochastic descent."""
    draw = np.random.default_rng([seed, 7])
    x = draw.standard_normal((settings["samples"], 4)) * [1.0, 1.0, 0.5, 0.5]
    y = x @ np.ones(4) + draw.standard_normal(len(x))
    loss = descent.least_squares(x, y)
    steps = settings["steps"] // (len(x) // batch) * (len(x) // batch)
    rate = SCHEDULES[schedule](steps)
    found = descent.stochastic_descend(loss, np.zeros(4), batch_size=batch, epochs=steps // (len(x) // batch),
                                       lr=lambda step: settings["lr"] * rate(step), generator=draw)  # fmt: skip
    lowest = loss.value(np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64))
    return found.values - lowest


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Take every number once per seed, from starts and samples of its own."""
    top = 10.0  # the largest curvature of the bowl
    for seed in range(settings["seeds"]):
        draw = np.random.default_rng(seed)
        record: Record = {"seed": seed, "gap of bowl": gap(BOWL, draw, settings["points"])}
        record |= {f"gap of {one.name}": gap(one, draw, settings["points"]) for one in NOT_CONVEX}
        starts = draw.uniform(-2, 2, (settings["points"], 2))
        far = ends_of(BOWL, starts, lr=1 / top, steps=500)
        record["apart, bowl"] = float(np.abs(far - far.mean(axis=0)).max())
        waves = ends_of(descent.WAVES, draw.uniform(-5, 5, (settings["points"], 1)), lr=0.05, steps=500)
        record["not global, waves"] = float(np.mean(np.abs(waves) > 0.1))
        for words, times in STEP_SIZES.items():
            values = descent.descend(BOWL, starts[0], steps=200, lr=times / top).values
            record[f"left, {words}"] = float(np.log10(values[-1] / values[0]))
        curves = {f"{name}/{batch}/{seed}": excess(settings, seed, batch=batch, schedule=name)
                  for name, batch in [*((name, settings["batch"]) for name in SCHEDULES), ("constant", 1),
                                      ("constant", settings["samples"])]}  # fmt: skip
        tail = settings["steps"] // 10
        record |= {f"excess, {key.rpartition('/')[0]}": float(each[-tail:].mean()) for key, each in curves.items()}
        yield Measurement(f"seed {seed}", [record], curves if seed == 0 else {})


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    def values(key: str) -> list[float]:
        return [r[key] for r in records]

    def over(first: str, second: str) -> list[float]:
        return [r[f"excess, {first}"] / r[f"excess, {second}"] for r in records]

    batch, whole = settings["batch"], settings["samples"]
    checks = [
        Check("a quadratic bowl is convex", "excess over its chords", values("gap of bowl"), 1e-12, above=False),
        *(Check(f"{one.name} is not", "excess over its chords", values(f"gap of {one.name}"), 1e-6)
          for one in NOT_CONVEX),
        Check("the bowl: every start into one minimum", "distance of ends", values("apart, bowl"), 1e-6, above=False),
        Check("on waves some starts end in local minima", "share of starts", values("not global, waves"), 0.1),
        *(Check(f"step size {words}: {'diverges' if times > 2 else 'converges'}", "log10 of value, end over start",
                values(f"left, {words}"), 0.0, above=times > 2) for words, times in STEP_SIZES.items()),
        Check("single samples end higher than mini-batches", "ratio of the excess loss",
              over("constant/1", f"constant/{batch}"), 1.0),
        Check("all samples end lower than mini-batches", "ratio of the excess loss",
              over(f"constant/{whole}", f"constant/{batch}"), 1.0, above=False),
        *(Check(f"schedule {name}: lower than a constant rate", "ratio of the excess loss",
                over(f"{name}/{batch}", f"constant/{batch}"), 1.0, above=False) for name in list(SCHEDULES)[1:]),
    ]  # fmt: skip
    with mpl.rc_context(SETTINGS):
        pictures = [_functions(), _paths(), _stochastic(arrays, batch, whole)]
    local = [100 * value for value in values("not global, waves")]
    nearer = float(np.mean(over(f"cosine/{batch}", f"constant/{batch}")))
    return Findings(
        f"Below 2 / L descent converges, above it diverges; on waves {spread(local)} % of the starts end in a local "
        f"minimum; the cosine schedule ends {number(nearer)} times as far above the minimum as a constant rate.",
        checks,
        pictures,
        limits=[("Functions that can be drawn, and a linear model of four weights: what holds here is proven for "
                 "convex functions, and may fail elsewhere.")],
        definitions=[("excess over its chords", ("How far a function rises above a straight line between two of its "
                      "points, over its range: above 0 proves that it is not convex.")),
                     ("L", "The largest curvature."),
                     ("excess loss", "Loss over all samples above its minimum, mean over the last tenth of steps.")],
    )  # fmt: skip


def _functions() -> Picture:
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    w = np.linspace(-5, 5, 400)
    bowl = descent.quadratic(1.0, 1)
    for axes, function, ends in ((left, bowl, (-4.0, 3.0)), (right, descent.WAVES, (-2.1, 2.1))):
        axes.plot(w, function.value(w[:, None]), color="#222222")
        heights = function.value(np.array(ends)[:, None])
        axes.plot(ends, heights, **style(0), label="chord")
    for index, start in enumerate((-4.5, -1.3, 3.2)):
        path = descent.descend(descent.WAVES, [start], steps=60, lr=0.05)
        right.plot(path.points, path.values, **{**style(index + 1), "linestyle": "-"}, lw=0.8, label=f"from {start:g}")
    left.set(title="convex: below its chord", xlabel="w", ylabel="value")
    right.set(title="waves: local minima, reached by their starts", xlabel="w")
    right.legend()
    return Picture("functions", "Convex and not", "Left: a quadratic. Right: waves with three descents.",
                   "A bowl and waves with chords; descents end in three minima.", figure)  # fmt: skip


def _paths() -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    shown = ((BOWL, (-2.2, 2.2), None), (descent.SADDLE, (-1.6, 1.6), 0.1), (descent.ROSENBROCK, (-1.8, 1.8), 0.001))
    for axes, (function, span, lr) in zip(figure.subplots(1, 3), shown, strict=True):
        side = np.linspace(*span, 120)
        a, b = np.meshgrid(side, side)
        height = function.value(np.stack([a, b], -1))
        axes.contour(a, b, np.log1p(height - height.min()), 14, colors="#999999", linewidths=0.6)
        rates = {words: times / 10.0 for words, times in STEP_SIZES.items()} if lr is None else {f"rate {lr:g}": lr}
        start, steps = ([-2.0, 0.5], 25) if lr is None else (None, 2000)
        for index, (words, rate) in enumerate(rates.items()):
            path = descent.descend(function, start, steps=steps, lr=rate)
            look = {**style(index), "marker": "." if lr is None else ""}
            axes.plot(*np.clip(path.points.T, *span), **look, lw=1.0, label=words)
        axes.set(title=function.name, xlim=span, ylim=span)
        axes.grid(visible=False)
        axes.legend(loc="lower left", fontsize=8)
    return Picture("paths", "Step sizes, a saddle, a valley", "The bowl: 25 steps of three sizes; what leaves the map "
                   "is drawn at its edge. Saddle: the way leads into it first. Rosenbrock: along the valley.",
                   "Descents on contour lines of three functions.", figure)  # fmt: skip


def _stochastic(arrays: Mapping[str, Array], batch: int, whole: int) -> Picture:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, (size, words) in enumerate(((1, "one sample"), (batch, f"{batch} samples"), (whole, "all samples"))):
        left.plot(arrays[f"constant/{size}/0"], label=words, **{**style(index), "marker": ""}, lw=1.0)
    for index, name in enumerate(SCHEDULES):
        right.plot(arrays[f"{name}/{batch}/0"], label=name, **{**style(index), "marker": ""}, lw=1.0)
    for axes, words in ((left, "constant rate, by samples per step"), (right, f"schedules, {batch} samples per step")):
        axes.set(title=words, xlabel="step", yscale="log")
        axes.legend()
    left.set_ylabel("loss above the minimum")
    return Picture("stochastic", "Stochastic descent and schedules", "A linear model, seed 0.",
                   "Excess loss against steps by batch size and by schedule.", figure)  # fmt: skip


_SIZES = {"points": 20, "samples": 200, "batch": 10, "lr": 0.1}
CLAIM = Claim(
    name="convexity-and-descent",
    sentence="On convex functions descent with a step below 2 / L finds the minimum from everywhere; elsewhere it may "
    "end in local minima; stochastic descent stays above the minimum, and schedules bring it down.",
    source="course notes on convex optimization and gradient descent; Nesterov 2004, Introductory Lectures on Convex "
    "Optimization, section 2.1",
    protocol="Functions of one and two numbers, and a linear model: chords, descents from random starts, step sizes "
    "around 2 / L, one sample, some and all at a time, four schedules.",
    rule="Each of these is measured once per seed and has a check of its own; all must hold.",
    budgets={"small": {"seeds": 5, "steps": 1000, **_SIZES}, "full": {"seeds": 30, "steps": 10000, **_SIZES}},
    cost={"small": "10 s", "full": "10 min, estimated"},
    measure=_measure,
    find_in_records=_find,
)
