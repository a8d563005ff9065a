"""Torch's layer to ours and back, by exchanging the class of the object (docs/decisions/0006).

The object stays: its parameters, buffers, hooks, attributes, mode, and whoever refers to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from batchnorm.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.nn.batch_norm import ATTACHED, EXTRAS, add_buffers

OURS: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
TORCH = {ours: theirs for theirs, ours in OURS.items()}


#: By a subclass of torch's that has no forward of its own, the class that is both; and back.
_DERIVED: dict[type, type] = {}
_ORIGINAL: dict[type, type] = {}
_MAY_DEFINE = {"__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__dict__", "__weakref__"}
#: What a subclass must leave alone to be ours with its own constructor and methods: whatever our layers define.
_OURS_ALONE = {name for kind in BatchNorm2d.__mro__[:2] for name in vars(kind)} | {"__getattr__", "__getattribute__"}


def is_ours(module: nn.Module) -> bool:
    """Whether the module computes what our layers compute: their forward, on the class and on the object."""
    return isinstance(module, BatchNorm1d | BatchNorm2d | BatchNorm3d) and (
        type(module).forward is BatchNorm2d.forward and "forward" not in module.__dict__
    )


def to_ours(module: nn.Module) -> str | None:
    """Make the object one of our layers, or return why not."""
    reason = refusal(module)
    if reason is None:
        _exchange(module, _ours)
        module.__dict__.update(EXTRAS)
        if module.track_running_stats:
            add_buffers(module)
    return reason


def to_torch(module: nn.Module) -> str | None:
    """Make the object torch's layer, or return why not."""
    if _theirs(_plain(module)) is None:
        return f"{_kind(module)} is not one of this package's layers"
    for name, default in EXTRAS.items():
        value = getattr(module, name)
        if value != default:
            return f"torch's layer has no {name}, and this one has {name}={value!r}"
    _exchange(module, _theirs)
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
    if _ours(_plain(module)) is None:
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


def _ours(plain: type) -> type | None:
    """Return the class of ours for one of torch's, or of a subclass that changes nothing of it."""
    base = next((cls for cls in plain.__mro__ if cls in OURS), None)
    if base is None or issubclass(plain, BatchNorm1d | BatchNorm2d | BatchNorm3d):
        return None
    added = plain.__mro__[: plain.__mro__.index(base)]
    if any((_OURS_ALONE - _MAY_DEFINE) & vars(cls).keys() for cls in added):
        return None
    if not added:
        return OURS[base]
    if plain not in _DERIVED:
        members = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__reduce_ex__": _reduce}
        _DERIVED[plain] = type(plain.__name__, (plain, OURS[base]), members)
        _ORIGINAL[_DERIVED[plain]] = plain
    return _DERIVED[plain]


def _theirs(plain: type) -> type | None:
    return TORCH.get(plain) or _ORIGINAL.get(plain)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Name the subclass in a pickle: the class derived from it is made again where it is loaded."""
    reduced: Any = nn.Module.__reduce_ex__(self, protocol)
    return (_new, (_ORIGINAL[type(self)],), *reduced[2:]) if type(self) in _ORIGINAL else reduced


def _new(original: type) -> nn.Module:
    cls: Any = _ours(original)
    module: nn.Module = cls.__new__(cls)
    return module


def _exchange(module: nn.Module, counterpart: Callable[[type], type | None]) -> None:
    cls, plain = type(module), _plain(module)
    new: Any = counterpart(plain)
    if cls is not plain:
        members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        new = type(cls.__name__, (new,), members)
    object.__setattr__(module, "__class__", new)


def _kind(module: nn.Module) -> str:
    original = getattr(module, "original_name", None)
    return original if isinstance(original, str) else type(module).__name__
