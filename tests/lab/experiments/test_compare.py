"""The plan of `batchnorm compare`: the paper's experiment by default, any setting of train, any axis."""

from __future__ import annotations

import pytest

from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.compare import CompareCommand, plan_of


def test_by_default_it_is_the_experiment_of_the_paper() -> None:
    plan = plan_of(CompareCommand())
    assert plan.question == "Does the network learn in fewer steps with batch normalization?"
    assert {axis: list(values) for axis, values in plan.axes.items()} == {
        "seed": ["0", "1", "2"], "lr": ["0.1", "0.3", "1", "3", "10"], "norm": ["none", "batch"],
    }  # fmt: skip
    base = plan.base
    assert (base.data, base.model, base.optimizer, base.schedule, base.l2) == ("digits", "mlp", "sgd", "constant", 0.0)
    assert (base.batch_size, base.steps, base.weight_std, base.evaluate_every) == (60, 3000, 0.1, 50)
    assert base.units
    assert base.evaluate_early


def test_other_networks_are_trained_by_their_recipe() -> None:
    plan = plan_of(CompareCommand(model="resnet20", data="cifar10", norm=("none", "batch", "group"), seeds=2))
    assert (plan.base.optimizer, plan.base.steps, plan.base.units) == (None, None, False)
    assert list(plan.axes["lr"]) == ["0.01", "0.1"]  # the same for every arm
    assert list(plan.axes["norm"]) == ["none", "batch", "group"]
    assert len(plan.cells) == 12


def test_any_setting_can_be_varied_by_its_type() -> None:
    command = CompareCommand(
        norm=("batch",), lr=(0.1,), seeds=1, vary=(("norm-momentum", "0.1", "1"), ("hidden", "10,10", "5"))
    )
    plan = plan_of(command)
    assert list(plan.axes) == ["seed", "lr", "norm_momentum", "hidden"]
    assert plan.interleave == ("norm_momentum", "hidden")
    assert [(cell.config.norm_momentum, cell.config.hidden) for cell in plan.cells] == [
        (0.1, (10, 10)), (0.1, (5,)), (1.0, (10, 10)), (1.0, (5,)),
    ]  # fmt: skip
    flips = plan_of(CompareCommand(norm=("batch",), vary=(("flip", "true", "false"),)))
    assert {cell.config.flip for cell in flips.cells} == {True, False}


def test_a_quick_look_is_shorter() -> None:
    plan = plan_of(CompareCommand(quick=True))
    assert (list(plan.axes["seed"]), plan.base.steps) == (["0"], 750)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"vary": (("momentumm", "1"),)}, "which is no setting; did you mean 'momentum'"),
        ({"vary": (("momentum",),)}, "--vary momentum needs values"),
        ({"vary": (("lr", "1"),)}, "--vary lr is given twice"),
        ({"vary": (("dropout", "no"),)}, "dropout must be a number; got 'no'"),
        ({"lr": (0.1, 0.1)}, "lr must hold each value once"),
        ({"norm": ()}, "norm must hold at least one value"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"lr": (-1.0,)}, "lr must be a finite number above 0; got -1"),
    ],
)
def test_what_cannot_work_is_refused(command, message) -> None:
    with pytest.raises(LabError, match=message):
        plan_of(CompareCommand(**command))
