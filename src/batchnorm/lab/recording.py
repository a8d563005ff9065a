"""The run directory of ``batchnorm train``: written while training, and all that a page is made from.

One run is one directory::

    config.json         {"format", "kind": "train", "command", "config", "data", "model"}, and "resumed" if it was
    environment.json    versions, machine, threads
    metrics.jsonl       one line per record: "kind" is "train" or the part evaluated, "step", "epoch", "seconds", values
    probes.jsonl        one line per probe: "probe", "step", "epoch", "scalars", "layers"
    status.json         {"status", "step", "reason"}; absent while running and after a crash
    checkpoints/        what training goes on from
    weights.safetensors the trained weights and buffers

``step`` counts optimizer steps, ``epoch`` is a fraction of passes over the training data, ``seconds`` is time spent
training and measuring, summed over resumptions. JSON has no NaN: what is not finite is null, and comes back as None.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import (
    append_line,
    json_line,
    make_run_directory,
    read_lines,
    read_mapping,
    reason_of,
    write_json,
    write_text,
)

FORMAT = 1
KINDS = ("train", "plan", "claim")
STATUSES = ("finished", "diverged", "interrupted", "failed")

Record = dict[str, Any]


class Recorder:
    """Write one run into its own directory; made by :meth:`create` or :meth:`resume`.

    Parameters
    ----------
    path : Path
        The run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, config: Mapping[str, Any], environment: Mapping[str, Any]) -> "Recorder":
        """Create the run directory and write what is known before training.

        Parameters
        ----------
        path : Path
            A directory that does not exist yet, or is empty. Missing parents are created.
        config : dict
            ``command`` (str), ``config`` (every resolved setting), ``data`` and ``model`` (what was loaded and built).
        environment : dict
            Versions and machine.

        Returns
        -------
        Recorder

        Raises
        ------
        OutputError
            The directory cannot be created or written, is a file, or already holds something.
        """
        path = Path(path)
        make_run_directory(path)
        write_json(path / "environment.json", environment)
        write_text(path / "metrics.jsonl", "")
        write_text(path / "probes.jsonl", "")
        # The last, as it makes the directory a run: killed before, there is nothing that anybody would go on with.
        write_json(path / "config.json", {"format": FORMAT, "kind": "train", **config})
        return cls(path)

    @classmethod
    def resume(
        cls,
        path: Path,
        step: int,
        *,
        config: Mapping[str, Any] | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> "Recorder":
        """Go on with a run from its checkpoint of ``step``: what was recorded after it will be recorded again.

        Parameters
        ----------
        path : Path
            The run directory.
        step : int
            Step of the checkpoint. -1: there is none, and nothing recorded is kept.
        config : dict, optional
            What of config.json is no longer as it was.
        note : dict, optional
            What to remember of this resumption: an entry in the list ``resumed`` of config.json.

        Returns
        -------
        Recorder

        Raises
        ------
        OutputError
            ``path`` is not a run directory of ``batchnorm train``, is damaged, or cannot be written.
        """
        before = read_config(path)
        for name in ("metrics.jsonl", "probes.jsonl"):
            kept = [record for record in read_lines(path / name) if record["step"] <= step]
            write_text(path / name, "".join(map(json_line, kept)))
        resumed = [*before.get("resumed", []), *([note] if note else [])]
        write_json(path / "config.json", {**before, **(config or {}), **({"resumed": resumed} if resumed else {})})
        try:
            (path / "status.json").unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {path}: {reason_of(error)}") from error
        return cls(path)

    def metrics(self, kind: str, *, step: int, epoch: float, seconds: float, **values: float | str | None) -> None:
        """Append one record of numbers.

        Parameters
        ----------
        kind : str
            "train" for what the steps since the last record did, else the part that was evaluated.
        step : int
            Optimizer steps done.
        epoch : float
            Passes over the training data done.
        seconds : float
            Time spent so far.
        **values : float, str or None
            For "train": ``loss`` (mean since the last record), ``lr``, ``step_seconds`` (median) and
            ``examples_per_second``.
            For an evaluation: ``loss``, ``accuracy`` in [0, 1], ``statistics`` ("running", "population" or "none").

        Raises
        ------
        OutputError
            The disk refuses.
        """
        append_line(
            self.path / "metrics.jsonl", {"kind": kind, "step": step, "epoch": epoch, "seconds": seconds, **values}
        )

    def probe(
        self,
        name: str,
        *,
        step: int,
        epoch: float,
        scalars: Mapping[str, float],
        layers: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Append what one probe saw at one step.

        Parameters
        ----------
        name : str
            The probe.
        step : int
            Optimizer steps done.
        epoch : float
            Passes over the training data done.
        scalars : dict of str to float
            Numbers about the whole network.
        layers : dict of str to dict
            For each layer by its name, in the order of the forward pass, numbers or lists of numbers.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        append_line(
            self.path / "probes.jsonl",
            {"probe": name, "step": step, "epoch": epoch, "scalars": scalars, "layers": layers},
        )

    def end(self, *, status: str, step: int, reason: str = "") -> None:
        """Say how the run ended.

        Parameters
        ----------
        status : {'finished', 'diverged', 'interrupted', 'failed'}
            How it ended.
        step : int
            Optimizer steps done.
        reason : str
            Why, when it did not finish.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        assert status in STATUSES, status
        write_json(self.path / "status.json", {"status": status, "step": step, "reason": reason})


@dataclass(frozen=True)
class TrainRun:
    """One run directory, read.

    Attributes
    ----------
    path : Path
        The run directory.
    config : dict
        Content of config.json.
    environment : dict
        Content of environment.json.
    status : {'finished', 'diverged', 'interrupted', 'failed'}
        How it ended; a run without status.json was interrupted.
    step : int
        Optimizer steps done.
    reason : str
        Why, when it did not finish.
    metrics : list of dict
        Lines of metrics.jsonl, in the order in which they were written.
    probes : list of dict
        Lines of probes.jsonl.
    """

    path: Path
    config: Record
    environment: Record
    status: str
    step: int
    reason: str
    metrics: list[Record]
    probes: list[Record]

    def of_kind(self, kind: str) -> list[Record]:
        """Give the metrics of one kind, in the order of steps."""
        return [record for record in self.metrics if record["kind"] == kind]

    def of_probe(self, name: str) -> list[Record]:
        """Give what one probe saw, in the order of steps."""
        return [record for record in self.probes if record["probe"] == name]


def kind_of(path: Path) -> str:
    """Return the kind of a directory: "train", "plan" or "claim", as its config.json says.

    Parameters
    ----------
    path : Path
        The directory.

    Returns
    -------
    str

    Raises
    ------
    OutputError
        It is no directory of the lab, or one of another version.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        what = "does not exist" if not path.exists() else "is a file" if path.is_file() else "holds no config.json"
        raise OutputError(
            f"{path} is not a run directory: it {what}; give a directory that `batchnorm train`, `compare` or `claims` "
            "printed"
        )
    head = read_mapping(path / "config.json")
    if head.get("kind") not in KINDS or head.get("format") != FORMAT:
        raise OutputError(
            f"{path / 'config.json'} must be of kind {', '.join(KINDS)} and format {FORMAT}; got {head.get('kind')!r} "
            f"and {head.get('format')!r}, as another version wrote it; run it again, or report it with that version"
        )
    kind: str = head["kind"]
    return kind


def is_done(path: Path) -> bool:
    """Return True for a run directory whose training has come to its end: finished, or diverged."""
    status = Path(path) / "status.json"
    return status.is_file() and read_mapping(status).get("status") in {"finished", "diverged"}


def read_config(path: Path) -> Record:
    """Read config.json of a run.

    Parameters
    ----------
    path : Path
        The run directory.

    Returns
    -------
    dict

    Raises
    ------
    OutputError
        ``path`` is not a run directory of ``batchnorm train``, or the file is damaged.
    """
    path = Path(path)
    if (kind := kind_of(path)) != "train":
        raise OutputError(f"{path} is a {kind}, not a single run of `batchnorm train`; give one of its cells")
    return read_mapping(path / "config.json", require=("command", "config", "data", "model"))


def read_train_run(path: str | Path) -> TrainRun:
    """Read a run directory, finished or not.

    Parameters
    ----------
    path : str or Path
        The run directory.

    Returns
    -------
    TrainRun

    Raises
    ------
    OutputError
        ``path`` is not a run directory of ``batchnorm train``, or one of its files is damaged.
    """
    path = Path(path)
    config = read_config(path)
    environment = read_mapping(path / "environment.json") if (path / "environment.json").is_file() else {}
    metrics, probes = (
        _read_records(path / name, require)
        for name, require in (("metrics.jsonl", ("kind",)), ("probes.jsonl", ("probe", "scalars", "layers")))
    )
    last = max((record["step"] for record in metrics), default=0)
    end: Record = {"status": "interrupted", "step": last, "reason": ""}
    if (path / "status.json").is_file():
        end |= read_mapping(path / "status.json", require=("status",))
    return TrainRun(path, config, environment, end["status"], end["step"], end["reason"], metrics, probes)


def _read_records(path: Path, require: tuple[str, ...]) -> list[Record]:
    """Read records; each must be an object with a step and what is required."""
    records = read_lines(path)
    for number, record in enumerate(records, start=1):
        whole = isinstance(record, dict) and all(key in record for key in require)
        if not whole or not isinstance(record.get("step"), int):
            wanted = ", ".join(("step", *require))
            raise OutputError(f"{path}, record {number} is damaged: it must hold {wanted}; delete it and try again")
    return records
