"""Where a call of a layer can take over what follows it: [add] [activation], in one graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from batchnorm.tools import swap
from batchnorm.tools.graph import activations, trace
from batchnorm.tools.walk import has_hooks

_ADDS = (operator.add, trace.IN_PLACE["iadd"], torch.add)
_ADD_METHODS = ("add", "add_")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_LEAVES = "its output leaves the forward"


@dataclass(frozen=True)
class Chain:
    """What one call of a layer takes over.

    Attributes
    ----------
    call : fx.Node
        The call of the layer.
    nodes : list of fx.Node
        The call and what follows it, up to the last node that is taken over.
    residual : fx.Node or None
        What is added.
    in_place : bool
        Whether the addition was one in place.
    activation : str or None
        Its name.
    conditions : dict of str to dict of str to object
        Modules that are not called any more, by path, with the attributes that matter.
    stop : str
        Why no more is taken over.
    """

    call: fx.Node
    nodes: list[fx.Node]
    residual: fx.Node | None = None
    in_place: bool = False
    activation: str | None = None
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    stop: str = ""

    @property
    def what(self) -> str:
        """The fusion in words; empty where there is none."""
        parts = (["add"] if self.residual is not None else []) + ([self.activation] if self.activation else [])
        return f"fused {' + '.join(parts)}" if parts else ""

    @property
    def leaves(self) -> bool:
        """Whether the layer's output is what the forward returns, so that the caller may fuse more."""
        return self.stop == _LEAVES


def chains(root: nn.Module, graph: fx.Graph) -> list[Chain]:
    """Return one chain per call of one of our layers, in the order of the calls."""
    found: list[Chain] = []
    taken: dict[fx.Node, fx.Node] = {}
    # The last first: of two layers that are added, the one that is computed later takes the other as its residual.
    for call in reversed(graph.nodes):
        if call.op == "call_module" and swap.is_ours(_module(root, call)):
            chain = _chain(root, call, taken)
            taken |= dict.fromkeys(chain.nodes[1:], call)
            found.append(chain)
    return [_residual_of(taken, chain) for chain in reversed(found)]


def _chain(root: nn.Module, call: fx.Node, taken: dict[fx.Node, fx.Node]) -> Chain:
    layer = _module(root, call)
    chain = Chain(call, [call])
    if layer.activation is not None:
        return replace(chain, stop="it has an activation already")
    if len(call.args) != 1 or call.kwargs:
        return replace(chain, stop="it is called with more than its input")
    if has_hooks(layer):
        return replace(chain, stop="it has hooks, which see its output")
    return _extend(root, chain, taken)


def _extend(root: nn.Module, chain: Chain, taken: dict[fx.Node, fx.Node]) -> Chain:
    """Take over the addition and the activation, one after the other, as long as nothing else can tell."""
    passed: list[fx.Node] = []
    while chain.activation is None:
        value = passed[-1] if passed else chain.nodes[-1]
        if len(value.users) != 1:
            users = f"used {len(value.users)} times" if value.users else "not used"
            return replace(chain, stop=f"its output is {users}")
        (user,) = value.users
        if user in taken:
            return chain
        if _is_identity(root, user):
            passed.append(user)
            continue
        longer = _take(root, chain, value, user)
        if isinstance(longer, str):
            return replace(chain, stop=longer)
        conditions = longer.conditions | {str(node.target): _identity_while(_module(root, node)) for node in passed}
        longer = replace(longer, nodes=[*chain.nodes, *passed, user], conditions=conditions)
        forbidden = _moved_past(root, longer)
        if forbidden:
            return replace(chain, stop=forbidden)
        chain, passed = longer, []
    return chain


def _residual_of(taken: dict[fx.Node, fx.Node], chain: Chain) -> Chain:
    """Say so in a chain that ends where another one goes on, whatever else stopped it."""
    users = list(chain.nodes[-1].users)
    if len(users) == 1 and users[0] in taken:
        return replace(chain, stop=f"it is the residual of {taken[users[0]].target}")
    return chain


def _take(root: nn.Module, chain: Chain, value: fx.Node, user: fx.Node) -> Chain | str:
    """Return the chain with what ``user`` is, or why it cannot be taken over."""
    if user.op == "output":
        return _LEAVES
    if _is_add(user) and chain.residual is None:
        return _take_add(chain, value, user)
    if user.args[:1] != (value,) or value in nodes_in((user.args[1:], user.kwargs)):
        return f"followed by {describe(root, user)}"
    if user.op != "call_module":
        found = activations.of_call(user)
        return replace(chain, activation=found.name) if found.name else _not_taken(root, user, found.reason)
    module = _module(root, user)
    if has_hooks(module):
        return f"{user.target} has hooks, which see the layer's output"
    if "forward" in module.__dict__ or len(user.args) != 1 or user.kwargs:
        return _not_taken(root, user)
    found = activations.of_module(module)
    if found.name is None:
        return _not_taken(root, user, found.reason)
    return replace(chain, activation=found.name, conditions=chain.conditions | {str(user.target): found.reads})


def _not_taken(root: nn.Module, user: fx.Node, reason: str = "") -> str:
    return f"followed by {reason or describe(root, user)}"


def _is_add(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _ADDS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )


def _take_add(chain: Chain, value: fx.Node, add: fx.Node) -> Chain | str:
    if len(add.args) != 2 or add.kwargs:
        return "followed by an addition with options"
    first, second = add.args
    other = second if first is value else first
    in_place = add.target in (trace.IN_PLACE["iadd"], "add_")
    if not isinstance(other, fx.Node):
        return "followed by the addition of a constant"
    if other is value:
        return "its output is added to itself"
    if in_place and first is not value:
        return "it is added in place to another tensor"
    return replace(chain, residual=other, in_place=in_place)


def _moved_past(root: nn.Module, chain: Chain) -> str:
    """Say what forbids to compute the layer where the chain ends: what lies between might change what it reads."""
    layer, last = _module(root, chain.call), chain.nodes[-1]
    own = _own_tensor(root, chain.call.args[0])
    add = next((node for node in chain.nodes if _is_add(node)), last)
    node = chain.call
    while (node := node.next) is not last:
        if node in chain.nodes:
            continue
        if _uses(root, node, layer, str(chain.call.target)):
            return f"its statistics are used by {describe(root, node)} before it could be computed"
        if _may_write(root, node) and (add < node or not own):
            what = "residual" if add < node else "input"
            return f"its {what} might be changed by {describe(root, node)} before it could be computed"
    later = [] if chain.residual is None else [user for user in chain.residual.users if add < user]
    if any(_may_write(root, user) for user in later if user not in chain.nodes):
        return "its residual is changed in place later, and the backward pass needs it"
    return ""


def _own_tensor(root: nn.Module, x: Any) -> bool:
    """Whether nothing but the layer can have the tensor: a convolution's or a matrix product's result, used once."""
    if not isinstance(x, fx.Node) or len(x.users) != 1 or x.op != "call_module":
        return False
    module = _module(root, x)
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not has_hooks(module)  # noqa: SLF001


def _may_write(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node might change a tensor that it did not make."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_module":
        return any(
            not type(m).__module__.startswith(("torch.nn.modules.", "batchnorm."))
            or getattr(m, "inplace", False)
            or has_hooks(m)
            for m in _module(root, node).modules()
        )
    if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
        return True
    name, module = getattr(node.target, "__name__", "_"), getattr(node.target, "__module__", None) or "torch"
    known = module.partition(".")[0] in ("torch", "_operator", "builtins", "math")
    in_place = name.endswith("_") or name == "setitem" or any(arg is True for arg in node.args)
    return in_place or not known


def _uses(root: nn.Module, node: fx.Node, layer: nn.Module, path: str) -> bool:
    if node.op == "call_module":
        return any(m is layer for m in _module(root, node).modules())
    return node.op == "get_attr" and str(node.target).startswith(f"{path}.")


def _is_identity(root: nn.Module, node: fx.Node) -> bool:
    module: Any = _module(root, node) if node.op == "call_module" else None
    identity = type(module) is nn.Identity or (type(module) in _DROPOUTS and module.p == 0)
    return identity and not has_hooks(module) and "forward" not in module.__dict__


def _identity_while(module: Any) -> dict[str, Any]:
    return {} if type(module) is nn.Identity else {"p": 0}


def _module(root: nn.Module, node: fx.Node) -> Any:
    return root.get_submodule(str(node.target))


def nodes_in(arg: Any) -> list[fx.Node]:
    """Return every node in nested arguments, as often as it is there."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(arg) if isinstance(leaf, fx.Node)]  # noqa: SLF001


def describe(root: nn.Module, node: fx.Node) -> str:
    """Name a node for the report: where it is, or what it is called."""
    if node.op == "call_module":
        return f"{node.target} ({type(_module(root, node)).__name__})"
    if node.op == "call_method":
        return f".{node.target}()"
    return str(getattr(node.target, "__name__", node.target)).rstrip("_")
