"""Which modules of a model are batch normalization, and under which names."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_module(model: object, verb: str) -> None:
    """Raise TypeError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{verb} takes a torch.nn.Module; got {type(model).__name__}. "
            "Pass the model itself; of a checkpoint, the model that it is loaded into."
        )


def require_normalization(model: nn.Module, verb: str) -> None:
    """Raise ValueError unless the model has batch normalization."""
    if not normalizations(model):
        raise ValueError(
            f"{verb} needs a model with batch normalization; this {type(model).__name__} has none. "
            "Pass the whole model, or the part of it that has."
        )


def normalizations(model: nn.Module) -> list[tuple[str, nn.Module, tuple[str, ...]]]:
    """Return first name, module and further names of everything that is batch normalization, or looks like it.

    By type where torch's own classes are the ancestors (instance normalization is one of them), else by the running
    statistics in its buffers or the name of its class, which is how frozen, quantized and scripted layers are found.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _NormBase) or _holds_statistics(module) or _named_like_one(module):
            names.setdefault(module, []).append(name)
    return [(first, module, tuple(others)) for module, (first, *others) in names.items()]


def _holds_statistics(module: nn.Module) -> bool:
    return all(name in module._buffers for name in ("running_mean", "running_var"))  # noqa: SLF001  # its own


def _named_like_one(module: nn.Module) -> bool:
    scripted = getattr(module, "original_name", None) if isinstance(module, torch.jit.ScriptModule) else None
    name = scripted or type(module).__name__
    return "batchnorm" in name.lower() and next(module.children(), None) is None


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches the module's input, output or gradients."""
    return any(module.__dict__[kind] for kind in HOOKS)
