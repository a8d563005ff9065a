"""The run directory: what a comparison leaves behind, and the only thing that figures and pages are made from.

One run is one directory::

    config.json        the command, every resolved setting, the data set, the network
    environment.json   versions, machine, threads
    status.json        {"status": "finished" | "interrupted"}; absent while running and after a crash
    trials/<norm>-lr<lr>-seed<seed>/
        records.jsonl  one line per evaluation, appended and flushed as training goes
        trial.json     {"status": "finished" | "diverged" | "interrupted", "step": ..., "reason": ...}
    summary.json       written by the report, like figures/ and report.html

JSON has no NaN: values that are not finite are stored as ``null`` and come back as NaN. Every file except
``records.jsonl`` is written whole under another name and then renamed, so a reader never meets half of one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import append_line, make_run_directory, read_lines, read_mapping, reason_of, write_json

FORMAT = 1
RUN_STATUSES = ("finished", "interrupted")
TRIAL_STATUSES = ("finished", "diverged", "interrupted")

_TRIAL_NAME = re.compile(r"(?P<norm>[a-z][a-z0-9_]*)-lr(?P<lr>[0-9.e+-]+)-seed(?P<seed>\d+)")


class RunWriter:
    """Write one run into its own directory; made by :meth:`create`.

    Parameters
    ----------
    path : Path
        The run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, config: Mapping[str, Any], environment: Mapping[str, Any]) -> "RunWriter":
        """Create the run directory and write what is known before training.

        Parameters
        ----------
        path : Path
            A directory that does not exist yet, or is empty. Missing parents are created.
        config : dict
            ``command`` (str), ``config`` (every resolved setting), ``data`` and ``model`` (what was loaded and built).
        environment : dict
            Versions and machine, as the report will print them.

        Returns
        -------
        RunWriter

        Raises
        ------
        OutputError
            The directory cannot be created or written, is a file, or already holds something.
        """
        path = Path(path)
        make_run_directory(path)
        try:
            (path / "trials").mkdir()
        except OSError as error:
            raise OutputError(
                f"cannot write the run to {path}: {reason_of(error)}; give --out a writable place"
            ) from error
        write_json(path / "config.json", {"format": FORMAT, **config})
        write_json(path / "environment.json", environment)
        return cls(path)

    def trial(self, *, norm: str, lr: float, seed: int) -> "TrialWriter":
        """Start one trial: one arm at one learning rate with one seed.

        Parameters
        ----------
        norm : str
            The arm: "none" or "batch".
        lr : float
            Learning rate.
        seed : int
            Seed of the initial weights and of the order of the batches.

        Returns
        -------
        TrialWriter

        Raises
        ------
        OutputError
            This trial has been written already, or the disk refuses.
        """
        path = self.path / "trials" / trial_name(norm, lr, seed)
        try:
            path.mkdir()
            (path / "records.jsonl").touch()
        except OSError as error:
            raise OutputError(f"cannot write the trial to {path}: {reason_of(error)}") from error
        return TrialWriter(path)

    def finish(self, status: str) -> None:
        """Say how the run ended.

        Parameters
        ----------
        status : {'finished', 'interrupted'}
            A run whose trials diverged is finished; the trials say which.
        """
        assert status in RUN_STATUSES, status
        write_json(self.path / "status.json", {"status": status})


class TrialWriter:
    """Append the records of one trial; made by :meth:`RunWriter.trial`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, record: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system, so that it survives whatever stops the process.

        Parameters
        ----------
        record : dict
            One value for each array field of :class:`Trial`, with ``step`` for ``steps``. Arrays become lists; values
            that are not finite become null.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        append_line(self.path / "records.jsonl", record)

    def end(self, *, status: str, step: int, reason: str = "") -> None:
        """Say how the trial ended.

        Parameters
        ----------
        status : {'finished', 'diverged', 'interrupted'}
            How it ended.
        step : int
            Steps of training done.
        reason : str
            Why, when it did not finish.
        """
        assert status in TRIAL_STATUSES, status
        write_json(self.path / "trial.json", {"status": status, "step": step, "reason": reason})


def trial_name(norm: str, lr: float, seed: int) -> str:
    """Name the directory of a trial; the name is its identity, so the learning rate is spelled without loss.

    Parameters
    ----------
    norm : str
        The arm.
    lr : float
        Learning rate.
    seed : int
        Seed.

    Returns
    -------
    str
        For instance ``batch-lr0.1-seed0``.
    """
    short = f"{lr:g}"
    return f"{norm}-lr{short if float(short) == lr else repr(lr)}-seed{seed}"


@dataclass(frozen=True)
class Trial:
    """One arm at one learning rate with one seed, as recorded; T evaluations, L hidden layers, U units in the last one.

    Attributes
    ----------
    norm : str
        The arm: "none" or "batch".
    lr : float
        Learning rate.
    seed : int
        Seed.
    status : {'finished', 'diverged', 'interrupted'}
        How it ended.
    step : int
        Steps of training done.
    reason : str
        Why, when it did not finish.
    steps : ndarray of shape (T,), dtype=np.int64
        Steps of training before each evaluation.
    train_loss, test_loss, test_accuracy, step_seconds : ndarray of shape (T,), dtype=np.float64
        Mean training loss since the previous record; loss and accuracy in [0, 1] on the test set; seconds per training
        step.
    saturated : ndarray of shape (T, L), dtype=np.float64
        Share of saturated units per hidden layer.
    percentiles : ndarray of shape (T, 3, U), dtype=np.float64
        15th, 50th and 85th percentile of the input to each unit of the last hidden layer, over the test set.
    """

    norm: str
    lr: float
    seed: int
    status: str
    step: int
    reason: str
    steps: NDArray[np.int64]
    train_loss: NDArray[np.float64]
    test_loss: NDArray[np.float64]
    test_accuracy: NDArray[np.float64]
    saturated: NDArray[np.float64]
    percentiles: NDArray[np.float64]
    step_seconds: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run directory, read.

    Attributes
    ----------
    path : Path
        The run directory.
    config : dict
        Content of config.json: ``command``, ``config``, ``data``, ``model``.
    environment : dict
        Content of environment.json.
    status : {'finished', 'interrupted'}
        How the run ended; a run without status.json was interrupted.
    trials : tuple of Trial
        In the order of arm (as configured), learning rate, seed.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    status: str
    trials: tuple[Trial, ...]


def read_run(path: str | Path) -> Run:
    """Read a run directory, finished or not.

    A last line without its end (the process was killed while writing) is dropped; a trial without trial.json and a run
    without status.json count as interrupted.

    Parameters
    ----------
    path : str or Path
        The run directory.

    Returns
    -------
    Run

    Raises
    ------
    OutputError
        ``path`` is not a run directory, or one of its files is damaged; the message names the file.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        what = "does not exist" if not path.exists() else "is a file" if path.is_file() else "holds no config.json"
        raise OutputError(
            f"{path} is not a run directory: it {what}; give the directory that `batchnorm compare` printed"
        )
    config = read_mapping(path / "config.json", require=("config", "data", "model"))
    if config.get("format") != FORMAT:
        raise OutputError(
            f"{path / 'config.json'} has format {config.get('format')!r}, this version reads {FORMAT}; run again"
        )
    environment = read_mapping(path / "environment.json") if (path / "environment.json").is_file() else {}
    status = "interrupted"
    if (path / "status.json").is_file():
        status = read_mapping(path / "status.json", require=("status",))["status"]
    arms = list(config["config"].get("norm", ()))
    trials = [
        _read_trial(child) for child in sorted((path / "trials").glob("*/")) if (child / "records.jsonl").is_file()
    ]
    trials.sort(key=lambda t: (arms.index(t.norm) if t.norm in arms else len(arms), t.norm, t.lr, t.seed))
    return Run(path, config, environment, status, tuple(trials))


def _read_trial(path: Path) -> Trial:
    name = _TRIAL_NAME.fullmatch(path.name)
    if name is None:
        raise OutputError(
            f"{path} is not a trial: directories in trials/ are named <norm>-lr<lr>-seed<seed>; move it away"
        )
    records = read_lines(path / "records.jsonl")
    end: dict[str, Any] = {"status": "interrupted", "step": records[-1]["step"] if records else 0, "reason": ""}
    if (path / "trial.json").is_file():
        end = read_mapping(path / "trial.json", require=("status", "step"))
    try:
        return Trial(
            norm=name["norm"],
            lr=float(name["lr"]),
            seed=int(name["seed"]),
            status=end["status"],
            step=int(end["step"]),
            reason=end.get("reason", ""),
            steps=np.array([record["step"] for record in records], dtype=np.int64),
            saturated=_stack((record["saturated"] for record in records), shape=(0,)),
            percentiles=_stack((record["percentiles"] for record in records), shape=(3, 0)),
            **{
                key: _stack((record[key] for record in records), shape=())
                for key in ("train_loss", "test_loss", "test_accuracy", "step_seconds")
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{path / 'records.jsonl'} is damaged: {error!r}; delete this trial and report again"
        ) from error


def _stack(values: Iterable[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Stack one value per record; null is NaN, also where it stands for a whole array. ``shape`` is for no records."""
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    known = max((array.shape for array in arrays), key=len, default=shape)
    if known == () and shape:
        known = shape
    return np.stack([np.broadcast_to(array, known) for array in arrays]) if arrays else np.empty((0, *shape))
