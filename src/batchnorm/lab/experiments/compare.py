"""The plan of ``batchnorm compare``: the same network with other normalizations, on the same batches, side by side.

Nothing here imports torch.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro

from batchnorm.lab.errors import LabError
from batchnorm.lab.experiments.plan import Plan, vary
from batchnorm.lab.training.config import ProbeName, TrainConfig
from batchnorm.lab.training.recipes import recipe_of
from batchnorm.lab.training.settings import nearest

#: Half a decade apart; wide enough that the best rate of either arm lies inside.
RATES = {"mlp": (0.1, 0.3, 1.0, 3.0, 10.0), "convnet": (0.01, 0.03, 0.1, 0.3, 1.0)}
STEPS = {("digits", "mlp"): 3000, ("digits", "convnet"): 1000, ("", "mlp"): 5000, ("", "convnet"): 1000}
#: 1 / sqrt(100): an input of unit size stays of unit size through a layer of 100 units. The paper says only "small".
MLP_WEIGHT_STD = 0.1
EVALUATIONS = 60
RULE = (
    "Each arm counts at the learning rate with which it gets to an accuracy in the fewest steps (median over seeds). "
    "The answer is the ratio of steps to the accuracy that the baseline ended with in every seed, with its interval "
    "over seeds and over targets within one test example."
)


@dataclass(frozen=True)
class CompareCommand(TrainConfig):
    """Train the same network with and without batch normalization, on the same batches from the same initial weights.

    By default the experiment of section 4.1 of Ioffe and Szegedy (arXiv 1502.03167): three hidden layers of 100
    sigmoids, batches of 60, plain SGD, here on 8x8 digits. Every setting of train can be given, and any can be varied.
    Arms take their steps in turns. A learning rate is tuned: every arm counts at its best.

    Example: batchnorm compare --data cifar10 --model resnet20 --norm none batch group --lr 0.01 0.1 --seeds 3
    """

    model: str = "mlp"
    """Network: a name from `batchnorm models`, or package.module:factory for one of your own. mlp and convnet are
    trained as in the paper (plain SGD, a constant rate, batches of 60), others by their recipe."""

    norm: tuple[str, ...] = ("none", "batch")  # type: ignore[assignment]  # several, where train has one
    """Normalizations to compare: none, batch, torch, group, layer, instance. The first is the baseline."""

    lr: tuple[float, ...] | None = None  # type: ignore[assignment]
    """Learning rates; every arm is trained at each. None: five around the best for mlp and convnet; else a tenth of the
    rate of the recipe, and that rate."""

    seeds: int = 3
    """Number of seeds: seed, seed + 1 and so on. A seed fixes the initial weights and the batches, for all arms."""

    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Vary another setting: its name and its values, as in `--vary norm-momentum 0.1 0.01`. May be given again."""

    probes: tuple[ProbeName, ...] = ()
    """Measure inside the networks: activations, gradients, running, shift, landscape."""

    train_subset: int = 0
    """Evaluate on this many training examples too. 0: none."""

    evaluate_early: bool = True
    """Evaluate after 1, 2, 5, 10, 20 and 50 steps too, where a network changes fastest."""

    workers: int = 1
    """Processes that train cells at the same time."""

    resume: Path | None = None
    """Plan directory to go on with: only the cells that are missing are trained. Give no settings."""

    quick: bool = False
    """One seed and a quarter of the steps: a first look, not an answer."""

    def __post_init__(self) -> None:
        """Check nothing yet: settings are checked where the plan makes cells of them."""


def plan_of(command: CompareCommand) -> Plan:
    """Make the plan that a command asks for.

    Parameters
    ----------
    command : CompareCommand
        The flags.

    Returns
    -------
    Plan

    Raises
    ------
    LabError
        A setting or an axis that cannot work.
    """
    if command.seeds < 1:
        raise LabError(f"seeds must be at least 1; got {command.seeds}")
    if command.workers < 1:
        raise LabError(f"workers must be at least 1; got {command.workers}")
    if not command.norm:
        raise LabError("norm must hold at least one value; got none")
    common = {one.name for one in fields(TrainConfig)}
    base = as_in_the_paper(
        TrainConfig(
            **{
                **{name: getattr(command, name) for name in common},
                "norm": command.norm[0],
                "lr": None,
                "out": None,
            }
        ),
        quick=command.quick,
    )
    rates = command.lr or RATES.get(base.model) or _around(recipe_of(base.model).lr)
    seeds = 1 if command.quick else command.seeds
    arms = {"norm": vary("norm", command.norm)}
    for words in command.vary:
        setting, values = _parse(words)
        if setting in {"norm", "lr", "seed", *arms}:
            raise LabError(f"--vary {setting} is given twice; --norm, --lr and --seeds vary these themselves")
        arms[setting] = vary(setting, values)
    if len(arms) > 1 and len(command.norm) == 1:
        del arms["norm"]
    return Plan(
        question=_question(arms),
        base=base,
        axes={"seed": vary("seed", [base.seed + k for k in range(seeds)]), "lr": vary("lr", rates), **arms},
        rule=RULE,
        interleave=tuple(arms),
        tuned="lr",
    )


def as_in_the_paper(base: TrainConfig, *, quick: bool = False) -> TrainConfig:
    """Fill in plain descent in batches of 60 for the networks that are trained as in the paper, and a cadence.

    Parameters
    ----------
    base : TrainConfig
        What is given stays.
    quick : bool
        Take a quarter of the steps.

    Returns
    -------
    TrainConfig
    """
    if base.model in RATES:
        steps = base.steps or STEPS.get((base.data, base.model)) or STEPS["", base.model]
        base = replace(
            base,
            optimizer=base.optimizer or "sgd",
            schedule=base.schedule or "constant",
            batch_size=base.batch_size or 60,
            l2=0.0 if base.l2 is None else base.l2,
            steps=steps if base.epochs is None else None,
            weight_std=MLP_WEIGHT_STD if base.model == "mlp" and base.weight_std is None else base.weight_std,
            units=not base.convert,
        )
    if quick and base.steps is not None:
        base = replace(base, steps=max(1, base.steps // 4))
    if base.steps is not None:
        every = base.evaluate_every or max(1, round(base.steps / EVALUATIONS))
        # A small network is trained again from its beginning before a checkpoint pays.
        base = replace(base, evaluate_every=every, checkpoint_every=base.checkpoint_every or max(every, 500))
        if base.log_every == TrainConfig().log_every:
            base = replace(base, log_every=every)
    return base


def _around(rate: float) -> tuple[float, ...]:
    return float(f"{rate / 10:g}"), rate


def _question(arms: dict[str, Any]) -> str:
    if list(arms) == ["norm"] and set(arms["norm"]) == {"none", "batch"}:
        return "Does the network learn in fewer steps with batch normalization?"
    what = " and ".join(axis.replace("_", " ") for axis in arms)
    return f"What does the {'normalization' if what == 'norm' else what.replace('norm', 'normalization', 1)} change?"


def _parse(words: tuple[str, ...]) -> tuple[str, list[Any]]:
    """Read the name of a setting and its values, as the type of the setting has them."""
    name, *values = (*words, "")[: len(words)] if words else ("",)
    setting = name.replace("-", "_")
    kinds = {one.name: one.type for one in fields(TrainConfig)}
    if setting not in kinds:
        raise LabError(f"--vary names {name!r}, which is no setting; {nearest(setting, kinds)}")
    if not values:
        raise LabError(f"--vary {name} needs values, as in --vary norm-momentum 0.1 0.01")
    return setting, [_value(word, kinds[setting]) for word in values]


def _value(word: str, kind: Any) -> Any:
    kinds = [one for one in get_args(kind) if one is not type(None)] or [kind]
    for one in kinds:
        if get_origin(one) is tuple:
            return tuple(_value(part, get_args(one)[0]) for part in word.split(","))
        if one is bool and word in {"true", "false"}:
            return word == "true"
        for number in (int, float):
            if one in {number, float}:
                try:
                    return number(word)
                except ValueError:
                    continue
    return Path(word) if Path in kinds else word
