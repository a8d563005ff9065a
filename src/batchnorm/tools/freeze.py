"""``freeze`` and ``unfreeze``: stored statistics in training too, and back, with nothing lost."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal, TypeVar, overload

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from batchnorm.statistics.policies import BATCH, Frozen, Keyed, Policy
from batchnorm.tools import swap
from batchnorm.tools.copies import copied
from batchnorm.tools.report import LEFT_ALONE, Report, Row
from batchnorm.tools.walk import normalizations, require_module, require_normalization

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True, repr=False)
class Thawable(Frozen):
    """The policy of a layer that `freeze` has frozen, with what `unfreeze` restores.

    Attributes
    ----------
    former : Policy or None
        The policy before; None for a layer that was torch's own.
    learned : tuple of str
        The parameters that `freeze` stopped from learning.
    """

    former: Policy | None = None
    learned: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the constructor's call of `Frozen`: the rest is for `unfreeze`."""
        return "Frozen()"


@overload
def freeze(model: M, *, affine: bool = False, inplace: bool = False, report: Literal[False] = False) -> M: ...
@overload
def freeze(model: M, *, affine: bool = False, inplace: bool = False, report: Literal[True]) -> tuple[M, Report]: ...
def freeze(model: M, *, affine: bool = False, inplace: bool = False, report: bool = False) -> M | tuple[M, Report]:
    """Make each batch normalization use its running statistics in training too, and leave them as they are.

    Frozen layers stay frozen under ``train()``, ``deepcopy``, pickle, ``load_state_dict`` and DistributedDataParallel.
    The ``state_dict`` does not change. `unfreeze` restores the former policy of each layer.

    Parameters
    ----------
    model : torch.nn.Module
        Its layers of this package get the policy ``Frozen()``. Layers that `convert` would exchange are exchanged for
        this package's first, and `unfreeze` exchanges them back.
    affine : bool, default=False
        Whether to stop ``weight`` and ``bias`` of these layers from learning too (``requires_grad``).
    inplace : bool, default=False
        Whether to change ``model`` itself; otherwise a deep copy is changed.
    report : bool, default=False
        Whether to return what was done to each layer, and why not.

    Returns
    -------
    torch.nn.Module, or that and a Report
        The frozen model. The report has one row per batch normalization found.

    Raises
    ------
    TypeError
        ``model`` is not a module.
    ValueError
        ``model`` has no batch normalization.

    Warns
    -----
    UserWarning
        Without ``report``: a layer was left alone whose running statistics still change in training, such as
        ``SyncBatchNorm`` or a lazy layer.

    Notes
    -----
    A frozen layer normalizes each sample by itself, so per-sample gradients (``torch.func.vmap`` over
    ``torch.func.grad``) work in training mode. Layers in eval mode are frozen as well; their mode is left alone.

    References
    ----------
    DERIVATION (33), (161) with no value counted.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> frozen, report = batchnorm.freeze(model, report=True)
    >>> print(report)
    name  done    reason
    1     frozen  exchanged for this package's layer
    >>> y = frozen.train()(torch.randn(4, 3, 6, 6))
    >>> frozen[1].num_batches_tracked, type(batchnorm.unfreeze(frozen)[1])
    (tensor(0), <class 'torch.nn.modules.batchnorm.BatchNorm2d'>)
    """
    require_module(model, "freeze")
    require_normalization(model, "freeze")
    model = model if inplace else copied(model)
    found = normalizations(model)
    # All of them before the first one changes: layers may share a parameter.
    learned = {layer: _learning(layer) if affine else () for _, layer, _ in found}
    rows, moving = [], []
    for name, layer, others in found:
        reason = _refusal(layer)
        if reason is not None:
            rows.append(Row(name, LEFT_ALONE, reason, others))
            if _moves(layer):
                moving.append(f"{name or 'the model'} ({reason})")
            continue
        rows.append(_freeze(name, layer, others, learned[layer]))
    if moving and not report:
        warnings.warn(
            f"freeze left alone {len(moving)} of {len(found)} layers, whose statistics still change in training: "
            f"{'; '.join(moving[:3])}{'; ...' if len(moving) > 3 else ''}. report=True returns all reasons.",
            stacklevel=2,
        )
    return (model, Report(tuple(rows))) if report else model


@overload
def unfreeze(model: M, *, inplace: bool = False, report: Literal[False] = False) -> M: ...
@overload
def unfreeze(model: M, *, inplace: bool = False, report: Literal[True]) -> tuple[M, Report]: ...
def unfreeze(model: M, *, inplace: bool = False, report: bool = False) -> M | tuple[M, Report]:
    """Restore what each layer was before `freeze`: its policy, its class, and which parameters learn.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `freeze` returned, or a copy of it.
    inplace : bool, default=False
        Whether to change ``model`` itself; otherwise a deep copy is changed.
    report : bool, default=False
        Whether to return what was done to each layer, and why not.

    Returns
    -------
    torch.nn.Module, or that and a Report
        The model, with its state as it is. Layers that were built with ``statistics=Frozen()`` stay frozen.

    Raises
    ------
    TypeError
        ``model`` is not a module.
    ValueError
        ``model`` has no batch normalization.

    Examples
    --------
    >>> import batchnorm
    >>> layer = batchnorm.BatchNorm2d(8, statistics=batchnorm.Ghost(32))
    >>> batchnorm.unfreeze(batchnorm.freeze(layer)).statistics
    Ghost(size=32)
    """
    require_module(model, "unfreeze")
    require_normalization(model, "unfreeze")
    model = model if inplace else copied(model)
    rows = []
    layer: Any
    for name, layer, others in normalizations(model):
        kept = _kept(layer)
        if kept is None:
            rows.append(Row(name, LEFT_ALONE, "freeze did not freeze it", others))
            continue
        for parameter in kept.learned:
            layer.get_parameter(parameter).requires_grad_(True)
        if kept.former is None:
            layer.statistics = BATCH
            reason = swap.to_torch(layer)
        else:
            layer.statistics, reason = kept.former, None
        rows.append(Row(name, "unfrozen", reason or "", others))
    return (model, Report(tuple(rows))) if report else model


def _freeze(name: str, layer: Any, others: tuple[str, ...], learned: tuple[str, ...]) -> Row:
    """Freeze one layer that can be frozen."""
    exchanged = not swap.is_ours(layer)
    if exchanged:
        swap.to_ours(layer)
    former = layer.statistics
    kept = Thawable(former=None if exchanged else former, learned=learned)
    layer.statistics = dataclasses.replace(former, each=kept) if isinstance(former, Keyed) else kept
    for parameter in learned:
        layer.get_parameter(parameter).requires_grad_(False)
    return Row(name, "frozen", "exchanged for this package's layer" if exchanged else "", others)


def _kept(layer: nn.Module) -> Thawable | None:
    policy = _acting(layer)
    return policy if isinstance(policy, Thawable) else None


def _acting(layer: nn.Module) -> object:
    policy = getattr(layer, "statistics", None)
    return policy.each if isinstance(policy, Keyed) else policy


def _learning(layer: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, parameter in layer.named_parameters() if parameter.requires_grad)


def _refusal(layer: Any) -> str | None:
    if swap.is_ours(layer):
        if isinstance(_acting(layer), Frozen):
            return "it is frozen already"
    elif (reason := swap.refusal(layer)) is not None:
        return reason
    if layer.running_mean is None or layer.running_var is None or not layer.track_running_stats:
        return "it keeps no running statistics"
    return None


def _moves(layer: nn.Module) -> bool:
    return isinstance(layer, _NormBase) and layer.track_running_stats and not isinstance(_acting(layer), Frozen)
