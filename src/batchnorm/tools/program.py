"""``fold_program``: folding in what ``torch.export`` has made."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from batchnorm.tools.fold import fold
from batchnorm.tools.report import Report

_aten = torch.ops.aten
_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    _aten.conv1d.default: nn.Conv1d,
    _aten.conv2d.default: nn.Conv2d,
    _aten.conv3d.default: nn.Conv3d,
    _aten.conv1d.padding: nn.Conv1d,
    _aten.conv2d.padding: nn.Conv2d,
    _aten.conv3d.padding: nn.Conv3d,
    _aten.conv_transpose1d.default: nn.ConvTranspose1d,
    _aten.conv_transpose2d.input: nn.ConvTranspose2d,
    _aten.conv_transpose3d.input: nn.ConvTranspose3d,
}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


#: The files of an archive without pickles, but for example inputs, which are read as tensors only.
_FILES = re.compile(
    r"[^/]+/(data/(weights/(weight_\d+|\w+_weights_config\.json)|constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|sample_inputs/\w+\.pt)|models/\w+\.json|archive_format|archive_version|byteorder|\.data/\w+)"
)
_TARGETS = re.compile(r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\.sym_\w+")
_EXPRESSIONS = re.compile(r"(?!.*__)([\w\s+\-*/(),<>=&|~%]|'\w+')*")


def load_program(path: str | Path) -> ExportedProgram:
    """Load an exported program without running anything that its file holds.

    ``torch.export.load`` unpickles example inputs, constants and some weights, and evaluates expressions for sizes.
    Here the file is looked through first.

    Parameters
    ----------
    path : str or Path
        A .pt2 file.

    Returns
    -------
    torch.export.ExportedProgram

    Raises
    ------
    ValueError
        It is no such file, or would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not _FILES.fullmatch(name):
                    raise ValueError(f"{path} holds {name!r}, which only code could read. Export the program again.")
                if "/sample_inputs/" in name:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                elif name.endswith(".json"):
                    _look_through(json.loads(archive.read(name)))
    except (zipfile.BadZipFile, json.JSONDecodeError, pickle.UnpicklingError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"{path} is no exported program that can be read without running code: {first_line}") from None
    program: ExportedProgram = torch.export.load(path)
    return program


def _look_through(value: Any) -> None:
    """Raise ValueError for pickles, functions outside torch's operators, and expressions that are more than sums."""
    if isinstance(value, list):
        for item in value:
            _look_through(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "use_pickle" and item:
                raise ValueError("the program holds pickled tensors, which could run code. Save its weights dense.")
            if key == "target" and isinstance(item, str) and not _TARGETS.fullmatch(item):
                raise ValueError(f"the program calls {item!r}, which is none of torch's operators")
            if key == "expr_str" and isinstance(item, str) and not _EXPRESSIONS.fullmatch(item):
                raise ValueError(f"the program has a size {item!r}, which is more than arithmetic")
            _look_through(item)


def fold_program(program: ExportedProgram) -> tuple[ExportedProgram, Report]:
    """Fold the batch normalizations of an exported program, and export it again.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Exported in eval mode, with its example inputs, which `fold` runs and compares.

    Returns
    -------
    torch.export.ExportedProgram, Report
        Dynamic dimensions stay dynamic; their upper and lower bounds are not kept.

    Raises
    ------
    ValueError
        The program has no example inputs, or no batch normalization that uses stored statistics.
    RuntimeError
        As `fold`.

    Examples
    --------
    >>> import torch
    >>> from batchnorm.tools.program import fold_program
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    >>> program, report = fold_program(torch.export.export(model, (torch.randn(2, 3, 8, 8),)))
    >>> report["1"].done
    'folded into 0'
    """
    if program.example_inputs is None:
        raise ValueError(
            "fold needs the example inputs of an exported program, and this one has none. Export it again."
        )
    args, kwargs = program.example_inputs
    graph_module: Any = program.module(check_guards=False)
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function":
            _as_module(graph_module, node)
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    for module in graph_module.modules():
        module.training = False
    folded, report = fold(graph_module, _named(args, kwargs), inplace=True, report=True)
    exported = torch.export.export(folded, args, kwargs, dynamic_shapes=_dynamic(program, args, kwargs))
    return exported, report


def _as_module(root: fx.GraphModule, node: fx.Node) -> None:
    """Give a call of a convolution, dense layer or normalization to a module at the place of its parameters."""
    names: tuple[str, ...]
    make: Callable[[dict[str, Any], Any], nn.Module]
    if node.target in _CONVOLUTIONS:
        names, make = ("weight", "bias"), _convolution(_CONVOLUTIONS[node.target])
    elif node.target is _aten.linear.default:
        names, make = ("weight", "bias"), lambda given, _: _linear(given)
    elif node.target is _aten.batch_norm.default:
        names, make = ("weight", "bias", "running_mean", "running_var"), _normalization
    else:
        return
    schema: Any = node.target
    given = {a.name: a.default_value for a in schema._schema.arguments if a.has_default_value()}  # noqa: SLF001
    given |= dict(zip((a.name for a in schema._schema.arguments), node.args, strict=False)) | node.kwargs  # noqa: SLF001
    paths = {str(given[name].target).rpartition(".")[0] for name in names if isinstance(given[name], fx.Node)}
    held = {name: given[name] for name in names if given[name] is not None}
    if len(paths) != 1 or any(
        n.op != "get_attr" or str(n.target).rpartition(".")[2] != name or len(n.users) > 1 for name, n in held.items()
    ):
        return  # shared, computed, or not its own
    (path,) = paths
    parent, _, own = path.rpartition(".")
    if not path or next(root.get_submodule(path).children(), None) is not None:
        return
    tensors: dict[str, Any] = {name: root.get_submodule(path).__getattr__(name) for name in held}
    module = make(given | tensors, given["input"].meta.get("val"))
    for name in names:
        if name in module._buffers:  # noqa: SLF001  # registered there
            module._buffers[name] = tensors[name]  # noqa: SLF001
        else:
            module._parameters[name] = tensors.get(name)  # noqa: SLF001
    setattr(root.get_submodule(parent), own, module)
    with root.graph.inserting_before(node):
        call = root.graph.call_module(path, (given["input"],))
    call.meta = node.meta
    node.replace_all_uses_with(call)
    root.graph.erase_node(node)


def _convolution(kind: Any) -> Callable[[dict[str, Any], Any], nn.Module]:
    def make(given: dict[str, Any], _: Any) -> nn.Module:
        weight, groups = given["weight"], given["groups"]
        transposed = "output_padding" in given
        first, second = weight.shape[0], weight.shape[1] * groups
        channels = (first, second) if transposed else (second, first)
        options = {name: _full(given[name], weight) for name in ("stride", "padding", "dilation")}
        if transposed:
            options["output_padding"] = _full(given["output_padding"], weight)
        module: nn.Module = kind(*channels, weight.shape[2:], groups=groups, bias=False, device="meta", **options)
        return module

    return make


def _full(value: Any, weight: torch.Tensor) -> Any:
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * (weight.dim() - 2) if len(values) == 1 else values


def _linear(given: dict[str, Any]) -> nn.Module:
    outputs, inputs = given["weight"].shape
    return nn.Linear(inputs, outputs, bias=False, device="meta")


def _normalization(given: dict[str, Any], x: Any) -> nn.Module:
    kind = _NORMS[x.dim()]
    module = kind(len(given["running_mean"]), given["eps"], given["momentum"], affine=False, device="meta")
    module.affine = given["weight"] is not None
    del module.num_batches_tracked
    return module.train(given["training"])


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and kwargs:
        raise ValueError("fold takes a program whose example inputs are all positional or all named; these are both.")
    return kwargs or args


def _dynamic(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the dynamic dimensions of a program, as ``torch.export`` takes them; None if there are none."""
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))  # noqa: SLF001  # torch.export's own
    if len(values) != len(leaves):
        return None
    dims = [
        {i: Dim.AUTO for i, size in enumerate(v.shape) if isinstance(size, torch.SymInt)}
        if isinstance(v, torch.Tensor)
        else None
        for v in values
    ]
    if not any(dims):
        return None
    positional, named = torch.utils._pytree.tree_unflatten(dims, spec)  # noqa: SLF001  # as above
    return named or tuple(positional)
