"""The compiled kernels: every target, any number of threads, layouts read in place, recycled memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import batchnorm
import regimes
from batchnorm.functional import batch_norm
from batchnorm.kernels import native, use_backend
from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import WHOLE_BATCH, Epilogue
from cases import Case, check

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_target_in_every_regime(target: str, layout: str, dtype: torch.dtype) -> None:
    for values in regimes.VALUES:
        if dtype == torch.float16 and values in regimes.NEEDS_WIDE_RANGE:
            continue
        for shape in regimes.SHAPES.values():
            check(Case(values, shape, layout, dtype))
            check(Case(values, shape, layout, dtype, activation="relu", residual=True, training=False))


@pytest.mark.parametrize("layout", regimes.LAYOUTS)
@pytest.mark.parametrize("activation", regimes.ACTIVATIONS)
def test_every_target_with_every_activation_and_layout(target: str, layout: str, activation: str | None) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for residual in (False, True):
            check(Case(shape=(3, 35, 5, 7), layout=layout, dtype=dtype, activation=activation, residual=residual))


@pytest.fixture
def streams() -> Iterator[None]:
    """Write outputs of any size past the caches."""
    former = native._native.stream_from(0)
    yield
    native._native.stream_from(former)


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", regimes.LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 35, 5, 7), (2, 64, 16, 16), (40, 32), (2, 3, 50, 50)], ids=str)
def test_every_target_past_the_caches(target: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    for residual in (False, True):
        for training in (False, True):
            check(Case("mean_1e4", shape, layout, dtype, activation="relu", residual=residual, training=training))


#: Few and many channels, pieces of planes and planes in pieces, few and many rows; all above the size for one thread.
THREADED = [(8, 3, 64, 64), (2, 1, 300, 301), (16, 40, 9, 9), (64, 64, 7, 7), (1000, 100), (40000, 3)]


@pytest.mark.parametrize("shape", THREADED, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(
    target: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    inputs = Case("mean_1e4", shape, layout, dtype, residual=True).inputs()
    former = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 8, 1):
            torch.set_num_threads(threads)
            x, residual, weight, bias = (
                inputs[n].detach().requires_grad_() for n in ("x", "residual", "weight", "bias")
            )
            mean, var = inputs["running_mean"].clone(), inputs["running_var"].clone()
            y = batch_norm(x, mean, var, weight, bias, True, activation="relu", residual=residual)
            results.append([y, *torch.autograd.grad(y, (x, residual, weight, bias), inputs["dy"]), mean, var])
    finally:
        torch.set_num_threads(former)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(8, 3, 64, 64), (64, 64, 7, 7), (1000, 100)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_bits_for_any_number_of_threads_in_every_mode(shape: tuple[int, ...], layout: str, training: bool) -> None:
    former, gelu = torch.get_num_threads(), Epilogue(activation="gelu")
    try:
        for dtype in (torch.float64, torch.float16):
            inputs = Case("normal", shape, layout, dtype).inputs()
            x, dy = inputs["x"], inputs["dy"]
            results = []
            for threads in (1, 2, 3, 5, 8):
                torch.set_num_threads(threads)
                reduction = WHOLE_BATCH if training else None
                y, of_x = native.forward(x, WHOLE_BATCH, gelu, 1e-5)
                halves = native.reduce(dy, x, of_x, reduction, gelu, 1e-5)
                normalized = native.normalize(x, of_x, reduction, gelu, 1e-5)
                dx, *_ = native.backward(dy, x, of_x, reduction, gelu, 1e-5)
                results.append([y, *of_x, *halves, normalized, dx])
            assert not results[0][-1].isnan().any()
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(former)


@pytest.mark.parametrize("shape", [(300, 3, 33, 35), (5, 2, 3, 70, 70), (4000, 33), (300, 64, 6, 6)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_large_against_the_reference(shape: tuple[int, ...], layout: str) -> None:
    """Large enough for several parts, several threads and recycled memory."""
    with use_backend("native"):
        check(Case("mean_1e5", shape, layout, activation="relu", residual=True))


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(4, 6, 5, 5),
        torch.empty(8, 12, 5, 5)[::2, 3:9],
        torch.empty(6, 4, 5, 5).transpose(0, 1),
        torch.empty(4, 6, 5, 5).to(memory_format=torch.channels_last),
        torch.empty(4, 5, 5, 12)[..., 3:9].movedim(-1, 1),
        torch.empty(40, 12)[:, :6],
        torch.empty(4, 6, 1, 1),
        torch.empty(4, 1, 5, 5),
    ],
)
def test_layouts_read_in_place(x: torch.Tensor) -> None:
    assert native._native.walkable(x)
    y, _ = native.forward(x, WHOLE_BATCH, Epilogue(), 1e-5)
    assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize(
    "x", [torch.empty(4, 6, 5, 9)[..., 2:7], torch.empty(4, 6, 1).expand(4, 6, 25), torch.empty(1, 6).expand(9, 6)]
)
def test_layouts_that_are_copied_once(x: torch.Tensor) -> None:
    assert not native._native.walkable(x)
    x = torch.randn(x.shape[:2] + (1,) * (x.dim() - 2)).expand(x.shape)
    with use_backend("native"):
        y = batch_norm(x, None, None, training=True)
    with use_backend("eager"):
        torch.testing.assert_close(y, batch_norm(x, None, None, training=True))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(8, 1, 1, 1),
        torch.randn(8, 5, 1, 1).to(memory_format=torch.channels_last),
        torch.randn(2, 5, 1, 7).transpose(2, 3),
        torch.randn(5, 2, 3, 3).transpose(0, 1),
        torch.randn(2, 3, 8)[:, :, ::2],
        torch.randn(1, 6).expand(9, 6),
    ],
)
def test_outputs_lie_as_torch_lays_them_out(x: torch.Tensor) -> None:
    y, statistics = native.forward(x, WHOLE_BATCH, Epilogue(), 1e-5)
    dx, dz, *_ = native.backward(x, x, statistics, WHOLE_BATCH, Epilogue(residual=x), 1e-5)
    assert y.stride() == dx.stride() == dz.stride() == torch.empty_like(x).stride()


def test_more_dimensions_than_the_compiled_module_reads_are_left_to_eager() -> None:
    assert "16 dimensions" in native.refusal(torch.zeros([2] * 17))


def test_parameters_of_a_subclass_are_read() -> None:
    class Marked(torch.Tensor):
        pass

    x, weight = torch.randn(4, 3), torch.randn(3)
    marked = native.forward(x, WHOLE_BATCH, Epilogue(weight.as_subclass(Marked)), 1e-5)
    assert torch.equal(marked[0], native.forward(x, WHOLE_BATCH, Epilogue(weight), 1e-5)[0])


def test_recycled_memory_is_written_whole_and_never_shared_by_two_tensors() -> None:
    x = torch.randn(32, 16, 32, 32)  # 2 MB
    with use_backend("native"):
        expected = batch_norm(x, None, None, training=True)
        held = [batch_norm(x, None, None, training=True) for _ in range(3)]
        assert len({t.data_ptr() for t in [expected, *held]}) == 4
        for t in held:
            t.fill_(torch.nan)
        addresses = {t.data_ptr() for t in held}
        del held, t
        again = [batch_norm(x, None, None, training=True) for _ in range(3)]
    assert {t.data_ptr() for t in again} == addresses
    for t in again:
        assert torch.equal(t, expected)
    copied = again[0].clone()
    again[0].add_(1)
    assert torch.equal(again[1], copied)


def test_results_outlive_the_layer_and_may_be_resized_or_viewed() -> None:
    y = batchnorm.BatchNorm2d(16)(torch.randn(32, 16, 32, 32)).detach()
    flat = y.view(-1)[5:]
    del y
    torch.testing.assert_close(flat.mean(), torch.zeros(()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "code"), [("baseline", 0), ("sse9", 1)])
def test_environment_variable_forces_a_target(name: str, code: int) -> None:
    program = "from batchnorm.kernels import native; print(native.target())"
    environment = {**os.environ, "BATCHNORM_TARGET": name}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if code:
        assert "a target must be one that this processor runs" in done.stderr
        assert "got 'sse9'" in done.stderr
    else:
        assert done.stdout == "baseline\n"


def test_without_compiled_kernels_eager_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_native", None)
    monkeypatch.setattr(native, "_missing", "this installation has no compiled kernels", raising=False)
    explanation = batchnorm.explain(torch.zeros(2, 3))
    assert explanation.backend == "eager"
    assert explanation.passed_over == {"native": "this installation has no compiled kernels"}
    assert native.targets() == []


def test_the_compiled_module_knows_the_activations_and_its_dtypes() -> None:
    assert set(native._native.activations()) == set(ACTIVATIONS)
    assert [getattr(torch, name).is_floating_point for name in native._native.dtypes()] == [True] * 4
    x = torch.randn(4, 3)
    together = "".join(["re", "lu"])  # a name that is not interned
    assert torch.equal(
        native.forward(x, WHOLE_BATCH, Epilogue(activation=together), 1e-5)[0],
        native.forward(x, WHOLE_BATCH, Epilogue(activation="relu"), 1e-5)[0],
    )
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        native.forward(x, WHOLE_BATCH, Epilogue(activation="swish"), 1e-5)


def test_the_stub_is_what_nanobind_generates() -> None:
    stubgen = pytest.importorskip("nanobind.stubgen")
    generator = stubgen.StubGen(native._native)
    generator.put(native._native)
    path = Path(native.__file__).with_name("_native.pyi")
    assert path.read_text() == generator.get(), "run make stub"
