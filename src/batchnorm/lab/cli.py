"""The command line: parse, call, print, and turn what happened into an exit code.

What is slow to import (torch, matplotlib) is imported by the command that needs it, so that ``--help`` is quick.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import batchnorm
from batchnorm.lab.bench.config import BenchConfig, PageConfig
from batchnorm.lab.claims.config import ClaimsConfig, RunClaims
from batchnorm.lab.compare_command import run as run_compare
from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.compare import CompareCommand
from batchnorm.lab.train_command import TrainCommand, first_to_say
from batchnorm.lab.train_command import parse as parse_train
from batchnorm.lab.train_command import run as run_train

DONE, WRONG, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130

BENCH_PIPE_WIDTH = 240  # the tables of bench are wide, and a pipe is for a file or another program

DESCRIPTION = """Batch normalization for PyTorch: experiments that show what it does, and a check of your own code.

`batchnorm COMMAND --help` explains a command, `batchnorm --version` prints the version. Exit codes: 0 done; 1 something
is wrong: check found a mistake, bench a wrong answer (and prints no number), or a claim does not hold everywhere; 2 bad
input, said in one line; 3 done and reported, but a trial diverged; 130 interrupted by Ctrl-C, and the report of compare
made from what was recorded."""


@dataclass(frozen=True)
class ReportConfig:
    """Make the tables, the figures and the page of runs, from the files in their directories.

    Of one run of train, compare or claims; or of several of train: those that differ in the seed alone become one curve
    with a band, and the others are compared.
    """

    directories: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, finished or not."""
    out: Path | None = None
    """Where the page of runs of train goes. None: into the run directory, and of several into a new one under runs."""


@dataclass(frozen=True)
class CheckConfig:
    """Run your own batch normalization, dropout, update rule, initialiser or penalty, and name the mistakes in it.

    The files are run, each in a process of its own. ``docs/guides/checker.md`` says which functions are recognised, and
    how to name others.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Python files."""
    timeout: float = 20.0
    """Seconds that loading a file, and each of its functions, may take."""


@dataclass(frozen=True)
class ModelsConfig:
    """List the networks and the normalizations that train knows by name."""


Config = (
    ModelsConfig | CompareCommand | TrainCommand | ReportConfig | CheckConfig | BenchConfig | PageConfig | ClaimsConfig
)
Command = (
    Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[ModelsConfig, tyro.conf.subcommand("models")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    | Annotated[CheckConfig, tyro.conf.subcommand("check")]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench")]
    | Annotated[PageConfig, tyro.conf.subcommand("bench-page")]
    | Annotated[ClaimsConfig, tyro.conf.subcommand("claims")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments. None: those of the process.

    Returns
    -------
    int
        Exit code: 0 done; 1 a check found a mistake, a benchmark a wrong answer, or a claim does not hold
        everywhere; 2 bad input; 3 done, but a trial diverged; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        _say(f"batchnorm {batchnorm.__version__}")
        return DONE
    try:
        command = _parse(arguments or ["--help"])
        if command is None:
            return DONE
        match command:
            case TrainCommand():
                return run_train(command)
            case ModelsConfig():
                return _models()
            case ReportConfig():
                return _report(command)
            case CheckConfig():
                return _check(command)
            case BenchConfig():
                return _bench(command)
            case PageConfig():
                return _bench_page(command)
            case ClaimsConfig():
                return _claims(command)
            case _:
                return run_compare(command)
    except LabError as error:
        sentence = " ".join(str(error).split())
        if first_to_say(sentence):
            sys.stderr.write(f"batchnorm: error: {sentence}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("batchnorm: interrupted\n")
        return INTERRUPTED


def _report(config: ReportConfig) -> int:
    from batchnorm.lab.claims.run import make_page
    from batchnorm.lab.recording import kind_of
    from batchnorm.lab.report import make_report  # matplotlib
    from batchnorm.lab.terminal import console

    to = console()
    if len(config.directories) == 1 and config.out is None and kind_of(config.directories[0]) == "claim":
        outcome = make_page(config.directories[0])
        outcome.show(to)
        page = outcome.page
    else:
        report = make_report(config.directories, config.out)
        report.show(to)
        page = report.page
    _say(f"\nreport: {page}")
    return DONE


def _bench(config: BenchConfig) -> int:
    from batchnorm.lab.bench.run import RedGate, bench
    from batchnorm.lab.bench.table import print_tables
    from batchnorm.lab.terminal import console

    out = console()
    if not out.is_terminal:
        out.width = BENCH_PIPE_WIDTH
    try:
        run = bench(config, out)
    except RedGate as red:
        sys.stderr.write(f"batchnorm: a wrong answer, so no numbers: {red}\n")
        return WRONG
    if run.rows:
        print_tables(out, run.rows)
    _say(f"\nresults: {run.path}")
    if run.interrupted:
        sys.stderr.write("batchnorm: interrupted; what was measured is kept\n")
        return INTERRUPTED
    return DONE


def _models() -> int:
    from batchnorm.lab.models import NORMS, describe

    _say(describe())
    _say(f"--norm: {', '.join(f'{name} ({kind.words})' for name, kind in NORMS.items())}.")
    return DONE


def _bench_page(config: PageConfig) -> int:
    from batchnorm.lab.bench import rows, table
    from batchnorm.lab.files import write_text

    measured = rows.latest([row for path in config.results for row in rows.read(path)])
    page = table.page(measured, (path.as_posix() for path in config.results))
    if config.out is None:
        sys.stdout.write(page)
    else:
        write_text(config.out, page)
    return DONE


def _check(config: CheckConfig) -> int:
    from batchnorm.checker import check

    if not config.files:
        raise LabError("check needs at least one Python file. Try batchnorm check my_layers.py")
    try:
        reports = [check(path, timeout=config.timeout) for path in config.files]
    except ValueError as error:
        raise LabError(str(error)) from None
    _say("\n\n".join(map(str, reports)))
    if any(report.failure for report in reports):
        return BAD_INPUT
    return DONE if all(report.ok for report in reports) else WRONG


def _claims(config: ClaimsConfig) -> int:
    return _run_claims(config.action) if isinstance(config.action, RunClaims) else _list_claims()


def _list_claims() -> int:
    from batchnorm.lab.claims.registry import CLAIMS

    for claim in CLAIMS.values():
        _say(f"{claim.name}\n    {claim.sentence}\n    decided by: {claim.rule}\n    from: {claim.source}")
    return DONE


def _run_claims(config: RunClaims) -> int:
    from batchnorm.lab.claims.findings import HOLDS
    from batchnorm.lab.claims.run import directories, prepare, record
    from batchnorm.lab.terminal import console, counting_bar

    out, statuses = console(), {}
    prepared = [prepare(name, config, path) for name, path in directories(config).items()]
    for run in prepared:
        out.print(f"claim {run.claim.name}, into {run.path}", soft_wrap=True)
        with counting_bar(out, run.total) as advance:
            outcome = record(run, advance)
        outcome.show(out)
        _say(f"\nreport: {outcome.page}\n")
        statuses[run.claim.name] = outcome.findings.status
    if len(statuses) > 1:
        _say("\n".join(f"{name}: {status}" for name, status in statuses.items()))
    return DONE if set(statuses.values()) == {HOLDS} else WRONG


def _parse(arguments: list[str]) -> Config | None:
    """Parse the arguments; None when help was asked for and given. A complaint is raised as one line."""
    if arguments[0] == "train":  # its defaults may come from a file that the arguments name
        return _tyro_train(arguments[1:])
    command: Config | None = _tyro(Command, arguments, prog="batchnorm", description=DESCRIPTION)
    return command


def _tyro_train(arguments: list[str]) -> TrainCommand | None:
    def parser(command: type[TrainCommand], given: list[str], default: TrainCommand) -> TrainCommand | None:
        parsed: TrainCommand | None = _tyro(command, given, prog="batchnorm train", default=default)
        return parsed

    return parse_train(arguments, parser)


def _tyro(what: Any, arguments: list[str], **settings: Any) -> Any:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: Any = tyro.cli(
                what,
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
                **settings,
            )
            return parsed
    except SystemExit as stop:
        if not stop.code:
            return None
        raise LabError(_one_line(complaint.getvalue(), settings["prog"])) from None


def _one_line(box: str, command: str) -> str:
    """Take the message out of the box that tyro draws: what stands before its first rule."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│ ")
        if not text.strip("─╰╯ "):
            break
        words.append(text)
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(words))
    wrong = re.match(r"Error parsing (\S+): no type matching (?:{None}\|)?(\S+) could be .* from \[(.*)\]", message)
    message = "{} must be one {}; got {}".format(*wrong.groups()) if wrong else message
    return f"{message.rstrip('.')}; see {command} --help" if message else box


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
