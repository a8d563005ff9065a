"""From a claim to a run directory, and from a run directory to its page.

One run is one directory::

    config.json        the claim, the command, every resolved setting
    environment.json   versions, machine, threads
    records.jsonl      one line per record, appended and flushed as they are measured
    arrays.npz         what is too long for a line
    status.json        {"status": "finished" | "interrupted"}
    summary.json       written with report.html and figures/, and again by ``batchnorm report``
"""

import json
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from batchnorm.lab.claims.config import RunClaims
from batchnorm.lab.claims.findings import Findings, check_table
from batchnorm.lab.claims.registry import CLAIMS, Claim
from batchnorm.lab.environment import environment
from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import jsonable, make_run_directory, reason_of, write_json, write_text
from batchnorm.lab.page import embed, fill, text
from batchnorm.lab.terminal import print_answer
from batchnorm.lab.wording import Verdict

FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """A run directory in which nothing is measured yet."""

    claim: Claim
    settings: dict[str, Any]
    total: int
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What was made of the records of a claim."""

    claim: Claim
    findings: Findings
    page: Path

    @property
    def headline(self) -> str:
        """The verdict with its sentence."""
        return f"{self.findings.status[:1].upper()}{self.findings.status[1:]}. {self.findings.headline}"

    def show(self, to: Console) -> None:
        """Print the tables and the verdict."""
        print_answer(
            to, [check_table(self.findings.checks), *self.findings.tables], self.headline, self.findings.limits
        )


def directories(config: RunClaims) -> dict[str, Path]:
    """Say where each claim goes.

    Parameters
    ----------
    config : RunClaims
        The command line.

    Returns
    -------
    dict of str to Path
        By name of the claim.
    """
    if config.out is not None:
        return {name: config.out if len(config.names) == 1 else config.out / name for name in config.names}
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return {name: Path("runs") / f"claim-{name}-{stamp}" for name in config.names}


def prepare(name: str, config: RunClaims, path: Path) -> Prepared:
    """Check what can be checked before anything is measured, and make the run directory.

    Parameters
    ----------
    name : str
        Of the claim.
    config : RunClaims
        The command line.
    path : Path
        New or empty.

    Returns
    -------
    Prepared

    Raises
    ------
    LabError
        The data are not usable, or the directory is not.
    """
    claim = CLAIMS[name]
    experiment = claim.experiment()
    settings = experiment.settings(config)
    make_run_directory(path)
    write_json(path / "config.json", {"format": FORMAT, "claim": name, "command": _command(name, config),
                                      "config": settings})  # fmt: skip
    write_json(path / "environment.json", environment())
    return Prepared(claim, settings, experiment.total(settings), path)


def record(run: Prepared, advance: Callable[[str], None]) -> Outcome:
    """Measure, write down, and make the page.

    Parameters
    ----------
    run : Prepared
        Where.
    advance : callable
        Called with a few words after each measurement.

    Returns
    -------
    Outcome

    Raises
    ------
    OutputError
        The disk refuses.
    """
    arrays: dict[str, NDArray[np.float64]] = {}
    status = "interrupted"
    try:
        with (run.path / "records.jsonl").open("w", encoding="utf-8") as file:
            for measurement in run.claim.experiment().measure(run.settings):
                for line in measurement.records:
                    file.write(json.dumps(jsonable(line), allow_nan=False, separators=(",", ":")) + "\n")
                file.flush()
                arrays |= measurement.arrays
                advance(measurement.label)
        status = "finished"
    except OSError as error:
        raise OutputError(f"cannot write to {run.path}: {reason_of(error)}") from error
    finally:
        np.savez_compressed(run.path / "arrays.npz", allow_pickle=False, **arrays)
        write_json(run.path / "status.json", {"status": status})
    return make_page(run.path)


def is_claim(path: Path) -> bool:
    """Say whether a directory is the run of a claim."""
    try:
        return "claim" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def make_page(path: Path) -> Outcome:
    """Make summary.json, figures/ and report.html from the records of a finished run.

    Parameters
    ----------
    path : Path
        The run directory.

    Returns
    -------
    Outcome

    Raises
    ------
    OutputError
        The run is not finished, or damaged, or cannot be written.
    """
    try:
        config, machine, status = (
            json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("config", "environment", "status")
        )
        if status["status"] != "finished":
            raise OutputError(f"{path} holds an interrupted run of a claim; run it again to the end")
        claim, settings = CLAIMS[config["claim"]], config["config"]
        lines = (path / "records.jsonl").read_text(encoding="utf-8").splitlines()
        records = [{key: np.nan if value is None else value for key, value in json.loads(x).items()} for x in lines]
        with np.load(path / "arrays.npz") as file:
            arrays = dict(file)
        command = config["command"]
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, OutputError):
            raise
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise OutputError(f"{path} is not a finished run of a claim: {reason}") from error
    findings = claim.experiment().find(settings, records, arrays)
    outcome = Outcome(claim, findings, path / "report.html")
    checks = [
        {**asdict(check), "status": check.status, "n": len(check.values), "mean": check.mean, "std": check.std}
        for check in findings.checks
    ]
    tables = [check_table(findings.checks), *findings.tables]
    write_json(
        path / "summary.json",
        {
            "claim": claim.name,
            "verdict": findings.status,
            "headline": findings.headline,
            "checks": checks,
            "tables": [asdict(table) for table in tables],
        },
    )
    page = fill(
        "claim.html.j2",
        claim=claim,
        command=command,
        lead=f"Claimed in: {claim.source}.",
        verdict=Verdict(outcome.headline, findings.numbers, findings.limits),
        tables=tables,
        figures=embed(findings.pictures, path / "figures"),
        config=[(key.replace("_", " "), text(value)) for key, value in settings.items()],
        environment=[(key, text(value)) for key, value in machine.items() if key != "seeds"],
        definitions=findings.definitions,
    )
    write_text(outcome.page, page)
    return outcome


def _command(name: str, config: RunClaims) -> str:
    words = ["batchnorm", "claims", "run", name, *(["--quick"] if config.quick else [])]
    owners = {"seeds": name, "units": "activation-statistics", "data": "regularizers"}
    for field, owner in owners.items():
        value = getattr(config, field)
        if value is not None and owner == name:
            words += [f"--{field}", str(value)]
    return shlex.join(words)
