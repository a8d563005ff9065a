"""Six update rules on four functions: a race from random starts, each rule at its best learning rate, and the paths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    number,
)
from batchnorm.lab.plots import SETTINGS, Picture
from batchnorm.lab.wording import Table, plural
from batchnorm.reference import descent, optimizers
from batchnorm.reference.descent import ROSENBROCK, SADDLE, WAVES, Function, quadratic

RULES: dict[str, optimizers.Rule] = {
    "SGD": optimizers.sgd, "momentum": optimizers.momentum, "Nesterov": optimizers.nesterov,
    "AdaGrad": optimizers.adagrad, "RMSProp": optimizers.rmsprop, "Adam": optimizers.adam,
}  # fmt: skip
FUNCTIONS: dict[str, Function] = {
    "quadratic": quadratic(100.0), "saddle": SADDLE, "Rosenbrock": ROSENBROCK, "waves": WAVES,
}  # fmt: skip
WINDOWS = {"quadratic": (-1.3, 1.3, -1.3, 1.3), "saddle": (-1.5, 1.5, -1.6, 1.6), "Rosenbrock": (-2.1, 2.1, -1.2, 3.2)}
RATES = tuple(float(f"{rate:.3g}") for rate in np.geomspace(1e-4, 10, 11))
TUNING_SEED, RACING_SEED, NOISE_SEED = 1, 2, 3
#: What the claim says: function, noisy or not, rule that should beat SGD.
PAIRS = (
    ("quadratic", False, "momentum"), ("quadratic", False, "Nesterov"), ("Rosenbrock", False, "momentum"),
    ("Rosenbrock", False, "Adam"), ("saddle", False, "RMSProp"), ("saddle", False, "Adam"),
    ("quadratic", True, "momentum"), ("quadratic", True, "Adam"),
)  # fmt: skip


def _measure(settings: Settings) -> Iterator[Measurement]:
    """Race every rule on every function; its learning rate is chosen on other starts than those that count."""
    for name in FUNCTIONS:
        for noisy in (False, True):
            for rule in RULES:
                noise = settings["noise_std"] if noisy else 0.0
                tuning, racing = (_starts(name, settings["seeds"], seed) for seed in (TUNING_SEED, RACING_SEED))
                costs = []
                for lr in settings["lr"]:
                    steps = steps_to_tolerance(name, rule, tuning, lr, settings, noise)
                    costs.append(np.minimum(steps, 2 * settings["limit"]).mean())  # one that never arrives: twice late
                lr = settings["lr"][int(np.argmin(costs))]
                steps = steps_to_tolerance(name, rule, racing, lr, settings, noise)
                records = [
                    {"function": name, "noisy": noisy, "rule": rule, "lr": lr, "start": start, "steps": each}
                    for start, each in enumerate(steps.tolist())
                ]
                path = descent.descend(FUNCTIONS[name], steps=settings["path_steps"], lr=lr, rule=RULES[rule])
                arrays = {} if noisy else {f"{name}/{rule}": path.points}
                yield Measurement(f"{name}{', noisy' if noisy else ''}: {rule}", records, arrays)


def _starts(name: str, count: int, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    match name:
        case "quadratic":
            return draw.uniform(-1, 1, (count, 2))
        case "saddle":  # close to the ridge that leads into it
            return np.stack([draw.uniform(-1, 1, count), 1e-3 * draw.standard_normal(count)], axis=1)
        case "Rosenbrock":
            return np.stack([draw.uniform(-2, 2, count), draw.uniform(-1, 3, count)], axis=1)
    return draw.uniform(-6, 6, (count, 1))


def steps_to_tolerance(
    name: str, rule: str, points: Array, lr: float, settings: Settings, noise_std: float = 0.0
) -> Array:
    """Count the steps of each start until the function is within the tolerance of its minimum, and stays there.

    Parameters
    ----------
    name, rule : str
        Of the function and the optimizer.
    points : ndarray of shape (count, D)
        The starts; every rule works on each number by itself, so all descend together.
    lr : float
        Learning rate.
    settings : mapping
        ``limit``, ``tolerance`` and ``hold``: steps in a row within the tolerance, as a rule that jumps across the
        minimum is there now and then.
    noise_std : float
        Standard deviation of the noise on each component of each gradient.

    Returns
    -------
    ndarray of shape (count,)
        inf where the limit came first.
    """
    function, update, hold = FUNCTIONS[name], RULES[rule], settings["hold"]
    bound = float(function.value(function.minima[0])) + settings["tolerance"]
    draw = np.random.default_rng(NOISE_SEED)
    w, state, steps = points, None, np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=int)  # steps in a row
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(settings["limit"] + hold + 1):
            inside = np.where(function.value(w) <= bound, inside + 1, 0)
            steps[(inside > hold) & np.isinf(steps)] = step - hold
            if np.all(np.isfinite(steps) | ~np.isfinite(w).all(axis=1)):
                break
            dw = function.gradient(w)
            dw = dw + noise_std * draw.standard_normal(w.shape) if noise_std else dw
            w, state = update(w, dw, state, lr=lr)
    return steps


def _find(settings: Settings, records: Sequence[Record], arrays: Arrays) -> Findings:
    races: dict[Any, Array] = {}
    rates: dict[Any, float] = {}
    for r in records:
        key = r["function"], r["noisy"], r["rule"]
        races[key] = np.append(races.get(key, []), r["steps"] if np.isfinite(r["steps"]) else np.inf)
        rates[key] = r["lr"]
    limit = settings["limit"]
    checks = []
    for name, noisy, rule in PAIRS:
        own, plain = (np.clip(races[name, noisy, one], 1, limit) for one in (rule, "SGD"))
        late = np.isinf(races[name, noisy, rule]) & np.isinf(races[name, noisy, "SGD"])  # says nothing of either
        where = f"{name}{', noisy' if noisy else ''}: {rule}"
        checks.append(
            Check(
                where,
                "log2 of steps over those of SGD",
                np.where(late, np.nan, np.log2(own / plain)).tolist(),
                0.0,
                above=False,
            )
        )
    best = {
        key: min(RULES, key=lambda rule: np.minimum(races[*key, rule], limit).mean())
        for key in ((name, noisy) for name in FUNCTIONS for noisy in (False, True))
    }
    kept = sum(check.status == "holds" for check in checks)
    with mpl.rc_context(SETTINGS):
        pictures = [_race(settings, races), _paths(settings, rates, arrays)]
    return Findings(
        f"{kept} of {len(checks)} comparisons with SGD hold over {plural(settings['seeds'], 'start')}.",
        checks,
        pictures,
        numbers=[f"First on {name}: {best[name, False]} with exact gradients, {best[name, True]} with noisy ones."
                 for name in FUNCTIONS],
        limits=[("Functions of one or two numbers: what is steep, flat, or a saddle is seen here, not what a network "
                "needs."),
                ("The grid has half a decade between two rates. Momentum is 0.9, beta 0.9 and 0.999, the "
                 "decay of RMSProp "
                "0.99, as in torch."),
                "The axes of quadratic and saddle are those of the parameters, which suits AdaGrad and RMSProp."],
        tables=[_table(races, rates, noisy, limit) for noisy in (False, True)],
        definitions=[("arrived", (f"Within {settings['tolerance']:g} of the global minimum for "
                                 f"{settings['hold']} steps.")),
                     ("noise", (f"Normal, standard deviation {settings['noise_std']:g}, on each component of a "
                               "gradient.")),
                     ("late", "A start that does not arrive counts as the limit.")],
    )  # fmt: skip


def _table(races: Mapping[Any, Array], rates: Mapping[Any, float], noisy: bool, limit: int) -> Table:
    rows = []
    for name in FUNCTIONS:
        for rule in RULES:
            steps = races[name, noisy, rule]
            rows.append([f"{name}, {rule}", f"{rates[name, noisy, rule]:g}",
                         f"{np.isfinite(steps).sum()} of {len(steps)}", number(float(np.median(steps))),
                         number(np.minimum(steps, limit).mean())])  # fmt: skip
    title = "The race with noisy gradients" if noisy else "The race"
    note = f"The median counts a start that does not arrive as later than all that do; the mean as {limit} steps."
    return Table(title, ["function, rule", "best lr", "arrived", "steps, median", "mean"], rows, note)


def _race(settings: Settings, races: Mapping[Any, Array]) -> Picture:
    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    for line, noisy in zip(figure.subplots(2, len(FUNCTIONS), sharey=True), (False, True), strict=True):
        for axes, name in zip(line, FUNCTIONS, strict=True):
            for place, rule in enumerate(RULES):
                steps = races[name, noisy, rule]
                low, middle, high = np.percentile(np.clip(steps, 1, settings["limit"]), [25, 50, 75])
                axes.bar(place, middle, color=COLORS[2 if noisy else 1], alpha=0.75)
                axes.errorbar(place, middle, [[middle - low], [high - middle]], color="black", capsize=3, lw=1.1)
                if late := int(np.isinf(steps).sum()):
                    axes.annotate(
                        f"{late} late", (place, high), (0, 3), textcoords="offset points", ha="center", size=7
                    )
            axes.set_title(f"{name}{', noisy' if noisy else ''}", loc="left")
            axes.set_xticks(range(len(RULES)), list(RULES) if noisy else [""] * len(RULES), rotation=60)
            axes.set(yscale="log", ylim=(1, 3 * settings["limit"]))
        line[0].set_ylabel("steps to the tolerance")
    return Picture(
        "race", "The race", f"Bar: median over {plural(settings['seeds'], 'start')}; error bar: quartiles. "
                            "Logarithmic.",
        "Bars of steps for six rules on four functions, with exact and with noisy gradients.", figure,
    )  # fmt: skip


def _paths(settings: Settings, rates: Mapping[Any, float], arrays: Arrays) -> Picture:
    figure = Figure(figsize=(11.5, 8.0), layout="constrained")
    grid = figure.subplots(len(FUNCTIONS), len(RULES), sharex="row", sharey="row")
    for line, name in zip(grid, FUNCTIONS, strict=True):
        for axes, rule in zip(line, RULES, strict=True):
            path = arrays[f"{name}/{rule}"]
            _draw(axes, name, path[np.isfinite(path).all(axis=1)])
            axes.set_title(f"{rule}, lr {rates[name, False, rule]:.2g}", loc="left", size=9)
        line[0].set_ylabel(name)
    return Picture(
        "paths", "The paths", f"From each function's own start (circle), {settings['path_steps']} steps at "
                              "the rate of the "
        "race, no noise; stars: minima, square: the end. waves has one dimension and is drawn as a curve.",
        "Paths of six rules over the contours of three functions and on a curve with local minima.", figure,
    )  # fmt: skip


def _draw(axes: Axes, name: str, path: Array) -> None:
    function = FUNCTIONS[name]
    if path.shape[1] == 1:
        x = np.linspace(-6.5, 6.5, 400)
        axes.plot(x, function.value(x[:, None]), color="#888888", lw=1.0)
        shown, minima = np.column_stack([path, function.value(path)]), np.zeros((2, 1))
        axes.set(xlim=(-6.5, 6.5), ylim=(-0.4, 6.5))
    else:
        left, right, low, high = WINDOWS[name]
        x, y = np.meshgrid(np.linspace(left, right, 121), np.linspace(low, high, 121))
        above = function.value(np.stack([x, y], axis=-1)) - function.value(function.minima[0])
        axes.contourf(x, y, np.log10(above + 1e-2), levels=14, cmap="Greys", alpha=0.55)
        shown, minima = path, function.minima.T
        axes.set(xlim=(left, right), ylim=(low, high))
    axes.plot(*shown.T, color=COLORS[1], lw=0.9, marker=".", ms=2.0)
    axes.plot(*shown[0], "o", color=COLORS[0], ms=5)
    axes.plot(*shown[-1], "s", color=COLORS[0], ms=4)
    axes.plot(*minima, "*", color=COLORS[2], ms=8)
    axes.grid(visible=False)


CLAIM = Claim(
    name="optimizers",
    sentence="Momentum and the adaptive rules need fewer steps than plain gradient descent where directions are steep "
    "and flat, near saddle points, and under noise.",
    source="EECS 498 course notes on optimization; Polyak 1964; Sutskever et al. 2013; Duchi, Hazan and Singer 2011; "
    "Tieleman and Hinton 2012; Kingma and Ba 2015, arXiv 1412.6980",
    protocol="Six rules on four functions from random starts, each at its best learning rate of one grid, "
             "which is chosen "
    "on other starts.",
    rule="The mean of log2 of the steps over those of SGD from the same start is below 0, for each pair that "
         "is named; a start from which neither arrives says nothing.",
    budgets={
        "small": {"seeds": 6, "limit": 1000, "path_steps": 100, "tolerance": 1e-2, "hold": 20, "noise_std": 0.3,
                  "lr": list(RATES)},
        "full": {"seeds": 20, "limit": 3000, "path_steps": 300, "tolerance": 1e-2, "hold": 20, "noise_std": 0.3,
                 "lr": list(RATES)},
    },
    cost={"small": "30 s", "full": "2 min"},
    measure=_measure,
    find_in_records=_find,
    total=lambda _settings: len(FUNCTIONS) * 2 * len(RULES),
)  # fmt: skip
