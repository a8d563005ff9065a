"""What a plan is: its cells, their names, what is stored, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.experiments.plan import Plan, label_of, missing, read_plan, store, vary
from batchnorm.lab.recording import kind_of
from batchnorm.lab.training import TrainConfig
from lab.experiments.plans import plan


def test_cells_are_every_combination_the_first_axis_outermost() -> None:
    made = plan()
    assert len(made.cells) == 8
    assert made.cells[1].name == "seed=0,lr=0.1,norm=batch"
    assert (made.cells[1].config.seed, made.cells[1].config.lr, made.cells[1].config.norm) == (0, 0.1, "batch")
    assert [[cell.config.norm for cell in group] for group in made.groups] == [["none", "batch"]] * 4
    assert [group[0].config.seed for group in made.groups] == [0, 0, 1, 1]


def test_a_bundle_of_settings_is_one_value_of_an_axis() -> None:
    changes = {"x1": {"lr": 0.1, "dropout": 0.2}, "x5": {"lr": 0.5, "dropout": 0.0}}
    made = Plan("?", TrainConfig(), {"change": changes}, "none")
    assert [(cell.name, cell.config.lr, cell.config.dropout) for cell in made.cells] == [
        ("change=x1", 0.1, 0.2), ("change=x5", 0.5, 0.0),
    ]  # fmt: skip


def test_names_of_files_stay_apart_and_short() -> None:
    made = Plan("?", TrainConfig(), {"data": vary("data", ["a/b.npz", "a.b.npz"])}, "none")
    names = [cell.name for cell in made.cells]
    assert len(set(names)) == 2
    assert not any("/" in name for name in names)
    assert label_of(0.1 + 0.2) == repr(0.1 + 0.2)  # a label loses nothing
    assert [label_of(value) for value in (3.0, True, None, (8, 8))] == ["3", "true", "none", "8-8"]


def test_what_is_stored_comes_back(tmp_path) -> None:
    made = plan()
    store(made, tmp_path / "plan", head={"command": "batchnorm compare"}, environment={})
    assert read_plan(tmp_path / "plan") == made
    assert kind_of(tmp_path / "plan") == "plan"
    assert missing(made, tmp_path / "plan") == list(made.cells)
    store(made, tmp_path / "plan", head={"command": "batchnorm compare"}, environment={})  # the same plan goes on


def test_a_plan_that_changed_is_refused_by_name_and_nothing_is_written(tmp_path) -> None:
    made = plan()
    store(made, tmp_path / "plan", head={"command": ""}, environment={})
    before = (tmp_path / "plan/plan.json").read_bytes()
    axes = {**made.axes, "lr": vary("lr", [0.1, 3.0])}
    with pytest.raises(OutputError, match=r"another plan: lr \(was 0.1 1, now 0.1 3\); give --out another directory"):
        store(replace(made, axes=axes), tmp_path / "plan", head={"command": ""}, environment={})
    with pytest.raises(OutputError, match=r"steps \(was 12, now 24\)"):
        store(plan(steps=24), tmp_path / "plan", head={"command": ""}, environment={})
    assert (tmp_path / "plan/plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("axes", "more", "message"),
    [
        ({"lr": {}}, {}, "the axis lr must hold at least one value"),
        ({"lrr": {"1": {"lrr": 1}}}, {}, "varies 'lrr', which is no setting; did you mean 'lr'"),
        ({"lr": {"-1": {"lr": -1.0}}}, {}, "lr must be a finite number above 0"),
        ({"lr": {"1": {"lr": 1.0}}}, {"tuned": "seed"}, "'seed' is no axis of the plan; its axes are lr"),
        ({"lr": {"1": {"lr": 1.0}}}, {"interleave": ("norm",)}, "'norm' is no axis"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(axes, more, message) -> None:
    with pytest.raises(LabError, match=message):
        Plan("?", TrainConfig(), axes, "none", **more)


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(LabError, match="lr must hold each value once"):
        vary("lr", [0.1, 0.1])
