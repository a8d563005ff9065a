"""The calls of a model's modules, in graphs that are as large as tracing allows."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from batchnorm.tools.graph import trace
from batchnorm.tools.graph.classes import original_class
from batchnorm.tools.walk import has_hooks

#: Have no forward of their own: their children belong to the module that holds them.
_LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass
class Regions:
    """The parts of a model whose dataflow is known.

    Attributes
    ----------
    traces : dict of nn.Module to list of trace.Trace
        By the module whose forward was traced, through everything inside it that can be.
    opaque : dict of nn.Module to str
        The modules that could not be traced, and why.
    """

    traces: dict[nn.Module, list[trace.Trace]] = field(default_factory=dict)
    opaque: dict[nn.Module, str] = field(default_factory=dict)


def regions(model: nn.Module, leaves: set[nn.Module]) -> Regions:
    """Trace a model, or where that fails its parts; ``leaves`` and torch's own modules are not entered.

    Each level of nesting is traced at most twice, so the work grows with the number of modules times their depth.
    """
    found = Regions()
    _trace(model, leaves, found)
    return found


def callees(module: nn.Module) -> list[nn.Module]:
    """Return the children, and those of lists in place of the lists."""
    found: list[nn.Module] = []
    for child in module.children():
        found += callees(child) if type(child) in _LISTS else [child]
    return found


def is_observed(module: nn.Module) -> bool:
    """Return whether the module has hooks, or a forward of this one object."""
    return has_hooks(module) or "forward" in module.__dict__


def _trace(module: nn.Module, leaves: set[nn.Module], found: Regions) -> set[nn.Module]:
    """Trace a module as a region of its own, and return what was traced through; empty if it is opaque."""
    if isinstance(module, fx.GraphModule):  # its graph is there; modules in it that are not leaves have their own
        found.traces[module] = [trace.Trace(module.graph, (), {}, None, {"": module}, {})]
        for child in callees(module):
            if child not in leaves and _is_entered(child):
                _trace(child, leaves, found)
        return set()
    inside = _inside(module, leaves)
    if "forward" in module.__dict__:
        found.opaque[module] = "its forward was replaced on the object"
    else:
        try:
            found.traces[module] = trace.dataflow(module, inside)
        except trace.TraceError as error:
            if not inside:
                found.opaque[module] = str(error)
        else:
            for border in _borders(module, inside, leaves):
                _trace(border, leaves, found)
            return {module, *inside}
    through: set[nn.Module] = set()
    for child in callees(module):
        if child not in leaves and _is_entered(child) and child not in found.traces and child not in found.opaque:
            entered = _trace(child, leaves, found)
            if not is_observed(child):
                through |= entered
    if module not in found.opaque:
        try:
            found.traces[module] = trace.dataflow(module, through)
        except trace.TraceError as error:
            found.opaque[module] = str(error)
        else:
            for inner in through:
                found.traces.pop(inner, None)
            return {module, *through}
    return set()


def _inside(module: nn.Module, leaves: set[nn.Module]) -> set[nn.Module]:
    found: set[nn.Module] = set()
    for child in callees(module):
        graph = isinstance(child, fx.GraphModule)
        if child not in leaves and _is_entered(child) and not is_observed(child) and not graph:
            found |= {child} | _inside(child, leaves)
    return found


def _borders(module: nn.Module, inside: set[nn.Module], leaves: set[nn.Module]) -> list[nn.Module]:
    """Return the observed modules at which a region ends."""
    return [
        child
        for inner in (module, *inside)
        for child in callees(inner)
        if child not in leaves and _is_entered(child) and child not in inside
    ]


def _is_entered(module: nn.Module) -> bool:
    own = original_class(module)
    return own is nn.Sequential or not own.__module__.startswith("torch.nn.modules.")
