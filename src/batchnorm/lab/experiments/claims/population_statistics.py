"""Ioffe and Szegedy, Algorithm 2: population statistics against running averages, early in training and late."""

import statistics
from dataclasses import replace

import numpy as np

from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Settings, curves, spread
from batchnorm.lab.experiments.compare import as_in_the_paper
from batchnorm.lab.experiments.numbers import Numbers, accuracy
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.experiments.series import Track, combine
from batchnorm.lab.experiments.study import Study
from batchnorm.lab.training import TrainConfig

KINDS = {"running": "running averages", "population": "population statistics"}
#: Evaluations up to this step are early: with momentum 0.1 an eighth of the start of a running average is left.
EARLY = 20
#: Points of accuracy that count as the same.
SAME = 0.5


def _plan(settings: Settings) -> Plan:
    base = TrainConfig(
        data=settings["data"], model="mlp", norm="batch", lr=settings["lr"], steps=settings["steps"],
        evaluate_every=settings["every"], evaluate_early=True, train_subset=0, probes=(),
    )  # fmt: skip
    axes = {"seed": vary("seed", range(settings["seeds"])), "statistics": vary("statistics", list(KINDS))}
    question = "Does Algorithm 2 evaluate more accurately than running averages?"
    base = replace(as_in_the_paper(base), units=False)
    return Plan(question, base, axes, rule=CLAIM.rule, interleave=("statistics",))


def gains(running: Track, population: Track) -> tuple[float, float]:
    """Return the gain of population statistics in points of accuracy: the mean over early evaluations, and the last."""
    gain = 100 * (population.values - running.values)
    return float(gain[(running.steps > 0) & (running.steps <= EARLY)].mean()), float(gain[-1])


def _find(_settings: Settings, study: Study, _numbers: Numbers) -> Findings:
    arms = {arm.settings["statistics"]: arm for arm in study.arms}
    tracks = {kind: [accuracy(run, "test") for run in arms[kind].runs] for kind in KINDS}
    found = [gains(a, b) for a, b in zip(tracks["running"], tracks["population"], strict=True)]
    early, late = ([pair[k] for pair in found] for k in (0, 1))
    lines = {words: made for kind, words in KINDS.items() if (made := combine(tracks[kind])) is not None}
    picture = curves(
        "accuracy", "Test accuracy of the same network", "Line: mean over seeds; band: lowest to highest.",
        "Test accuracy over steps, with running averages and with population statistics.", "accuracy", lines,
    )  # fmt: skip
    picture.figure.axes[0].set_xscale("symlog", linthresh=1)
    gap = [100 * statistics.fmean(t.values[t.steps == step].item() for t in tracks["population"])
           - 100 * statistics.fmean(t.values[t.steps == step].item() for t in tracks["running"])
           for step in tracks["running"][0].steps]  # fmt: skip
    worst = tracks["running"][0].steps[int(np.argmax(gap))]
    return Findings(
        f"In the first {EARLY} steps population statistics evaluate {spread(early)} points higher than running "
        f"averages, at the end {spread(late)}; the mean gain is largest after step {worst:.0f}, {max(gap):.1f} points.",
        [Check("early: population statistics are better", f"points of accuracy, mean over steps 1 to {EARLY}", early,
               0.0),
         Check("late: the same", "absolute difference in points at the end", [abs(v) for v in late], SAME,
               above=False)],
        [picture],
        limits=["One momentum, 0.1: running averages with a smaller one stay behind for longer."],
    )  # fmt: skip


_SIZES = {"data": "mnist_binary", "lr": 1.0}
CLAIM = Claim(
    name="population-statistics",
    sentence="Population statistics of the frozen network evaluate at least as accurately as running averages: better "
    "early in training, the same at its end.",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 3.1, Algorithm 2",
    protocol="Binary MNIST, three hidden layers of 100 sigmoids with BN; the same training, evaluated with running "
    "averages of momentum 0.1 and with population statistics of 50 training batches, after 1, 2, 5, ... steps.",
    rule="The test accuracy with population statistics is higher on average over the evaluations of the first 20 "
    "steps; at the end the two differ by less than half a point.",
    budgets={
        "small": {"seeds": 5, "steps": 600, "every": 100, **_SIZES},
        "full": {"seeds": 10, "steps": 50000, "every": 500, **_SIZES},
    },
    cost={"small": "1 min", "full": "2 h, estimated"},
    differs="The paper names running averages only as a way to follow accuracy, and prints no comparison.",
    plan=_plan,
    find_in_study=_find,
)
