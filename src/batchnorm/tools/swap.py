"""Torch's layer to ours and back, by exchanging the class of the object (docs/decisions/0006).

The object stays: its parameters, buffers, hooks, attributes, mode, and whoever refers to it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from batchnorm.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.nn.batch_norm import ATTACHED, EXTRAS, add_buffers

OURS: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
TORCH = {ours: theirs for theirs, ours in OURS.items()}


def is_ours(module: nn.Module) -> bool:
    """Whether the module computes what our layers compute: their forward, on the class and on the object."""
    return isinstance(module, BatchNorm1d | BatchNorm2d | BatchNorm3d) and (
        type(module).forward is BatchNorm2d.forward and "forward" not in module.__dict__
    )


def to_ours(module: nn.Module) -> str | None:
    """Make the object one of our layers, or return why not."""
    reason = refusal(module)
    if reason is None:
        _exchange(module, OURS)
        module.__dict__.update(EXTRAS)
        if module.track_running_stats:
            add_buffers(module)
    return reason


def to_torch(module: nn.Module) -> str | None:
    """Make the object torch's layer, or return why not."""
    if _plain(module) not in TORCH:
        return f"{_kind(module)} is not one of this package's layers"
    for name, default in EXTRAS.items():
        value = getattr(module, name)
        if value != default:
            return f"torch's layer has no {name}, and this one has {name}={value!r}"
    _exchange(module, TORCH)
    for name in (*EXTRAS, *ATTACHED):
        module.__dict__.pop(name, None)
    if "num_batches_skipped" in module._buffers:  # noqa: SLF001  # `hasattr` finds it on the class too
        del module.num_batches_skipped
    return None


def refusal(module: nn.Module) -> str | None:
    """Return why the object cannot become one of our layers, or None."""
    kind = _kind(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"{kind} is compiled by TorchScript"
    if isinstance(module, nn.modules.batchnorm._LazyNormBase):  # noqa: SLF001  # the only name of what they share
        return f"{kind} does not know its number of features yet; run one batch first"
    if isinstance(module, nn.SyncBatchNorm):
        return "SyncBatchNorm shares its statistics between processes"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):  # noqa: SLF001  # as above
        return f"{kind} is not batch normalization: it normalizes each sample by itself"
    if _plain(module) not in OURS:
        return f"{kind} is not exactly torch.nn's class: its own forward might be lost"
    if "forward" in module.__dict__:
        return "its forward was replaced on this object"
    for name in EXTRAS:
        if name in module.__dict__ or name in module._modules:  # noqa: SLF001  # what getattr would find
            return f"it has an attribute {name!r} of its own, which is a name that our layer uses"
    return None


def _plain(module: nn.Module) -> type:
    """Return the class of the module, or the one that torch's parametrization has derived its class from."""
    cls = type(module)
    derived = parametrize.is_parametrized(module) and len(cls.__bases__) == 1 and "forward" not in cls.__dict__
    return cls.__bases__[0] if derived else cls


def _exchange(module: nn.Module, classes: dict[type, type]) -> None:
    cls, plain = type(module), _plain(module)
    new = classes[plain]
    if cls is not plain:
        members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        new = type(cls.__name__, (new,), members)
    object.__setattr__(module, "__class__", new)


def _kind(module: nn.Module) -> str:
    original = getattr(module, "original_name", None)
    return original if isinstance(original, str) else type(module).__name__
