"""``functional.batch_norm``: values and gradients against the float64 reference, in every regime."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle
import regimes
import tolerances as tol
from batchnorm.functional import DtypeError, InputError, batch_norm
from batchnorm.statistics.policies import Batch
from cases import Case, check

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("shape", regimes.SHAPES)
@pytest.mark.parametrize("values", regimes.VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hard_values_in_every_shape(values: str, shape: str, dtype: torch.dtype, training: bool) -> None:
    check(Case(values, regimes.SHAPES[shape], dtype=dtype, training=training))


@pytest.mark.parametrize("values", regimes.VALUES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hard_values_in_half_precision(values: str, dtype: torch.dtype, training: bool) -> None:
    if dtype == torch.float16 and values in regimes.NEEDS_WIDE_RANGE:
        pytest.skip("float16 cannot hold these values")
    check(Case(values, dtype=dtype, training=training, activation="relu", residual=True))


@pytest.mark.parametrize("activation", regimes.ACTIVATIONS)
@pytest.mark.parametrize("values", ["normal", "mean_1e6"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_activations(activation: str | None, values: str, training: bool, residual: bool, affine: bool) -> None:
    case = Case(values, activation=activation, training=training, residual=residual, affine=affine)
    check(case)
    check(replace(case, dtype=torch.bfloat16))


@pytest.mark.parametrize("layout", regimes.LAYOUTS)
@pytest.mark.parametrize("shape", ["dense_odd", "sequence", "image_odd", "volume"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layouts(layout: str, shape: str, training: bool) -> None:
    check(Case(shape=regimes.SHAPES[shape], layout=layout, training=training, activation="silu", residual=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_and_buffers_in_half_precision(dtype: torch.dtype) -> None:
    check(Case(dtype=dtype, parameter_dtype=dtype))


def test_x_and_residual_in_different_layouts() -> None:
    inputs = Case(residual=True).inputs()
    x, residual = inputs["x"], regimes.LAYOUTS["channels_last"](inputs["residual"])
    y = batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    expected = batch_norm(x, None, None, training=True, residual=inputs["residual"], activation="relu")
    assert torch.equal(y, expected)


def test_expanded_upstream_gradient() -> None:
    inputs = Case().inputs()
    x = inputs["x"].requires_grad_()
    one = torch.tensor(0.7)
    y = batch_norm(x, None, None, inputs["weight"], inputs["bias"], training=True)
    (dx,) = torch.autograd.grad(y, x, one.expand_as(y))
    oracle.ask(x, one.expand_as(y), weight=inputs["weight"], bias=inputs["bias"])["dx"].check("dx", dx)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_combination(data: st.DataObject) -> None:
    """Hypothesis draws the whole call."""
    dtype = data.draw(st.sampled_from(DTYPES))
    values = data.draw(
        st.sampled_from([v for v in regimes.VALUES if dtype != torch.float16 or v not in regimes.NEEDS_WIDE_RANGE])
    )
    rank = data.draw(st.integers(2, 5))
    shape = tuple(data.draw(st.integers(1, 6)) for _ in range(rank))
    training = data.draw(st.booleans())
    if math.prod(shape) == shape[1]:
        training = False
    check(
        Case(
            values,
            shape,
            data.draw(st.sampled_from(list(regimes.LAYOUTS))),
            dtype,
            activation=data.draw(st.sampled_from(regimes.ACTIVATIONS)),
            affine=data.draw(st.booleans()),
            residual=data.draw(st.booleans()),
            training=training,
            momentum=data.draw(st.floats(0, 1)),
            seed=data.draw(st.integers(0, 99)),
        )
    )


# The naive forms fail where ours do not.


def _naive(x: Tensor, *, centred_output: bool, centred_var: bool) -> Tensor:
    """Batch normalization as it is often written, in the dtype of ``x``."""
    dims = [0, *range(2, x.dim())]
    mean = x.mean(dims, keepdim=True)
    var = ((x - mean) ** 2 if centred_var else x**2 - mean**2).mean(dims, keepdim=True)
    invstd = (var + 1e-5).rsqrt()
    return (x - mean) * invstd if centred_output else x * invstd - mean * invstd


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ("mean_1e4", {"centred_output": True, "centred_var": False}),
        ("mean_1e5", {"centred_output": False, "centred_var": True}),
        ("mean_1e6", {"centred_output": True, "centred_var": True}),
        ("constant_channels", {"centred_output": False, "centred_var": True}),
        ("1e30", {"centred_output": True, "centred_var": True}),
    ],
    ids=["E[x^2]-E[x]^2", "scale_and_shift", "float32_mean", "constant_channel", "overflow"],
)
def test_naive_form_fails(values: str, form: dict[str, bool]) -> None:
    inputs = Case(values, (64, 3, 16, 16)).inputs()
    answer = oracle.ask(inputs["x"], inputs["dy"])["y"]
    assert answer.misses(_naive(inputs["x"], **form))
    answer.check("y", batch_norm(inputs["x"], None, None, training=True))


@pytest.mark.parametrize("values", ["mean_1e4", "mean_1e5", "mean_1e6", "constant_channels", "1e30"])
def test_torch_loses_digits_where_ours_does_not(values: str) -> None:
    """The layer that people use today, in the regimes that the documentation names (docs/numerics.md)."""
    inputs = Case(values, (64, 3, 16, 16)).inputs()
    answer = oracle.ask(inputs["x"], inputs["dy"])["y"]
    assert answer.misses(torch.nn.functional.batch_norm(inputs["x"], None, None, training=True))
    answer.check("y", batch_norm(inputs["x"], None, None, training=True))


def test_sum_loss_cannot_see_the_backward() -> None:
    """Why no test here uses one: its gradient is zero whatever the backward does."""
    x = Case(dtype=torch.float64).inputs()["x"].requires_grad_()
    (dx,) = torch.autograd.grad(batch_norm(x, None, None, training=True).sum(), x)
    assert dx.abs().max() < tol.FLOAT64_REORDERED


# Empty, single and non-finite.


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5, 5), (2, 3, 0, 5), (2, 0, 4), (0, 0)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_empty_batch_gives_an_empty_result_and_stores_nothing(shape: tuple[int, ...], training: bool) -> None:
    x = torch.empty(shape, requires_grad=True)
    mean, var = torch.full((shape[1],), 3.0), torch.full((shape[1],), 2.0)
    weight, bias = (torch.ones(shape[1], requires_grad=True) for _ in range(2))
    y = batch_norm(x, mean, var, weight, bias, training, activation="relu")
    assert y.shape == shape
    grads = torch.autograd.grad(y, (x, weight, bias), torch.empty(shape))
    assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
    assert not torch.cat([grads[1], grads[2]]).any()
    assert torch.equal(mean, torch.full((shape[1],), 3.0))
    assert torch.equal(var, torch.full((shape[1],), 2.0))


def test_one_value_per_channel_is_normalized_in_evaluation() -> None:
    check(Case(shape=(1, 4), training=False))
    check(Case(shape=(1, 4, 1, 1), training=False))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_non_finite_values_stay_in_their_channel_as_in_torch(bad: float, training: bool) -> None:
    x = Case().inputs()["x"]
    x[0, 2, 1, 1] = bad
    ours, theirs = [torch.zeros(6), torch.ones(6)], [torch.zeros(6), torch.ones(6)]
    y = batch_norm(x, *ours, training=training, statistics=Batch(on_nonfinite="keep"))
    expected = torch.nn.functional.batch_norm(x, *theirs, training=training)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.isfinite(), other.isfinite())


# Laws.


def test_invariant_to_shift_and_positive_scale() -> None:
    x = Case(dtype=torch.float64).inputs()["x"]
    y = batch_norm(x, None, None, training=True, eps=1e-12)
    moved = batch_norm(x * 3.7 + 11.0, None, None, training=True, eps=1e-12)
    torch.testing.assert_close(moved, y, rtol=0, atol=1e-11)  # eps / var, in two places


def test_permuting_the_batch_permutes_the_result() -> None:
    x = Case(shape=(8, 3, 4, 4), dtype=torch.float64).inputs()["x"]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    y = batch_norm(x, None, None, training=True)
    torch.testing.assert_close(
        batch_norm(x[order], None, None, training=True),
        y[order],
        rtol=tol.FLOAT64_REORDERED,
        atol=tol.FLOAT64_REORDERED,
    )


def test_gradient_sums_vanish() -> None:
    """The sums over a channel of dx, and of dx * x_hat as eps -> 0 (DERIVATION)."""
    inputs = Case(dtype=torch.float64).inputs()
    x = inputs["x"].requires_grad_()
    y = batch_norm(x, None, None, training=True, eps=1e-12)
    (dx,) = torch.autograd.grad(y, x, inputs["dy"])
    assert dx.abs().max() > 0.1
    assert dx.sum((0, 2, 3)).abs().max() < tol.FLOAT64_REORDERED * x.numel()
    assert (dx * y).sum((0, 2, 3)).abs().max() < 1e-9  # eps / var times the sum of magnitudes


def test_weight_scale_identity_of_the_paper() -> None:
    """BN((aW)u) = BN(Wu), and the gradient with respect to aW is 1/a of that with respect to W (section 3.3)."""
    generator = torch.Generator().manual_seed(0)
    u, w, dy = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((32, 7), (5, 7), (32, 5)))
    results = []
    for a in (1.0, 8.0):
        scaled = (a * w).requires_grad_()
        y = batch_norm(u @ scaled.T, None, None, training=True, eps=1e-14)
        results.append((y, torch.autograd.grad(y, scaled, dy)[0] * a))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)  # eps / var


# Bad input: what must hold, what came, what to try.


def _call(**changes: object) -> Tensor:
    arguments = {
        "x": torch.randn(4, 3, 2, 2),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "training": True,
    }
    return batch_norm(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"x": [1.0, 2.0]}, TypeError, "got list"),
        ({"x": torch.ones(4, 3, 2, 2, dtype=torch.int64)}, DtypeError, r"torch.int64.*x.float\(\)"),
        ({"x": torch.ones(4, 3, 2, 2, dtype=torch.bool)}, DtypeError, "torch.bool"),
        ({"x": torch.ones(4, 3, 2, 2, dtype=torch.complex64)}, DtypeError, "torch.complex64"),
        ({"x": torch.randn(3)}, InputError, "1D input"),
        ({"x": torch.randn(4, 5, 2, 2)}, InputError, "running_mean should contain 5 elements not 3.*dimension 1"),
        ({"weight": torch.ones(4)}, InputError, "weight should contain 3 elements not 4"),
        ({"weight": torch.ones(3, 1)}, InputError, r"weight has shape \(3, 1\)"),
        ({"bias": torch.ones(2)}, InputError, "bias should contain 3 elements not 2"),
        ({"running_var": None}, InputError, "both be None"),
        ({"running_mean": None, "running_var": None, "training": False}, InputError, "nothing to normalize with"),
        ({"x": torch.randn(4, 3, 2, 2).double()}, DtypeError, "x is torch.float64, running_mean is torch.float32"),
        ({"weight": torch.ones(3).bfloat16()}, DtypeError, "weight is torch.bfloat16"),
        ({"x": torch.randn(4, 3, 2, 2).half(), "bias": torch.ones(3).double()}, DtypeError, "or float32"),
        ({"weight": torch.ones(3, device="meta")}, InputError, "x is on cpu, weight on meta"),
        ({"residual": torch.randn(4, 3, 2, 1)}, InputError, r"residual must have the shape of x.*got \(4, 3, 2, 1\)"),
        ({"residual": torch.randn(4, 3, 2, 2).double()}, DtypeError, "residual must have x's dtype"),
        ({"residual": torch.randn(4, 3, 2, 2, device="meta")}, InputError, "residual on meta"),
        ({"activation": "reul"}, ValueError, "one of .*'relu'.*got 'reul'"),
        ({"eps": 0.0}, ValueError, "positive during training, but got 0"),
        ({"eps": -1.0, "training": False}, ValueError, "non-negative, but got -1"),
        ({"x": torch.randn(1, 3, 1, 1)}, ValueError, "more than 1 value per channel.*eval"),
    ],
)
def test_bad_input(changes: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"(?s){says}"):
        _call(**changes)


def test_a_rejected_call_stores_nothing() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(InputError):
        _call(running_mean=mean, running_var=var, residual=torch.randn(1))
    assert not mean.any()
    assert (var == 1).all()
