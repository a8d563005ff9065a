"""Every tolerance of the suite, with its reason. Loosening one is a decision record.

A result is compared with the float64 reference on the same (already rounded) inputs. Its bound is

    ULPS * eps(arithmetic) * magnitude  +  eps(storage) / 2 * |result|  +  the smallest number of the storage dtype

where `magnitude` is the sum of the absolute values of the terms that the result is made of: cancellation between them
is the only way in which correct arithmetic may lose relative accuracy. No bound depends on where the test runs.
"""

from __future__ import annotations

import torch

#: Roundings on the way to one output element: two centrings, the scale (2), the product, bias, residual and the
#: activation (up to 2, and its slope of at most 1.13): under 10 halves of an ulp, doubled for the mean's own error.
FORWARD_ULPS = 8

#: A gradient element repeats the forward roundings for x_hat and z, and adds four products and two subtractions; the
#: curvature of an activation (at most 1, hard-swish) carries the error of z into its slope.
GRADIENT_ULPS = 16

#: A sum over `count` values by pairwise or blocked summation loses at most about log2(count) ulp of the sum of
#: magnitudes; eight more for the terms themselves.
SUM_ULPS = 8

#: Stored statistics: the mean and variance are accumulated in the arithmetic dtype, then rounded to the buffer's.
STATISTIC_ULPS = 4

#: Averaging into a running statistic: a difference, a product and a sum in float64, whatever the buffer's dtype.
AVERAGING_ULPS = 2

#: Central differences in float64 with step h ~ eps^(1/3): the error is about eps^(2/3) of the magnitude.
CENTRAL_DIFFERENCE = 1e-7

#: Two orders of the same float64 sums.
FLOAT64_REORDERED = 1e-12


def arithmetic_eps(dtype: torch.dtype) -> float:
    """Half and bfloat16 are computed in float32."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def storage_eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def smallest(dtype: torch.dtype) -> float:
    """The coarsest step near zero: of the arithmetic, where products may be flushed, or of the storage."""
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    storage = torch.finfo(dtype)
    return max(arithmetic.tiny, storage.tiny * storage.eps)
