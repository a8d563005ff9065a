"""From a config to what is trained: data, network, and what the run directory says of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import batchnorm
from batchnorm.lab.data import Augmentation, Dataset, Loader, load
from batchnorm.lab.errors import LabError
from batchnorm.lab.models import Normalization, build, describe_network, parameter_count, takes_normalization
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.evaluation import fixed_subset
from batchnorm.lab.training.recipes import resolve, resolve_cadence
from batchnorm.lab.training.units import UnitInputs


@dataclass(frozen=True)
class Subject:
    """What is trained, on the CPU, before Fabric takes it.

    Attributes
    ----------
    config : TrainConfig
        Every setting, resolved.
    dataset : Dataset
        The data.
    loader : Loader
        This process's share of the training batches.
    model : Module
        The network, in training mode.
    steps : int
        Steps of the whole run.
    described : dict
        ``data`` and ``model`` of config.json.
    """

    config: TrainConfig
    dataset: Dataset
    loader: Loader
    model: nn.Module
    steps: int
    described: dict[str, Any]


def make_subject(
    config: TrainConfig, *, dataset: Dataset | None, model: nn.Module | None, rank: int, world: int
) -> Subject:
    """Load, build, and resolve what was not given.

    Parameters
    ----------
    config : TrainConfig
        What was asked.
    dataset : Dataset, optional
        One's own, instead of ``config.data``.
    model : Module, optional
        One's own, instead of ``config.model``.
    rank, world : int
        Which process this is, and of how many.

    Returns
    -------
    Subject

    Raises
    ------
    LabError
        Something that was asked for does not exist, or does not fit together.
    """
    # An object of one's own has no recipe and no place in a command: the config names its class.
    if dataset is not None:
        config = replace(config, data=dataset.name)
    if model is not None:
        config = replace(config, model=type(model).__qualname__)
    config = resolve(config)
    assert config.batch_size is not None
    dataset = dataset or load_data(config)
    least = 2 * config.accumulate * world
    if config.batch_size < least:
        raise LabError(
            f"batch_size must be at least {least}, two examples for each of {config.accumulate} pieces on each of "
            f"{world} processes; got {config.batch_size}"
        )
    if config.compile and world > 1 and config.probes:
        raise LabError(
            "probes look at a network that is not compiled, which several processes cannot run in the place of the "
            "compiled one; give --probes with nothing after it, or leave out --compile"
        )
    loader = Loader(
        dataset.train,
        config.batch_size,
        seed=config.seed,
        classes=dataset.classes,
        augmentation=_augmentation(config),
        rank=rank,
        world=world,
    )
    steps = config.steps or len(loader) * (config.epochs or 0)
    config = resolve_cadence(config, steps=steps, steps_per_epoch=len(loader))
    network = _network(config, dataset) if model is None else model.train()
    described = _describe(config, dataset, network, own=model is not None)
    if config.convert:
        network, report = batchnorm.convert(network, report=True)
        described["model"]["converted"] = _counts(report.rows)
    if config.units:
        UnitInputs(network)  # refuse what cannot be watched before anything runs
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return Subject(config, dataset, loader, network, steps, described)


def load_data(config: TrainConfig) -> Dataset:
    """Load the data that a config names.

    Parameters
    ----------
    config : TrainConfig
        The settings.

    Returns
    -------
    Dataset

    Raises
    ------
    LabError
        There is no such data set, or a setting does not fit it.
    """
    return load(
        config.data,
        config.data_dir,
        validation=config.validation,
        seed=config.split_seed,
        image_size=config.image_size,
    )


def few_examples(config: TrainConfig, count: int) -> Dataset:
    """Load the data that a config names, with at most ``count`` examples to evaluate on."""
    dataset = load_data(config)
    held = dataset.validation
    return replace(
        dataset,
        test=fixed_subset(dataset.test, count),
        validation=None if held is None else fixed_subset(held, count),
    )


def _network(config: TrainConfig, dataset: Dataset) -> nn.Module:
    return build(
        config.model,
        Normalization(config.norm, eps=config.norm_eps, momentum=config.norm_momentum, groups=config.norm_groups),
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        activation=config.activation,
        initializer=config.initializer,
        weight_std=config.weight_std,
        seed=config.seed,
        dropout=config.dropout,
        stochastic_depth=config.stochastic_depth,
        zero_init_residual=config.zero_init_residual,
        width=config.width,
        hidden=config.hidden,
        channels=config.channels,
        convolutions=config.convolutions,
    )


def _augmentation(config: TrainConfig) -> Augmentation | None:
    asked = Augmentation(
        resized_crop=config.resized_crop,
        crop=config.crop or 0,
        padding=config.padding,
        flip=bool(config.flip),
        cutout=config.cutout,
        mixup=config.mixup,
    )
    return None if asked == Augmentation(padding=config.padding) else asked


def _describe(config: TrainConfig, dataset: Dataset, network: nn.Module, *, own: bool) -> dict[str, Any]:
    return {
        "data": {
            "name": dataset.name,
            "train": len(dataset.train),
            "validation": 0 if dataset.validation is None else len(dataset.validation),
            "test": len(dataset.test),
            "input_shape": list(dataset.input_shape),
            "classes": dataset.classes,
            "preprocessing": dataset.preprocessing,
        },
        "model": {
            "name": type(network).__name__ if own else config.model,
            "description": describe_network(network),
            # Where nobody could hand the normalization over, nobody knows which one it is.
            "norm": "own" if own or not takes_normalization(config.model) else config.norm,
            "parameters": parameter_count(network),
        },
    }


def _counts(rows: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.done] = counts.get(row.done, 0) + 1
    return counts
