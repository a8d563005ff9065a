"""One module's forward as a torch.fx graph, with everything that the graph takes for granted.

A trace runs the Python of a forward once. What that run read from the module (mode, attributes, arguments left at their
defaults) is recorded, so that the graph is used only where the same run would come out again; what cannot be recorded
(randomness, gradients switched off, attributes set) makes the trace fail. Modules are leaves unless they are asked to
be traced through, so a trace sees little more than the forward of one class.
"""

from __future__ import annotations

import copy
import enum
import inspect
import operator
import random
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import BuiltinFunctionType, FrameType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from batchnorm.tools.graph.classes import original_class

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format)
_BY_IDENTITY = (FunctionType, BuiltinFunctionType, type)
_CONTAINERS = (list, set, dict)
_BOOKKEEPING = frozenset({**vars(nn.Module()), **vars(nn.Module)}) - {"training"}


class TraceError(Exception):
    """A forward that no graph can stand for, and why."""


@dataclass(frozen=True)
class Trace:
    """A graph and its conditions.

    Attributes
    ----------
    graph : fx.Graph
        Modules that were traced through are gone from it; the others are calls by their path from the module.
    inputs : tuple of str
        Names of the arguments without defaults.
    defaults : dict of str to object
        Names of the others, and the values that they had.
    kind : type or None
        What the inputs must be instances of; None where the forward does not ask.
    traced : dict of str to nn.Module
        The module itself under the empty path, and the modules traced through.
    reads : dict of str to dict of str to object
        By path, the attributes that were read, and their values.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    defaults: dict[str, Any]
    kind: type | None
    traced: dict[str, nn.Module]
    reads: dict[str, dict[str, Any]]


def traces(module: nn.Module, through: Collection[nn.Module] = ()) -> list[Trace]:
    """Trace ``module`` in its mode, and where that matters in the other; where it matters, on lists of tensors too.

    Parameters
    ----------
    module : nn.Module
        Its forward is traced.
    through : collection of nn.Module
        The modules inside it that are traced through.

    Returns
    -------
    list of Trace
        They differ in their conditions.

    Raises
    ------
    TraceError
        No graph can stand for the forward.
    """
    first = _traces(module, through)
    if not any("training" in reads for trace in first for reads in trace.reads.values()):
        return first
    with _other_mode([module, *through]):
        try:
            return first + _traces(module, through)
        except TraceError:
            return first


def dataflow(module: nn.Module, through: Collection[nn.Module] = ()) -> list[Trace]:
    """Trace ``module`` in its mode only, to see which module's output goes where; the graphs cannot be run.

    Parameters
    ----------
    module : nn.Module
        Its forward is traced.
    through : collection of nn.Module
        The modules inside it that are traced through.

    Returns
    -------
    list of Trace
        For tensors, and for lists where that matters. Of what the forward computes without its inputs nothing is kept,
        and ``reads`` holds names only.

    Raises
    ------
    TraceError
        The calls depend on values, or the forward sets attributes.
    """
    return _traces(module, through, to_run=False)


def _traces(module: nn.Module, through: Collection[nn.Module], to_run: bool = True) -> list[Trace]:
    tracer = _Tracer(through, Tensor, to_run)
    found = [tracer.record(module)]
    if tracer.asked:
        with suppress(TraceError):
            found.append(_Tracer(through, list, to_run).record(module))
    return found


@contextmanager
def _other_mode(modules: list[nn.Module]) -> Iterator[None]:
    for module in modules:
        module.training = not module.training
    try:
        yield
    finally:
        for module in modules:
            module.training = not module.training


class _Proxy(fx.Proxy):
    """A value of the forward, with operations in place."""

    @property  # type: ignore[misc]  # object's can be written, too
    def __class__(self) -> type:  # what isinstance looks at, after the type
        asked: _Questions | None = getattr(self.tracer, "questions", None)
        return type(self) if asked is None else asked.answer(self)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    apply = getattr(operator, name)

    # Not the operator itself: fx would print it as an assignment, which for numbers changes another variable.
    def operate(target: Any, other: Any) -> Any:
        return apply(target, other)

    operate.__name__ = operate.__qualname__ = f"{name}_"
    return operate


#: By the operator's name, what a graph calls for an augmented assignment: torch.fx would record one out of place.
IN_PLACE = {
    name: _in_place(name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
}
for _name, _function in IN_PLACE.items():

    def _method(self: _Proxy, other: Any, function: Callable[[Any, Any], Any] = _function) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    setattr(_Proxy, f"__{_name}__", _method)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, through: Collection[nn.Module], kind: type, to_run: bool) -> None:
        super().__init__()
        self.through = set(through)
        self.to_run = to_run
        self.kind = kind
        self.asked = False
        self.questions = _Questions(self)
        self.inputs: tuple[str, ...] = ()
        self.defaults: dict[str, Any] = {}

    def record(self, module: nn.Module) -> Trace:
        """Trace, or raise TraceError; the module is left as it was."""
        paths: dict[Any, str] = {m: path for path, m in module.named_modules()}
        traced = {paths[m]: m for m in (module, *self.through)}
        # Leaves too: a forward may look at an attribute of a module that it calls.
        watched = {path: m for path, m in module.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
        reads: dict[str, dict[str, Any]] = {path: {} for path in watched}
        self.ambient = _ambient()
        try:
            only_proxies = _OnlyProxies() if self.to_run else nullcontext()
            with _recording(watched, reads, self.to_run), only_proxies, _no_random_numbers(self.to_run), self.questions:
                graph = self.trace(module)
        except TraceError:
            raise
        except Exception as error:  # whatever the user's code raises when it meets a proxy
            first_line = str(error).strip().partition("\n")[0]
            raise TraceError(f"{type(error).__name__}: {first_line}") from error
        finally:
            for values in reads.values():
                values.update({k: v.values() for k, v in values.items() if type(v) is _Attributes})
            changed = _put_back(watched, reads)
        if changed:
            raise TraceError(f"it changes self.{changed[0]}")
        for node in graph.nodes:
            node.type = None  # annotations name types that the graph's code cannot import
        return Trace(graph, self.inputs, self.defaults, self.kind if self.asked else None, traced, reads)

    # What torch.fx asks a tracer.

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002  # torch.fx's names
        return m not in self.through

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for p in parameters:
            if p.default is not p.empty:
                if self.to_run and not _is_constant(p.default):
                    raise TraceError(f"the default of its argument {p.name} is not a constant")
                self.defaults[p.name] = p.default
            elif p.kind in positional:
                self.inputs += (p.name,)
            elif p.kind is p.KEYWORD_ONLY:
                raise TraceError(f"its argument {p.name} can only be given by name")
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.inputs)]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if self.to_run and _ambient() != self.ambient:
            raise TraceError("it works under another setting of autograd or autocast than its caller")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            if not self.to_run:
                return None  # fx would keep the tensor in the module
            raise TraceError("it uses a tensor that is neither an input, a parameter nor a buffer")
        return super().create_arg(a)

    def type_of(self, node: fx.Node) -> type:
        """Answer isinstance, for an input; what an intermediate value will be is not known."""
        if node.op != "placeholder":
            raise TraceError("it asks for the type of a value that it computed")
        self.asked = True
        return self.kind


class _OnlyProxies(TorchFunctionMode):
    """Refuses what torch would compute once, now, instead of in each call of the graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:  # noqa: SLF001  # a mode, which create_node looks at
            return func(*args, **kwargs)
        if not any(type(leaf) is _Proxy for leaf in torch.utils._pytree.tree_iter((args, kwargs))):  # noqa: SLF001
            raise TraceError(f"it calls {getattr(func, '__name__', func)} on no input: a graph would do that only once")
        return func(*args, **kwargs)


class _Questions:
    """Answers isinstance for the values of a forward, and refuses functions with a backward pass of their own.

    A proxy answers by its ``__class__``, but torch's C++ would believe that too, and take the proxy for a tensor. So a
    profile function, which belongs to one thread, tells the calls of ``isinstance`` from all others.
    """

    def __init__(self, tracer: _Tracer) -> None:
        self._tracer = tracer
        self._asking: str | None = None  # the module of the caller of isinstance, during its call

    def answer(self, proxy: _Proxy) -> type:
        asking = self._asking
        if asking is None or asking.startswith(_ASK_ABOUT_PROXIES):
            return type(proxy)
        return self._tracer.type_of(proxy.node)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        if arg is isinstance:
            self._asking = frame.f_globals.get("__name__", "") if event == "c_call" else None
        elif event == "call" and frame.f_code is _APPLY:
            name = frame.f_locals["cls"].__name__
            raise TraceError(f"it applies {name}, whose backward pass a graph would lose")

    def __enter__(self) -> None:
        self._former = sys.getprofile()
        sys.setprofile(self._see)

    def __exit__(self, *_: Any) -> None:
        enable = getattr(self._former, "enable", None)  # a profiler in C, before Python 3.12
        sys.setprofile(None if enable else self._former)
        if enable:
            enable()


_APPLY = torch.autograd.Function.__dict__["apply"].__func__.__code__
_ASK_ABOUT_PROXIES = ("torch.fx", "torch.overrides", "torch.nn.parameter", "torch.utils._pytree", __name__)


@contextmanager
def _no_random_numbers(refuse: bool) -> Iterator[None]:
    """Raise TraceError if Python's or NumPy's were drawn, and put them back; torch's are refused when drawn."""
    states: tuple[Any, Any] = random.getstate(), np.random.get_state()  # noqa: NPY002  # what users draw from
    try:
        yield
        drawn: Any = np.random.get_state()  # noqa: NPY002
        changed = any(np.any(a != b) for a, b in zip(drawn, states[1], strict=True))
        if refuse and (changed or random.getstate() != states[0]):
            raise TraceError("it draws random numbers")
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _recording(traced: dict[str, nn.Module], reads: dict[str, dict[str, Any]], to_run: bool) -> Iterator[None]:
    """Give each module a class that notes what is read from the object, and refuses what is written to it."""
    former = {path: type(module) for path, module in traced.items()}
    try:
        for path, module in traced.items():
            object.__setattr__(module, "__class__", _recorder(original_class(module), reads[path], to_run))
        yield
    finally:
        for path, module in traced.items():
            object.__setattr__(module, "__class__", former[path])


def _recorder(cls: type, reads: dict[str, Any], to_run: bool) -> type:
    def note(name: str, value: Any) -> Any:
        if to_run and _has_attributes(value):
            return reads.setdefault(name, _Attributes(value))
        if not _is_constant(value):
            if not to_run:
                reads[name] = copy.copy(value) if isinstance(value, _CONTAINERS) else value
                return value
            raise TraceError(f"it reads self.{name}, a {type(value).__name__}, whose changes could not be seen")
        reads[name] = value if isinstance(value, _BY_IDENTITY) else copy.deepcopy(value)
        return value

    def __getattribute__(self: nn.Module, name: str) -> Any:  # noqa: N807  # the hook's own name
        value = cls.__getattribute__(self, name)  # type: ignore[call-arg, arg-type]  # a class of modules
        if name in _BOOKKEEPING or name.startswith("__"):
            return value
        if name in object.__getattribute__(self, "__dict__"):
            return note(name, value)
        found = inspect.getattr_static(cls, name, None)
        computed = hasattr(found, "__get__") or callable(found)
        return value if computed else note(name, value)

    def __getattr__(self: nn.Module, name: str) -> Any:  # noqa: N807  # as above
        value = cls.__getattr__(self, name)  # type: ignore[attr-defined]  # nn.Module has one
        return note(name, value) if value is None else value

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: ARG001, N807  # as above
        raise TraceError(f"it sets self.{name}")

    members = {"__getattribute__": __getattribute__, "__getattr__": __getattr__, "__setattr__": __setattr__}
    return type(cls.__name__, (cls,), {**members, "__module__": cls.__module__, "__qualname__": cls.__qualname__})


class _Attributes:
    """Stands for an object, such as a configuration, while a forward reads its attributes, and notes them."""

    def __init__(self, value: Any) -> None:
        self.__dict__.update(_value=value, _reads={})

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._value, name)
        if not _is_constant(value):
            raise TraceError(f"it reads the attribute {name} of a {type(self._value).__name__}, which is no constant")
        self._reads[name] = copy.deepcopy(value)
        return value

    def _refuse(self, *_: Any) -> Any:
        raise TraceError(f"it uses a {type(self._value).__name__}, whose changes could not be seen")

    __setattr__ = __bool__ = __eq__ = _refuse
    __hash__ = None  # type: ignore[assignment]  # as that of any object with an equality of its own

    def values(self) -> _Values:
        """Return what was read."""
        return _Values(self._reads)


class _Values(dict[str, Any]):
    """Attributes; it equals every object that has the same ones."""

    def __eq__(self, other: object) -> bool:
        return all(getattr(other, name, self) == value for name, value in self.items())

    __hash__ = None


def _has_attributes(value: Any) -> bool:
    others = (Tensor, nn.Module, enum.Enum, tuple, frozenset, *_CONTAINERS, *_CONSTANTS)
    return hasattr(value, "__dict__") and not isinstance(value, others) and not callable(value)


def _put_back(modules: dict[str, nn.Module], reads: dict[str, dict[str, Any]]) -> list[str]:
    """Undo what a trace did to lists, sets and dicts, and name the attributes that held them."""
    changed = []
    for path, values in reads.items():
        for name, former in values.items():
            container: Any = getattr(modules[path], name)
            if isinstance(former, _CONTAINERS) and type(former) is not _Values and not _same(container, former):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(former)
                changed.append(name)
    return changed


def _same(container: Any, former: Any) -> bool:
    if _is_constant(former):
        return bool(container == former)
    return len(container) == len(former) and all(
        a is b and (not isinstance(container, dict) or container[a] is former[a])
        for a, b in zip(container, former, strict=True)
    )


def _is_constant(value: Any) -> bool:
    """Whether equality tells that the value is still the same."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(_is_constant(item) for pair in value.items() for item in pair)
    return isinstance(value, (*_CONSTANTS, *_BY_IDENTITY, enum.Enum))


def _ambient() -> tuple[Any, ...]:
    """Return what a caller may have switched on around a forward, and a forward around a part of itself."""
    autograd = torch._C._autograd  # noqa: SLF001  # the only way to ask for saved-tensor hooks (checkpointing)
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
        autograd._top_saved_tensors_default_hooks(False),  # noqa: SLF001
    )
