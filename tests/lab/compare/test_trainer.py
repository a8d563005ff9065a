"""The comparison: the same batches, what is recorded, and what survives divergence and interruption."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.lab.compare import trainer
from batchnorm.lab.compare.artefacts import RunWriter, read_run
from batchnorm.lab.compare.config import CompareConfig
from batchnorm.lab.compare.evaluation import evaluate
from batchnorm.lab.compare.trainer import Progress, compare, describe
from batchnorm.lab.data import Dataset, InMemory, batches
from batchnorm.lab.environment import environment
from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.models import Normalization, build


@pytest.fixture(scope="module")
def dataset():
    """Four classes told apart by where an image is bright."""
    generator = torch.Generator().manual_seed(0)

    def part(n):
        y = torch.arange(n) % 4
        x = 0.3 * torch.rand(n, 1, 8, 8, generator=generator)
        for k in range(4):
            x[y == k, :, 2 * k : 2 * k + 2] += 0.7
        return InMemory(x, y)

    return Dataset("bars", part(100), None, part(40), classes=4, input_shape=(1, 8, 8), preprocessing="none")


def small(**settings):
    return CompareConfig(**{"lr": (0.1, 1.0), "seeds": 2, "steps": 12, "batch_size": 20, "evaluations": 3} | settings)


def run(path, config, dataset, on_event=lambda _: None):
    writer = RunWriter.create(path, config={"command": "test", **describe(config, dataset)}, environment=environment())
    compare(config, dataset, writer, on_event)
    return read_run(path)


def records(path):
    return {
        file.parent.name: [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(path.glob("trials/*/records.jsonl"))
    }


def test_every_trial_is_recorded_on_schedule(tmp_path, dataset):
    found = run(tmp_path, small(), dataset)
    assert found.status == "finished"
    assert [(t.norm, t.lr, t.seed) for t in found.trials] == list(
        itertools.product(("none", "batch"), (0.1, 1.0), (0, 1))
    )
    for trial in found.trials:
        assert (trial.status, trial.step, trial.reason) == ("finished", 12, "")
        assert trial.steps.tolist() == [0, 1, 2, 4, 5, 8, 10, 12]
        assert trial.saturated.shape == (8, 3)
        assert trial.percentiles.shape == (8, 3, 100)
        assert math.isnan(trial.step_seconds[0])  # no step has been taken
        assert (trial.step_seconds[1:] > 0).all()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_records_are_those_of_a_loop_written_by_hand(tmp_path, dataset, norm):
    """Both arms run, and one of them is trained again here, alone: so the arms do not touch each other either."""
    run(tmp_path, small(lr=(0.5,), seeds=2), dataset)
    found = records(tmp_path)[f"{norm}-lr0.5-seed1"]

    network = build("mlp", Normalization(norm), input_shape=(1, 8, 8), classes=4, weight_std=0.1, seed=1)
    losses = []
    states = {0: evaluate(network, dataset.test.x, dataset.test.targets)}
    for step, index in zip(range(1, 13), batches(100, 20, seed=1), strict=False):
        loss = nn.functional.cross_entropy(network(dataset.train.fetch(index)), dataset.train.targets[index])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
        losses.append(loss.item())
        states[step] = evaluate(network, dataset.test.x, dataset.test.targets)

    # float32 training of 12 steps; the record keeps six digits.
    previous = 0
    for record in found:
        step = record["step"]
        expected = np.mean(losses[previous:step]) if step else losses[0]  # before any update
        previous = step
        assert record["train_loss"] == pytest.approx(expected, rel=1e-4)
        assert record["test_loss"] == pytest.approx(states[step].loss, rel=1e-4)
        assert record["test_accuracy"] == pytest.approx(states[step].accuracy, abs=1e-6)
        assert record["saturated"] == pytest.approx(states[step].saturated, abs=1e-3)
        np.testing.assert_allclose(record["percentiles"], states[step].percentiles, rtol=1e-3, atol=1e-4)


def test_all_arms_and_rates_see_the_same_batches(tmp_path, dataset, monkeypatch):
    seen = {}
    step = trainer._Arm.train

    def train(arm, x, y):
        seen.setdefault(arm.writer.path.name, []).append((x, y))
        step(arm, x, y)

    monkeypatch.setattr(trainer._Arm, "train", train)
    run(tmp_path, small(), dataset)
    for seed in (0, 1):
        trials = [seen[f"{norm}-lr{lr}-seed{seed}"] for norm in ("none", "batch") for lr in ("0.1", "1")]
        for step_index, index in zip(range(12), batches(100, 20, seed), strict=False):
            for trial in trials:
                assert torch.equal(trial[step_index][0], dataset.train.fetch(index))
                assert torch.equal(trial[step_index][1], dataset.train.targets[index])
    assert not torch.equal(seen["none-lr1-seed0"][0][1], seen["none-lr1-seed1"][0][1])


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_learns(tmp_path, dataset, model):
    found = run(tmp_path, small(model=model, norm=("batch",), lr=(0.3,), seeds=1, steps=60), dataset)
    assert found.trials[0].test_accuracy[-1] == 1
    assert found.trials[0].train_loss[0] > math.log(4) / 2 > found.trials[0].train_loss[-1]


def test_same_settings_same_records_but_for_the_times(tmp_path, dataset):
    found = []
    for name in ("first", "second"):
        torch.manual_seed(len(found))  # the random numbers of the process do not matter
        run(tmp_path / name, small(model="convnet"), dataset)
        found.append(records(tmp_path / name))
        for trial in found[-1].values():
            for record in trial:
                del record["step_seconds"]
    assert found[0] == found[1]
    assert len(found[0]) == 8


def test_arm_that_diverges_ends_and_the_other_goes_on(tmp_path, dataset):
    """Large initial weights overflow through ReLUs at the first step; batch normalization undoes their scale."""
    config = small(model="convnet", weight_std=1000.0, lr=(1.0,), seeds=1, steps=40)
    events = []
    found = run(tmp_path, config, dataset, events.append)
    none, batch = found.trials
    assert found.status == "finished"
    assert (none.status, none.step, none.reason) == ("diverged", 1, "the test loss was nan after step 1")
    assert none.steps.tolist() == [0, 1]
    assert np.isnan(none.test_loss[1])
    assert (batch.status, batch.step, batch.steps[-1]) == ("finished", 40, 40)
    assert [event.trials_done for event in events] == [0] + [1] * (len(batch.steps) - 2) + [2]


def test_step_with_a_loss_that_is_not_finite_is_not_taken(tmp_path, dataset):
    network = build("mlp", Normalization("none"), input_shape=(1, 8, 8), classes=4, weight_std=0.1, seed=0)
    before = [parameter.clone() for parameter in network.parameters()]
    writer = RunWriter.create(tmp_path, config={}, environment={}).trial(norm="none", lr=0.1, seed=0)
    arm = trainer._Arm("none", network, torch.optim.SGD(network.parameters(), 0.1), writer, step=6)
    arm.train(torch.full((2, 1, 8, 8), torch.nan), torch.tensor([0, 1]))
    assert arm.ended
    assert json.loads((writer.path / "trial.json").read_text()) == {
        "status": "diverged",
        "step": 6,
        "reason": "the training loss became nan in step 7",
    }
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_all_arms_diverging_does_not_stop_the_other_learning_rates(tmp_path, dataset):
    events = []
    found = run(tmp_path, small(norm=("none",), lr=(1e38, 0.1), seeds=1), dataset, events.append)
    assert [(t.lr, t.status) for t in found.trials] == [(0.1, "finished"), (1e38, "diverged")]
    assert events[-1].trials_done == 2


def test_loss_far_above_guessing_at_the_end_is_divergence():
    assert trainer._outcome(2 * math.log(10), 10) == ("finished", "")
    assert trainer._outcome(6.5, 10) == (
        "diverged",
        "the training loss ended at 6.5, more than twice that of guessing, 2.3",
    )


def test_first_record_leaves_the_running_statistics_alone(tmp_path, dataset, monkeypatch):
    tracked = []
    step = trainer._Arm.train

    def train(arm, x, y):
        tracked.append(int(arm.network.state_dict()["layers.2.num_batches_tracked"]))
        step(arm, x, y)

    monkeypatch.setattr(trainer._Arm, "train", train)
    run(tmp_path, small(norm=("batch",), lr=(0.1,), seeds=1), dataset)
    assert tracked == list(range(12))


def test_interruption_keeps_what_was_recorded(tmp_path, dataset):
    def stop(progress):
        if (progress.seed, progress.lr, progress.step) == (0, 1.0, 5):
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, small(threads=1), dataset, stop)
    assert torch.get_num_threads() == before
    found = read_run(tmp_path)
    assert found.status == "interrupted"
    assert {(t.norm, t.lr): (t.status, t.step) for t in found.trials} == {
        ("none", 0.1): ("finished", 12),
        ("batch", 0.1): ("finished", 12),
        ("none", 1.0): ("interrupted", 5),
        ("batch", 1.0): ("interrupted", 5),
    }
    assert found.trials[-1].steps.tolist() == [0, 1, 2, 4, 5]


def test_disk_that_fails_is_said_and_the_run_counts_as_interrupted(tmp_path, dataset, monkeypatch):
    def record(self, record):
        if record["step"] == 4:
            raise OutputError("cannot write: no space left on device")

    monkeypatch.setattr("batchnorm.lab.compare.artefacts.TrialWriter.record", record)
    with pytest.raises(OutputError, match="no space left"):
        run(tmp_path, small(), dataset)
    assert read_run(tmp_path).status == "interrupted"


def test_progress_counts_trials_and_steps(tmp_path, dataset):
    events = []
    found = run(tmp_path, small(seeds=1), dataset, events.append)
    assert [(e.lr, e.step) for e in events] == [(lr, step) for lr in (0.1, 1.0) for step in (0, 1, 2, 4, 5, 8, 10, 12)]
    assert [e.trials_done for e in events] == [0] * 7 + [2] * 8 + [4]
    last = {trial.norm: trial.test_accuracy[-1] for trial in found.trials if trial.lr == 1.0}
    assert events[-1] == Progress(4, 4, 12, 12, 1.0, 0, pytest.approx(last, abs=1e-6))


def test_threads_are_those_asked_for_while_it_runs(tmp_path, dataset):
    before = torch.get_num_threads()
    inside = []
    run(tmp_path, small(threads=before + 1), dataset, lambda _: inside.append(torch.get_num_threads()))
    assert set(inside) == {before + 1}
    assert torch.get_num_threads() == before


def test_batch_larger_than_the_data_is_refused(tmp_path, dataset):
    with pytest.raises(
        LabError, match=r"batch_size must be at most the number of training examples of bars, 100; got 101"
    ):
        run(tmp_path / "run", small(batch_size=101), dataset)
    assert not (tmp_path / "run").exists()


def test_description_holds_every_resolved_setting(dataset):
    found = describe(CompareConfig(), dataset)
    assert found["config"]["steps"] == 3000
    assert found["config"]["lr"] == (0.3, 1.0, 3.0, 10.0)
    assert found["data"] == {
        "name": "bars",
        "train": 100,
        "test": 40,
        "input_shape": [1, 8, 8],
        "classes": 4,
        "preprocessing": "none",
    }
    weights = 64 * 100 + 2 * 100 * 100 + 100 * 4 + 4
    assert found["model"] == {
        "name": "mlp",
        "description": "three hidden layers of 100 sigmoids, fully connected",
        "activation": "sigmoid",
        "hidden_units": [100, 100, 100],
        "parameters": {"none": weights + 300, "batch": weights + 600},
    }
