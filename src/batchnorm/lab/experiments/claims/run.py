"""From a claim to a directory of records or cells, and from that directory to its findings.

The directory of a measurement::

    config.json        {"format", "kind": "claim", "command", "claim", "budget", "settings", "rule"}
    environment.json   versions, machine, threads
    records.jsonl      one line per record, appended as they are measured
    arrays.npz         what is too long for a line
    status.json        {"status": "finished" | "interrupted", "seconds": how long it took}

That of a plan has plan.json and cells/ instead of records and arrays, and is resumed by the same command.
"""

import shlex
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm.lab.errors import OutputError
from batchnorm.lab.experiments.claims.form import Array, Claim, Findings, Record
from batchnorm.lab.experiments.claims.registry import claim
from batchnorm.lab.experiments.numbers import Numbers, summarize
from batchnorm.lab.experiments.plan import missing, store
from batchnorm.lab.experiments.study import Study, read_plan_study
from batchnorm.lab.files import append_line, make_run_directory, read_lines, read_mapping, reason_of, write_json
from batchnorm.lab.recording import FORMAT


@dataclass(frozen=True)
class Judged:
    """The directory of a claim, read.

    Attributes
    ----------
    claim : Claim
        The claim.
    findings : Findings
        What was found.
    config, environment : dict
        Of the directory.
    seconds : float or None
        That it took; None: not recorded.
    study, numbers : Study, Numbers, or None
        Of the cells, where the experiment is a plan.
    """

    claim: Claim
    findings: Findings
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float | None = None
    study: Study | None = None
    numbers: Numbers | None = None


def begin(
    name: str,
    path: Path,
    *,
    budget: str,
    changes: Sequence[str] = (),
    seeds: int | None = None,
    environment: Mapping[str, Any],
) -> tuple[Claim, dict[str, Any]]:
    """Store what will be measured and the rule that decides, before anything is measured.

    Parameters
    ----------
    name : str
        Of the claim.
    path : Path
        New or empty; for a plan also the directory of the same plan.
    budget : {'small', 'full'}
        Which settings.
    changes : sequence of str
        Settings that differ from the budget, such as "units=256".
    seeds : int, optional
        Number of repetitions.
    environment : mapping
        Versions and machine.

    Returns
    -------
    claim : Claim
    settings : dict

    Raises
    ------
    LabError
        The claim has no such setting, or the directory cannot be used.
    """
    one = claim(name)
    settings = one.settings(budget, changes, seeds)
    words = ["batchnorm", "claims", "run", name, "--budget", budget]
    words += ["--seeds", str(seeds)] if seeds is not None else []
    words += ["--set", *changes] if changes else []
    head = {
        "format": FORMAT, "kind": "claim", "command": shlex.join(words), "claim": name, "budget": budget,
        "settings": settings, "rule": one.rule,
    }  # fmt: skip
    if one.plan is not None:
        store(one.plan(settings), path, head=head, environment=environment)
        return one, settings
    make_run_directory(path)
    write_json(path / "environment.json", environment)
    write_json(path / "config.json", head)
    return one, settings


def measure(one: Claim, settings: Mapping[str, Any], path: Path, advance: Callable[[str], None]) -> None:
    """Take the measurements of a claim, and append each to the records.

    Parameters
    ----------
    one : Claim
        A claim with a measurement.
    settings : mapping
        From :func:`begin`.
    path : Path
        The directory.
    advance : callable
        Called with a few words after each measurement.

    Raises
    ------
    OutputError
        The disk refuses; earlier records stay.
    """
    assert one.measure is not None
    arrays: dict[str, Array] = {}
    status, began = "interrupted", time.monotonic()
    try:
        (path / "records.jsonl").touch()
        for measurement in one.measure(settings):
            for record in measurement.records:
                append_line(path / "records.jsonl", record)
            arrays |= measurement.arrays
            advance(measurement.label)
        np.savez_compressed(path / "arrays.npz", allow_pickle=False, **arrays)
        status = "finished"
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {reason_of(error)}; make room, and run the claim again") from error
    finally:
        write_json(path / "status.json", {"status": status, "seconds": round(time.monotonic() - began, 3)})


def judge(path: Path) -> Judged:
    """Read the directory of a claim, and judge what was recorded.

    Parameters
    ----------
    path : Path
        The directory.

    Returns
    -------
    Judged

    Raises
    ------
    OutputError
        Something is missing or damaged.
    """
    config = read_mapping(path / "config.json", require=("claim", "settings", "command", "budget"))
    environment = read_mapping(path / "environment.json") if (path / "environment.json").is_file() else {}
    one, settings = claim(config["claim"]), config["settings"]
    if one.find_in_study is not None:
        study = read_plan_study(path)
        assert study.plan is not None
        if left := len(missing(study.plan, path)):
            raise OutputError(
                f"{path} lacks {left} of {len(study.plan.cells)} cells; go on with: {_again(config, path)}"
            )
        numbers = summarize(study)
        found = one.find_in_study(settings, study, numbers)
        took = [run.seconds for arm in numbers.arms for run in arm.runs]
        return Judged(one, found, config, environment, sum(each or 0.0 for each in took), study, numbers)
    status = read_mapping(path / "status.json") if (path / "status.json").is_file() else {}
    if status.get("status") != "finished":
        raise OutputError(f"{path} holds an interrupted measurement; run it again: {config['command']}")
    assert one.find_in_records is not None
    try:
        records = [_with_nan(record) for record in read_lines(path / "records.jsonl")]
        with np.load(path / "arrays.npz") as file:
            arrays = dict(file)
        return Judged(one, one.find_in_records(settings, records, arrays), config, environment,
                      status.get("seconds"))  # fmt: skip
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} is damaged: {error!r}; run it again: {config['command']}") from error


def _again(config: Mapping[str, Any], path: Path) -> str:
    return f"{config['command']} --out {shlex.quote(str(path))}"


def _with_nan(record: Record) -> Record:
    return {key: np.nan if value is None else value for key, value in record.items()}
