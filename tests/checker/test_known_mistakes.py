"""Every known mistake is named in a learner's file that has it, and no two of them can be taken for each other."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from batchnorm.checker import check, inputs, mistakes
from batchnorm.checker.catalogue import SUBJECTS
from batchnorm.checker.catalogue.initializers import right_deviations
from batchnorm.checker.diagnose import differences
from batchnorm.reference import batch_norm, initializers, optimizers, penalties, statistics


def _load(name: str):
    spec = importlib.util.spec_from_file_location(f"_checker_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutants = _load("mutants")
MUTANTS = mutants.MUTANTS + _load("mutants_of_the_rest").MUTANTS


def test_every_entry_has_a_learner_who_made_it():
    assert {mutant[0] for mutant in MUTANTS} == set(mistakes())


def _files():
    """Put mistakes of different functions into one file: a process costs more than a check."""
    files = []
    for mutant in MUTANTS:
        functions = set(mutant[1])
        place = next((file for file in files if all(functions.isdisjoint(other[1]) for other in file)), None)
        if place is None:
            files.append(place := [])
        place.append(mutant)
    return files


@pytest.mark.parametrize("file", _files(), ids=lambda file: f"{file[0][0]}+{len(file) - 1}")
def test_the_mistake_is_named(file, tmp_path):
    path = tmp_path / "answer.py"
    path.write_text("\n".join(mutants.course(functions, *edits) for _, functions, *edits in file))
    report = check(path)
    assert sorted(report.mistakes) == sorted(name for name, *_ in file), str(report)
    assert "unknown" not in {finding.kind for finding in report.findings}, str(report)
    text = str(report)
    for name, *_ in file:
        assert mistakes()[name].fix[0] in text


def _combinations(subject):
    choices = {}
    for convention in subject.conventions:
        if convention.choice == "eps" and convention.name != "given":
            continue  # for layers that cannot be given one: then ignoring it is no mistake
        choices.setdefault(convention.choice, []).append(convention)
    for combination in itertools.product(*choices.values()):
        yield {key: step for convention in combination for key, step in convention.changes.items()}


#: What only a declared convention can tell apart: each under one convention is the other under another.
NEEDS_DECLARATION = {
    frozenset({"dropout-keep-drop-swapped"}),  # p right for the one is swapped for the other
    frozenset({"batchnorm-momentum-reversed"}),
    frozenset({"batchnorm-momentum-reversed", "batchnorm-momentum-default-reversed"}),
    frozenset({"dropout-divided-by-drop-rate", "dropout-mask-swapped"}),
    frozenset({"l2-factor-2", "l2-factor-2-twice"}),
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=lambda subject: subject.name)
def test_no_two_entries_give_the_same_outputs(subject):
    alike = set()
    for group, names in subject.groups.items():
        known = [mistake for mistake in subject.mistakes if mistake.group == group and mistake.changes]
        outputs = [
            (mistake.id, as_arrays(subject.compute(choice | dict(mistake.changes), {})))
            for mistake in known
            for choice in _combinations(subject)
        ]
        right = [as_arrays(subject.compute(choice, {})) for choice in _combinations(subject)]
        for name, got in outputs:
            if not all(differs(subject, got, one, names) for one in right):
                alike.add(frozenset({name}))
        for (one, got), (other, expected) in itertools.combinations(outputs, 2):
            if one != other and not differs(subject, got, expected, names):
                alike.add(frozenset({one, other}))
    assert alike <= NEEDS_DECLARATION


def as_arrays(outputs):
    return {name: np.asarray(value) for name, value in outputs.items() if value is not None}


def differs(subject, got, expected, names):
    return differences(subject, got, expected, [name for name in names if name in got and name in expected])


@pytest.mark.parametrize("spatial", [False, True])
def test_the_steps_without_a_mistake_are_the_textbook(spatial):
    given = inputs.batch_norm(spatial)
    outputs = SUBJECTS["spatial_batchnorm" if spatial else "batchnorm"].compute({}, {})
    y, cache = batch_norm.forward_train(given["x"], given["gamma"], given["beta"], eps=given["eps"])
    gradients = batch_norm.backward(given["dout"], cache)
    start = given["running_mean"], given["running_var"]
    test_y, _ = batch_norm.forward_test(given["x_test"], *start, given["gamma"], given["beta"], eps=given["eps"])
    factor = 1 - given["momentum"]
    running_mean, running_var = statistics.update_running(*start, cache.mean, cache.var, cache.count, factor)
    biased = (1 - factor) * start[1] + factor * cache.var
    expected = {
        "out": y,
        "test_out": test_y,
        "running_mean": running_mean,
        "running_var": biased,
        "dx": gradients.dx,
        "dgamma": gradients.dweight,
        "dbeta": gradients.dbias,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-11, atol=1e-11)
    unbiased = next(c for c in SUBJECTS["batchnorm"].conventions if c.name == "unbiased")
    stored = SUBJECTS["spatial_batchnorm" if spatial else "batchnorm"].compute(unbiased.changes, {})["running_var"]
    np.testing.assert_allclose(stored, running_var, rtol=1e-12)


def test_the_rules_without_a_mistake_are_the_textbook():
    given = inputs.optimizer()
    config = given["config"]
    lr, eps, betas = config["learning_rate"], config["epsilon"], (config["beta1"], config["beta2"])
    rules = {
        "sgd": lambda w, dw, state: optimizers.sgd(w, dw, state, lr=lr),
        "sgd_momentum": lambda w, dw, state: optimizers.momentum(w, dw, state, lr=lr, momentum=config["momentum"]),
        "nesterov": lambda w, dw, state: optimizers.nesterov(w, dw, state, lr=lr, momentum=config["momentum"]),
        "adagrad": lambda w, dw, state: optimizers.adagrad(w, dw, state, lr=lr, eps=eps),
        "rmsprop": lambda w, dw, state: optimizers.rmsprop(w, dw, state, lr=lr, decay=config["decay_rate"], eps=eps),
        "adam": lambda w, dw, state: optimizers.adam(w, dw, state, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps),
    }
    for name, rule in rules.items():
        outputs = SUBJECTS[name].compute({}, {})
        w, state = given["w"], None
        for step, gradient in enumerate(given["gradients"], start=1):
            w, state = rule(w, gradient, state)
            np.testing.assert_allclose(outputs[f"w_{step}"], w, rtol=1e-13, err_msg=name)


def test_the_penalties_without_a_mistake_are_the_textbook():
    given = inputs.penalty()
    names = {"lambda/2m": "half_mean", "lambda": "sum", "lambda/2": "half"}
    for convention in SUBJECTS["l2"].conventions:
        if convention.name in names:
            samples = int(given["m"]) if convention.name == "lambda/2m" else None
            weights, options = [given["W"]], {"convention": names[convention.name], "samples": samples}
            cost, gradients = penalties.l2_penalty(weights, given["lambd"], **options)
            outputs = SUBJECTS["l2"].compute(convention.changes, {})
            np.testing.assert_allclose(outputs["cost"], cost, rtol=1e-13)
            np.testing.assert_allclose(outputs["dW"], gradients[0], rtol=1e-13)


def test_the_deviations_are_the_textbook():
    given, generator = inputs.initializer(), np.random.default_rng(0)
    dense, conv = right_deviations("kaiming")
    area = given["kernel"]
    shape = (given["out_channels"], given["in_channels"], area, area)
    assert initializers.kaiming_normal((90, 400), generator).std() == pytest.approx(dense, rel=0.03)
    assert initializers.kaiming_normal(shape, generator).std() == pytest.approx(conv, rel=0.03)
    mean = next(c for c in SUBJECTS["xavier"].conventions if c.name == "mean")
    ratio = SUBJECTS["xavier"].compute(mean.changes, {})["deviation"]
    glorot = initializers.xavier_normal((given["fan_out"], given["fan_in"]), generator).std()
    assert glorot == pytest.approx(ratio * right_deviations("xavier")[0], rel=0.03)
