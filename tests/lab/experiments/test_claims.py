"""Claims: the form, verdicts on planted records, from the command line to the page; and what each is known to give."""

from __future__ import annotations

import json
import math
import shlex
from functools import partial

import numpy as np
import pytest

from batchnorm.lab import cli
from batchnorm.lab.claims_command import ClaimsConfig, ListClaims, RunClaims, directories
from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.claims import optimizers, registry, regularizers, whitening
from batchnorm.lab.experiments.claims.form import Check, Claim, Findings, Measurement, number, spread
from batchnorm.lab.experiments.claims.regularizers import generate
from batchnorm.lab.rules import decide, interval_of_mean
from batchnorm.reference import descent
from batchnorm.reference import optimizers as rules_of_the_textbook
from lab.experiments.plans import plan

NAMES = registry.names()
TINY = {
    "activation-statistics": ["units=32"],
    "optimizers": ["limit=60", "lr=0.001,0.01,0.1"],
    "whitening": ["channels=8,16", "limit=100"],
    "regularizers": ["steps=30"],
    "normalization-size": ["data=digits", "train=64", "test=40", "steps=2", "batch=64", "sizes=2,32,64"],
    "frozen-at-the-end": ["data=digits", "train=64", "test=40", "steps=5", "batch=32"],
    "domain-statistics": ["data=digits", "train=64", "test=40", "steps=2", "batch=32"],
    "large-rates": ["data=digits", "train=64", "test=40", "steps=2", "batch=32", "lr=0.01,0.1"],
    "optimizer-basins": ["data=digits", "train=64", "seen=20", "steps=2", "points=3"],
    "class-leakage": ["data=digits", "train=64", "test=40", "steps=2", "batch=40", "size=10"],
    "inception-ladder": ["data=digits", "train=64", "test=40", "steps=2", "every=1", "width=0.05", "seeds=2"],
    "inception-changes": ["data=digits", "train=64", "test=40", "steps=2", "every=1", "width=0.05", "seeds=2"],
    "inception-ensemble": ["data=digits", "train=64", "test=40", "steps=2", "width=0.05"],
    "depth": ["data=digits", "train=64", "steps=2", "residual=8,14", "dense=7,10", "growth=2", "width=0.2"],
    "image-regularizers": ["data=digits", "train=64", "test=40", "steps=2", "width=0.2", "batch=32"],
    "convexity-and-descent": ["steps=60", "points=5", "samples=20"],
    "train-eval": ["steps=5", "shown=3"],
    "gradient-shift-linear": ["steps=2", "every=1", "examples=20", "depth=3"],
    "other-norms": ["steps=2", "examples=20", "depth=3"],
}


def test_a_check_is_decided_by_the_interval_of_its_mean() -> None:
    low, high = interval_of_mean([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.302653 / math.sqrt(3)), pytest.approx(2 + 4.302653 / math.sqrt(3)))
    assert decide([1.0, 1.1, 1.2], 0.5, above=True) == "holds"
    assert decide([1.0, 1.1, 1.2], 0.5, above=False) == "does not hold"
    assert decide([1.0, 1.1, 1.2], 1.1, above=True) == "inconclusive"
    assert decide([1.0, 1.0, 1.0], 1.0, above=True) == "does not hold"  # a tie is not kept
    assert decide([5.0, 5.0], 0.0, above=True) == "inconclusive"  # too few, however clear
    assert decide([5.0, 5.0, math.inf], 0.0, above=True) == "does not hold"
    assert decide([5.0, 5.0, 5.1, math.nan], 0.0, above=True) == "holds"
    assert decide([5.0, 5.0, math.nan], 0.0, above=True) == "inconclusive"


def test_a_claim_holds_when_every_check_does() -> None:
    good, bad = Check("a", "m", [1.0, 1, 1], 0), Check("b", "m", [-1.0, -1, -1], 0)
    open_ = Check("c", "m", [-1.0, 1, 1], 0)
    assert [Findings("", checks).status for checks in ([good], [good, open_], [good, open_, bad])] == [
        "holds", "inconclusive", "does not hold",
    ]  # fmt: skip
    assert (open_.kept, bad.kept) == (2, 0)


def test_numbers_are_written_without_noise() -> None:
    assert [number(v) for v in (np.nan, np.inf, 1234.5, 0.01234, -0.0)] == ["-", "never", "1,234", "0.0123", "0"]
    assert spread([1.0, 3.0, np.inf]) == "2 ± 1.41 and 1 of 3 beyond the limit"


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_keeps_the_form(name: str) -> None:
    claim = registry.claim(name)
    assert claim.sentence.endswith(".")
    assert claim.rule
    assert claim.protocol
    assert all("seeds" in claim.budgets[budget] for budget in claim.budgets)
    assert json.loads(json.dumps(dict(claim.budgets["small"]))) == claim.budgets["small"]
    assert claim.settings("small", seeds=7)["seeds"] == 7


@pytest.mark.parametrize("name", [name for name in NAMES if registry.claim(name).measure is not None])
def test_every_measurement_runs_and_its_page_has_verdict_and_figures(tmp_path, capsys, name) -> None:
    out = tmp_path / "run"
    sizes = ["--seeds", "3", *(["--set", *TINY[name]] if name in TINY else [])]
    code = cli.main(["claims", "run", name, *sizes, "--out", str(out)])
    printed = capsys.readouterr()
    assert printed.err == ""
    summary = json.loads((out / "summary.json").read_text())
    assert code == (0 if summary["verdict"] == "holds" else 1)
    page = (out / "report.html").read_text()
    assert f'">{summary["verdict"]}</p>' in page
    assert "What decides" in page
    assert "Rule, fixed before the first run." in page
    pictures = len(list((out / "figures").glob("*.png")))
    assert page.count("data:image/png;base64,") == pictures >= 1
    assert f"report: {out / 'report.html'}" in printed.out
    config = json.loads((out / "config.json").read_text())
    assert config["kind"] == "claim"
    assert cli._parse(shlex.split(config["command"])[1:]).action.names == (name,)
    before = (out / "summary.json").read_text()
    (out / "summary.json").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "summary.json").read_text() == before


def _planted(sign: float) -> Claim:
    return Claim(
        name="planted", sentence="It is above 0.", source="-", protocol="-", rule="above 0",
        budgets={"small": {"seeds": 3}, "full": {"seeds": 9}}, cost={"small": "-", "full": "-"},
        measure=lambda settings: (
            Measurement(f"{k}", [{"value": sign + 0.01 * k}], {}) for k in range(settings["seeds"])
        ),
        find_in_records=lambda _settings, records, _arrays: Findings(
            "It was measured.", [Check("above", "value", [r["value"] for r in records], 0.0)]
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("sign", "verdict", "code"), [(1.0, "holds", 0), (-1.0, "does not hold", 1)])
def test_a_planted_outcome_comes_out(tmp_path, monkeypatch, capsys, sign, verdict, code) -> None:
    monkeypatch.setattr(registry, "claim", lambda _name: _planted(sign))
    for module in ("batchnorm.lab.experiments.claims.run", "batchnorm.lab.experiments.claims.registry"):
        monkeypatch.setattr(f"{module}.claim", lambda _name: _planted(sign))
    assert cli.main(["claims", "run", "planted", "--out", str(tmp_path / "a")]) == code
    assert json.loads((tmp_path / "a/summary.json").read_text())["verdict"] == verdict
    assert cli.main(["claims", "run", "planted", "--seeds", "2", "--out", str(tmp_path / "b")]) == 1
    assert json.loads((tmp_path / "b/summary.json").read_text())["verdict"] == "inconclusive"
    assert "Inconclusive. It was measured." in capsys.readouterr().out


def test_a_claim_may_be_a_plan_of_trainings(tmp_path, monkeypatch) -> None:
    claim = Claim(
        name="planned", sentence="BN ends higher.", source="-", protocol="-", rule="above 0",
        budgets={key: {"seeds": 2, "steps": 12} for key in ("small", "full")}, cost={"small": "-", "full": "-"},
        plan=lambda settings: plan(steps=settings["steps"]),
        find_in_study=lambda _settings, _study, numbers: Findings(
            f"{numbers.groups[1].name} was trained.",
            [Check("higher", "accuracy", [arm.final_accuracy.mean for arm in numbers.arms], 0.0)],
        ),
    )  # fmt: skip
    for module in ("batchnorm.lab.experiments.claims.run", "batchnorm.lab.experiments.claims.registry"):
        monkeypatch.setattr(f"{module}.claim", lambda _name: claim)
    out = tmp_path / "run"
    assert cli.main(["claims", "run", "planned", "--out", str(out)]) == 0
    text = (out / "report.html").read_text()
    assert "batch norm was trained." in text
    assert "data-chart" in text  # the curves of the runs come with it
    assert len(list((out / "cells").iterdir())) == 8
    # The same command goes on with the same directory, and has nothing left to train.
    times = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/metrics.jsonl")}
    assert cli.main(["claims", "run", "planned", "--out", str(out)]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("cells/*/metrics.jsonl")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "claims run needs at least one name"),
        (["run", "whitning"], "'whitning' is no claim; did you mean 'whitening'?"),
        (["run", "optimizers", "optimizers"], "names must hold each claim once"),
        (["run", "optimizers", "--seeds", "0"], "seeds must be above 0; got 0"),
        (["run", "activation-statistics", "--set", "unit=3"], "has no setting 'unit'; did you mean 'units'?"),
        (["run", "activation-statistics", "--set", "units=many"], "units must be of the type of 256; got 'many'"),
        (["run", "regularizers", "--set", "data=nowhere.npz"], "cannot read nowhere.npz: no such file"),
        (["run", "whitening", "--out", "full"], "it is not empty"),
        (["run", "whitening", "--out", "full/file"], "it is a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    assert cli.main(["claims", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("batchnorm: error: ")
    assert message in line


def test_an_interrupted_measurement_keeps_its_records(tmp_path, monkeypatch, capsys) -> None:
    def interrupted(_settings):
        yield Measurement("one", [{"value": float("inf")}], {})
        raise KeyboardInterrupt

    from dataclasses import replace

    claim = replace(_planted(1.0), measure=interrupted)
    for module in ("batchnorm.lab.experiments.claims.run", "batchnorm.lab.experiments.claims.registry"):
        monkeypatch.setattr(f"{module}.claim", lambda _name: claim)
    out = tmp_path / "run"
    assert cli.main(["claims", "run", "planted", "--out", str(out)]) == 130
    assert (out / "records.jsonl").read_text() == '{"value":null}\n'
    capsys.readouterr()
    assert cli.main(["report", str(out)]) == 2
    assert "holds an interrupted measurement; run it again" in capsys.readouterr().err


def test_list_names_every_claim_with_its_source_rule_and_cost(capsys) -> None:
    assert cli.main(["claims", "list"]) == 0
    printed = capsys.readouterr().out
    for name in NAMES:
        claim = registry.claim(name)
        assert f"{name}\n    {claim.sentence}" in printed
        assert claim.source in printed
        assert claim.rule in printed


def test_several_claims_get_a_directory_each(tmp_path) -> None:
    several = ["whitening", "optimizers"]
    assert directories(RunClaims(("all",), out=tmp_path), several) == {n: tmp_path / n for n in several}
    (path,) = directories(RunClaims(("whitening",)), ["whitening"]).values()
    assert path.name.startswith("claim-whitening-")
    assert registry.chosen(["all"]) == NAMES
    with pytest.raises(LabError, match="at least one name"):
        registry.chosen([])


def test_the_command_line_parses_into_the_dataclasses() -> None:
    assert cli._parse(["claims", "list"]) == ClaimsConfig(ListClaims())
    assert cli._parse(["claims", "run", "whitening", "--budget", "full"]).action == RunClaims(("whitening",), "full")


# --- what each measurement is known to give ---


def _records(name: str, **changes) -> tuple[dict, list]:
    claim = registry.claim(name)
    settings = {**claim.budgets["small"], **changes}
    assert claim.measure is not None
    return settings, [record for measurement in claim.measure(settings) for record in measurement.records]


@pytest.fixture(scope="module")
def depths() -> tuple[dict, list]:
    return _records("activation-statistics", units=128, seeds=2)


def _std(records, activation, norm, name, layer):
    key = (activation, norm, name, layer)
    return np.mean([r["std"] for r in records if (r["activation"], r["norm"], r["initializer"], r["layer"]) == key])


def test_collapse_follows_the_formula_of_a_relu_layer(depths) -> None:
    """The mean square of the pre-activations is multiplied by n std^2 / 2; a ReLU output of N(0, s^2) has std s * c."""
    _, records = depths
    factor = 0.01 * math.sqrt(4096)  # whatever the number of units
    cut = math.sqrt(0.5 - 1 / (2 * math.pi))
    for layer in (1, 3, 7):
        expected = cut * factor * (factor / math.sqrt(2)) ** (layer - 1)
        assert _std(records, "relu", "none", "small Gaussian", layer) == pytest.approx(expected, rel=0.35), layer
    assert _std(records, "relu", "none", "Kaiming", 1) == pytest.approx(cut * math.sqrt(2), rel=0.1)
    assert _std(records, "relu", "batch", "Xavier", 7) == pytest.approx(cut, rel=0.03)
    assert _std(records, "tanh", "batch", "Xavier", 7) == pytest.approx(0.628, rel=0.04)


def test_the_gradient_of_the_last_layer_is_the_cotangent_and_shrinks_as_the_weights(depths) -> None:
    settings, records = depths
    last = [r["gradient_std"] for r in records if r["layer"] == settings["layers"]]
    np.testing.assert_allclose(last, 1.0, rtol=0.06)
    key = ("relu", "none", "small Gaussian", 1)
    shrunk = [r["gradient_std"] for r in records
              if (r["activation"], r["norm"], r["initializer"], r["layer"]) == key]  # fmt: skip
    assert np.mean(shrunk) == pytest.approx((0.01 * math.sqrt(4096 / 2)) ** 6, rel=0.5)


def test_activation_verdicts_follow_the_records() -> None:
    claim = registry.claim("activation-statistics")

    def verdicts(last_small: float) -> list[str]:
        records = [
            {"activation": activation, "norm": norm, "initializer": name, "seed": seed, "layer": layer,
             "std": 1.0 if layer == 1 or norm == "batch" else
             {"small Gaussian": last_small, "larger Gaussian": 20.0}.get(name, 1.0),
             "saturated": 0.5, "gradient_std": 1.0}
            for activation in ("tanh", "relu") for norm in ("none", "batch") for seed in range(3) for layer in (1, 2)
            for name in ("small Gaussian", "larger Gaussian", "Xavier", "Kaiming")
        ]  # fmt: skip
        arrays = {f"{n}/{a}/{norm}/{layer}": np.ones(41) / 41 for n in ("small Gaussian", "larger Gaussian", "Xavier",
                  "Kaiming") for a in ("tanh", "relu") for norm in ("none", "batch") for layer in (1, 2)}  # fmt: skip
        assert claim.find_in_records is not None
        found = claim.find_in_records({"layers": 2, "units": 8, "batch": 4}, records, arrays)
        return [check.status for check in found.checks]

    assert verdicts(0.05) == ["holds"] * 6
    assert verdicts(0.5) == ["does not hold"] * 2 + ["holds"] * 4


def test_steps_agree_with_the_textbook_descent() -> None:
    settings = {"limit": 400, "tolerance": 1e-2, "hold": 20}
    points = np.random.default_rng(1).uniform(-1, 1, (3, 2))
    found = optimizers.steps_to_tolerance("quadratic", "momentum", points, 0.003, settings)
    rule = partial(rules_of_the_textbook.momentum, momentum=0.9)
    for start, steps in zip(points, found, strict=True):
        path = descent.descend(descent.quadratic(100.0), start, steps=460, lr=0.003, rule=rule)
        outside = path.values > 1e-2
        assert steps == next(k for k in range(400) if not outside[k : k + 21].any())


def test_a_rule_that_only_jumps_across_the_minimum_has_not_arrived() -> None:
    settings = {"limit": 100, "tolerance": 1e-2, "hold": 20}
    # Curvature 100 and rate 0.02: w changes sign for ever along the steep direction, and passes no tolerance.
    start = np.array([[0.0, 1.0]])
    assert optimizers.steps_to_tolerance("quadratic", "SGD", start, 0.02, settings) == [np.inf]
    assert optimizers.steps_to_tolerance("quadratic", "SGD", start, 0.01, settings) == [1]


def test_whitened_inputs_need_one_step_and_the_raw_ones_the_condition_number() -> None:
    x, y = whitening.data(registry.claim("whitening").budgets["small"], seed=0)
    white = whitening.whitening.forward(x, eps=1e-8)[0]
    condition, steps, _ = whitening.train(white, y, limit=10, excess=1e-3)
    assert condition == pytest.approx(1.0, abs=1e-5)
    assert steps == 1
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    condition, steps, left = whitening.train(standard, y, limit=3000, excess=1e-3)
    assert condition == pytest.approx(np.linalg.cond(np.corrcoef(x.T)), rel=1e-6)
    slowest = ((condition - 1) / (condition + 1)) ** 2  # per step, of the excess
    assert left[50] <= slowest**50 * 1.0001
    assert 1 < steps < 3000


def test_a_network_trains_as_published_with_the_published_seeds() -> None:
    points, settings = generate(0), {**registry.claim("regularizers").budgets["small"], "steps": 3}
    network, curve = regularizers.train("fixed_mask", points, 0, settings)
    draw = np.random.RandomState(3)
    w1, w2, w3 = (draw.randn(outs, ins) / np.sqrt(ins) for outs, ins in [(20, 2), (3, 20), (1, 3)])
    b1, b2, b3 = np.zeros((20, 1)), np.zeros((3, 1)), np.zeros((1, 1))
    x, y, m = points.x.T, points.y, len(points.y)
    for _ in range(3):
        masks = np.random.RandomState(1)
        a1 = np.maximum(0, w1 @ x + b1)
        d1 = (masks.rand(*a1.shape) < 0.86) / 0.86
        a2 = np.maximum(0, w2 @ (a1 * d1) + b2)
        d2 = (masks.rand(*a2.shape) < 0.86) / 0.86
        a3 = 1 / (1 + np.exp(-(w3 @ (a2 * d2) + b3)))
        loss = -np.mean(y * np.log(a3) + (1 - y) * np.log(1 - a3))
        dz3 = (a3 - y) / m
        dz2 = (w3.T @ dz3) * d2 * (a2 > 0)
        dz1 = (w2.T @ dz2) * d1 * (a1 > 0)
        steps = dz3 @ (a2 * d2).T, dz2 @ (a1 * d1).T, dz1 @ x.T
        b3, b2, b1 = (b - 0.3 * dz.sum(1, keepdims=True) for b, dz in ((b3, dz3), (b2, dz2), (b1, dz1)))
        w3, w2, w1 = (w - 0.3 * dw for w, dw in zip((w3, w2, w1), steps, strict=True))
    np.testing.assert_allclose(network.parameters["linear1.weight"], w1, rtol=1e-10)
    assert curve[-1, 1] == pytest.approx(loss, rel=1e-12)
