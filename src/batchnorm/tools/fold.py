"""``fold``: normalizations in eval mode disappear into the layers before or after them, each with a certificate."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812  # torch's own habit

from batchnorm.tools import certificate, linear, preserve, swap
from batchnorm.tools.affine import Affine, affine, applied, obstacle
from batchnorm.tools.copies import copied
from batchnorm.tools.examples import Examples
from batchnorm.tools.graph import blocks
from batchnorm.tools.graph.dataflow import is_observed, regions
from batchnorm.tools.patterns import describe, nodes_in
from batchnorm.tools.report import LEFT_ALONE, Report, Row
from batchnorm.tools.stand_ins import AddActivation, OfRank, Undo
from batchnorm.tools.walk import normalizations, require_module, require_normalization

M = TypeVar("M", bound=nn.Module)

#: How far the outputs of a copy in float64 may move, relative to the largest.
EXACT = 1e-8
_DROPOUTS = nn.modules.dropout._DropoutNd  # noqa: SLF001  # the only name of what they share
_DROPOUT_FUNCTIONS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
    *(torch.ops.aten.dropout.default, torch.ops.aten.feature_dropout.default, torch.ops.aten.alpha_dropout.default),
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
#: What a forward may ask of a weight that is about to change: that of the folded one is the same.
_LASTING = {"dtype", "device", "shape", "ndim"}


@overload
def fold(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    report: Literal[False] = False,
    undo: Literal[False] = False,
) -> M: ...
@overload
def fold(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    report: Literal[True],
    undo: Literal[False] = False,
) -> tuple[M, Report]: ...
@overload
def fold(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    report: Literal[False] = False,
    undo: Literal[True],
) -> tuple[M, Undo]: ...
@overload
def fold(
    model: M, example_inputs: Any = None, *, inplace: bool = False, report: Literal[True], undo: Literal[True]
) -> tuple[M, Report, Undo]: ...
def fold(
    model: M, example_inputs: Any = None, *, inplace: bool = False, report: bool = False, undo: bool = False
) -> M | tuple[Any, ...]:
    """Fold each batch normalization of a model in eval mode into the layer before or after it, and measure the error.

    A convolution, transposed convolution or dense layer followed by a normalization becomes one layer, through dropout
    and ``Identity``. A normalization that is followed by one, and could not be folded into the one before, becomes part
    of it where that is exact; two normalizations in a row become one.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode. Normalizations are torch's, this package's (their activation and residual stay), and frozen ones
        of any library that behave as batch normalization with stored statistics.
    example_inputs : Tensor or tuple, default=None
        Arguments of a call of the model. With them, a copy in float64 must give the same outputs before and after;
        errors are measured on the inputs that each layer gets; and parts whose callers cannot be traced are folded
        where the run shows that it is safe. A dict holds arguments by name.
    inplace : bool, default=False
        Whether to change ``model`` itself; otherwise a deep copy is changed.
    report : bool, default=False
        Whether to return one row per normalization: where it went, or why it stays.
    undo : bool, default=False
        Whether to return an object whose ``restore()`` gives the folded model every bit back.

    Returns
    -------
    torch.nn.Module, or a tuple of that, the Report and the Undo, as far as asked for
        A folded normalization is replaced by ``Identity``, or by its activation. A row's ``numbers`` are ``error``, the
        largest difference on the probe inputs; ``range``, the largest absolute value of these; and ``bound``, which no
        difference exceeds for inputs up to ``range`` where sums of products are computed as such.

    Raises
    ------
    TypeError
        ``model`` is not a module.
    ValueError
        ``model`` is in training mode, or has no batch normalization.
    RuntimeError
        The outputs for ``example_inputs`` would change. The model is as it was.

    Warns
    -----
    UserWarning
        Without ``report``: nothing could be folded.

    Notes
    -----
    New weights are computed in float64 and rounded once to the dtype of the layer; errors are measured on the CPU.
    The model that comes out is for evaluation, and takes calls with the optional arguments of its forward at their
    defaults. If an exception occurs, the model is as it was.

    References
    ----------
    DERIVATION (32), (84) to (87). Jacob et al. 2018, :arxiv:`1712.05877`, section 3.2.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    >>> folded, report = batchnorm.fold(model, report=True)
    >>> folded
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    >>> report["1"].done, report["1"].numbers["error"] <= report["1"].numbers["bound"]
    ('folded into 0', True)
    """
    require_module(model, "fold")
    require_normalization(model, "fold")
    if model.training:
        raise ValueError(
            "fold takes a model in eval mode: in training mode normalization depends on the batch. "
            "Call model.eval() first."
        )
    model = model if inplace else copied(model)
    changes = Undo()
    examples = Examples.of(example_inputs)
    try:
        with torch.no_grad(), preserve.random_state(model), _unfused(model):
            if examples is not None:
                _verify(model, examples)
            rows = _Fold(model, examples, changes).run()
    except BaseException:
        changes.restore()
        raise
    if not len(changes) and not report:
        warnings.warn(
            f"fold could not fold any of {len(rows)} normalizations; the first: {rows[0].name or 'the model'}: "
            f"{rows[0].reason}. report=True returns all reasons.",
            stacklevel=2,
        )
    results = [model, *([Report(tuple(rows))] if report else []), *([changes] if undo else [])]
    return tuple(results) if len(results) > 1 else model


@contextlib.contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """Give each block of a converted model its own forward; after a fold its paths check their conditions again."""
    former = [(module, module.__dict__[blocks.PATHS]) for module in model.modules() if blocks.PATHS in module.__dict__]
    for module, _ in former:
        blocks.uninstall(module)
    try:
        yield
    finally:
        for module, paths in former:
            blocks.install(module, paths)


def _verify(model: nn.Module, examples: Examples) -> None:
    """Fold a copy in float64, where nothing is rounded that matters, and compare its outputs before and after."""
    twin, doubled = copied(model).double(), examples.double()
    try:
        before = doubled.run(twin)
    except RuntimeError:  # it computes in a dtype of its own
        twin, doubled = copied(model), examples
        before = doubled.run(twin)
    _Fold(twin, doubled, Undo()).run()
    for one, other in zip(before, doubled.run(twin), strict=True):
        tolerance = EXACT if one.dtype == torch.float64 else torch.finfo(one.dtype).eps ** 0.5
        if one.is_floating_point() and not _difference(one, other) <= tolerance * max(1.0, _largest(one)):
            raise RuntimeError(
                f"folding this model would change its output by {_difference(one, other):.2g} of {_largest(one):.2g}: "
                "a forward uses a layer in a way that cannot be seen. The model is unchanged. Fold its parts instead."
            )


def _difference(one: Tensor, other: Tensor) -> float:
    return _largest(one.double() - other.double())


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().amax()) if x.numel() else 0.0


@dataclass
class _Calls:
    """Where one module is called, and what else is done with it."""

    nodes: list[tuple[nn.Module, fx.Node]] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)


@dataclass
class _Seen:
    """What a run of the example inputs has shown of one module."""

    calls: int = 0
    x: Tensor | None = None
    ranks: set[int] = field(default_factory=set)
    origins: list[nn.Module | None] = field(default_factory=list)


class _No(Exception):  # noqa: N818  # no error: a reason
    """Why something cannot be folded."""


class _Fold:
    """One run over a model."""

    def __init__(self, model: nn.Module, examples: Examples | None, changes: Undo) -> None:
        self.model, self.changes = model, changes
        self.found = normalizations(model)
        self.layers = {layer for _, layer, _ in self.found}
        self.names = {module: name for name, module in model.named_modules()}
        self.places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        for parent in model.modules():
            for name, child in parent._modules.items():  # noqa: SLF001  # its places, shared ones too
                if child is not None:
                    self.places.setdefault(child, []).append((parent, name))
        leaves = {m for m in model.modules() if isinstance(m, linear.KINDS) and self.layers.isdisjoint(m.modules())}
        found = regions(model, self.layers | leaves)
        self.calls: dict[nn.Module, _Calls] = {}
        self.hidden: dict[nn.Module, str] = {}
        self.held: dict[nn.Module, str] = {}
        for module, error in reversed(found.opaque.items()):
            reason = f"the forward of {self.names[module] or type(module).__name__} cannot be traced ({error})"
            self.hidden |= dict.fromkeys(module.modules(), reason)
        for root, traces in found.traces.items():
            for one in traces:
                self._index(root, one.graph, one.reads)
        self.seen = None if examples is None else self._observe(examples)

    def run(self) -> list[Row]:
        rows: dict[str, Row] = {}
        backward: dict[str, str] = {}
        for name, layer, others in self.found:
            try:
                rows[name] = self._into_the_one_before(Row(name, LEFT_ALONE, "", others), layer)
            except _No as reason:
                backward[name] = str(reason)
        for name, layer, others in reversed(self.found):
            if name not in rows:
                try:
                    rows[name] = self._into_the_one_after(Row(name, LEFT_ALONE, "", others), layer)
                except _No as reason:
                    reasons = dict.fromkeys((backward[name], str(reason)))
                    rows[name] = Row(name, LEFT_ALONE, "; ".join(reasons), others)
        return [rows[name] for name, _, _ in self.found]

    # What is known.

    def _index(self, root: nn.Module, graph: fx.Graph, reads: dict[str, dict[str, Any]]) -> None:
        for node in graph.nodes:
            if node.op == "call_module":
                self._of(root.get_submodule(str(node.target))).nodes.append((root, node))
            elif node.op == "get_attr" and not all(_asks(user) for user in node.users):
                path, _, name = str(node.target).rpartition(".")
                self._of(root.get_submodule(path)).reads.add(name)
        for path, values in reads.items():
            self._of(root.get_submodule(path)).reads.update(values.keys() - {"training"})
            for name, value in values.items():
                for leaf in torch.utils._pytree.tree_leaves(value):  # noqa: SLF001  # lists, tuples and dicts
                    if isinstance(leaf, nn.Module) and leaf in self.layers:
                        self.held[leaf] = f"{path}.{name}".lstrip(".")

    def _of(self, module: nn.Module) -> _Calls:
        return self.calls.setdefault(module, _Calls())

    def _observe(self, examples: Examples) -> dict[nn.Module, _Seen]:
        """Run the model, and note what its layers get and where it came from."""
        seen: dict[nn.Module, _Seen] = {}
        made: dict[int, nn.Module] = {}

        def see(module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
            one = seen.setdefault(module, _Seen())
            one.calls += 1
            x = args[0] if args else None
            if isinstance(x, Tensor):
                one.ranks.add(x.dim())
                one.origins.append(made.get(x.data_ptr()))
                if one.x is None and x.numel():
                    one.x = x[:1].detach().clone()
            if isinstance(y, Tensor):
                made[y.data_ptr()] = module

        watched = [m for m in self.model.modules() if m in self.layers or isinstance(m, linear.KINDS)]
        hooks = [m.register_forward_hook(see) for m in watched if not isinstance(m, torch.jit.ScriptModule)]
        try:
            with preserve.buffers(self.model):
                examples.run(self.model)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    # Into the layer before.

    def _into_the_one_before(self, row: Row, layer: nn.Module) -> Row:
        calls = self._callable(layer)
        origins = [self._origin(root, node) for root, node in calls]
        before = self._one_partner(origins, "follows")
        if len(self._of(before).nodes) != len({node for _, node in origins}):
            raise _No(f"{self.names[before]} is called elsewhere too")
        self._can_change(before)
        self._is_seen(before, layer)
        found = affine(layer, linear.rank(before))
        if isinstance(found, str):
            raise _No(found)
        if len(found.mean) != linear.outputs(before):
            raise _No(f"it has {len(found.mean)} channels, and {self.names[before]} gives {linear.outputs(before)}")
        rows = linear.rows(before) * found.scale.view(-1, 1, 1)  # (86), (87)
        bias = found.bias + (linear.bias_of(before) - found.mean) * found.scale  # (85)
        x = self._probe(before)

        def former(x: Tensor) -> Tensor:
            return _normalized(_on_cpu(layer), found, _on_cpu(before)(x))

        rest = self._rest(layer, found, calls, before)
        bound = certificate.of_linear_then_affine(before, found, _largest(x))
        numbers = self._exchange(before, rows, bias, x, former, bound)
        self._replace(layer, rest)
        return replace(row, done=f"folded into {self.names[before]}", numbers=numbers)

    def _origin(self, root: nn.Module, node: fx.Node) -> tuple[nn.Module, fx.Node]:
        """Return the call of the layer that makes the input, if nothing else uses it."""
        value = _input(node)
        while isinstance(value, fx.Node):
            through = self._is_identity(root, value)
            if not through and not self._is_linear(root, value):
                break
            times = sum(nodes_in((user.args, user.kwargs)).count(value) for user in value.users)
            if times != 1:
                raise _No(f"its input, {_described(root, value)}, is used {times} times")
            if not through:
                return root, value
            value = _input(value)
        raise _No(f"it follows {_described(root, value)}")

    def _is_linear(self, root: nn.Module, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), linear.KINDS)

    # Into the layer after.

    def _into_the_one_after(self, row: Row, layer: nn.Module) -> Row:
        calls = self._callable(layer)
        users = [self._user(root, node) for root, node in calls]
        after = self._one_partner(users, "is followed by")
        if len(self._of(after).nodes) != len({node for _, node in users}):
            raise _No(f"{self.names[after]}, which follows, is called elsewhere too")
        if any(len(node.args) + len(node.kwargs) > 1 for _, node in calls):
            raise _No("a residual is added to it")
        if after in self.layers:
            return self._into_a_normalization(row, layer, after)
        self._can_change(after)
        self._is_seen(layer, after)
        found = affine(layer, linear.rank(after))
        if isinstance(found, str):
            raise _No(found)
        if found.after or found.activation:
            raise _No("it applies an activation")
        if len(found.mean) != linear.inputs(after):
            raise _No(f"it has {len(found.mean)} channels, and {self.names[after]} takes {linear.inputs(after)}")
        if found.shift.abs().amax() > 0 and linear.pads_with_zeros(after):
            raise _No(
                f"{self.names[after]} ({type(after).__name__}), which follows, pads with zeros after it: at the border "
                "one set of weights cannot do both"
            )
        rows = linear.rows(after)
        bias = linear.bias_of(after) + (rows * linear.per_input(after, found.shift)).sum((1, 2))
        x = self._probe(layer if self.seen else after)

        def former(x: Tensor) -> Tensor:
            y: Tensor = _on_cpu(after)(_normalized(_on_cpu(layer), found, x))
            return y

        bound = certificate.of_affine_then_linear(found, after, _largest(x))
        rest = self._identity(layer, after)
        numbers = self._exchange(after, rows * linear.per_input(after, found.scale), bias, x, former, bound)
        self._replace(layer, rest)
        return replace(row, done=f"folded into {self.names[after]}", numbers=numbers)

    def _user(self, root: nn.Module, node: fx.Node) -> tuple[nn.Module, fx.Node]:
        """Return the call that takes the output, if nothing else does."""
        value = node
        while len(value.users) == 1:
            (user,) = value.users
            if self._is_identity(root, user):
                value = user
                continue
            if user.op == "call_module" and _input(user) is value:
                module = root.get_submodule(str(user.target))
                if module in self.layers or isinstance(module, linear.KINDS):
                    return root, user
            raise _No(f"it is followed by {_described(root, user)}")
        raise _No(f"its output is used {len(value.users)} times" if value.users else "its output is not used")

    def _into_a_normalization(self, row: Row, layer: nn.Module, after: Any) -> Row:
        self._is_seen(layer, after)
        self._callable(after)
        rank = _rank(layer, after, self.seen)
        first, second = affine(layer, rank), affine(after, rank)
        for found in (first, second):
            if isinstance(found, str):
                raise _No(found)
        assert isinstance(first, Affine)
        assert isinstance(second, Affine)
        if first.after or first.activation:
            raise _No("it applies an activation")
        held = after._parameters | after._buffers  # noqa: SLF001  # a parametrization takes them out of these
        if not {"weight", "bias"} <= held.keys():
            raise _No(f"the weight of {self.names[after]}, which follows, is computed")
        scale = first.scale * second.scale
        both = Affine(
            second.mean, scale, second.bias + second.scale * first.shift - second.mean * (second.scale - scale)
        )
        invstd = (after.running_var.detach().cpu().double() + getattr(after, "eps", 1e-5)).rsqrt()
        shape = (2, len(scale), 3, 2, 2)[:rank]
        x = self._probe(layer) if self.seen else torch.randn(shape).to(after.running_mean.dtype)
        alone = _on_cpu(after)
        expected = _normalized(alone, second, _normalized(_on_cpu(layer), first, x))
        tensors = {"weight": (scale / invstd).to(after.running_mean), "bias": both.bias.to(after.running_mean)}
        bound = certificate.of_affine_then_affine(first, second, both, after.running_mean.dtype, _largest(x))
        changed = linear.changed(alone, {name: tensor.cpu() for name, tensor in tensors.items()})
        error = _difference(expected, _normalized(changed, both, x))
        if not error <= bound:
            raise _No(f"on probe inputs the folded layer differs by {error:.2g}, more than rounding ({bound:.2g})")
        for name, tensor in tensors.items():
            if name in after._parameters:  # noqa: SLF001  # as above
                self.changes.exchange(after._parameters, name, nn.Parameter(tensor, False))  # noqa: SLF001  # as above
            else:
                self.changes.exchange(after._buffers, name, tensor)  # noqa: SLF001  # as above
        if getattr(after, "affine", None) is False:
            self.changes.exchange(after.__dict__, "affine", True)
        numbers = {"error": error, "bound": bound, "range": _largest(x)}
        self._replace(layer, nn.Identity().eval())
        return replace(row, done=f"folded into {self.names[after]}", numbers=numbers)

    # What both need.

    def _callable(self, layer: nn.Module) -> list[tuple[nn.Module, fx.Node]]:
        reason = obstacle(layer)
        if reason:
            raise _No(reason)
        if is_observed(layer):
            raise _No("it has hooks, or a forward of this object, which see its output")
        known = self._of(layer)
        if layer in self.held:
            raise _No(f"a forward takes it from {self.held[layer]}, where it is not registered and cannot be replaced")
        if known.reads:
            raise _No(f"a forward reads its {sorted(known.reads)[0]}")
        if not known.nodes:
            raise _No(self.hidden.get(layer, "no forward calls it"))
        for root, node in known.nodes:
            allowed = {"input", "residual"} if swap.is_ours(layer) else {"input", "x"}
            if len(node.args) > (2 if swap.is_ours(layer) else 1) or not node.kwargs.keys() <= allowed:
                raise _No(f"it is called with more than its input in {self.names[root] or 'the model'}")
        return known.nodes

    def _one_partner(self, calls: list[tuple[nn.Module, fx.Node]], how: str) -> Any:
        """Return the module that is called once for each call of the normalization."""
        modules = list(dict.fromkeys(root.get_submodule(str(node.target)) for root, node in calls))
        if len(modules) > 1:
            raise _No(f"it {how} {' and '.join(self.names[module] for module in modules)}, in several calls")
        if len(set(calls)) < len(calls):
            raise _No(f"it {how} one call of {self.names[modules[0]]} several times")
        return modules[0]

    def _can_change(self, layer: nn.Module) -> None:
        reason = linear.refusal(layer)
        if reason:
            raise _No(f"{reason}, {self.names[layer]}")
        read = self._of(layer).reads & {"weight", "bias"}
        if read:
            raise _No(f"a forward reads the {sorted(read)[0]} of {self.names[layer]}")

    def _is_seen(self, first: nn.Module, second: nn.Module) -> None:
        """Raise unless all callers are traced, or the example inputs have shown how these two are called."""
        hidden = self.hidden.get(first) or self.hidden.get(second)
        if self.seen is None:
            if hidden:
                raise _No(f"{hidden}, and might call its layers in other ways; pass example_inputs")
            return
        one, other = self.seen.get(first), self.seen.get(second)
        if one is None or other is None:
            raise _No("the example inputs do not reach it")
        if hidden and not (one.calls == other.calls and all(origin is first for origin in other.origins)):
            raise _No(f"{hidden}, and the example inputs show other calls of {self.names[first]}")

    def _is_identity(self, root: nn.Module, node: fx.Node) -> bool:
        if node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS:
            given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
            training = given.get("training", given.get("train", node.target is not F.feature_alpha_dropout))
            return training is False or given.get("p") in (0, 0.0)
        if node.op != "call_module":
            return False
        module: Any = root.get_submodule(str(node.target))
        if is_observed(module):
            return False
        if isinstance(module, _DROPOUTS) and type(module).__module__ == "torch.nn.modules.dropout":
            return not module.training or module.p == 0
        return type(module) in (nn.Identity, OfRank)

    def _probe(self, layer: nn.Module) -> Tensor:
        seen = self.seen.get(layer) if self.seen else None
        return (linear.probe(layer) if seen is None or seen.x is None else seen.x).cpu()

    def _exchange(
        self, layer: Any, rows: Tensor, bias: Tensor, x: Tensor, former: Any, bound: float
    ) -> dict[str, float]:
        """Give a layer new weights, after they have been measured."""
        old = layer.weight
        weight = torch.empty_like(old).copy_(linear.weight_of(layer, rows))
        bias = bias.to(old)
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise _No(f"the folded weights of {self.names[layer]} would overflow {old.dtype}")
        expected = former(x)
        y = linear.changed(_on_cpu(layer), {"weight": weight.cpu(), "bias": bias.cpu()})(x)
        if y.dtype != expected.dtype:
            raise _No(f"its output is {expected.dtype}, and that of {self.names[layer]} {y.dtype}")
        error = _difference(expected, y)
        if not error <= bound:
            raise _No(f"on probe inputs the folded layer differs by {error:.2g}, more than rounding ({bound:.2g})")
        learns = old.requires_grad
        self.changes.exchange(layer._parameters, "weight", nn.Parameter(weight, learns))  # noqa: SLF001  # registered
        self.changes.exchange(layer._parameters, "bias", nn.Parameter(bias, learns))  # noqa: SLF001  # as above
        return {"error": error, "bound": bound, "range": _largest(x)}

    def _rest(self, layer: Any, found: Affine, calls: list[tuple[nn.Module, fx.Node]], before: nn.Module) -> nn.Module:
        if any(len(node.args) + len(node.kwargs) > 1 for _, node in calls):
            return AddActivation(found.activation).eval()
        if found.activation:
            return _ACTIVATIONS[found.activation]().eval()
        if found.after:
            return found.after[0] if len(found.after) == 1 else nn.Sequential(*found.after)
        return self._identity(layer, before)

    def _identity(self, layer: nn.Module, partner: nn.Module) -> nn.Module:
        """Return an identity, for one rank where another could have been meant."""
        rank = linear.rank(partner)
        if self.seen is None or rank > 3:
            return (OfRank(rank) if rank <= 3 else nn.Identity()).eval()
        ranks = self.seen[layer].ranks
        if ranks != {rank}:
            raise _No(f"its inputs have rank {sorted(ranks)}, with other channels than those of {self.names[partner]}")
        return nn.Identity().eval()

    def _replace(self, layer: nn.Module, by: nn.Module) -> None:
        for parent, name in self.places[layer]:
            self.changes.exchange(parent._modules, name, by)  # noqa: SLF001  # in its place


def _normalized(layer: Any, found: Affine, x: Tensor) -> Tensor:
    """Call a normalization without what follows inside it."""
    if swap.is_ours(layer):
        y: Tensor = layer.call(x)
        return y
    if not found.after:
        return layer(x)  # type: ignore[no-any-return]
    mean, var, weight, bias = (getattr(layer, name, None) for name in ("running_mean", "running_var", "weight", "bias"))
    if mean is None or var is None:
        return applied(replace(found, after=()), x)
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, getattr(layer, "eps", 1e-5))


def _on_cpu(module: Any) -> Any:
    """Return the module, or a copy on the CPU: elsewhere sums of products may not be computed as such."""
    tensors = (*module.parameters(), *module.buffers())
    return module if all(t.device.type == "cpu" for t in tensors) else copied(module).cpu()


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))


def _asks(user: fx.Node) -> bool:
    return user.op == "call_function" and user.target is getattr and user.args[1] in _LASTING


def _described(root: nn.Module, node: Any) -> str:
    if not isinstance(node, fx.Node):
        return "a constant"
    if node.op in ("placeholder", "output"):
        return f"the {'input' if node.op == 'placeholder' else 'output'} of {type(root).__name__}"
    return describe(root, node)


def _rank(first: nn.Module, second: nn.Module, seen: dict[nn.Module, _Seen] | None) -> int:
    if seen is not None:
        return min(seen[first].ranks, default=4)
    for one in (first, second):
        for rank, kind in ((2, nn.BatchNorm1d), (5, nn.BatchNorm3d)):
            if isinstance(one, kind):
                return rank
    return 4
