"""The command line: parse, call, print, and turn what happened into an exit code.

What is slow to import (torch, matplotlib) is imported by the command that needs it, so that ``--help`` is quick.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import batchnorm
from batchnorm.lab.bench.config import BenchConfig
from batchnorm.lab.claims_command import ClaimsConfig
from batchnorm.lab.claims_command import run as run_claims
from batchnorm.lab.compare_command import run as run_compare
from batchnorm.lab.diagnose_command import DiagnoseCommand
from batchnorm.lab.diagnose_command import run as run_diagnose
from batchnorm.lab.errors import LabError, meant
from batchnorm.lab.experiments.compare import CompareCommand
from batchnorm.lab.fold_command import FoldConfig
from batchnorm.lab.fold_command import run as run_fold
from batchnorm.lab.train_command import TrainCommand, check_flags, first_to_say
from batchnorm.lab.train_command import parse as parse_train
from batchnorm.lab.train_command import run as run_train

DONE, WRONG, BAD_INPUT, DIVERGED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141

BENCH_PIPE_WIDTH = 240  # the tables of bench are wide, and a pipe is for a file or another program


@dataclass(frozen=True)
class ReportConfig:
    """Make the page, the tables and the figures of a directory, or of several runs of train.

    A directory of train, compare, claims or diagnose; or several runs of train: those that differ only in the seed are
    averaged (with a band), others are compared; or several claims: a table, and a card for each.

    Example: batchnorm report runs/train-* --out comparison
    """

    directories: tyro.conf.Positional[tuple[Path, ...]]
    """Directories, finished or not."""
    out: Path | None = None
    """Directory of the page. None: the directory itself, and for several a new one under runs."""


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments. None: those of the process.

    Returns
    -------
    int
        Exit code: 0 done; 1 a check found a mistake, diagnose a cause, a benchmark a wrong answer, or a claim does not
        hold everywhere; 2 bad input; 3 done, but a trial diverged; 130 interrupted; 141 the reader of the output is
        gone.
    """
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as head has read enough; at exit Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        _say(f"batchnorm {batchnorm.__version__}")
        return DONE
    if not arguments or arguments[0] in {"--help", "-h"}:
        _say(_help())
        return DONE
    try:
        parsed = _parse(arguments)
        return DONE if parsed is None else COMMANDS[arguments[0]].run(parsed)
    except LabError as error:
        sentence = " ".join(str(error).split())
        if first_to_say(sentence):
            sys.stderr.write(f"batchnorm: error: {sentence}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("batchnorm: interrupted\n")
        return INTERRUPTED


def _report(config: ReportConfig) -> int:
    from batchnorm.lab.report import make_report  # matplotlib
    from batchnorm.lab.report.diagnosis import FILE, make_diagnosis_page
    from batchnorm.lab.terminal import console

    if len(config.directories) == 1 and (config.directories[0] / FILE).is_file():
        _say(f"report: {make_diagnosis_page(config.directories[0])}")
        return DONE
    report = make_report(config.directories, config.out)
    report.show(console())
    _say(f"\nreport: {report.page}")
    return DONE


def _bench(config: BenchConfig) -> int:
    from batchnorm.lab.bench.run import RedGate, bench, operations
    from batchnorm.lab.bench.table import print_tables
    from batchnorm.lab.terminal import console

    out = console()
    if not out.is_terminal:
        out.width = BENCH_PIPE_WIDTH
    try:
        config = config.resolved()
        run = bench(config, operations(config), out)
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


def _models(_: ModelsConfig) -> int:
    from batchnorm.lab.models import NORMS, describe

    _say(describe())
    _say(f"--norm: {', '.join(f'{name} ({kind.words})' for name, kind in NORMS.items())}.")
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


@dataclass(frozen=True)
class Command:
    """One command: its flags, as a dataclass, and the function that runs it and returns the exit code."""

    config: type
    run: Callable[[Any], int]


#: In the order of the help.
COMMANDS = {
    "compare": Command(CompareCommand, run_compare),
    "train": Command(TrainCommand, run_train),
    "claims": Command(ClaimsConfig, run_claims),
    "diagnose": Command(DiagnoseCommand, run_diagnose),
    "report": Command(ReportConfig, _report),
    "models": Command(ModelsConfig, _models),
    "check": Command(CheckConfig, _check),
    "fold": Command(FoldConfig, run_fold),
    "bench": Command(BenchConfig, _bench),
}
EXIT_CODES = {
    DONE: "done",
    WRONG: "a mistake or cause was found, a benchmark gave a wrong answer, or a claim does not hold or is inconclusive",
    BAD_INPUT: "bad input, said in one line",
    DIVERGED: "done and reported, but a run diverged",
    INTERRUPTED: "interrupted by Ctrl-C; records are kept",
    PIPE_CLOSED: "the reader of the output is gone",
}


def _help() -> str:
    lines = [
        "usage: batchnorm COMMAND [--help] ...",
        "",
        "Batch normalization for PyTorch: experiments that show what it does, a checker for your own code, tools.",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<9} {(command.config.__doc__ or '').splitlines()[0]}")
    lines += ["", "`batchnorm COMMAND --help` explains a command, `batchnorm --version` prints the version.", "",
              "Exit codes:", *(f"  {code:<9} {words}" for code, words in EXIT_CODES.items())]  # fmt: skip
    return "\n".join(lines)


def _parse(arguments: list[str]) -> Any:
    """Parse the arguments; None when help was asked for and given. A complaint is raised as one line."""
    name, *rest = arguments
    if name not in COMMANDS:
        hint = meant(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        raise LabError(f"{name!r} is no command of batchnorm{hint}")
    command = f"batchnorm {name}"
    if name == "train":  # its defaults may come from a file that the arguments name
        return parse_train(rest, lambda config, given, default: _tyro(config, given, prog=command, default=default))
    if name == "compare":
        check_flags(rest, CompareCommand, command)
    return _tyro(COMMANDS[name].config, rest, prog=command)


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
        text = line.strip("│| ")
        if not text.strip("─╰╯-+ "):
            break
        words.append(text)
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(words))
    wrong = re.match(r"Error parsing (\S+): no type matching (?:{None}\|)?(\S+) could be .* from \[(.*)\]", message)
    message = "{} must be one {}; got {}".format(*wrong.groups()) if wrong else message
    return f"{message.rstrip('.')}; see {command} --help" if message else box


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
