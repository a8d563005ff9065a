"""What a setting is when nobody said: the published recipe of a model, and what suits small data.

Nothing here imports torch.
"""

from dataclasses import dataclass, replace

from batchnorm.lab.errors import LabError
from batchnorm.lab.training.config import Optimizer, ScheduleName, TrainConfig


@dataclass(frozen=True)
class Recipe:
    """How a family of networks is trained.

    Attributes
    ----------
    optimizer : str
        Rule of the updates.
    lr : float
        Learning rate of that rule, with normalization.
    batch_size, epochs : int
        Size and number.
    schedule : str
        Learning rate over the steps.
    l2 : float
        Penalty.
    """

    optimizer: Optimizer
    lr: float
    batch_size: int
    epochs: int
    schedule: ScheduleName
    l2: float


#: By the beginning of the model's name; the longest that fits counts.
RECIPES = {
    # Of ours: digits in seconds on one core, mnist in minutes.
    "": Recipe("momentum", 0.1, 64, 20, "cosine", 1e-4),
    # He et al. 2015, arXiv:1512.03385, section 4.2: 64k steps of 128 are 164 epochs; drops at 32k and 48k.
    "resnet": Recipe("momentum", 0.1, 128, 164, "step", 1e-4),
    # Huang et al. 2016, arXiv:1608.06993, section 4.2, CIFAR.
    "densenet": Recipe("nesterov", 0.1, 64, 300, "step", 1e-4),
    # Simonyan and Zisserman 2014, arXiv:1409.1556, section 3.1, for the penalty; the rest as Santurkar et al. 2018,
    # arXiv:1805.11604, whose VGG takes batches of 128 at a rate of 0.1.
    "vgg": Recipe("momentum", 0.1, 128, 100, "cosine", 5e-4),
    # Lin, Chen and Yan 2013, arXiv:1312.4400, section 4: mini-batches of 128.
    "nin": Recipe("momentum", 0.1, 128, 100, "cosine", 1e-4),
    "inception": Recipe("momentum", 0.1, 128, 100, "cosine", 1e-4),
}
EPOCHS = {"digits": 20, "mnist": 5, "fashion_mnist": 10}

#: Learning rates of rules that were not the recipe's.
RATES = {"sgd": 0.1, "momentum": 0.1, "nesterov": 0.1, "adagrad": 0.01, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}
PLAIN_DESCENT = ("sgd", "momentum", "nesterov")
#: Without normalization the rate that plain descent bears is about a tenth.
WITHOUT_NORMALIZATION = 10

#: Of He et al. 2015, as the recipe of resnet: each side is padded with four pixels.
CIFAR, CIFAR_CROP = ("cifar10", "cifar100"), 4
SMALL_DATA = ("digits",)
MOST_STEPS_BETWEEN_EVALUATIONS = 500
PROBES_IN_A_RUN = 100
LEAST_STEPS_BETWEEN_PROBES = 25


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in what depends on the model and the data alone.

    Parameters
    ----------
    config : TrainConfig
        What was asked.

    Returns
    -------
    TrainConfig
        With optimizer, lr, schedule, batch_size, epochs or steps, l2, flip and crop given; `resolve_cadence` gives
        the rest.
    """
    recipe = recipe_of(config.model)
    optimizer = config.optimizer or recipe.optimizer
    lr = recipe.lr if optimizer == recipe.optimizer else RATES[optimizer]
    if config.norm == "none" and optimizer in PLAIN_DESCENT:
        lr /= WITHOUT_NORMALIZATION
    epochs = EPOCHS.get(config.data, recipe.epochs) if config.steps is None else None
    small = config.data in SMALL_DATA or config.model == "mlp"
    return replace(
        config,
        optimizer=optimizer,
        lr=lr if config.lr is None else config.lr,
        schedule=config.schedule or recipe.schedule,
        batch_size=config.batch_size or recipe.batch_size,
        epochs=config.epochs or epochs,
        l2=recipe.l2 if config.l2 is None else config.l2,
        flip=config.data in CIFAR if config.flip is None else config.flip,
        crop=(CIFAR_CROP if config.data in CIFAR else 0) if config.crop is None else config.crop,
        threads=config.threads or (1 if small else None),
    )


def resolve_cadence(config: TrainConfig, *, steps: int, steps_per_epoch: int) -> TrainConfig:
    """Fill in what depends on the number of steps.

    Parameters
    ----------
    config : TrainConfig
        From `resolve`.
    steps : int
        Of the whole run.
    steps_per_epoch : int
        Batches of an epoch.

    Returns
    -------
    TrainConfig
        With every cadence given.

    Raises
    ------
    LabError
        The warm-up does not fit into the run.
    """
    if config.warmup_steps >= steps:
        raise LabError(f"warmup_steps must be below the steps of the run, {steps}; got {config.warmup_steps}")
    evaluate = config.evaluate_every or min(steps_per_epoch, MOST_STEPS_BETWEEN_EVALUATIONS)
    return replace(
        config,
        evaluate_every=evaluate,
        checkpoint_every=config.checkpoint_every or evaluate,
        probe_every=config.probe_every or max(LEAST_STEPS_BETWEEN_PROBES, round(steps / PROBES_IN_A_RUN)),
    )


def recipe_of(model: str) -> Recipe:
    """Give the recipe of a network by its name."""
    return RECIPES[max((start for start in RECIPES if model.startswith(start)), key=len)]
