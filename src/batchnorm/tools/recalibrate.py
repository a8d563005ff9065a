"""``recalibrate``: population statistics in the place of running ones, measured on the network as it is."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.parameter import is_lazy

from batchnorm.statistics import across
from batchnorm.statistics.policies import Frozen, Keyed
from batchnorm.statistics.population import Population
from batchnorm.tools import preserve
from batchnorm.tools.report import LEFT_ALONE, Report, row
from batchnorm.tools.walk import normalizations, require_module

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # some builds of torch have none

M = TypeVar("M", bound=nn.Module)
Variance = Literal["exact", "averaged"]

RECALIBRATED = "recalibrated"


@overload
def recalibrate(
    model: M,
    loader: Iterable[Any],
    *,
    inplace: bool = False,
    report: Literal[False] = False,
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
    layers: Collection[str] | None = None,
    variance: Variance = "exact",
    group: ProcessGroup | None = None,
) -> M: ...
@overload
def recalibrate(
    model: M,
    loader: Iterable[Any],
    *,
    inplace: bool = False,
    report: Literal[True],
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
    layers: Collection[str] | None = None,
    variance: Variance = "exact",
    group: ProcessGroup | None = None,
) -> tuple[M, Report]: ...
def recalibrate(
    model: M,
    loader: Iterable[Any],
    *,
    inplace: bool = False,
    report: bool = False,
    batches: int | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
    layers: Collection[str] | None = None,
    variance: Variance = "exact",
    group: ProcessGroup | None = None,
) -> M | tuple[M, Report]:
    r"""Replace the running statistics of a model by those of its inputs over a whole data set: Algorithm 2.

    .. math::
        \mu = \sum_k p_k \mu_k, \qquad
        v = \frac{m}{m - 1} \Bigl(\sum_k p_k v_k + \sum_k p_k (\mu_k - \mu)^2\Bigr), \qquad
        p_k = m_k / m, \quad m = \sum_k m_k

    over the batches k, each with :math:`m_k` values per channel: the mean and the unbiased variance of all values
    that reached the layer, as if they had come in one batch. One pass over the data; the weights do not change.

    Parameters
    ----------
    model : torch.nn.Module
        Layers that derive from ``torch.nn.BatchNorm1d``, ``2d`` or ``3d``, or are ``SyncBatchNorm``, with running
        statistics. Left alone are layers in eval mode inside a ``model`` in training mode (frozen), and those that no
        batch reaches.
    loader : iterable
        Batches of any sizes: a ``DataLoader``, a list, a generator. Gone through once.
    inplace : bool, default=False
        Whether to change ``model`` itself; otherwise a deep copy is changed.
    report : bool, default=False
        Whether to return what was done to each layer, and why not.
    batches : int, default=None
        The most batches to take from ``loader``. None: all.
    forward : callable, default=None
        ``forward(model, batch)`` runs the model on what the loader yields; its result is not used. None: the model is
        called with the batch if that is a tensor, else with the first element of a tuple or list.
    layers : collection of str, default=None
        Names of the layers to recalibrate, as in ``model.named_modules()``; the others use the statistics that they
        have. None: all that can be.
    variance : {'exact', 'averaged'}, default='exact'
        ``'averaged'`` leaves out the second sum, the variance between the means of the batches, and divides by
        :math:`m - K` for K batches: Algorithm 2 as printed, where all :math:`m_k` are equal. It is what the layer
        divided by in training, where batches differ by more than chance: one class or one domain in each, say.
    group : torch.distributed.ProcessGroup, default=None
        Processes that each have a share of the data, of any size: all get the statistics of all shares, bit for bit the
        same. ``torch.distributed.group.WORLD`` is everybody. None: processes do not communicate.

    Returns
    -------
    torch.nn.Module, or that and a Report
        The model with its modes as they were. The report has one row per batch normalization found.

    Raises
    ------
    TypeError
        ``model`` is not a module, or ``forward`` is missing where the model cannot be called with what came.
    ValueError
        No batch came; a layer or a parameter does not know its size yet; ``layers`` names what is not there or cannot
        be recalibrated; a layer saw a value that is not finite, or only one; an option is out of range.
    RuntimeError
        Another process of ``group`` raised.

    Notes
    -----
    Batch normalization runs in training mode, on the statistics of each batch; everything else runs in eval mode
    (dropout and stochastic depth off) and without gradients. So a layer sees inputs that the layers before it have
    normalized with batch statistics, as in training; of large batches, since the noise of small ones adds up from
    layer to layer. Statistics are collected and merged in float64, centred before they are squared (DERIVATION
    (51) to (53)), and rounded once, to the buffers. A layer called several times in a forward counts every call;
    ``num_batches_tracked`` becomes the number of calls, so that ``momentum=None`` goes on averaging correctly.
    ``momentum`` does not matter, nor whether parameters require gradients.

    Tensors are moved to the device of the model. Random state, modes, hooks and all other buffers are put back. If an
    exception occurs, here, in the model or in the loader, the model is as it was. Of a model wrapped for distributed
    training give the module inside: the wrapper talks to the other processes in each forward.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, Algorithm 2. Wu and Johnson 2021, :arxiv:`2105.07576`, section 3.
    DERIVATION (42), (48) to (53).

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1)).eval()
    >>> model = batchnorm.recalibrate(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0], [4.0]])])
    >>> model[0].running_mean, model[0].running_var
    (tensor([4.]), tensor([14.]))
    """
    require_module(model, "recalibrate")
    _check(model, batches, variance)
    model = model if inplace else copy.deepcopy(model)
    found = normalizations(model)
    reasons = {layer: _refusal(layer, model) for _, layer, _ in found}
    if layers is not None:
        _choose(found, reasons, layers)
    measured = {layer: Population(name) for name, layer, _ in found if not reasons[layer]}
    if measured:
        with across.together(group, measured) if group is not None else nullcontext():
            number = _measure(model, measured, loader, batches, forward or _call)
        if number == 0 and not any(p.count for p in measured.values()):
            raise ValueError(
                "recalibrate needs at least one batch; the loader gave none. An empty data set, drop_last=True with "
                "fewer examples than a batch, or a generator that was used before?"
            )
        values = {layer: p.result(layer, variance) for layer, p in measured.items() if p.count}
        with torch.no_grad():
            for layer, tensors in values.items():
                for name, tensor in tensors.items():
                    buffer = getattr(layer, name)
                    if isinstance(buffer, Tensor):  # num_batches_tracked is missing in models of old checkpoints
                        buffer.copy_(tensor)
        reasons |= {layer: "no batch reached it" for layer in measured if layer not in values}
    rows = [
        row(name, others, LEFT_ALONE if reasons[layer] else RECALIBRATED, reasons[layer])
        for name, layer, others in found
    ]
    return (model, Report(tuple(rows))) if report else model


def _check(model: nn.Module, batches: int | None, variance: str) -> None:
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise ValueError(f"batches must be a positive integer, or None for all; got {batches!r}.")
    if variance not in get_args(Variance):
        raise ValueError(f"variance must be one of {list(get_args(Variance))}; got {variance!r}.")
    for name, module in model.named_modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if isinstance(module, _LazyNormBase) or any(map(is_lazy, tensors)):
            raise ValueError(
                f"a model must know its sizes to be recalibrated; {name or 'the model'} ({type(module).__name__}) will "
                "learn them from its first input. Run one batch through the model, then recalibrate."
            )


def _refusal(layer: nn.Module, model: nn.Module) -> str:
    """Say why a layer is left alone; empty where it is not."""
    kind = type(layer).__name__
    if isinstance(layer, torch.jit.ScriptModule):
        return f"{layer.original_name} is compiled by TorchScript"
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):  # noqa: SLF001  # the only name of what they share
        return f"{kind} is not batch normalization: it normalizes each sample by itself"
    if not isinstance(layer, _BatchNorm):
        return f"{kind} does not derive from torch's batch normalization: what it does in training is not known"
    if layer.running_mean is None or layer.running_var is None or not layer.track_running_stats:
        return "it keeps no running statistics"
    if isinstance(getattr(layer, "statistics", None), Frozen):
        return "it is frozen: its policy is Frozen()"
    if isinstance(getattr(layer, "statistics", None), Keyed):
        return "it keeps statistics per key, and batches are not told apart"
    if model.training and not layer.training:
        return "it is frozen: in eval mode, in a model in training mode"
    return ""


def _choose(
    found: list[tuple[str, nn.Module, list[str]]], reasons: dict[nn.Module, str], names: Collection[str]
) -> None:
    """Add to ``reasons`` the layers that are not asked for; raise ValueError where one that is cannot be had."""
    if isinstance(names, str):
        raise ValueError(f"layers must be a collection of names; got the string {names!r}. Try layers=[{names!r}].")
    wanted = set(names)
    for first, layer, others in found:
        if not wanted.isdisjoint((first, *others)):
            wanted -= {first, *others}
            if reasons[layer]:
                raise ValueError(f"layers must name what can be recalibrated; {first!r} cannot: {reasons[layer]}.")
        elif not reasons[layer]:
            reasons[layer] = "not among layers="
    if wanted:
        there = [first for first, *_ in found]
        raise ValueError(f"layers must name batch normalizations of the model; {sorted(wanted)} are not among {there}.")


def _measure(
    model: nn.Module,
    measured: Mapping[nn.Module, Population],
    loader: Iterable[Any],
    batches: int | None,
    forward: Callable[[nn.Module, Any], object],
) -> int:
    """Run the batches through the model, its layers' inputs into ``measured``; return how many there were."""
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    with ExitStack() as stack:
        for preserved in (preserve.random_state, preserve.buffers, preserve.modes):
            stack.enter_context(preserved(model))
        stack.enter_context(preserve.uncompiled())
        stack.enter_context(torch.no_grad())
        for module in model.modules():
            module.training = module in measured
        stack.enter_context(_watching(measured))
        number = 0
        for number, batch in enumerate(itertools.islice(loader, batches), 1):
            try:
                forward(model, _moved(batch, device))
            except Exception as error:
                error.add_note(f"(batchnorm.recalibrate: in batch {number}; the model is as it was)")
                raise
    return number


@contextmanager
def _watching(measured: Mapping[nn.Module, Population]) -> Iterator[None]:
    """Show each layer's inputs to its population, as its forward gets them: after the user's own hooks."""

    def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input", kwargs.get("x"))
        # Anything else is for the layer itself to complain about.
        if isinstance(x, Tensor) and x.dim() > 1 and x.is_floating_point() and x.shape[1] == layer.num_features:
            measured[layer].add(x)

    with ExitStack() as stack:
        for layer in measured:
            handle = layer.register_forward_pre_hook(see, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _moved(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on ``device``: those in tuples, lists and dicts, too."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()} if type(batch) is dict else batch
    if type(batch) in (tuple, list):
        return type(batch)(_moved(value, device) for value in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    return batch


def _call(model: nn.Module, batch: Any) -> None:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        came = f"a {type(batch).__name__}" + ("" if x is batch else f" that starts with a {type(x).__name__}")
        raise TypeError(
            f"a batch must be a tensor, or a tuple or list that starts with one; got {came}. Say how the model "
            "takes it: forward=lambda model, batch: model(**batch), for a dict of its arguments."
        )
    model(x)
