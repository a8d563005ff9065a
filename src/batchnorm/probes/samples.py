"""Sample a large tensor at the same positions in every step, and summarize the sample."""

from math import ceil, gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.probes.probe import Value

#: Values of a tensor that are looked at. A percentile of 1e5 independent values is off by 0.2 points at most, or so.
LIMIT = 100_000
BINS = 32


def by_unit(u: Tensor) -> Tensor:
    """View (N, units, *) as (N, units, positions); anything of fewer dimensions as one unit."""
    if u.dim() < 2:
        return u.reshape(-1, 1, 1)
    return u.flatten(2) if u.dim() > 2 else u.unsqueeze(2)


def sample(u: Tensor, limit: int = LIMIT) -> Tensor:
    """Copy values of each unit at a fixed stride, over positions first and then over examples.

    Parameters
    ----------
    u : Tensor of shape (N, units, *)
        Any strides.
    limit : int
        How many values to copy at most, if each unit may keep one.

    Returns
    -------
    Tensor of shape (n, units, positions)
        In the dtype of ``u``.
    """
    examples, units, positions = by_unit(u).shape
    width = u.shape[-1] if u.dim() > 2 else 1
    stride = ceil(positions / max(1, limit // max(1, examples * units)))
    while gcd(stride, width) > 1 and stride < positions:
        stride += 1  # else an image would be looked at in some of its columns only
    chosen = by_unit(u)[:, :, stride // 2 :: max(1, stride)]
    skip = ceil(examples / max(1, limit // max(1, units * chosen.shape[2])))
    return chosen[:: max(1, skip)].clone()


def flat_sample(tensors: list[Tensor], limit: int = LIMIT) -> Tensor:
    """Copy values of tensors at one fixed stride, in the order of their elements.

    Parameters
    ----------
    tensors : list of Tensor
        Of any shapes; at least one.
    limit : int
        How many values to copy at most.

    Returns
    -------
    Tensor of shape (n,)
        In float64, where the device has it.
    """
    stride = ceil(sum(t.numel() for t in tensors) / limit)
    # A stride with a factor in common with a row's length would look at some columns only.
    while any(gcd(stride, t.shape[-1]) > 1 for t in tensors if t.dim() > 1 and t.shape[-1] > 1) and stride > 1:
        stride += 1
    return torch.cat([t.reshape(-1)[::stride] for t in tensors])


def sorted_values(u: Tensor) -> NDArray[np.float64]:
    """Bring values to the host, sorted; NaN last."""
    return np.sort(u.detach().reshape(-1).float().cpu().numpy()).astype(np.float64)


def percentile(values: NDArray[np.float64], p: float) -> float:
    """Return the percentile of sorted values, interpolated linearly; NaN where there are none or one is NaN."""
    if len(values) == 0 or np.isnan(values[-1]):
        return float("nan")
    place = p / 100 * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    share = place - below
    return float(values[below] * (1 - share) + values[above] * share) if share else float(values[below])


def histogram(values: NDArray[np.float64]) -> dict[str, float | list[int]]:
    """Count the finite ones of sorted values in 32 bins of equal width from the smallest to the largest.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Sorted.

    Returns
    -------
    dict
        ``low`` and ``high``, the ends (NaN without a finite value), and ``counts``; the last bin holds its upper end.
    """
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {"low": float("nan"), "high": float("nan"), "counts": [0] * BINS}
    low, high = float(values[0]), float(values[-1])
    inner = low + (high - low) * np.arange(1, BINS) / BINS
    places = np.concatenate([[0], np.searchsorted(values, inner, side="left"), [len(values)]])
    return {"low": low, "high": high, "counts": np.diff(places).tolist()}


def spread(values: NDArray[np.float64]) -> dict[str, Value]:
    """Summarize sorted values: moments, the percentiles of the paper's figure 1, a histogram."""
    found: dict[str, Value] = {}
    with np.errstate(invalid="ignore", over="ignore"):  # a network that diverges
        found["mean"] = float(values.mean()) if len(values) else float("nan")
        found["std"] = float(values.std()) if len(values) else float("nan")
        found |= {f"p{p}": percentile(values, p) for p in (15, 50, 85)}
    found["histogram"] = histogram(values)
    return found
