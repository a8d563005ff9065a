"""The command ``batchnorm train``: flags over a file over defaults, then train, then say how it ended.

Under torchrun every process runs this; the first alone prints.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm.lab.errors import LabError, OutputError
from batchnorm.lab.recording import read_config
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.settings import from_mapping, nearest, read_toml, with_length

if TYPE_CHECKING:
    from batchnorm.lab.training.run import Outcome

DONE, DIVERGED, INTERRUPTED = 0, 3, 130


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train one network, and record what happens in it.

    By default: a small convolutional network with batch normalization on scikit-learn's digits, in seconds. A setting
    that is None takes the value that suits the model and the data, and the run directory says which. The guide,
    docs/guides/training.md, has a section for each group of settings. With torchrun in front, the same command trains
    on several processes and machines.

    Example: batchnorm train --data cifar10 --model resnet20 --epochs 30
    """

    config: Path | None = None
    """TOML file of settings, under the names of the flags. Flags win over it."""

    resume: Path | None = None
    """Run directory to go on with, bit for bit as if it had never stopped. Give no other settings, but --epochs or
    --steps for a longer run, and cadences."""

    dry_run: bool = False
    """Go through everything once (a step, an evaluation, a checkpoint, a probe) in a temporary directory."""

    def settings(self) -> TrainConfig:
        """Give what is trained, without what belongs to the command."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})


def parse(arguments: list[str], parser: Callable[..., Any]) -> TrainCommand:
    """Parse the flags over the settings of the file, or of the run that is resumed, that they name.

    Parameters
    ----------
    arguments : list of str
        What stands after ``train``.
    parser : callable
        ``parser(TrainCommand, arguments, default)``: tyro, as the command line sets it up.

    Returns
    -------
    TrainCommand

    Raises
    ------
    LabError
        A setting, a file or a run directory that cannot work.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--config", "--resume"):
        first.add_argument(flag, type=Path, nargs="?")
    for flag in ("--epochs", "--steps"):
        first.add_argument(flag, nargs="?")
    try:
        named, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise LabError(f"{error}; see batchnorm train --help") from None
    if named.config and named.resume:
        raise LabError("give --config or --resume, not both: a run goes on with the settings in its directory")
    base = TrainConfig()
    if named.config:
        base = read_toml(named.config)
    elif named.resume:
        base = from_mapping(read_config(named.resume)["config"], str(named.resume / "config.json"))
    check_flags(arguments, TrainCommand, "batchnorm train")
    base = with_length(base, epochs=named.epochs is not None, steps=named.steps is not None)
    default = TrainCommand(**{field.name: getattr(base, field.name) for field in fields(TrainConfig)})
    command: TrainCommand = parser(TrainCommand, arguments, default)
    return command


def check_flags(arguments: list[str], config: type[TrainConfig], command: str) -> None:
    """Refuse an unknown flag with the one that was probably meant; tyro does not know other trainers' names.

    Parameters
    ----------
    arguments : list of str
        After the name of the command.
    config : type
        Dataclass of its flags.
    command : str
        Its name, for the message.

    Raises
    ------
    LabError
        A flag is unknown.
    """
    flags = {field.name.replace("_", "-") for field in fields(config)}
    switches = {f"no-{field.name.replace('_', '-')}" for field in fields(config) if field.type is bool}
    for word in arguments:
        flag = word.partition("=")[0].removeprefix("--").replace("_", "-")
        if word.startswith("--") and flag not in flags | switches | {"help"}:
            raise LabError(f"--{flag} is no flag of {command}; {nearest(flag, flags, '--')}")


def first_to_say(sentence: str) -> bool:
    """Ask whether this process is the first to say a sentence; without torchrun it is.

    All processes meet the same wrong setting, some before they are a group. They share the store of torchrun's agent.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    key = f"batchnorm/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{sentence}"
    try:
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10)).add(key, 1) == 1
    except RuntimeError:  # the agent is gone already: better twice than never
        return True


def run(command: TrainCommand) -> int:
    """Train, and say on the terminal how it goes and how it ended.

    Parameters
    ----------
    command : TrainCommand
        What was asked.

    Returns
    -------
    int
        Exit code: 0 done, 3 diverged, 130 interrupted.

    Raises
    ------
    LabError
        A setting or an input that cannot work, or not enough memory.
    """
    from batchnorm.lab.terminal import console
    from batchnorm.lab.training.progress import training_progress
    from batchnorm.lab.training.run import Interrupted, Talk, dry_run, train

    if command.dry_run and command.resume:
        raise LabError("--dry-run tries settings, and --resume goes on with a run; leave one out")
    out = console()

    def say(sentence: str) -> None:
        out.print(sentence, soft_wrap=True)

    try:
        with training_progress(out) as progress:
            talk = Talk(say, progress)
            if command.dry_run:
                outcome = dry_run(command.settings(), talk)
            else:
                outcome = train(command.settings(), resume=command.resume, talk=talk)
    except Interrupted as interruption:
        if interruption.outcome.first:
            path = interruption.outcome.path
            sys.stderr.write(
                f"batchnorm: interrupted after step {interruption.outcome.step}; go on with "
                f"batchnorm train --resume {path}\n"
            )
        return INTERRUPTED
    if outcome.first:
        _say_outcome(outcome, say, dry=command.dry_run)
    return DIVERGED if outcome.status == "diverged" else DONE


def _say_outcome(outcome: "Outcome", say: Callable[[str], None], *, dry: bool) -> None:
    if outcome.status == "diverged":
        kept = "nothing is kept" if dry else f"what was recorded is in {outcome.path}"
        sys.stderr.write(f"batchnorm: diverged: {outcome.reason}; {kept}\n")
    elif dry:
        say("dry run: a step with its probes, evaluations, a checkpoint and the weights went through; nothing is kept")
    else:
        say(f"finished after step {outcome.step:,}" + (f": {outcome.reason}" if outcome.reason else ""))
    if dry:
        return
    from batchnorm.lab.report import make_report  # matplotlib

    try:
        say(f"\nreport: {make_report([outcome.path]).page}")
    except OutputError as error:
        sys.stderr.write(f"batchnorm: no page: {error}; the run is whole, so: batchnorm report {outcome.path}\n")
