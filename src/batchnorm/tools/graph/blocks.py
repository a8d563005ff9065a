"""A module whose forward has fused paths, and falls back to its own where their conditions do not hold.

The object stays what it was, with a class derived from its own: ``isinstance``, methods, attributes and submodules are
the user's. A fused path is a graph in which an activation and an addition have moved into the call of a layer; the
original forward is always there, and runs when something that the graph takes for granted has changed.
"""

from __future__ import annotations

import copyreg
import functools
import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.tools.graph.classes import ORIGINAL, original_class
from batchnorm.tools.walk import has_hooks

PATHS = "_batchnorm_fused_paths"


@dataclass(frozen=True)
class Condition:
    """What one module inside the block, or the block itself, must still be.

    Attributes
    ----------
    path : tuple of str
        Where it is, from the block.
    cls : type or None
        Its exact class, or None where ``reads`` and ``children`` say enough.
    reads : tuple of (str, object)
        Attributes and their values.
    children : tuple of str or None
        Names of its submodules; None where they do not matter.
    """

    path: tuple[str, ...]
    cls: type | None
    reads: tuple[tuple[str, Any], ...]
    children: tuple[str, ...] | None

    def holds(self, block: nn.Module) -> bool:
        """Whether the module is there, unchanged and unobserved."""
        module: Any = block
        for name in self.path:
            module = module._modules.get(name)  # noqa: SLF001  # __getattr__ would raise where it is missing
            if module is None:
                return False
        if self.cls is not None and original_class(module) is not self.cls:
            return False
        if self.path and (has_hooks(module) or "forward" in module.__dict__):
            return False
        if self.children is not None and tuple(module._modules) != self.children:  # noqa: SLF001  # as above
            return False
        return all(value == getattr(module, name, _MISSING) for name, value in self.reads)


_MISSING = object()
_serial = itertools.count(1)
_NEW_OBJECT = vars(copyreg)["__newobj__"]  # what object.__reduce_ex__ answers


class FusedPath:
    """A graph with its conditions, compiled to a function of the block and its inputs."""

    def __init__(
        self,
        graph: fx.Graph,
        inputs: tuple[str, ...],
        defaults: dict[str, Any],
        kind: type | None,
        conditions: tuple[Condition, ...],
        paths_of: Callable[[nn.Module], tuple[FusedPath, ...]],
    ) -> None:
        self.inputs, self.defaults, self.kind, self.conditions = inputs, defaults, kind, conditions
        self.paths_of = paths_of  # a function of a module's top level, so that a pickle can name it
        code = graph.python_code(root_module="self")
        self.source = code.src
        name = f"<batchnorm.convert {next(_serial)}>"
        # Tracebacks and debuggers find the source there.
        linecache.cache[name] = (len(code.src), None, code.src.splitlines(keepends=True), name)
        namespace = dict(code.globals)
        exec(compile(code.src, name, "exec"), namespace)  # noqa: S102  # torch.fx's own code, as in its GraphModule
        self.run: Callable[..., Any] = namespace["forward"]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return the inputs in order; None unless the others are at their defaults and all are of the right kind."""
        count = len(self.inputs)
        if len(args) != count or kwargs:
            names = [*self.inputs, *self.defaults]
            if len(args) > len(names):
                return None
            given = dict(zip(names, args, strict=False)) | kwargs
            others = given.keys() - set(self.inputs)
            if len(given) - len(others) != count or any(given[n] is not self.defaults.get(n, _MISSING) for n in others):
                return None
            args = tuple(given[name] for name in self.inputs)
        for value in args:
            if value is None or (self.kind is not None and not isinstance(value, self.kind)):
                return None
        return args

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedPath:
        return self  # it refers to the block by names only

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle holds data, and the code is the user's: where it is loaded, the forward found there is traced.
        return _TraceAgain, (self.paths_of,)


@dataclass(frozen=True)
class _TraceAgain:
    """What stands for a fused path in a pickle."""

    paths_of: Callable[[nn.Module], tuple[FusedPath, ...]]


def install(module: nn.Module, paths: tuple[FusedPath, ...]) -> None:
    """Give the module fused paths."""
    cls = _fused_class(original_class(module))
    module.__dict__[PATHS] = paths
    object.__setattr__(module, "__class__", cls)


def uninstall(module: nn.Module) -> None:
    """Make the module what it was before `install`."""
    object.__setattr__(module, "__class__", original_class(module))
    module.__dict__.pop(PATHS, None)


_fused_classes: dict[type, Any] = {}


def _fused_class(original: type[nn.Module]) -> Any:
    if original not in _fused_classes:
        _fused_classes[original] = _derive(original)
    return _fused_classes[original]


def _derive(original: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Global hooks see each call of a module, so each module must be called.
        if not _has_any_global_hook():
            for path in self.__dict__.get(PATHS, ()):
                inputs = path.bind(args, kwargs)
                if inputs is not None and all(condition.holds(self) for condition in path.conditions):
                    return path.run(self, *inputs)
        return original.forward(self, *args, **kwargs)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:  # noqa: N807  # the hook's own name
        reduced: Any = original.__reduce_ex__(self, protocol)
        if reduced[0] is _NEW_OBJECT and reduced[1][0] is type(self):
            return _new, (original, *reduced[1][1:]), *reduced[2:]
        return reduced

    def __setstate__(self: nn.Module, state: Any) -> None:  # noqa: N807  # as above
        original.__setstate__(self, state)
        again = [path for path in self.__dict__.get(PATHS, ()) if isinstance(path, _TraceAgain)]
        if again:
            self.__dict__[PATHS] = again[0].paths_of(self)

    members = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "__setstate__": __setstate__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        ORIGINAL: original,
    }
    return type(original.__name__, (original,), members)


def _new(original: type[nn.Module], *args: Any) -> nn.Module:
    cls = _fused_class(original)
    module: nn.Module = cls.__new__(cls, *args)
    return module


def normalize(
    layer: Any, x: Tensor, residual: Any = None, activation: str | None = None, in_place: bool = False
) -> Tensor:
    """Call a layer with what was fused into the call; where tensors do not fit together, one after the other.

    Shapes and dtypes are unknown while tracing: an addition that broadcasts or promotes is found here, in each call.
    """
    if isinstance(x, Tensor) and (residual is None or _alike(x, residual)):
        y: Tensor = layer.call(x, residual, activation)
        return y
    y = layer(x)
    if residual is not None:
        y = y.add_(residual) if in_place else y + residual
    return y if activation is None else ACTIVATIONS[activation].function(y)


def _alike(x: Tensor, residual: Any) -> bool:
    return (
        isinstance(residual, Tensor)
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
    )
