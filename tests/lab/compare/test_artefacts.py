"""The run directory: what is written comes back, and what is missing or torn is understood."""

import json
from pathlib import Path

import numpy as np
import pytest

from batchnorm.lab.compare.artefacts import RunWriter, read_run
from batchnorm.lab.errors import OutputError
from lab.compare.synthetic import ENVIRONMENT, config, record, write_trial


def new_run(path: Path, **settings) -> RunWriter:
    return RunWriter.create(path, config=config(**settings), environment=ENVIRONMENT)


def test_a_record_comes_back_with_its_values_and_null_as_nan(tmp_path):
    writer = new_run(tmp_path / "run")
    trial = writer.trial(norm="batch", lr=0.1, seed=3)
    trial.record(record(0, 0.125, train_loss=None, step_seconds=None, saturated=np.array([0.25, 0.5])))
    trial.record(record(7, 0.75, test_loss=float("inf"), percentiles=np.arange(6.0).reshape(3, 2)))
    trial.end(status="diverged", step=9, reason="the training loss became inf in step 10")
    with pytest.raises(OutputError, match="damaged"):  # two layers, then three
        read_run(tmp_path / "run")

    writer = new_run(tmp_path / "again")
    trial = writer.trial(norm="batch", lr=0.1, seed=3)
    trial.record(record(0, 0.125, train_loss=None, step_seconds=None))
    trial.record(record(7, 0.75, test_loss=float("inf"), percentiles=np.arange(6.0).reshape(3, 2)))
    trial.end(status="diverged", step=9, reason="the training loss became inf in step 10")
    writer.finish("finished")

    run = read_run(tmp_path / "again")
    assert (run.status, run.environment, run.config["data"]["classes"]) == ("finished", ENVIRONMENT, 10)
    (got,) = run.trials
    assert (got.norm, got.lr, got.seed, got.status, got.step) == ("batch", 0.1, 3, "diverged", 9)
    assert got.reason == "the training loss became inf in step 10"
    np.testing.assert_array_equal(got.steps, [0, 7])
    np.testing.assert_array_equal(got.test_accuracy, [0.125, 0.75])
    np.testing.assert_array_equal(got.train_loss, [np.nan, 1.0])
    np.testing.assert_array_equal(got.test_loss, [0.875, np.nan])
    np.testing.assert_array_equal(got.step_seconds, [np.nan, 0.001])
    assert got.saturated.shape == (2, 3)
    np.testing.assert_array_equal(got.percentiles[1], [[0, 1], [2, 3], [4, 5]])


def test_a_torn_last_line_is_dropped_and_a_torn_middle_line_is_named(tmp_path):
    writer = new_run(tmp_path / "run")
    write_trial(writer, "none", [0.2, 0.3])
    file = tmp_path / "run/trials/none-lr0.1-seed0/records.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 3])
    np.testing.assert_array_equal(read_run(tmp_path / "run").trials[0].test_accuracy, [0.2, 0.3])
    file.write_bytes(b'{"step": 1, \n' + whole)
    with pytest.raises(OutputError, match=r"records.jsonl, line 1 is damaged"):
        read_run(tmp_path / "run")


def test_what_was_not_ended_counts_as_interrupted(tmp_path):
    writer = new_run(tmp_path / "run")
    writer.trial(norm="none", lr=0.1, seed=0).record(record(20, 0.5))
    writer.trial(norm="batch", lr=0.1, seed=0)
    run = read_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert [(t.norm, t.status, t.step, len(t.steps)) for t in run.trials] == [
        ("none", "interrupted", 20, 1),
        ("batch", "interrupted", 0, 0),
    ]


def test_trials_are_ordered_by_arm_as_configured_then_rate_then_seed_as_numbers(tmp_path):
    writer = new_run(tmp_path / "run", norm=("none", "batch"))
    for norm, lr, seed in [
        ("batch", 10.0, 0),
        ("batch", 0.5, 10),
        ("batch", 0.5, 2),
        ("none", 3.0, 0),
        ("none", 1e-5, 0),
    ]:
        write_trial(writer, norm, [0.5], lr=lr, seed=seed)
    got = [(t.norm, t.lr, t.seed) for t in read_run(tmp_path / "run").trials]
    assert got == [("none", 1e-5, 0), ("none", 3.0, 0), ("batch", 0.5, 2), ("batch", 0.5, 10), ("batch", 10.0, 0)]


def test_a_rate_with_many_digits_is_not_rounded_into_another_trial(tmp_path):
    writer = new_run(tmp_path / "run")
    write_trial(writer, "none", [0.5], lr=0.1)
    write_trial(writer, "none", [0.5], lr=0.10000001)
    assert [t.lr for t in read_run(tmp_path / "run").trials] == [0.1, 0.10000001]


def test_create_refuses_what_it_cannot_or_should_not_write(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for path, why in [("file", "it is a file"), ("file/run", "not a directory"), ("full", "it is not empty")]:
        with pytest.raises(OutputError, match=why):
            new_run(tmp_path / path)
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    new_run(tmp_path / "empty")


def test_a_full_disk_is_one_message_and_keeps_what_was_there(tmp_path, monkeypatch):
    writer = new_run(tmp_path / "run")
    write_trial(writer, "none", [0.5])

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="no space left on device"):
        writer.finish("finished")
    assert len(read_run(tmp_path / "run").trials) == 1


def test_reading_something_else_says_what_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    for name, why in [("absent", "does not exist"), ("file", "is a file"), (".", "holds no config.json")]:
        with pytest.raises(OutputError, match=f"is not a run directory: it {why}"):
            read_run(tmp_path / name)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OutputError, match=r"config.json cannot be read"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": 99, "config": {}, "data": {}, "model": {}}))
    with pytest.raises(OutputError, match="format 99"):
        read_run(tmp_path)
