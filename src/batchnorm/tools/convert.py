"""``convert`` and ``revert``: torch's batch normalization for ours, with what follows it in the same pass; and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, overload

from torch import nn

from batchnorm.nn.batch_norm import EXTRAS
from batchnorm.tools import fuse, swap
from batchnorm.tools.copies import copied
from batchnorm.tools.graph import blocks
from batchnorm.tools.report import LEFT_ALONE, Report, Row
from batchnorm.tools.walk import normalizations, require_module

M = TypeVar("M", bound=nn.Module)


@overload
def convert(model: M, *, inplace: bool = False, report: Literal[False] = False) -> M: ...
@overload
def convert(model: M, *, inplace: bool = False, report: Literal[True]) -> tuple[M, Report]: ...
def convert(model: M, *, inplace: bool = False, report: bool = False) -> M | tuple[M, Report]:
    """Exchange torch's batch normalization for this package's, and fuse into it the addition and activation behind it.

    Outputs, gradients, buffers and ``state_dict`` stay the same, up to rounding; so do the class of each module
    (``isinstance``), its attributes, methods, hooks, mode and place, and the identity of parameters and buffers. A
    fusion holds for the forward as it was traced: where something that it depends on has changed (an attribute or a
    submodule was replaced, a hook registered, tensors do not have one shape and dtype), the module's own forward runs.

    Parameters
    ----------
    model : torch.nn.Module
        Layers of ``torch.nn.BatchNorm1d``, ``2d`` or ``3d``, and of subclasses that override nothing of it but the
        constructor, are exchanged; others are left alone.
    inplace : bool, default=False
        Whether to change ``model`` itself, so that an optimizer made for it goes on; otherwise a deep copy is changed.
    report : bool, default=False
        Whether to return what was done to each layer, and why not more.

    Returns
    -------
    torch.nn.Module, or that and a Report
        The converted model. The report has one row per batch normalization found.

    Raises
    ------
    TypeError
        ``model`` is not a module.

    Notes
    -----
    Fused are ReLU, ReLU6, leaky ReLU (slope 0.01), SiLU, hard-swish, exact GELU, sigmoid and tanh, as module, function
    or method, with an addition of two tensors of one shape and dtype before it or alone. Converting a converted model
    gives the same again. If an exception occurs, the model is as it was.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> model, report = batchnorm.convert(model, report=True)
    >>> print(report)
    name  done        reason
    1     fused relu
    """
    require_module(model, "convert")
    model = model if inplace else copied(model)
    with _all_or_nothing(model):
        found = normalizations(model)
        refusals = {layer: None if swap.is_ours(layer) else swap.to_ours(layer) for _, layer, _ in found}
        for module in model.modules():
            blocks.uninstall(module)
        analyses: dict[nn.Module, fuse.Analysis] = {}
        fuse.analyse(model, analyses)
        for module, analysis in analyses.items():
            if analysis.paths:
                blocks.install(module, analysis.paths)
        names = {module: name for name, module in model.named_modules()}
        outcomes = fuse.summary(analyses, names)
        rows = [_row(name, layer, others, refusals[layer], outcomes) for name, layer, others in found]
    return (model, Report(tuple(rows))) if report else model


@overload
def revert(model: M, *, inplace: bool = False, report: Literal[False] = False) -> M: ...
@overload
def revert(model: M, *, inplace: bool = False, report: Literal[True]) -> tuple[M, Report]: ...
def revert(model: M, *, inplace: bool = False, report: bool = False) -> M | tuple[M, Report]:
    """Exchange this package's layers for torch's, and give back each module its own forward: what undoes `convert`.

    Parameters
    ----------
    model : torch.nn.Module
        A converted model, or any other with this package's layers.
    inplace : bool, default=False
        Whether to change ``model`` itself; otherwise a deep copy is changed.
    report : bool, default=False
        Whether to return what was done to each layer.

    Returns
    -------
    torch.nn.Module, or that and a Report
        The model with the same state and torch's layers. Layers that torch cannot express are left alone: those with
        an activation.

    Raises
    ------
    TypeError
        ``model`` is not a module.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Tanh()))
    >>> type(batchnorm.revert(model)[0])
    <class 'torch.nn.modules.batchnorm.BatchNorm1d'>
    """
    require_module(model, "revert")
    model = model if inplace else copied(model)
    with _all_or_nothing(model):
        for module in model.modules():
            blocks.uninstall(module)
        rows = []
        for name, layer, others in normalizations(model):
            reason = swap.to_torch(layer)
            rows.append(Row(name, "swapped" if reason is None else LEFT_ALONE, reason or "", others))
    return (model, Report(tuple(rows))) if report else model


def _row(
    name: str,
    layer: nn.Module,
    others: tuple[str, ...],
    refusal: str | None,
    outcomes: dict[nn.Module, tuple[str, str]],
) -> Row:
    if refusal is not None:
        return Row(name, LEFT_ALONE, refusal, others)
    what, reason = outcomes.get(layer, ("", "no forward that could be traced calls it"))
    return Row(name, what or "swapped", reason, others)


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Give every module back its class and its own attributes if the block raises."""
    former = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, cls, attributes in former:
            object.__setattr__(module, "__class__", cls)
            for name in (blocks.PATHS, *EXTRAS):
                module.__dict__.pop(name, None)
                if name in attributes:
                    module.__dict__[name] = attributes[name]
        raise
