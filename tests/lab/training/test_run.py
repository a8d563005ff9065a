"""A whole run: what it leaves behind, and what it leaves behind when something goes wrong."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import batchnorm
from batchnorm.lab import cli, files
from batchnorm.lab.data import InMemory
from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.experiments.study import settings_of
from batchnorm.lab.recording import TrainRun, read_train_run
from batchnorm.lab.training import TrainConfig, checkpoints, train
from batchnorm.lab.training.evaluation import evaluation_mode, fixed_subset
from batchnorm.lab.training.progress import Progress, training_progress
from batchnorm.lab.training.run import Talk, Training
from lab.training.runs import assert_same_run, config, points


def _network(norm: type[torch.nn.Module] = batchnorm.BatchNorm1d) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), norm(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


OWN = {"model": "mine", "hidden": None, "dropout": 0.0, "optimizer": "momentum", "lr": 0.1, "mixup": 0.0}


def test_the_weights_of_a_run_are_its_network(tmp_path: Path) -> None:
    model, dataset = _network(), points()
    outcome = train(config(tmp_path / "run", **OWN), dataset=dataset, model=model)
    fresh = _network()
    fresh.load_state_dict(load_file(tmp_path / "run/weights.safetensors"))
    scores = fresh.eval()(dataset.test.x)
    accuracy = (scores.argmax(1) == dataset.test.targets).float().mean().item()
    loss = torch.nn.functional.cross_entropy(scores, dataset.test.targets).item()
    assert outcome.scores["test"].accuracy == pytest.approx(accuracy)
    assert outcome.scores["test"].loss == pytest.approx(loss, rel=1e-6)
    assert outcome.scores["test"].top5_accuracy is None
    assert model.training


def test_a_network_of_ones_own_is_not_said_to_have_a_normalization(tmp_path: Path) -> None:
    said: list[str] = []
    train(config(tmp_path / "run", **OWN), dataset=points(), model=_network(), talk=Talk(said.append))
    run = read_train_run(tmp_path / "run")
    assert (run.config["model"]["name"], run.config["model"]["norm"]) == ("Sequential", "own")
    assert said[0].startswith("Sequential (own) on ")
    assert settings_of(run)["norm"] == "own"
    assert settings_of(run)["model"] == "Sequential"


def test_records_come_when_they_are_due(tmp_path: Path) -> None:
    seen = []
    train(config(tmp_path / "run"), dataset=points(), talk=Talk(progress=seen.append))
    run = read_train_run(tmp_path / "run")
    assert [record["step"] for record in run.of_kind("train")] == [4, 8, 12, 16, 20, 24]
    assert [record["step"] for record in run.of_kind("test")] == [0, 6, 12, 18, 24]
    assert [record["step"] for record in run.of_kind("train_evaluation")] == [0, 6, 12, 18, 24]
    for name in ("activations", "gradients", "running"):
        assert [record["step"] for record in run.of_probe(name)] == [1, 7, 14, 21]
    assert list(run.of_probe("running")[0]["layers"]) == ["layers.2", "layers.6"]
    assert run.of_kind("train")[0]["lr"] == 0.001  # the warm-up of 3 steps is over
    assert {path.name[:13] for path in (tmp_path / "run/checkpoints").iterdir()} == {"step-00000020", "step-00000024"}
    assert [progress.step for progress in seen if progress.evaluated] == [0, 6, 12, 18, 24]
    assert run.config["data"]["train"] == 60
    assert run.config["config"]["seed"] == 0


def test_the_recorded_loss_is_the_mean_over_the_steps_since_the_last_record(tmp_path: Path) -> None:
    losses: list[float] = []
    training = Training(config(tmp_path / "run", steps=10), dataset=points())
    for step in training:
        pending = training.loop.at.losses
        losses += [float(pending[-1])] if pending else [math.nan]  # averaged into the record of this step
        assert len(losses) == step
    found = [record["loss"] for record in read_train_run(tmp_path / "run").of_kind("train")]
    every = [record["loss"] for record in _every_step(tmp_path / "every").of_kind("train")]
    assert losses == pytest.approx([math.nan if k in {4, 8, 10} else every[k - 1] for k in range(1, 11)], nan_ok=True)
    assert found == pytest.approx([sum(every[i:j]) / (j - i) for i, j in ((0, 4), (4, 8), (8, 10))])


def _every_step(path: Path) -> TrainRun:
    train(config(path, steps=10, log_every=1), dataset=points())
    return read_train_run(path)


def test_two_trainings_that_take_turns_are_the_two_alone(tmp_path: Path) -> None:
    plain = {"dropout": 0.0}  # nothing draws from the generator that they share
    for seed in (1, 2):
        train(config(tmp_path / f"alone{seed}", seed=seed, **plain), dataset=points())
    turns = [Training(config(tmp_path / f"turns{seed}", seed=seed, **plain), dataset=points()) for seed in (1, 2)]
    for _ in zip(*turns, strict=True):
        pass
    for seed in (1, 2):
        assert_same_run(tmp_path / f"turns{seed}", tmp_path / f"alone{seed}")


def test_a_training_that_is_left_after_some_steps_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    training = Training(config(tmp_path / "run"), dataset=points())
    for step in training:
        if step == 13:
            break
    assert (training.outcome.status, training.outcome.step) == ("interrupted", 13)
    assert read_train_run(tmp_path / "run").reason == "no more steps were asked for"
    train(config(tmp_path / "whole"), dataset=points())
    train(resume=tmp_path / "run", dataset=points())
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_training_does_not_depend_on_what_is_looked_at(tmp_path: Path) -> None:
    looks = {"log_every": 3, "evaluate_every": 2, "probe_every": 1, "checkpoint_every": 3}
    blind = {"log_every": 99, "evaluate_every": 99, "probes": (), "checkpoint_every": 99, "train_subset": 0}
    train(config(tmp_path / "looked", **looks), dataset=points())
    train(config(tmp_path / "blind", **blind), dataset=points())
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("looked", "blind"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_population_statistics_are_measured_on_a_copy(tmp_path: Path) -> None:
    kinds = {}
    for statistics in ("running", "population"):
        train(config(tmp_path / statistics, statistics=statistics, **OWN), dataset=points(), model=_network())
        kinds[statistics] = load_file(tmp_path / statistics / "weights.safetensors")
    torch.testing.assert_close(kinds["running"], kinds["population"], rtol=0, atol=0)
    run, other = (read_train_run(tmp_path / name).of_kind("test") for name in kinds)
    assert {record["statistics"] for record in other} == {"population"}
    # Before any training running statistics are 0 and 1; those of the population are right from the start.
    model, dataset = _network(), points()
    batchnorm.recalibrate(model, dataset.train.x[:48].split(16), inplace=True, batches=3)
    model.eval()
    assert abs(other[0]["loss"] - run[0]["loss"]) > 1e-3
    full = torch.nn.functional.cross_entropy(model(dataset.test.x), dataset.test.targets).item()
    assert other[0]["loss"] == pytest.approx(full, abs=0.05)


def test_the_user_s_random_numbers_and_threads_stay(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(11)
    train(config(tmp_path / "run", threads=1), dataset=points())
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert torch.get_num_threads() == threads


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings = {**OWN, "lr": 1e30, "optimizer": "sgd", "norm": "none", "warmup_steps": 0}
    outcome = train(config(path, **settings), dataset=points(), model=_network(torch.nn.Identity))
    run = read_train_run(path)
    assert (outcome.status, run.status) == ("diverged", "diverged")
    assert "the training loss became" in run.reason
    assert run.of_kind("train")
    assert [file.name[:13] for file in (path / "checkpoints").iterdir()] == ["step-00000000"]
    assert not (path / "weights.safetensors").exists()


def test_a_checkpoint_between_two_records_is_not_one_of_a_diverged_network(tmp_path: Path) -> None:
    settings = {**OWN, "lr": 1e30, "optimizer": "sgd", "warmup_steps": 0, "log_every": 20, "checkpoint_every": 3}
    settings["evaluate_every"] = 24
    outcome = train(config(tmp_path / "run", **settings), dataset=points(), model=_network(torch.nn.Identity))
    assert (outcome.status, outcome.step) == ("diverged", 3)
    assert [file.name[:13] for file in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000000"]
    assert [record["step"] for record in read_train_run(tmp_path / "run").of_kind("train")] == [3]


def test_a_run_that_ends_far_above_guessing_has_diverged(tmp_path: Path) -> None:
    settings = {**OWN, "lr": 100.0, "optimizer": "sgd", "warmup_steps": 0, "steps": 6}
    outcome = train(config(tmp_path / "run", **settings), dataset=points(), model=_network(torch.nn.Identity))
    assert outcome.status == "diverged"
    assert "more than 2 times that of guessing, 1.1" in outcome.reason


def test_a_short_run_that_ends_high_because_it_began_there_has_not_diverged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _network(torch.nn.Identity)
    with torch.no_grad():
        model[-1].weight.mul_(100)
    settings = {**OWN, "lr": 1e-6, "optimizer": "sgd", "warmup_steps": 0, "steps": 6}
    outcome = train(config(tmp_path / "run", **settings), dataset=points(), model=model)
    first = read_train_run(tmp_path / "run").of_kind("train")[-1]["loss"]
    assert first > 2 * math.log(3)
    assert outcome.status == "finished"


def test_a_run_that_is_all_beginning_is_not_judged(tmp_path: Path) -> None:
    settings = {**OWN, "lr": 100.0, "optimizer": "sgd", "warmup_steps": 0, "steps": 4}
    outcome = train(config(tmp_path / "run", **settings), dataset=points(), model=_network(torch.nn.Identity))
    assert outcome.scores["test"].loss > 2 * math.log(3)
    assert outcome.status == "finished"


def test_a_target_accuracy_ends_the_run(tmp_path: Path) -> None:
    outcome = train(config(tmp_path / "run", **OWN, target_accuracy=0.6), dataset=points(), model=_network())
    assert outcome.status == "finished"
    assert outcome.reason == "target accuracy 0.6 reached"
    assert outcome.step in {6, 12, 18}
    assert outcome.scores["test"].accuracy >= 0.6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_reduce_and_keeps_the_records(tmp_path: Path, error) -> None:
    with pytest.raises(LabError, match="not enough memory for step 10; take a smaller batch_size, or accumulate"):
        _fail_after(9, error, tmp_path / "run")
    run = read_train_run(tmp_path / "run")
    assert (run.status, run.step) == ("failed", 9)
    assert [record["step"] for record in run.of_kind("train")] == [4, 8]


def test_a_fault_of_the_network_is_raised_as_it_is_and_recorded(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        _fail_after(9, ZeroDivisionError("mine"), tmp_path / "run")
    assert read_train_run(tmp_path / "run").reason == "ZeroDivisionError: mine"


def _fail_after(step: int, error: Exception, path: Path) -> None:
    steps = iter(Training(config(path), dataset=points()))
    while next(steps) != step:
        pass
    steps.throw(error)


def test_a_full_disk_while_writing_a_checkpoint_keeps_the_one_before(tmp_path: Path, monkeypatch) -> None:
    path, real, calls = tmp_path / "run", os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) > 4:  # two for each checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write the checkpoint of step 10 .*no space left on device"):
        train(config(path), dataset=points())
    monkeypatch.undo()
    assert [file.name[:13] for file in sorted((path / "checkpoints").iterdir())] == ["step-00000000", "step-00000005"]
    assert read_train_run(path).status == "failed"
    assert train(resume=path, dataset=points()).status == "finished"


def test_a_full_disk_while_recording_leaves_what_was_recorded(tmp_path: Path, monkeypatch) -> None:
    path, real, calls = tmp_path / "run", Path.open, []

    def full(self, *arguments, **settings):
        if self.name == "metrics.jsonl" and arguments[:1] == ("a",):
            calls.append(1)
            if len(calls) > 6:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"cannot write to .*metrics.jsonl: no space left on device"):
        train(config(path), dataset=points())
    monkeypatch.undo()
    assert len(read_train_run(path).metrics) == 6


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    checkpoints.save(tmp_path / "checkpoints", 3, {"model": Evil()})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoints.load_last(tmp_path / "checkpoints", warn=lambda _: None)
    assert not (tmp_path / "made").exists()


def test_converting_first_trains_the_same_network_fused(tmp_path: Path) -> None:
    said = []
    kinds = {}
    for convert in (False, True):
        path = tmp_path / str(convert)
        settings = {**OWN, "convert": convert}
        train(config(path, **settings), dataset=points(), model=_network(torch.nn.BatchNorm1d), talk=Talk(said.append))
        kinds[convert] = load_file(path / "weights.safetensors")
    torch.testing.assert_close(kinds[True], kinds[False], rtol=1e-4, atol=1e-5)
    assert "converted: 1 fused relu" in said[1]
    assert read_train_run(tmp_path / "True").config["model"]["converted"] == {"fused relu": 1}


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    train(config(tmp_path / "run", tensorboard=True), dataset=points())
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("test/accuracy")]
    recorded = [(record["step"], record["accuracy"]) for record in read_train_run(tmp_path / "run").of_kind("test")]
    assert [step for step, _ in found] == [step for step, _ in recorded]
    assert [value for _, value in found] == pytest.approx([value for _, value in recorded])
    assert events.Scalars("gradients/gradient_norm")


def test_a_batch_that_cannot_be_is_said_before_the_run_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="batch_size must be at most the number of examples to train on, 60; got 61"):
        train(config(tmp_path / "run", batch_size=61), dataset=points())
    assert not (tmp_path / "run").exists()


def test_evaluation_leaves_every_mode_as_it_was() -> None:
    model = _network()
    model[1].eval()  # frozen
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        _ = 1 / 0
    assert [module.training for module in model] == [True, False, True, True]


def test_a_subset_is_always_the_same_and_each_example_in_it_once() -> None:
    part = InMemory(torch.arange(10.0).view(10, 1), torch.arange(10))
    subset = fixed_subset(part, 4)
    assert subset.targets.tolist() == fixed_subset(part, 4).targets.tolist() == sorted(set(subset.targets.tolist()))
    assert len(subset) == 4
    assert subset.fetch(torch.tensor([3, 1])).flatten().tolist() == subset.targets[[3, 1]].tolist()
    assert fixed_subset(part, 99).targets.tolist() == list(range(10))


def test_a_subset_of_sources_that_alternate_holds_as_much_of_each() -> None:
    # MNIST's do: every 30th digit, 2000 of 60000, is of one source, on which a network is 3 points worse.
    sources = torch.arange(60_000) % 2
    part = InMemory(torch.zeros(60_000, 1), sources)
    share = fixed_subset(part, 2000).targets.double().mean().item()
    assert abs(share - 0.5) < 4 * (0.25 / 2000) ** 0.5  # four standard errors
    assert sources[torch.arange(2000) * 30].sum() == 0  # evenly spaced


def test_training_takes_the_modes_and_formats_it_is_asked_for(tmp_path: Path) -> None:
    settings = TrainConfig(
        out=tmp_path / "run", steps=2, batch_size=8, channels_last=True, precision="bf16-mixed", train_subset=0,
        label_smoothing=0.1, clip_norm=1.0, accumulate=2, validation=0.2, l1=1e-5,
    )  # fmt: skip
    outcome = train(settings)
    assert set(outcome.scores) == {"test", "validation"}
    assert outcome.scores["test"].top5_accuracy >= outcome.scores["test"].accuracy
    assert read_train_run(tmp_path / "run").config["data"]["validation"] == 287


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.toml"], "none.toml cannot be read: no such file or directory"),
        (["--resume", "nowhere"], "nowhere is not a run directory: it does not exist"),
        (["--resume", "a", "--config", "b"], "give --config or --resume, not both"),
        (["--model", "resnet21"], "model must be package.module:factory or one of"),
        (["--data", "imaginary"], "imaginary"),
        (["--lr", "-1"], "lr must be a finite number above 0; got -1"),
        (["--precision", "64"], "--precision"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("batchnorm: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_the_run_is_and_goes_on_with_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--model", "mlp", "--steps", "4", "--batch-size", "16", "--evaluate-every", "2", "--train-subset", "16"]
    assert cli.main(["train", *quick, "--out", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mlp (batch) on digits: 4 steps of 16; momentum at 0.1, cosine; cpu, 32; into run")
    assert [line.split("  ")[0] for line in lines[1:4]] == ["step 0/4", "step 2/4", "step 4/4"]
    assert lines[-1] == "report: run/report.html"
    assert "mlp" in Path("run/report.html").read_text()
    assert cli.main(["train", "--resume", "run", "--steps", "6"]) == 0
    assert json.loads(Path("run/status.json").read_text())["step"] == 6
    assert cli.main(["train", "--resume", "run", "--steps", "8", "--lr", "0.3"]) == 2
    assert "these differ: lr (was 0.1, now 0.3)" in capsys.readouterr().err


def test_a_dry_run_goes_through_everything_and_keeps_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr(checkpoints, "save", lambda *a, real=checkpoints.save: written.append(real(*a)))
    probed, real = [], files.append_line
    monkeypatch.setattr("batchnorm.lab.recording.append_line", lambda p, v: (probed.append((p.name, v)), real(p, v)))
    assert cli.main(["train", "--dry-run", "--statistics", "population", "--validation", "0.1"]) == 0
    assert "nothing is kept" in capsys.readouterr().out
    assert len(written) == 2
    assert {v["probe"] for name, v in probed if name == "probes.jsonl"} == {"activations", "gradients", "running"}
    assert {v["kind"] for name, v in probed if name == "metrics.jsonl"} == {
        "train", "test", "validation", "train_evaluation",
    }  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_divergence_is_exit_3_and_interruption_130(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--model", "mlp", "--norm", "none", "--lr", "1e30", "--steps", "9", "--out", "run"]) == 3
    assert capsys.readouterr().err.startswith("batchnorm: diverged: the training loss became")
    monkeypatch.setattr(torch.optim.SGD, "step", _pressing_ctrl_c(torch.optim.SGD.step, at=2))
    assert cli.main(["train", "--model", "mlp", "--steps", "9", "--out", "other"]) == 130
    expected = "batchnorm: interrupted after step 2; go on with batchnorm train --resume other\n"
    assert capsys.readouterr().err == expected


def _pressing_ctrl_c(real, at: int):
    calls = []

    def step(*arguments, **settings):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **settings)

    return step


def test_a_compiled_network_trains_alike_and_is_probed_uncompiled(tmp_path: Path, monkeypatch) -> None:
    # The eager backend: what torch.compile traced, run as it is, so that bits can be compared without a compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for compiled in (False, True):
        settings = {**OWN, "compile": compiled}
        train(config(tmp_path / str(compiled), **settings), dataset=points(), model=_network())
    assert_same_run(tmp_path / "True", tmp_path / "False")
    assert read_train_run(tmp_path / "True").of_probe("activations")


def test_a_terminal_sees_the_pace_and_a_pipe_a_line_for_each_evaluation() -> None:
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=132, highlight=False)
        with training_progress(console) as tell:
            tell(Progress(0, 40, 0.0, None, None, {"test": 0.1}, evaluated=True))
            tell(Progress(10, 40, 0.5, 1.25, 1234.5, {"test": 0.1}, evaluated=False))
            tell(Progress(20, 40, 1.0, None, None, {"test": 0.5, "train_evaluation": 0.75}, evaluated=True))
        assert "step 20/40  epoch 1.00  loss 1.2500  test 50.00%  train (eval mode) 75.00%" in file.getvalue()
        assert ("1,234 examples/s" in file.getvalue()) is terminal
        assert ("\x1b" in file.getvalue()) is terminal
