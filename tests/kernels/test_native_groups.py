"""Groups of samples in the compiled kernels: each is a batch of its own, to the bit, and the gradients are sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import regimes
from batchnorm.kernels import eager, native
from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue, Reduction, Running, Statistics
from batchnorm.reference import statistics as reference
from cases import Case

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _slices(case: Case, size: int) -> list[slice]:
    return [slice(begin, begin + size) for begin in range(0, case.shape[0], size)]


def _results(x: Tensor, dy: Tensor, reduction: Reduction, epilogue: Epilogue) -> dict[str, Tensor]:
    y, statistics = native.forward(x, reduction, epilogue, 1e-5)
    gradients = native.backward(dy, x, statistics, reduction, epilogue, 1e-5)
    sums = native.reduce(dy, x, statistics, reduction, epilogue, 1e-5)
    halves = native.apply(dy, x, statistics, sums, reduction, epilogue, 1e-5)
    again = native.normalize(x, native.collect(x, reduction), reduction, epilogue, 1e-5)
    results = {"y": y, **statistics._asdict(), **gradients._asdict(), **sums._asdict()}
    return {**results, "again": again, "applied dx": halves[0], "applied dresidual": halves[1]}


def _in_one_call_and_in_a_loop(case: Case, size: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    inputs = case.inputs()
    x, dy, residual, weight, bias = (inputs[name] for name in ("x", "dy", "residual", "weight", "bias"))
    whole = _results(x, dy, Reduction(size), Epilogue(weight, bias, residual, case.activation))
    parts = []
    for part in _slices(case, size):
        epilogue = Epilogue(weight, bias, None if residual is None else residual[part], case.activation)
        parts.append(_results(x[part], dy[part], WHOLE_BATCH, epilogue))
    return whole, parts


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second"])
@pytest.mark.parametrize("values", ["normal", "mean_1e5", "1e30"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_group_is_a_batch_of_the_reference(target: str, dtype: torch.dtype, values: str, layout: str) -> None:
    """Every target, dtype and layout; the last group is shorter; the whole batch's statistics are seen to be wrong."""
    if dtype == torch.float16 and values in regimes.NEEDS_WIDE_RANGE:
        pytest.skip("float16 cannot hold these values")
    for shape, size in (((7, 6, 5, 7), 3), ((10, 35), 4), ((5, 3, 40, 60), 2)):
        case = Case(values, shape, layout, dtype, activation="silu", residual=True)
        inputs = case.inputs()
        x, dy, residual, weight, bias = (inputs[name] for name in ("x", "dy", "residual", "weight", "bias"))
        got = _results(x, dy, Reduction(size), Epilogue(weight, bias, residual, "silu"))
        naive = _results(x, dy, WHOLE_BATCH, Epilogue(weight, bias, residual, "silu"))
        totals = {"dweight": [], "dbias": []}
        for g, part in enumerate(_slices(case, size)):
            answers = oracle.ask(
                x[part], dy[part], weight=weight, bias=bias, residual=residual[part], activation="silu"
            )
            for name in ("y", "dx", "dresidual"):
                answers[name].check(f"{name} of group {g}", got[name][part])
            for name in ("mean", "var"):
                answers[name].check(f"{name} of group {g}", got[name][g])
            assert got["count"][g].item() == x[part].numel() / x.shape[1]
            if values == "normal":
                assert answers["y"].misses(naive["y"][part])
                assert answers["dx"].misses(naive["dx"][part])
            for name, total in totals.items():
                total.append(answers[name])
        for name, answers in totals.items():
            value, bound = (sum(getattr(answer, field) for answer in answers) for field in ("value", "bound"))
            oracle.Answer(value, bound).check(name, got[name])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [1, 3, 8, 2**40])
def test_one_call_is_a_loop_to_the_bit(target: str, layout: str, size: int) -> None:
    for shape in ((11, 5, 6, 6), (11, 40), (11, 3, 50, 50), (11, 33, 3)):
        for dtype in DTYPES:
            for activation in (None, "relu"):
                case = Case("mean_1e4", shape, layout, dtype, activation=activation, residual=activation is not None)
                whole, parts = _in_one_call_and_in_a_loop(case, size)
                for name, got in whole.items():
                    pieces = [part[name] for part in parts]
                    if got is None:
                        assert pieces == [None] * len(parts)
                    elif name in ("dweight", "dbias"):
                        sums = torch.cat([part["sum_dy_xhat" if name == "dweight" else "sum_dy"] for part in parts])
                        assert torch.equal(got, _total(sums).to(got.dtype)), name
                    else:
                        assert torch.equal(got, torch.cat(pieces)), name


def _total(sums: Tensor) -> Tensor:
    total = sums[0].clone()
    for other in sums[1:]:
        total += other
    return total


@pytest.mark.parametrize("shape", [(32, 8, 24, 24), (32, 64, 7, 7), (640, 100), (33, 3, 60, 60)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads_and_past_the_caches(shape: tuple[int, ...], layout: str) -> None:
    former_threads, former_size = torch.get_num_threads(), None
    try:
        for size in (1, 2, 8, 16, 20):
            inputs = Case("mean_1e4", shape, layout, residual=True).inputs()
            epilogue = Epilogue(inputs["weight"], inputs["bias"], inputs["residual"], "relu")
            results = []
            for threads, streams in ((1, 2**60), (2, 2**60), (3, 0), (8, 2**60)):
                torch.set_num_threads(threads)
                limit = native._native.stream_from(streams)
                former_size = limit if former_size is None else former_size
                results.append(_results(inputs["x"], inputs["dy"], Reduction(size), epilogue))
            for other in results[1:]:
                assert all(torch.equal(results[0][name], other[name]) for name in other), size
    finally:
        torch.set_num_threads(former_threads)
        if former_size is not None:
            native._native.stream_from(former_size)


def test_a_count_over_several_processes_is_what_gradients_are_divided_by(target: str) -> None:
    """dx of a share of the batch, given the sums and the count over all shares, is its part of the whole dx."""
    for layout in ("contiguous", "channels_last"):
        inputs = Case(shape=(8, 5, 4, 3), layout=layout, dtype=torch.float64, activation="silu").inputs()
        x, dy, epilogue = inputs["x"], inputs["dy"], Epilogue(inputs["weight"], inputs["bias"], None, "silu")
        statistics = native.collect(x, WHOLE_BATCH)
        sums = native.reduce(dy, x, statistics, WHOLE_BATCH, epilogue, 1e-5)
        whole = native.backward(dy, x, statistics, WHOLE_BATCH, epilogue, 1e-5).dx
        share = native.apply(dy[:3], x[:3], statistics, sums, WHOLE_BATCH, epilogue, 1e-5)[0]
        torch.testing.assert_close(share, whole[:3], rtol=1e-13, atol=1e-15)
        of_three = statistics._replace(count=torch.full((1, 1), 36.0, dtype=torch.float64))
        wrong = native.apply(dy[:3], x[:3], of_three, sums, WHOLE_BATCH, epilogue, 1e-5)[0]
        assert not torch.allclose(wrong, whole[:3], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9, 1.0])
def test_running_statistics_meet_the_groups_in_order(dtype: torch.dtype, factor: float) -> None:
    generator = torch.Generator().manual_seed(7)
    mean, var = (torch.rand(4, 6, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    count = torch.tensor([[5.0], [2.0], [1.0], [9.0]], dtype=torch.float64)
    statistics = Statistics(mean, var, count)
    running = [torch.rand(6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    expected = [r.double().numpy() for r in running]
    for g in (0, 1, 3):  # one value has no variance
        moved = reference.update_running(*expected, mean[g].numpy(), var[g].numpy(), count[g].item(), factor)
        expected = [torch.from_numpy(np.asarray(r)).to(dtype).double().numpy() for r in moved]
    twice = [r.clone() for r in running]
    counters = torch.zeros(4, dtype=torch.long)
    native.update(Running(*running, counters[0], counters[1]), statistics, factor, False)
    eager.update(Running(*twice, counters[2], counters[3]), statistics, factor, False)
    assert counters.tolist() == [3, 0, 3, 0]
    ulps = 2 * torch.finfo(torch.float64).eps if dtype == torch.float64 else 0  # other forms of the same average
    for got, other, exact in zip(running, twice, expected, strict=True):
        np.testing.assert_allclose(got.double().numpy(), exact, rtol=ulps, atol=0)
        np.testing.assert_allclose(other.double().numpy(), exact, rtol=ulps, atol=0)


def test_momentum_1_keeps_every_digit() -> None:
    """``r + f (s - r)`` has none of a small s left."""
    found = torch.tensor([[9.3e-19]], dtype=torch.float64)
    running = [torch.ones(1), torch.ones(1)]
    native.update(Running(*running), Statistics(found, found, torch.tensor([[5.0]], dtype=torch.float64)), 1.0, False)
    assert running[0].item() == np.float32(9.3e-19)
    assert running[1].item() == np.float32(9.3e-19 * 1.25)
    assert np.float32(1.0 + 1.0 * (9.3e-19 - 1.0)) == 0  # the form that loses them
    running = [torch.full((1,), torch.nan), torch.full((1,), torch.inf)]
    native.update(Running(*running), Statistics(found, found, torch.tensor([[5.0]], dtype=torch.float64)), 1.0, False)
    assert running[0].item() == np.float32(9.3e-19)
