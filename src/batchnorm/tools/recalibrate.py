"""``recalibrate``: population statistics in the place of running ones, measured on the network as it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.parameter import is_lazy

from batchnorm.statistics import across
from batchnorm.statistics.policies import Frozen, Keyed
from batchnorm.statistics.population import Population
from batchnorm.tools import preserve
from batchnorm.tools.copies import copied
from batchnorm.tools.report import LEFT_ALONE, Report, Row
from batchnorm.tools.walk import normalizations, require_module

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # some builds of torch have none

M = TypeVar("M", bound=nn.Module)
Variance = Literal["exact", "averaged"]
Mode = Literal["one-pass", "sequential"]

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
    mode: Mode = "one-pass",
    prior: float = 0.0,
    tolerance: float | None = None,
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
    mode: Mode = "one-pass",
    prior: float = 0.0,
    tolerance: float | None = None,
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
    mode: Mode = "one-pass",
    prior: float = 0.0,
    tolerance: float | None = None,
    group: ProcessGroup | None = None,
) -> M | tuple[M, Report]:
    r"""Replace the running statistics of a model by those of its inputs over a whole data set: Algorithm 2.

    .. math::
        \mu = \sum_k p_k \mu_k, \qquad
        v = \frac{m}{m - 1} \Bigl(\sum_k p_k v_k + \sum_k p_k (\mu_k - \mu)^2\Bigr), \qquad
        p_k = m_k / m, \quad m = \sum_k m_k

    over the batches k, each with :math:`m_k` values per channel: the mean and the unbiased variance of all values
    that reached the layer, as if they had come in one batch. The weights do not change.

    Parameters
    ----------
    model : torch.nn.Module
        Layers that derive from ``torch.nn.BatchNorm1d``, ``2d`` or ``3d``, or are ``SyncBatchNorm``, with running
        statistics. Left alone are layers in eval mode inside a ``model`` in training mode (frozen), and those that no
        batch reaches.
    loader : iterable
        Batches of any sizes: a ``DataLoader``, a list, a generator. Read once; with ``mode='sequential'`` once more for
        each layer, which a generator cannot.
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
    mode : {'one-pass', 'sequential'}, default='one-pass'
        ``'one-pass'`` measures all layers at once, each after layers that normalize with the statistics of the batch.
        ``'sequential'`` measures layer by layer, in the order of their first calls, each after layers that normalize
        with their new statistics: the result is what the frozen network itself produces, for batches of any size. A
        model that calls a layer several times per batch is measured again until nothing changes.
    prior : float in [0, 1), default=0.0
        Weight of the statistics that the layers have, with the new ones blended in by the law of total variance: mean
        :math:`a \mu_s + (1 - a) \mu` and variance :math:`a v_s + (1 - a) v + a (1 - a) (\mu_s - \mu)^2`. For few data
        of a new domain; a weight of p samples beside n is ``p / (p + n)``.
    tolerance : float, default=None
        Take batches until the statistics of every channel are known so well that each error of the layer's output is at
        most this many deviations (the `uncertainty` of the report). At least 8 batches; they must be independent, as
        those of a shuffled loader are. With ``mode='sequential'`` the first pass decides. None: take all batches.
    group : torch.distributed.ProcessGroup, default=None
        Processes that each have a share of the data, of any size: all get the statistics of all shares, bit for bit the
        same. ``torch.distributed.group.WORLD`` is everybody. None: processes do not communicate.
        Each judges ``tolerance`` by its own share, and the report has no ``uncertainty``.

    Returns
    -------
    torch.nn.Module, or that and a Report
        The model with its modes as they were. The report has one row per batch normalization found.

    Raises
    ------
    TypeError
        ``model`` is not a module; ``loader`` is no iterable of batches; the model cannot be called with what came, and
        there is no ``forward``.
    ValueError
        The model has no batch normalization; no batch came, or fewer than ``tolerance`` or a second pass needs; a layer
        or a parameter does not know its size yet; ``layers`` names what is not there or cannot be recalibrated; a layer
        saw a value that is not finite, or only one; an option is out of range.
    RuntimeError
        Another process of ``group`` raised.

    Notes
    -----
    Everything runs in eval mode (dropout and stochastic depth off) and without gradients, but for the layers to
    recalibrate with ``mode='one-pass'``: they run in training mode, on the statistics of each batch. So a layer sees
    inputs that the layers before it have normalized with batch statistics, as in training; of large batches, since the
    noise of small ones adds up from layer to layer. Statistics are collected and merged in float64, centred before they
    are squared (DERIVATION (51) to (53)), and rounded once, to the buffers. A layer called several times in a forward
    counts every call; ``num_batches_tracked`` becomes the number of calls, so that ``momentum=None`` goes on averaging
    correctly, or grows by it with ``prior``.
    ``momentum`` does not matter, nor whether parameters require gradients.

    Every pass begins with the same random state, so a loader that shuffles or augments repeats itself.
    The intervals of ``tolerance`` and ``uncertainty`` take each batch as one observation, because the values in a batch
    depend on each other: pixels of an image are correlated (DERIVATION (187), (188)).

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
    _check(model, loader, batches, variance, mode, prior, tolerance)
    model = model if inplace else copied(model)
    found = normalizations(model)
    if not found:
        raise ValueError(
            f"recalibrate needs a model with batch normalization; this {type(model).__name__} has none. Recalibrate "
            "before folding."
        )
    reasons = {layer: _refusal(layer, model) for _, layer, _ in found}
    if layers is not None:
        _choose(found, reasons, layers)
    measured = {layer: Population(name) for name, layer, _ in found if not reasons[layer]}
    if measured:
        run = _Passes(model, loader, batches, forward or _call, tolerance, group)
        with run.prepared():
            with run.together(measured):
                run.first(measured, training=mode == "one-pass")
            reached = {layer: p for layer, p in measured.items() if p.count}
            if run.number == 0 and not reached:
                raise ValueError(
                    "recalibrate needs at least one batch; the loader gave none. An empty data set, drop_last=True "
                    "with fewer examples than a batch, or a generator that was used before?"
                )
            if mode == "sequential":
                run.agree(measured)
                values = _one_by_one(run, reached, variance, prior)
            else:
                values = {layer: p.result(layer, variance, prior) for layer, p in reached.items()}
        with torch.no_grad():
            for layer, tensors in values.items():
                _write(layer, tensors)
        reasons |= {layer: "no batch reached it" for layer in measured if layer not in reached}
        measured = reached
    rows = [
        Row(name, LEFT_ALONE if reason else RECALIBRATED, reason, others, _numbers(measured.get(layer), layer, group))
        for name, layer, others in found
        for reason in (reasons[layer],)
    ]
    return (model, Report(tuple(rows))) if report else model


def _numbers(found: Population | None, layer: nn.Module, group: Any) -> dict[str, float]:
    if found is None:
        return {}
    return {"values": found.count} | ({"uncertainty": found.uncertainty(_eps(layer))} if group is None else {})


def _eps(layer: nn.Module) -> float:
    eps: Any = layer.eps  # a float, in batch normalization
    return float(eps)


def _write(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        buffer = getattr(layer, name)
        if isinstance(buffer, Tensor):  # num_batches_tracked is missing in models of old checkpoints
            buffer.copy_(tensor)


def _check(
    model: nn.Module,
    loader: object,
    batches: int | None,
    variance: str,
    mode: str,
    prior: float,
    tolerance: float | None,
) -> None:
    iterable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if isinstance(loader, Tensor | str | Mapping) or not iterable:
        raise TypeError(
            f"loader must be an iterable of batches; got a {type(loader).__name__}. Try a DataLoader, or [batch]."
        )
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {list(get_args(Mode))}; got {mode!r}.")
    if not 0 <= prior < 1:
        raise ValueError(f"prior must be in [0, 1); got {prior!r}. It is the weight of the statistics that are stored.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be a positive number of deviations, or None; got {tolerance!r}. Try 0.05.")
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
    found: list[tuple[str, nn.Module, tuple[str, ...]]], reasons: dict[nn.Module, str], names: Collection[str]
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


#: Batches before `tolerance` may stop the pass: an interval from fewer says little.
FEWEST = 8
#: Times that `mode="sequential"` goes through a model that calls a layer more than once, at most; and the change, in
#: units of the dtype's eps, that is no change.
MOST_SWEEPS, SETTLED = 50, 64
_MEASURED = ("running_mean", "running_var")


class _Reached(BaseException):  # not an Exception, which a model may catch
    """Ends a forward at the layer that is measured."""


class _Passes:
    """Passes of the same batches through a model, which measure the inputs of its layers."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        batches: int | None,
        forward: Callable[[nn.Module, Any], object],
        tolerance: float | None,
        group: ProcessGroup | None,
    ) -> None:
        self._group = group
        self._model, self._loader, self._forward = model, loader, forward
        self._batches, self._tolerance = batches, tolerance
        self._device = next(
            (t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu")
        )
        self.number = 0  # of batches in a pass
        self.order: dict[nn.Module, None] = {}  # layers by their first call
        self.repeated = False  # whether a batch called one of them twice

    def together(self, measured: Mapping[nn.Module, Population]) -> AbstractContextManager[None]:
        """Merge what a pass inside measures with that of the other processes, if there is a group."""
        return nullcontext() if self._group is None else across.together(self._group, measured)

    def agree(self, measured: Mapping[nn.Module, Population]) -> None:
        """Take the order of the layers in which any process of the group called them first."""
        if self._group is None:
            return
        places = {layer: float(i) for i, layer in enumerate(self.order)}
        mine = [float(self.repeated), *(places.get(layer, math.inf) for layer in measured)]
        found = torch.stack(across.gather(torch.tensor(mine, dtype=torch.float64), self._group))
        self.repeated = bool(found[:, 0].any())
        first = dict(zip(measured, found[:, 1:].amin(0).tolist(), strict=True))
        self.order = dict.fromkeys(sorted((layer for layer in first if first[layer] < math.inf), key=first.__getitem__))

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Preserve all that a pass changes; everything in eval mode, no gradients."""
        with ExitStack() as stack:
            self._random_state = stack.enter_context(preserve.random_state(self._model))
            self._buffers = stack.enter_context(preserve.buffers(self._model))
            stack.enter_context(preserve.modes(self._model))
            stack.enter_context(preserve.uncompiled())
            stack.enter_context(torch.no_grad())
            for module in self._model.modules():
                module.training = False
            yield

    def first(self, measured: Mapping[nn.Module, Population], *, training: bool) -> None:
        """Measure all layers at once; find how many batches there are, and in which order layers are called."""
        for layer in measured:
            layer.training = training
        with self._watching(measured, stop=False) as seen:
            for batch in itertools.islice(self._loader, self._batches):
                self.number += 1
                seen.clear()
                self._run(batch, self.number)
                if self._tolerance is not None and self._widest(measured)[0] <= self._tolerance:
                    break
        for layer in measured:
            layer.training = False
        self._buffers.put_back()  # layers in training mode have averaged
        if self._tolerance is not None and self.number > 0:
            widest, name = self._widest(measured)
            if widest > self._tolerance:
                known = f"{widest:.2g} deviations in {name or 'the model'}" if widest < math.inf else "unknown"
                raise ValueError(
                    f"tolerance={self._tolerance} was not reached in {self.number} batches: the uncertainty "
                    f"is {known}. Give more data (at least {FEWEST} batches), or a larger tolerance. The model is as "
                    "it was."
                )

    def again(self, layer: nn.Module, population: Population) -> None:
        """Measure one layer in eval mode; each forward ends there if no layer is called twice."""
        self._random_state.put_back()
        number = 0
        with self._watching({layer: population}, stop=not self.repeated) as seen:
            for number, batch in enumerate(itertools.islice(self._loader, self.number), 1):
                seen.clear()
                with suppress(_Reached):
                    self._run(batch, number)
        if number < self.number:
            raise ValueError(
                f"mode='sequential' reads the loader once per layer; it gave {self.number} batches the first time and "
                f"{number} later. A generator? Try list(...) of it, or a DataLoader. The model is as it was."
            )

    def _run(self, batch: Any, number: int) -> None:
        try:
            self._forward(self._model, _moved(batch, self._device))
        except Exception as error:
            error.add_note(f"(batchnorm.recalibrate: in batch {number}; the model is as it was)")
            raise

    def _widest(self, measured: Mapping[nn.Module, Population]) -> tuple[float, str]:
        """Return the largest uncertainty of a layer that was reached, and its name."""
        reached = [(layer, p) for layer, p in measured.items() if p.count]
        if self.number < FEWEST or not reached:
            return math.inf, ""
        return max((p.uncertainty(_eps(layer)), p.name) for layer, p in reached)

    @contextmanager
    def _watching(self, measured: Mapping[nn.Module, Population], stop: bool) -> Iterator[set[nn.Module]]:
        """Show each layer's inputs to its population, as its forward gets them: after the user's own hooks."""
        seen: set[nn.Module] = set()

        def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input", kwargs.get("x"))
            # Anything else is for the layer itself to complain about.
            if isinstance(x, Tensor) and x.dim() > 1 and x.is_floating_point() and x.shape[1] == layer.num_features:
                measured[layer].add(x)
                self.order.setdefault(layer)
                self.repeated |= layer in seen
                seen.add(layer)
                if stop:
                    raise _Reached

        with ExitStack() as stack:
            for layer in measured:
                handle = layer.register_forward_pre_hook(see, with_kwargs=True)
                stack.callback(handle.remove)
            yield seen


def _one_by_one(
    run: _Passes, populations: dict[nn.Module, Population], variance: Variance, prior: float
) -> dict[nn.Module, dict[str, Tensor]]:
    """Measure each layer after those before it have their new statistics; return these, and fill ``populations``."""
    stored = {layer: {name: getattr(layer, name).clone() for name in _MEASURED} for layer in populations}
    values: dict[nn.Module, dict[str, Tensor]] = {}
    order = [layer for layer in run.order if layer in populations]
    for _ in range(MOST_SWEEPS):
        change = 0.0
        for layer in order:
            populations[layer] = Population(populations[layer].name)
            with run.together({layer: populations[layer]}):
                run.again(layer, populations[layer])
            former = values.get(layer, stored[layer])
            _write(layer, stored[layer])  # which `prior` blends in
            values[layer] = populations[layer].result(layer, variance, prior)
            _write(layer, {name: values[layer][name] for name in _MEASURED})
            change = max(change, _change(former, values[layer], _eps(layer)))
        if not run.repeated or change < SETTLED:
            return values
    raise ValueError(
        f"mode='sequential' did not settle in {MOST_SWEEPS} sweeps: a layer that is called several times per batch "
        "changes what it is given itself. Try mode='one-pass'. The model is as it was."
    )


def _change(a: Mapping[str, Tensor], b: Mapping[str, Tensor], eps: float) -> float:
    """Return the largest change of statistics, relative to deviation and variance, in units of the dtype's eps."""
    scale = (b["running_var"] + eps).sqrt()
    of_mean = ((a["running_mean"] - b["running_mean"]) / torch.maximum(scale, b["running_mean"].abs())).abs().max()
    of_var = ((a["running_var"] - b["running_var"]) / scale**2).abs().max()
    return float(torch.maximum(of_mean, of_var)) / torch.finfo(of_var.dtype).eps


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
