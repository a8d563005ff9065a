"""The run directory of one training: what is written comes back, and nothing recorded is lost or told twice."""

from pathlib import Path

import pytest

from batchnorm.lab.errors import OutputError
from batchnorm.lab.recording import Recorder, is_done, kind_of, read_train_run

CONFIG = {"command": "batchnorm train", "config": {"lr": 0.1}, "data": {"name": "digits"}, "model": {"name": "mlp"}}


def _recorded(path: Path, steps: int) -> Recorder:
    recorder = Recorder.create(path, config=CONFIG, environment={"torch": "2"})
    for step in range(1, steps + 1):
        recorder.metrics("train", step=step, epoch=step / 10, seconds=step / 5, loss=1 / step, lr=0.1)
    recorder.metrics("test", step=steps, epoch=steps / 10, seconds=steps / 5, loss=float("inf"), accuracy=0.5)
    recorder.probe(
        "running", step=steps, epoch=0.3, scalars={"gap": 2.0}, layers={"0": {"mean": 1.0, "counts": [1, 2]}}
    )
    return recorder


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    _recorded(tmp_path / "run", 3).end(status="diverged", step=3, reason="the loss became inf")
    run = read_train_run(tmp_path / "run")
    assert (run.status, run.step, run.reason) == ("diverged", 3, "the loss became inf")
    assert [record["loss"] for record in run.of_kind("train")] == [1, 1 / 2, 1 / 3]
    assert run.of_kind("test")[0]["loss"] is None  # infinity
    assert run.of_probe("running")[0]["layers"] == {"0": {"mean": 1.0, "counts": [1, 2]}}
    assert run.config["config"] == {"lr": 0.1}
    assert kind_of(tmp_path / "run") == "train"
    assert is_done(tmp_path / "run")


def test_a_run_without_status_was_interrupted(tmp_path: Path) -> None:
    _recorded(tmp_path / "run", 4)
    run = read_train_run(tmp_path / "run")
    assert (run.status, run.step) == ("interrupted", 4)


def test_resuming_tells_nothing_twice(tmp_path: Path) -> None:
    _recorded(tmp_path / "run", 5).end(status="interrupted", step=5)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"kind":"train","st')  # killed while writing
    recorder = Recorder.resume(tmp_path / "run", step=3)
    recorder.metrics("train", step=4, epoch=0.4, seconds=0.8, loss=7.0)
    run = read_train_run(tmp_path / "run")
    assert [(record["step"], record["loss"]) for record in run.metrics] == [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 7)]
    assert run.probes == []
    assert run.status == "interrupted"


def test_a_run_directory_is_never_written_over(tmp_path: Path) -> None:
    _recorded(tmp_path / "run", 1)
    with pytest.raises(OutputError, match="not empty"):
        Recorder.create(tmp_path / "run", config=CONFIG, environment={})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no config.json"), ("{", "cannot be read"), ('{"format": 1}', "must be of kind train")],
)
def test_another_directory_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(OutputError, match=message):
        read_train_run(tmp_path)
