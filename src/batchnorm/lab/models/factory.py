"""A network of one's own: ``package.module:factory``, called with the options that it takes."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models.normalization import Normalization

_EXAMPLES = 2


def is_factory(model: str) -> bool:
    """Say whether a model is the name of a factory, not of one of the lab's networks."""
    return ":" in model


def takes_normalization(model: str) -> bool:
    """Say whether a network has the normalization that it is asked for; that of a factory may be its own.

    Parameters
    ----------
    model : str
        One of `names`, or ``package.module:factory``.

    Returns
    -------
    bool

    Raises
    ------
    LabError
        There is no such module or factory.
    """
    if not is_factory(model):
        return True
    parameters = inspect.signature(_load(model)).parameters
    return "normalization" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def from_factory(model: str, given: Mapping[str, Any], options: Mapping[str, Any], asked: Collection[str]) -> nn.Module:
    """Import a factory, call it, and check what it made with one forward pass of two zero examples.

    Modules are looked for where Python does, and in the current directory, which stays on the path.

    Parameters
    ----------
    model : str
        ``package.module:factory``. The part behind the colon may have dots.
    given : mapping
        Arguments that the factory gets if it takes them: at least ``normalization``, ``input_shape`` and ``classes``.
    options : mapping
        Others, that it gets if it has no default for them.
    asked : collection of str
        Those of the options that a user asked for: it must take them.

    Returns
    -------
    Module
        In training mode.

    Raises
    ------
    LabError
        There is no such module or factory, it raises, it takes other arguments, or what it makes is no network of this
        shape.

    Notes
    -----
    Whatever it draws comes from torch's global generator as the caller seeds it.
    """
    factory = _load(model)
    arguments = _arguments(model, factory, given, options, asked)
    try:
        network = factory(**arguments)
    except Exception as error:
        raise LabError(
            f"{model} raised {_what(error)}; it was called with {', '.join(arguments) or 'nothing'}"
        ) from error
    if not isinstance(network, nn.Module):
        raise LabError(f"{model} must return a torch.nn.Module; it returned {_kind(network)}")
    _check_scores(model, network, given["input_shape"], given["classes"])
    return network.train()


def made_alone(model: str) -> nn.Module:
    """Import a factory, call it without arguments, and return its network in training mode.

    Parameters
    ----------
    model : str
        ``package.module:factory``.

    Returns
    -------
    Module

    Raises
    ------
    LabError
        There is no such module or factory, it raises, or needs arguments, or what it makes is no network.
    """
    factory = _load(model)
    try:
        network = factory()
    except Exception as error:
        raise LabError(f"{model} raised {_what(error)}; without data it was called with nothing") from error
    if not isinstance(network, nn.Module):
        raise LabError(f"{model} must return a torch.nn.Module; it returned {_kind(network)}")
    return network.train()


def _load(model: str) -> Callable[..., Any]:
    name, _, path = model.partition(":")
    if not name or not path:
        raise LabError(f"model must be package.module:factory; got {model!r}. Try my_networks:make")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as for python -m: a command of its own does not look there
        importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise LabError(
                f"there is no module {error.name!r} for model {model}; Python looks on its path and in {here}. "
                "Start from the directory that holds it, or install its package"
            ) from error
        raise LabError(f"importing {name} for model {model} raised {_what(error)}") from error
    except Exception as error:
        raise LabError(f"importing {name} for model {model} raised {_what(error)}") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            public = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            raise LabError(
                f"{name} has no {path!r}, which model {model} names; what can be called there: "
                f"{', '.join(public) or 'nothing'}"
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise LabError(
            f"{model} must be a function or class that makes a network; it is of type {type(found).__name__}"
        )
    factory: Callable[..., Any] = found
    return factory


def _arguments(
    model: str,
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    asked: Collection[str],
) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:
        raise LabError(f"the arguments of {model} cannot be read ({error}); wrap it in a function") from error
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    known = {**given, **options}
    if unknown := [name for name in required if name not in known or name not in takes]:
        raise LabError(
            f"{model} needs {', '.join(unknown)}; what the lab gives, by name, is {', '.join(known)}. "
            "Give other arguments a default"
        )
    if refused := [name for name in asked if name not in takes and not any_name]:
        raise LabError(f"{model} takes no {', '.join(refused)}: leave the option out, or add the argument")
    plain = {"batch", "torch"}
    arm: Normalization = given["normalization"]
    if "normalization" not in takes and not any_name and (arm.norm not in plain or arm != Normalization(arm.norm)):
        raise LabError(
            f"{model} takes no normalization, so that its layers are its own and norm {arm.norm} with eps {arm.eps:g}, "
            f"momentum {arm.momentum:g} and groups {arm.groups} would do nothing. Leave these options out, or add the "
            "argument: its methods spatial(channels) and dense(units) make the layers"
        )
    wanted = {*given, *asked, *required}
    return {name: value for name, value in known.items() if name in wanted and (any_name or name in takes)}


def _check_scores(model: str, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> None:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = torch.zeros(_EXAMPLES, *input_shape, device=device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            scores = network(x)
    except Exception as error:
        raise LabError(
            f"{model}: its network cannot classify examples of shape {input_shape}: {_what(error)}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    expected = (_EXAMPLES, classes)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
        came = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else _kind(scores)
        raise LabError(
            f"{model}: its network must give one score for each class, shape {expected} for {_EXAMPLES} examples; "
            f"got {came}. End it with a dense layer of {classes}"
        )


def _what(error: Exception) -> str:
    """Say what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
        return f"{type(error).__name__}: {error.msg}{place}"
    return f"{type(error).__name__}: {error}{place}"


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
