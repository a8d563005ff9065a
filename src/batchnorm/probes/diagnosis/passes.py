"""Probes A, B and C: evaluation as loaded, with batch statistics, and with recalibrated ones; nothing is updated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.kernels.interface import Statistics, statistics_dtype
from batchnorm.probes.calls import Call, Calls
from batchnorm.probes.diagnosis import batches as of
from batchnorm.probes.diagnosis.static import layers_of, untouched
from batchnorm.statistics.population import Population
from batchnorm.tools import preserve

#: Samples kept for what is not a whole pass, at most; and how many batches.
HELD_SAMPLES, HELD_BATCHES = 512, 32
#: A loss is worse from this share on, where three standard errors of the paired differences or a sign test agree;
#: from the larger share on, two standard errors are enough.
SHARE, LARGE_SHARE = 0.07, 0.2
#: Probability of the signs of the differences if neither loss were larger.
CHANCE = 0.01

Forward = Callable[[nn.Module, Any], Any]
Score = Callable[[Any, Any], Any]


@dataclass
class Result:
    """One pass: loss, metric and samples of each batch."""

    losses: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean over samples; NaN if there is none."""
        return _mean(self.losses, self.samples)

    @property
    def metric(self) -> float | None:
        """Mean over samples, or None."""
        return _mean(self.metrics, self.samples) if self.metrics else None

    def worse_than(self, other: Result) -> bool:
        """Whether the loss is larger by 7 %, and by more than chance in paired batches."""
        if not math.isfinite(other.loss):
            return False
        if not math.isfinite(self.loss):
            return True
        gaps = torch.tensor(self.losses, dtype=torch.float64) - torch.tensor(other.losses, dtype=torch.float64)
        error = float(gaps.std()) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
        gap, n, larger = self.loss - other.loss, len(gaps), int((gaps > 0).sum())
        chance = sum(math.comb(n, k) for k in range(larger, n + 1)) / 2**n
        sure = gap > 3 * error or chance < CHANCE or (gap > 2 * error and gap > LARGE_SHARE * abs(self.loss))
        return gap > SHARE * abs(self.loss) and sure


def _mean(values: list[float], samples: list[int]) -> float:
    total = sum(samples)
    return sum(v * n for v, n in zip(values, samples, strict=True)) / total if total else math.nan


@dataclass
class Seen:
    """What one layer was given in a pass."""

    population: Population
    counts: list[int] = field(default_factory=list)
    sites: dict[str, Population] = field(default_factory=dict)
    largest: list[float] = field(default_factory=list)


class Runner:
    """Run a model on batches with statistics of a chosen kind, and score the outputs."""

    def __init__(self, model: nn.Module, forward: Forward | None, loss: Score | None, metric: Score | None) -> None:
        self.model, self.forward, self._loss, self._metric = model, forward, loss, metric
        self.names = dict(layers_of(model))
        self.device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        self.loss_name = "loss" if loss is not None else ""
        self.forwarded = 0  # samples

    def move(self, batch: Any) -> Any:
        """Return the batch on the model's device."""
        return of.mapped(batch, lambda t: t.to(self.device))

    def call(self, batch: Any, number: int) -> Any:
        """Return the output for one batch."""
        self.forwarded += of.size_of(batch)
        try:
            if self.forward is not None:
                return self.forward(self.model, batch)
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"a batch must be a tensor, or a tuple or list that starts with one; got a {type(batch).__name__}. "
                    "Pass forward=lambda model, batch: model(**batch), for a dict of its arguments."
                )
            return self.model(x)
        except TypeError as error:
            if self.forward is None and ("positional argument" in str(error) or "required" in str(error)):
                raise TypeError(
                    f"the model needs more arguments than the first element of a batch: {error}. Pass "
                    "forward=lambda model, batch: model(...), which calls it with what the batch holds."
                ) from error
            error.add_note(f"(batchnorm.diagnose: in batch {number}; the model is as it was)")
            raise
        except Exception as error:
            error.add_note(f"(batchnorm.diagnose: in batch {number}; the model is as it was)")
            raise

    def loss(self, output: Any, batch: Any) -> float:
        """Return the loss of one batch."""
        if self._loss is not None:
            return _number(self._loss(output, batch), "loss")
        target = of.target_of(batch)
        y = next(iter(of.tensors_of(output)), None)
        if y is None or not isinstance(target, Tensor):
            return math.nan
        if not target.is_floating_point() and y.dim() == target.dim() + 1 and y.dim() >= 2:
            self.loss_name = "cross-entropy"
            return float(nn.functional.cross_entropy(y.float(), target.long()))
        if target.is_floating_point() and y.shape == target.shape:
            self.loss_name = "mean squared error"
            return float(nn.functional.mse_loss(y.float(), target.float()))
        return math.nan

    def metric(self, output: Any, batch: Any) -> float | None:
        """Return the user's metric of one batch."""
        if self._metric is None:
            return None
        target = of.target_of(batch)
        try:
            return _number(self._metric(output, batch if target is None else target), "metric")
        except Exception as error:
            error.add_note("(batchnorm.diagnose: metric(output, target) raised; the model is as it was)")
            raise

    @contextmanager
    def watching(self, see: Callable[[Call], None]) -> Iterator[None]:
        """Show each call of a batch normalization to ``see`` before it happens."""
        if not self.names:
            yield
            return
        with Calls(self.model, self.names.values(), see).watch(lambda: None):
            yield


def _number(value: Any, what: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{what} must return one number; got a {type(value).__name__}. Take its mean.")


def set_statistics(layer: Any, mean: Tensor, var: Tensor) -> None:
    """Write statistics into the buffers, in their dtype."""
    with torch.no_grad():
        layer.running_mean.copy_(mean.view(-1))
        layer.running_var.copy_(var.view(-1))


def use_batch_statistics(call: Call) -> None:
    """Write the statistics of this call into the buffers of its layer, which runs in eval mode."""
    layer: Any = call.module
    found = usable(call)
    if found is not None and isinstance(getattr(layer, "running_mean", None), Tensor):
        set_statistics(layer, found.mean, found.var)


def usable(call: Call) -> Statistics | None:
    """Return the statistics of a call with more than one value per channel."""
    layer: Any = call.module
    running = getattr(layer, "running_mean", None)
    channels = running.numel() if isinstance(running, Tensor) else getattr(layer, "num_features", None)
    if call.x.dim() < 2 or call.x.shape[1] != channels or call.x.numel() // call.x.shape[1] < 2:
        return None
    return call.batch.statistics


@dataclass
class Passes:
    """What the passes found.

    Attributes
    ----------
    as_loaded, batch, recalibrated : Result
        Probes A, B and C.
    seen : dict of str to Seen
        What each layer was given with batch statistics, in the order of the forward pass.
    seen_as_loaded : dict of str to Seen
        The same as loaded.
    firsts : list of Statistics
        Of the first layer, batch by batch.
    between : float or None
        Variance of the batches' means of the first layer over the one that independent samples would have; median
        channel.
    held : list
        The first batches.
    samples, number : int
        How many samples and batches there were.
    """

    as_loaded: Result
    batch: Result
    recalibrated: Result
    seen: dict[str, Seen]
    seen_as_loaded: dict[str, Seen]
    firsts: list[Statistics]
    between: float | None
    held: list[Any]
    samples: int
    number: int


def run(runner: Runner, loader: Iterable[Any], most: int | None) -> Passes:
    """Read the loader twice: A and B side by side, then C.

    Parameters
    ----------
    runner : Runner
        The model, and how its outputs are scored.
    loader : iterable
        Batches.
    most : int or None
        The most batches to read.

    Returns
    -------
    Passes

    Raises
    ------
    TypeError, ValueError
        The loader is no iterable of batches, gives none, or cannot be read twice.
    """
    if isinstance(loader, str | Tensor | dict) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(
            f"loader must be an iterable of batches; got a {type(loader).__name__}. Try a DataLoader, or [batch]."
        )
    model = runner.model
    a, b, c = Result(), Result(), Result()
    seen: dict[str, Seen] = {}
    seen_a: dict[str, Seen] = {}
    firsts: list[Statistics] = []
    groups: list[tuple[int, Tensor, Tensor]] = []
    held: list[Any] = []
    outputs: list[Tensor] = []
    stage = "A"

    def see(call: Call) -> None:
        first_name = call.name.partition(" (call ")[0]
        found = usable(call)
        table = seen_a if stage == "A" else seen
        entry = table.setdefault(first_name, Seen(Population(first_name)))
        if found is None:
            entry.counts.append(call.x.numel() // max(1, call.x.shape[1]) if call.x.dim() > 1 else 0)
            return
        if stage == "A" and next(iter(seen_a)) == first_name and call.name == first_name:
            firsts.append(found)
            groups.append(_of_samples(call.x))
        entry.counts.append(call.x.numel() // call.x.shape[1])
        entry.largest.append(float(found.var.max()))
        entry.population.add(call.x)
        entry.sites.setdefault(call.name, Population(call.name)).add(call.x)
        if stage == "B":
            use_batch_statistics(call)

    with untouched(model) as buffers, preserve.uncompiled(), torch.no_grad():
        model.eval()
        random = preserve.RandomState(model)
        for number, raw in enumerate(_read(loader, most), 1):
            batch = runner.move(raw)
            size = of.size_of(batch)
            if size == 0:
                raise ValueError(
                    f"a batch must hold tensors with samples; batch {number} of the loader, a {type(raw).__name__}, "
                    "holds none. Yield x, (x, y), or a dict of tensors with forward=."
                )
            if len(held) < HELD_BATCHES and sum(map(of.size_of, held)) + size <= max(HELD_SAMPLES, size):
                held.append(batch)
            for stage, result in (("A", a), ("B", b)):
                with runner.watching(see):
                    output = runner.call(batch, number)
                _score(runner, result, output, batch, size)
                if stage == "B":
                    outputs += [t.float() for t in of.tensors_of(output)[:1]]
                    buffers.put_back()
                else:
                    former = output
            if math.isnan(b.losses[-1]) and runner.loss_name == "":
                # Without a loss: distance to the output with batch statistics.
                a.losses[-1], b.losses[-1] = _distance(former, output), 0.0
        if not a.losses:
            raise ValueError(
                "diagnose needs at least one batch; the loader gave none. An empty data set, drop_last=True with "
                "fewer examples than a batch, or a generator that was used before?"
            )
        if not seen:
            raise ValueError(
                f"no batch normalization was called: {', '.join(map(repr, list(runner.names)[:3]))} wait for inputs. "
                "forward=lambda model, batch: ... must call the model that it is given, which is a copy."
            )
        for name, entry in seen.items():
            recalibrate(runner.names[name], entry.population)
        random.put_back()
        for number, raw in enumerate(_read(loader, len(a.losses)), 1):
            batch = runner.move(raw)
            output = runner.call(batch, number)
            _score(runner, c, output, batch, of.size_of(batch))
            if runner.loss_name == "" and number <= len(outputs):
                c.losses[-1] = _distance(output, outputs[number - 1])
    if len(c.losses) != len(a.losses):
        raise ValueError(
            f"diagnose reads the loader twice; it gave {len(a.losses)} batches the first time and {len(c.losses)} the "
            "second. A generator? Try list(...) of it, or a DataLoader. The model is as it was."
        )
    return Passes(a, b, c, seen, seen_a, firsts, _between(groups), held, sum(a.samples), len(a.losses))


def recalibrate(layer: nn.Module, population: Population) -> None:
    """Write the statistics of a population into the buffers of a layer that has them."""
    if isinstance(getattr(layer, "running_mean", None), Tensor) and population.count > 1:
        whole = population.whole
        assert whole is not None
        set_statistics(layer, whole.mean, whole.unbiased_var)


def _read(loader: Iterable[Any], most: int | None) -> Iterator[Any]:
    for number, batch in enumerate(loader):
        if most is not None and number >= most:
            return
        yield batch


def _score(runner: Runner, result: Result, output: Any, batch: Any, size: int) -> None:
    result.losses.append(runner.loss(output, batch))
    metric = runner.metric(output, batch)
    if metric is not None:
        result.metrics.append(metric)
    result.samples.append(size)


def _distance(output: Any, other: Any) -> float:
    mine, theirs = (next(iter(of.tensors_of(o)), None) for o in (output, other))
    if mine is None or theirs is None:
        return math.nan
    return float((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-12))


def _of_samples(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the number of samples, the mean of their means, and the variance among their means."""
    x = x.detach().to(statistics_dtype(x.device))
    means = (x.flatten(2).mean(2) if x.dim() > 2 else x).cpu().double()
    return len(means), means.mean(0), means.var(0) if len(means) > 1 else torch.zeros_like(means[0])


def _between(groups: Sequence[tuple[int, Tensor, Tensor]]) -> float | None:
    """Return F of an analysis of variance: batches as groups, samples as observations; median channel."""
    groups = [g for g in groups if g[0] > 1]
    if len(groups) < 4:
        return None
    n = sum(g[0] for g in groups)
    counts = torch.tensor([g[0] for g in groups], dtype=torch.float64)[:, None]
    means, variances = (torch.stack(list(column)) for column in zip(*[g[1:] for g in groups], strict=True))
    mean = (counts * means).sum(0) / n
    among = (counts * (means - mean) ** 2).sum(0) / (len(groups) - 1)
    inside = ((counts - 1) * variances).sum(0) / (n - len(groups))
    ratio = among / inside
    finite = ratio[ratio.isfinite()]
    return float(finite.median()) if len(finite) else None
