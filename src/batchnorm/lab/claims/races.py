"""Six update rules on four functions: a race from random starts, each rule at its best learning rate, and the paths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.claims.config import RunClaims
from batchnorm.lab.claims.findings import Arrays, Check, Findings, Measurement, Record, number
from batchnorm.lab.claims.races_figures import FUNCTIONS, RULES, figures
from batchnorm.lab.wording import Table, plural
from batchnorm.reference import descent

TOLERANCE = 1e-2
NOISE_STD = 0.3
HOLD = 20
RATES = tuple(float(f"{rate:.3g}") for rate in np.geomspace(1e-4, 10, 11))
TUNING_SEED, RACING_SEED, NOISE_SEED = 1, 2, 3
#: What the claim says: function, noisy or not, rule that should beat SGD.
PAIRS = (
    ("quadratic", False, "momentum"),
    ("quadratic", False, "nesterov"),
    ("Rosenbrock", False, "momentum"),
    ("Rosenbrock", False, "adam"),
    ("saddle", False, "rmsprop"),
    ("saddle", False, "adam"),
    ("quadratic", True, "momentum"),
    ("quadratic", True, "adam"),
)

Array = NDArray[np.float64]


class Race(NamedTuple):
    """One rule on one function: steps of each start to the tolerance (inf: not within the limit), and its rate."""

    steps: Array
    lr: float


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
        "starts": config.seeds or (5 if config.quick else 20),
        "limit": 300 if config.quick else 3000,
        "path_steps": 100 if config.quick else 300,
        "tolerance": TOLERANCE,
        "hold": HOLD,
        "noise_std": NOISE_STD,
        "lr": list(RATES),
    }


def total(given: Mapping[str, Any]) -> int:  # noqa: ARG001  # every experiment is asked in the same way
    """Count the measurements: one per function, with and without noise, and rule."""
    return len(FUNCTIONS) * 2 * len(RULES)


def measure(given: Mapping[str, Any]) -> Iterator[Measurement]:
    """Race every rule on every function; the learning rate is chosen on other starts than those that count.

    Parameters
    ----------
    given : mapping
        From `settings`.

    Yields
    ------
    Measurement
        One record per start; the path from the function's own start, at the rate of the race.
    """
    for name in FUNCTIONS:
        for noisy in (False, True):
            for rule in RULES:
                found = race(name, rule, given, noise_std=given["noise_std"] if noisy else 0.0)
                records = [
                    {"function": name, "noisy": noisy, "rule": rule, "lr": found.lr, "start": start, "steps": steps}
                    for start, steps in enumerate(found.steps.tolist())
                ]
                path = descent.descend(FUNCTIONS[name], steps=given["path_steps"], lr=found.lr, rule=RULES[rule])
                arrays = {} if noisy else {f"{name}/{rule}": path.points}
                yield Measurement(f"{name}{', noisy' if noisy else ''}: {rule}", records, arrays)


def race(name: str, rule: str, given: Mapping[str, Any], *, noise_std: float) -> Race:
    """Choose the learning rate of a rule on some starts, and count its steps from others.

    Parameters
    ----------
    name : str
        Of the function.
    rule : str
        Of the optimizer.
    given : mapping
        From `settings`.
    noise_std : float
        Standard deviation of the noise on each component of each gradient.

    Returns
    -------
    Race
    """
    tuning, racing = (starts(name, given["starts"], seed) for seed in (TUNING_SEED, RACING_SEED))
    costs = []
    for lr in given["lr"]:
        steps = steps_to_tolerance(name, rule, tuning, lr, given, noise_std)
        costs.append(np.minimum(steps, 2 * given["limit"]).mean())  # a start that does not arrive counts as twice late
    lr = given["lr"][int(np.argmin(costs))]
    return Race(steps_to_tolerance(name, rule, racing, lr, given, noise_std), lr)


def starts(name: str, count: int, seed: int) -> Array:
    """Draw starting points: where the function is worth descending.

    Parameters
    ----------
    name : str
        Of the function.
    count : int
        How many.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray of shape (count, D)
    """
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
    name: str, rule: str, points: Array, lr: float, given: Mapping[str, Any], noise_std: float
) -> Array:
    """Count the steps of each start until the function is within the tolerance of its minimum, and stays for a while.

    The while is a setting: who jumps across the minimum at a high rate is in it now and then, and has not arrived.

    Parameters
    ----------
    name : str
        Of the function.
    rule : str
        Of the optimizer.
    points : ndarray of shape (count, D)
        The starts; every rule works on each number by itself, so all go down together.
    lr : float
        Learning rate.
    given : mapping
        From `settings`.
    noise_std : float
        Of the gradients.

    Returns
    -------
    ndarray of shape (count,)
        inf where the limit came first.
    """
    function, update = FUNCTIONS[name], RULES[rule]
    bound = float(function.value(function.minima[0])) + given["tolerance"]
    draw = np.random.default_rng(NOISE_SEED)
    w, state, steps = points, None, np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=int)  # steps in a row
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(given["limit"] + given["hold"] + 1):
            inside = np.where(function.value(w) <= bound, inside + 1, 0)
            steps[(inside > given["hold"]) & np.isinf(steps)] = step - given["hold"]
            if np.all(np.isfinite(steps) | ~np.isfinite(w).all(axis=1)):
                break
            dw = function.gradient(w)
            dw = dw + noise_std * draw.standard_normal(w.shape) if noise_std else dw
            w, state = update(w, dw, state, lr=lr)
    return steps


def find(given: Mapping[str, Any], records: Sequence[Record], arrays: Arrays) -> Findings:
    """Judge what was recorded, and draw it.

    Parameters
    ----------
    given : mapping
        From `settings`.
    records : sequence of dict
        From `measure`.
    arrays : mapping
        The paths.

    Returns
    -------
    Findings
    """
    races = by_race(records)
    checks = judge_records(races, given["limit"])
    best = {key: min(RULES, key=lambda rule: _capped(races[*key, rule].steps, given["limit"]).mean())
            for key in ((name, noisy) for name in FUNCTIONS for noisy in (False, True))}  # fmt: skip
    firsts = set(best.values())
    first = f"{firsts.pop()} is first everywhere" if len(firsts) == 1 else "no rule is first everywhere"
    kept = sum(check.status == "holds" for check in checks)
    return Findings(
        headline=f"{kept} of {len(checks)} comparisons with SGD hold from every start; {first}.",
        checks=checks,
        numbers=[
            f"First on {name}: {best[name, False]} with exact gradients, {best[name, True]} with noisy ones."
            for name in FUNCTIONS
        ],
        limits=[
            ("Functions of one or two numbers: what is steep, flat, or a saddle is seen here, and not what a network "
            "needs."),
            ("A rule is as good as its learning rate, and the grid has half a decade between two of them. Momentum is "
            "0.9, beta 0.9 and 0.999, the decay of RMSProp 0.99, as in torch."),
            ("The axes of quadratic and saddle are those of the parameters, which suits AdaGrad and RMSProp: "
            "they give each parameter its own scale. Turned by 45 degrees the same functions would cost them more."),
            ("A start that does not arrive within the limit counts as twice the limit when the rate is chosen, and as "
            "the limit in the bars."),
        ],
        tables=[_table(races, noisy, given["limit"]) for noisy in (False, True)],
        pictures=figures(given, races, arrays),
        definitions=[
            ("arrived", (f"The function is within {given['tolerance']:g} of its global minimum, and stays there for "
             f"{given['hold']} steps: who only jumps across has not arrived.")),
            ("noise", f"Normal, standard deviation {given['noise_std']:g}, added to each component of each gradient."),
            ("best learning rate", ("Fewest mean steps over other starts than those of the race; the same grid for "
             "every rule.")),
            ("starts", "Uniform; at the saddle, within about 0.001 of the ridge that leads into it."),
        ],
    )  # fmt: skip


def by_race(records: Sequence[Record]) -> dict[tuple[str, bool, str], Race]:
    """Collect the records of each race.

    Parameters
    ----------
    records : sequence of dict
        From `measure`; steps that are NaN were infinite before JSON.

    Returns
    -------
    dict
        By function, noisy or not, and rule.
    """
    steps: dict[tuple[str, bool, str], list[float]] = {}
    rates = {}
    for r in records:
        key = r["function"], r["noisy"], r["rule"]
        steps.setdefault(key, []).append(r["steps"])
        rates[key] = r["lr"]
    return {key: Race(np.nan_to_num(np.array(found), nan=np.inf, posinf=np.inf), rates[key])
            for key, found in steps.items()}  # fmt: skip


def judge_records(races: Mapping[tuple[str, bool, str], Race], limit: int) -> list[Check]:
    """Compare with SGD, start by start.

    Parameters
    ----------
    races : mapping
        From `by_race`.
    limit : int
        What a start counts that did not arrive.

    Returns
    -------
    list of Check
        A start from which neither arrives does not pass.
    """
    checks = []
    for name, noisy, rule in PAIRS:
        steps, plain = races[name, noisy, rule].steps, races[name, noisy, "sgd"].steps
        ratios = np.log2(np.maximum(_capped(steps, limit), 1) / np.maximum(_capped(plain, limit), 1))
        where = f"{name}{', noisy' if noisy else ''}: {rule}"
        passed = [bool(a < b or a == b == 0) for a, b in zip(steps, plain, strict=True)]
        checks.append(Check(where, "log2 of steps over those of SGD, below 0", ratios.tolist(), passed))
    return checks


def _capped(steps: Array, limit: int) -> Array:
    return np.minimum(steps, limit)


def _table(races: Mapping[tuple[str, bool, str], Race], noisy: bool, limit: int) -> Table:
    rows = []
    for name in FUNCTIONS:
        for rule in RULES:
            steps, lr = races[name, noisy, rule]
            arrived = np.isfinite(steps)
            capped = _capped(steps, limit)
            std = capped.std(ddof=1) if len(steps) > 1 else np.nan
            rows.append(
                [f"{name}, {rule}", f"{lr:g}", f"{arrived.sum()} of {len(steps)}", number(float(np.median(steps))),
                 number(capped.mean()), number(std)]
            )  # fmt: skip
    note = (
        f"Over {plural(len(steps), 'start')}. The median counts one that does not arrive as later than all that do; "
        f"mean and std count it as the limit, {limit} steps."
    )
    title = "The race with noisy gradients" if noisy else "The race"
    return Table(title, ["function, rule", "best lr", "arrived", "steps, median", "mean", "std"], rows, note)
