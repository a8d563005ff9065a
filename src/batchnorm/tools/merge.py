"""``merge_statistics``: the running statistics of several models, as if their data had been seen by one."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from batchnorm.kernels.interface import Statistics
from batchnorm.statistics.population import merge
from batchnorm.tools.report import Report

S = TypeVar("S", nn.Module, Mapping[str, Any])

_MEAN, _VAR, _BATCHES = "running_mean", "running_var", "num_batches_tracked"


def merge_statistics(sources: Sequence[S], weights: Sequence[float | Report] | None = None) -> S:
    r"""Merge the running statistics of several models into those of all their data.

    .. math::
        \mu = \sum_i p_i \mu_i, \qquad v = \sum_i p_i v_i + \sum_i p_i (\mu_i - \mu)^2, \qquad \sum_i p_i = 1

    An average of the variances, as federated averaging takes, leaves out the second sum: the differences between the
    sources.

    Parameters
    ----------
    sources : sequence of torch.nn.Module, or of state_dict
        The clients, ranks or checkpoints; all with the same layers.
    weights : sequence, default=None
        One for each source. Numbers: how much the source counts, such as its number of samples. Reports of
        `recalibrate` (``report=True``): the values per channel that each layer measured; the result is then what
        `recalibrate` would find on the pooled data, the :math:`m/(m - 1)` of the unbiased variance included. None: all
        count the same.

    Returns
    -------
    torch.nn.Module or dict
        A copy of the first source with the merged statistics; its other entries are unchanged. Average weights
        before, and recalibrate afterwards if you do: statistics belong to the weights they were measured with.

    Raises
    ------
    TypeError
        A source is neither a module nor a state_dict, or they are not of one kind.
    ValueError
        There is no source, or none with running statistics; their layers differ; a statistic is not finite; the weights
        are not one per source, not all of one kind, negative, or zero in sum; a report does not have a layer.

    Notes
    -----
    Computed in float64 by the merge of Chan, Golub and LeVeque (DERIVATION (51) to (53)) in the order of the sources,
    rounded once to the dtype of the first. ``num_batches_tracked`` becomes the sum.

    Examples
    --------
    >>> import torch, batchnorm
    >>> layers = [torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)]
    >>> for layer, mean in zip(layers, (0.0, 4.0)):
    ...     done = layer.running_mean.fill_(mean)
    >>> merged = batchnorm.merge_statistics(layers, [3, 1])
    >>> merged.running_mean, merged.running_var
    (tensor([1.]), tensor([4.]))
    """
    states = _states(sources)
    names = _layers(states)
    counts = _counts(names, len(states), weights)
    merged = copy.deepcopy(sources[0])
    state = merged.state_dict() if isinstance(merged, nn.Module) else merged
    new: dict[str, Tensor] = {}
    for name in names:
        exact = weights is not None and isinstance(weights[0], Report)
        parts = [_statistics(s, name, count, exact) for s, count in zip(states, counts[name], strict=True)]
        whole = functools.reduce(merge, parts)
        assert whole.count is not None
        var = whole.var * (whole.count / (whole.count - 1)) if exact else whole.var  # (42)
        new |= {name + _MEAN: whole.mean.view(-1), name + _VAR: var.view(-1)}
        if isinstance(state.get(name + _BATCHES), Tensor):
            new[name + _BATCHES] = torch.stack([torch.as_tensor(s[name + _BATCHES]).cpu() for s in states]).sum()
    with torch.no_grad():
        for key, tensor in new.items():
            state[key].copy_(tensor)
    return merged


def _states(sources: Sequence[nn.Module] | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if isinstance(sources, nn.Module | Mapping) or not isinstance(sources, Sequence):
        raise TypeError(
            f"merge_statistics takes a sequence of models or state_dicts; got a {type(sources).__name__}. Try a list."
        )
    if not sources:
        raise ValueError("merge_statistics needs at least one model or state_dict; got none.")
    kinds = [nn.Module if isinstance(s, nn.Module) else Mapping if isinstance(s, Mapping) else type(s) for s in sources]
    if len(set(kinds)) > 1 or kinds[0] not in (nn.Module, Mapping):
        raise TypeError(
            "merge_statistics takes models, or state_dicts, all of one kind; got "
            f"{', '.join(type(s).__name__ for s in sources)}. Try model.state_dict() for each."
        )
    return [s.state_dict() if isinstance(s, nn.Module) else s for s in sources]


def _layers(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the prefixes of the layers with running statistics, in the order of the first state."""
    found = [{key.removesuffix(_VAR) for key in s if key.endswith(_VAR) and isinstance(s[key], Tensor)} for s in states]
    if not found[0]:
        raise ValueError(
            "merge_statistics needs running statistics; the first source has none. A checkpoint may hold them in an "
            "entry: try checkpoint['model'] or checkpoint['state_dict']."
        )
    for i, names in enumerate(found):
        if names != found[0]:
            raise ValueError(
                f"all sources must have the same layers; source {i} and source 0 differ in {sorted(names ^ found[0])}."
            )
        for name in names:
            for key in (name + _MEAN, name + _VAR):
                if key not in states[i] or states[i][key].shape != states[0][key].shape:
                    raise ValueError(
                        f"{key} must have the same shape in all sources; it is "
                        f"{tuple(states[0][key].shape)} in source 0 and "
                        f"{tuple(states[i][key].shape) if key in states[i] else 'missing'} in source {i}."
                    )
                if not bool(states[i][key].isfinite().all()):
                    raise ValueError(
                        f"running statistics must be finite; {key} of source {i} is not. Recalibrate that source, or "
                        "leave it out."
                    )
    return [key.removesuffix(_VAR) for key in states[0] if key.removesuffix(_VAR) in found[0] and key.endswith(_VAR)]


def _counts(names: Sequence[str], number: int, weights: Sequence[float | Report] | None) -> dict[str, list[float]]:
    """Return the count of each source, by layer."""
    weights = [1.0] * number if weights is None else weights
    if len(weights) != number:
        raise ValueError(f"weights must be one per source; got {len(weights)} for {number} sources.")
    reports = [w for w in weights if isinstance(w, Report)]
    if reports and len(reports) < number:
        raise ValueError("weights must be all numbers or all reports of recalibrate; got both.")
    if reports:
        return {name: [_measured(report, name) for report in reports] for name in names}
    numbers = [float(w) for w in weights if not isinstance(w, Report)]
    total = math.fsum(numbers)
    if min(numbers) < 0 or not math.isfinite(total) or total == 0:
        raise ValueError(f"weights must be finite numbers of at least 0, with a sum above 0; got {numbers}.")
    return {name: [w / total * 2.0**53 for w in numbers] for name in names}


def _measured(report: Report, name: str) -> float:
    row = next((row for row in report if row.name == name.removesuffix(".")), None)
    values = 0.0 if row is None else row.numbers.get("values", 0.0)
    if values < 2:
        raise ValueError(
            f"a report must have the values that each layer measured; it has none for {name.removesuffix('.')!r}: "
            f"{'there is no such row' if row is None else row.reason or row.done}. Try numbers of samples instead."
        )
    return float(values)


def _statistics(state: Mapping[str, Any], name: str, count: float, exact: bool) -> Statistics:
    mean, var = (state[name + key].detach().cpu().double().view(1, -1) for key in (_MEAN, _VAR))
    of_all = torch.tensor([[count]], dtype=torch.float64)
    return Statistics(mean, var * ((count - 1) / count) if exact else var, of_all)
