"""``tune_allocator``: large tensors stop being faulted in anew; counted by the system, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch, batchnorm
if sys.argv[1] == "tuned":
    assert batchnorm.tune_allocator()
def step():
    torch.empty(16 << 20).fill_(1.0)  # 64 MB
for _ in range(10):  # the heap grows in a few steps
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_large_tensors_are_faulted_in_once() -> None:
    faults = {}
    for arm in ("default", "tuned"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, arm], capture_output=True, text=True, check=True)
        faults[arm] = int(done.stdout)
    assert faults["tuned"] < faults["default"] / 10
