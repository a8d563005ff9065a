"""Memory of large outputs: taken once, lent from one size to another, never shared; under forks and refusals too."""

from __future__ import annotations

import functools
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import batchnorm
from batchnorm.kernels import native

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)

#: Bytes: large pages, one that is not a multiple of them, small ones, and the last size before a large page.
SIZES = [16 << 20, 9 << 20, (5 << 20) + 4096, 300 << 10, 70 << 10, (2 << 20) - 4096]


@functools.cache
def _input(size: int) -> torch.Tensor:
    """Return x of so many bytes."""
    return torch.ones(size // 256, 64)


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return batchnorm.functional.batch_norm(x, torch.zeros(64), torch.ones(64), eps=0.0)


def _output(size: int) -> torch.Tensor:
    return _normalized(_input(size))


def test_no_two_living_tensors_share_memory() -> None:
    """In an order drawn at random, tensors of all sizes come and go; each keeps the number that it was filled with."""
    generator = torch.Generator().manual_seed(0)
    living: dict[int, torch.Tensor] = {}
    for number in range(300):
        draw = torch.randint(100, (2,), generator=generator).tolist()
        living[number] = _output(SIZES[draw[0] % len(SIZES)]).fill_(number)
        while len(living) > 6:
            gone = list(living)[draw[1] % len(living)]
            assert (living.pop(gone) == gone).all(), gone
    for number, tensor in living.items():
        assert (tensor == number).all()


def _faults_of_a_step() -> int:
    """Do what a network does: small outputs live after the forward pass, large ones after the backward pass."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    forward = [_output(size) for size in (16 << 20, 16 << 20, 4 << 20, 4 << 20, 1 << 20, 1 << 20)]
    while forward:
        gradient = _output(4 * forward[-1].numel())
        forward.pop()
        del gradient
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
LINUX = platform.system() == "Linux"


def _run(program: str, *arguments: str, **environment: str) -> list[int]:
    """Run a program beside this file, in a process of its own, and return the numbers that it prints."""
    command = [sys.executable, str(Path(__file__).with_name(program)), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return [*map(int, done.stdout.split())]


@pytest.mark.skipif(SANITIZED, reason="the sanitizer faults in pages of its own")
def test_sizes_that_take_turns_fault_in_nothing_anew() -> None:
    # In a process of its own: in this one other tests may have had more in use at once.
    faults = _run("test_memory.py")
    assert min(faults) < 3  # where blocks go back to the system and come again: large pages, 14


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own allocator is not made for forks among threads")
def test_children_forked_while_threads_free_memory_do_not_hang() -> None:
    forks, hung = _run("memory_forks.py")
    assert hung == 0, f"after {forks} forks"
    assert forks >= 50  # without pthread_atfork one in 25 hangs


@pytest.mark.skipif(
    not LINUX or SANITIZED, reason="the calls that are refused are Linux's, without a sanitizer between"
)
def test_outputs_are_whole_whatever_calls_the_system_refuses(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = str(tmp_path / "refuse.so")
    source = str(Path(__file__).with_name("refuse.c"))
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    (cases,) = _run("memory_refused.py", library, LD_PRELOAD=library)
    assert cases > 100


@pytest.mark.skipif(not LINUX or SANITIZED, reason="counts mappings as Linux lists them, without a sanitizer's")
def test_lending_leaves_mappings_to_others_and_needs_none() -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit > 200_000:
        pytest.skip(f"this system allows {limit} mappings")
    many, few = _run("memory_mappings.py")
    assert 4096 < many < 8192 + 256  # one for each grain: 15,700
    assert few < 3000


@pytest.fixture
def own_memory() -> Iterator[int]:
    """Start with nothing kept; return the bytes that other tests still use, and restore the limit."""
    former = batchnorm.limit_kept_memory(2**40)
    batchnorm.release_memory()
    yield batchnorm.memory().in_use
    batchnorm.limit_kept_memory(former)


def test_a_tensor_moves_its_bytes_from_in_use_to_kept(own_memory: int) -> None:
    large, small = _output(9 << 20), _output(70 << 10)
    now = batchnorm.memory()
    assert (now.in_use - own_memory, now.kept) == ((10 << 20) + (128 << 10), 0)  # whole pages: 5 of 2 MiB, 2 of 64 KiB
    assert sum(row.in_use for row in now.by_size) == now.in_use
    del large
    now = batchnorm.memory()
    assert (now.in_use - own_memory, now.kept) == (128 << 10, 10 << 20)
    assert [(row.largest, row.kept) for row in now.by_size if row.kept] == [(16 << 20, 10 << 20)]
    assert "10.0 MiB kept" in repr(now)
    del small
    assert batchnorm.memory().kept == (10 << 20) + (128 << 10)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not LINUX, reason="reads the resident memory as Linux reports it")
def test_release_memory_gives_the_bytes_back_to_the_system(own_memory: int) -> None:
    outputs = [_output(16 << 20).fill_(1) for _ in range(4)]
    living = outputs.pop()
    del outputs
    before = _resident()
    assert batchnorm.release_memory() == 48 << 20
    assert before - _resident() > 47 << 20
    assert batchnorm.memory().kept == batchnorm.release_memory() == 0
    assert (living == 1).all()
    assert (_output(16 << 20).fill_(2) == 2).all()


@pytest.mark.skipif(not LINUX, reason="asks for the machine's memory as Linux tells it")
def test_the_default_limit_is_an_eighth_of_the_memory() -> None:
    (limit,) = _run("test_memory.py", "limit")
    groups = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")]
    texts = [path.read_text().strip() for path in groups if path.is_file()]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert limit == min([machine, *(int(text) for text in texts if text.isdecimal())]) // 8


@pytest.mark.parametrize("size", [16 << 20, 128 << 10])
@pytest.mark.parametrize("limit", [0, 1, 5 << 20, 20 << 20, 1 << 30])
def test_never_more_is_kept_than_the_limit(own_memory: int, size: int, limit: int) -> None:
    batchnorm.limit_kept_memory(limit)
    outputs = [_output(size).fill_(i) for i in range(3)]
    while outputs:
        assert (outputs[-1] == len(outputs) - 1).all()
        del outputs[-1]
        assert batchnorm.memory().kept <= limit
    assert batchnorm.memory().kept <= min(limit, 3 * size)
    if limit == 1 << 30:
        assert batchnorm.memory().kept == 3 * size
        batchnorm.limit_kept_memory(size)
        assert batchnorm.memory().kept == size


def test_the_limit_holds_for_all_sizes_together(own_memory: int) -> None:
    batchnorm.limit_kept_memory(6 << 20)
    outputs = [_output(size) for size in (4 << 20, 4 << 20, 1 << 20, 1 << 20)]
    del outputs
    assert 4 << 20 < batchnorm.memory().kept <= 6 << 20


def test_the_largest_batch_of_long_ago_is_forgotten(own_memory: int) -> None:
    x = torch.zeros(300, 64)
    native._native.empty_like(torch.zeros(1 << 12, 64))  # 1 MiB, of the same kind of pages
    assert batchnorm.memory().kept == 1 << 20
    for _ in range(2 * 8192 + 1):
        native._native.empty_like(x)
    assert batchnorm.memory().kept == 128 << 10


REFUSED = re.escape("Trying to resize storage that is not resizable")


def test_outputs_resize_only_without_kept_memory(own_memory: int) -> None:
    x, tiny = _input(1 << 20), torch.ones(4, 64)

    def outputs() -> list[torch.Tensor]:
        return [_normalized(t) for t in (x, tiny)]

    for y in outputs():
        assert not y.untyped_storage().resizable()
        with pytest.raises(RuntimeError, match=REFUSED):
            y.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=REFUSED):
            y[:].resize_(2 * y.shape[0], 64)  # an alias: torch changes the shape before it raises
        assert (y == 1).all()
        y.data = torch.empty(0)  # frees the memory with any limit
    assert batchnorm.memory().in_use == own_memory
    batchnorm.limit_kept_memory(0)
    for y in outputs():
        size = y.untyped_storage().nbytes()
        y.untyped_storage().resize_(0)
        y.untyped_storage().resize_(size)
        y.resize_(2 * y.shape[0], 64).fill_(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_outputs_without_kept_memory_are_the_same(own_memory: int, dtype: torch.dtype) -> None:
    x = torch.randn(6, 70, 9, 11).to(dtype).to(memory_format=torch.channels_last)
    dy = torch.randn(x.shape).to(dtype)
    x.requires_grad_()

    def outputs() -> tuple[torch.Tensor, ...]:
        y = batchnorm.functional.batch_norm(x, None, None, training=True, activation="relu")
        return y, *torch.autograd.grad(y, x, dy)

    expected = outputs()
    batchnorm.limit_kept_memory(0)
    for a, b in zip(outputs(), expected, strict=True):
        assert torch.equal(a, b)
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())


def test_a_limit_that_is_none_is_refused() -> None:
    former = batchnorm.memory().limit
    with pytest.raises(ValueError, match=r"got -1\. Try 0"):
        batchnorm.limit_kept_memory(-1)
    with pytest.raises(TypeError):
        batchnorm.limit_kept_memory(0.5)  # type: ignore[arg-type]
    assert batchnorm.memory().limit == former


if __name__ == "__main__":
    print(*[batchnorm.memory().limit] if sys.argv[1:] else [_faults_of_a_step() for _ in range(8)][3:])  # noqa: T201
