"""Which modules of a model get fused paths: from the inside out, each forward by itself.

A module's trace goes through those of its submodules that end in a layer whose successor is not known yet, and no
further: the smallest module that calls both a layer and its activation is the one that changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from batchnorm.nn.batch_norm import EXTRAS
from batchnorm.tools import patterns, swap
from batchnorm.tools.graph import blocks, trace
from batchnorm.tools.graph.classes import original_class
from batchnorm.tools.graph.dataflow import callees, is_observed


@dataclass
class Analysis:
    """What is known about one module.

    Attributes
    ----------
    paths : tuple of blocks.FusedPath
        What it gets; empty where nothing new can be fused in its forward.
    outcomes : dict of nn.Module to list of patterns.Chain
        For each layer that its forward calls, one chain per call.
    through : list of nn.Module
        The modules that its trace goes through.
    open : bool
        Whether it returns a layer's output, so that its caller may go on.
    error : str
        Why it could not be traced.
    only : dict of nn.Module to str
        The condition under which a layer's fusion holds, where it does not always.
    """

    paths: tuple[blocks.FusedPath, ...] = ()
    outcomes: dict[nn.Module, list[patterns.Chain]] = field(default_factory=dict)
    through: list[nn.Module] = field(default_factory=list)
    open: bool = False
    error: str = ""
    only: dict[nn.Module, str] = field(default_factory=dict)


def analyse(module: nn.Module, known: dict[nn.Module, Analysis]) -> Analysis:
    """Analyse a module after everything inside it; ``known`` remembers."""
    if module not in known:
        known[module] = Analysis()  # also ends a cycle
        children = callees(module)
        for child in children:
            analyse(child, known)
        del known[module]  # so that `known` is in order, from the inside out
        known[module] = _analyse(module, children, known)
    return known[module]


def paths_of(module: nn.Module) -> tuple[blocks.FusedPath, ...]:
    """Return the fused paths of one block, as `analyse` finds them now."""
    return analyse(module, {}).paths


def _analyse(module: nn.Module, children: list[nn.Module], known: dict[nn.Module, Analysis]) -> Analysis:
    going_on = [child for child in children if known[child].open and not is_observed(child)]
    if swap.is_ours(module) or not (going_on or any(map(swap.is_ours, children))):
        return Analysis()
    if "forward" in module.__dict__:
        return Analysis(error="its forward was replaced on the object")
    inner = {layer: chains for child in going_on for layer, chains in known[child].outcomes.items()}
    through = _with_theirs(going_on, known)
    try:
        found = trace.traces(module, through)
        best = _best(module, found)
        needed = _with_theirs([c for c in going_on if _gains(known[c].outcomes, best)], known)
        is_open = any(chain.leaves for chains in best.values() for chain in chains)
        if len(needed) < len(through):
            # What is not traced through need not be watched.
            found = trace.traces(module, needed)
        paths = [path for one in found if (path := _path(module, one)) is not None]
    except trace.TraceError as error:
        return Analysis(error=str(error))
    gains = _gains(inner, best) or any(c.what for layer, cs in best.items() if layer not in inner for c in cs)
    return Analysis(tuple(paths) if gains else (), best, through, is_open, "", _only(module, found, best))


def _with_theirs(modules: list[nn.Module], known: dict[nn.Module, Analysis]) -> list[nn.Module]:
    return list(dict.fromkeys(inner for module in modules for inner in (module, *known[module].through)))


def _outcomes(module: nn.Module, one: trace.Trace) -> dict[nn.Module, list[patterns.Chain]]:
    found: dict[nn.Module, list[patterns.Chain]] = {}
    for chain in patterns.chains(module, one.graph):
        found.setdefault(module.get_submodule(str(chain.call.target)), []).append(chain)
    return found


def _best(module: nn.Module, found: list[trace.Trace]) -> dict[nn.Module, list[patterns.Chain]]:
    """Return the outcomes of each layer in the trace that fuses most of it, the first of equals."""
    best: dict[nn.Module, list[patterns.Chain]] = {}
    for one in found:
        for layer, chains in _outcomes(module, one).items():
            if layer not in best or _length(chains) > _length(best[layer]):
                best[layer] = chains
    return best


def _length(chains: list[patterns.Chain]) -> int:
    return sum(len(chain.nodes) - 1 for chain in chains)


def _gains(before: dict[nn.Module, list[patterns.Chain]], after: dict[nn.Module, list[patterns.Chain]]) -> bool:
    return any(_length(after[layer]) > _length(chains) for layer, chains in before.items() if layer in after)


def _only(
    module: nn.Module, found: list[trace.Trace], best: dict[nn.Module, list[patterns.Chain]]
) -> dict[nn.Module, str]:
    conditions: dict[nn.Module, list[str]] = {layer: [] for layer in best}
    for one in found:
        outcomes = _outcomes(module, one)
        for layer, chains in best.items():
            if [c.what for c in outcomes.get(layer, [])] == [c.what for c in chains]:
                conditions[layer].append(_condition(one))
    return {layer: " or ".join(names) for layer, names in conditions.items() if len(names) < len(found)}


def _condition(one: trace.Trace) -> str:
    mode = next((reads["training"] for reads in one.reads.values() if "training" in reads), None)
    words = [] if mode is None else ["in training" if mode else "in eval mode"]
    return " ".join([*words, "for lists" if one.kind is list else "for tensors"]) if one.kind else "".join(words)


def _path(module: nn.Module, one: trace.Trace) -> blocks.FusedPath | None:
    """Rewrite the graph, and say what it depends on; None where there is nothing to fuse."""
    watched: dict[str, dict[str, Any]] = {}
    found = [chain for chain in patterns.chains(module, one.graph) if chain.what]
    for chain in found:
        watched |= {str(chain.call.target): {"activation": EXTRAS["activation"]}} | chain.conditions
    replaced: dict[fx.Node, fx.Node] = {}
    for chain in found:
        _rewrite(one.graph, chain, replaced)
    conditions = [
        blocks.Condition(
            tuple(path.split(".")) if path else (),
            original_class(inner) if path else None,
            tuple(one.reads[path].items()),
            tuple(inner._modules),  # noqa: SLF001  # its names, among them those that are None
        )
        for path, inner in one.traced.items()
    ]
    conditions += [
        blocks.Condition(tuple(path.split(".")), original_class(module.get_submodule(path)), tuple(reads.items()), None)
        for path, reads in one.reads.items()
        if reads and path not in one.traced
    ]
    conditions += [
        blocks.Condition(tuple(path.split(".")), type(module.get_submodule(path)), tuple(reads.items()), None)
        for path, reads in watched.items()
    ]
    if not found:
        return None
    return blocks.FusedPath(one.graph, one.inputs, one.defaults, one.kind, tuple(conditions), paths_of)


def _rewrite(graph: fx.Graph, chain: patterns.Chain, replaced: dict[fx.Node, fx.Node]) -> None:
    last = chain.nodes[-1]
    residual = chain.residual if chain.residual is None else replaced.get(chain.residual, chain.residual)
    with graph.inserting_before(last):
        layer = graph.get_attr(str(chain.call.target))
        options = {"residual": residual, "activation": chain.activation, "in_place": chain.in_place}
        fused = graph.call_function(
            blocks.normalize, (layer, chain.call.args[0]), {k: v for k, v in options.items() if v}
        )
    last.replace_all_uses_with(fused)
    replaced[last] = fused
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def summary(analyses: dict[nn.Module, Analysis], names: dict[nn.Module, str]) -> dict[nn.Module, tuple[str, str]]:
    """Say of each layer what was fused into its calls, and why not more; outer modules know more than inner ones."""
    seen: dict[nn.Module, dict[nn.Module, tuple[list[patterns.Chain], str]]] = {}
    failed: dict[nn.Module, str] = {}
    for module, analysis in analyses.items():
        for layer, chains in analysis.outcomes.items():
            views = seen.setdefault(layer, {})
            for inner in analysis.through:
                former = views.get(inner)
                if former is not None and _length(former[0]) <= _length(chains):
                    del views[inner]
                    failed.pop(layer, None)
            if not any(inner in views for inner in analysis.through):
                views[module] = (chains, analysis.only.get(layer, ""))
        if analysis.error:
            where = f"the forward of {names.get(module) or type(module).__name__} cannot be traced: {analysis.error}"
            for child in callees(module):
                failed |= dict.fromkeys([child] if swap.is_ours(child) else _open_layers(analyses.get(child)), where)
    found = {layer: _in_words(list(views.values())) for layer, views in seen.items()}
    return found | {layer: ("", where) for layer, where in failed.items() if not found.get(layer, ("", ""))[0]}


def _open_layers(analysis: Analysis | None) -> list[nn.Module]:
    outcomes = analysis.outcomes if analysis else {}
    return [layer for layer, chains in outcomes.items() if any(chain.leaves for chain in chains)]


def _in_words(views: list[tuple[list[patterns.Chain], str]]) -> tuple[str, str]:
    calls = [(chain, only) for chains, only in views for chain in chains]
    fused = [(chain, only) for chain, only in calls if chain.what]
    rest = list(dict.fromkeys(chain.stop for chain, _ in calls if not chain.what))
    what = " and ".join(dict.fromkeys(chain.what for chain, _ in fused)).replace(" and fused ", " and ")
    reasons = list(dict.fromkeys(only for _, only in fused if only))
    if fused and rest:
        reasons.append(f"{len(fused)} of {len(calls)} calls; else")
    return what, " ".join([*[f"{r};" for r in reasons[:-1]], *reasons[-1:], "; ".join(rest)]).strip()
