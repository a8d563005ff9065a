"""What every test gets: seeded generators, and memory that is NaN until somebody writes to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from batchnorm.kernels import native


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill uninitialized memory with NaN: an element that no kernel wrote cannot pass by luck."""
    compiled = native._native  # its tensors do not come from torch
    was_on = compiled is not None and compiled.poison_new_tensors(True)
    former = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    if compiled is not None:
        compiled.poison_new_tensors(was_on)
    torch.use_deterministic_algorithms(former[0], warn_only=former[1])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20150211)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real files, in torchvision's layout."""
    root = os.environ.get("BATCHNORM_DATA")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("needs the real MNIST files: set BATCHNORM_DATA to the folder that holds MNIST/raw")
    return Path(root)
