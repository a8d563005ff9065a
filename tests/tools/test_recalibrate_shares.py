"""Recalibration by several processes, each with its share of the data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

import batchnorm

sys.path.insert(0, str(Path(__file__).parents[1]))  # in the processes that are started here

from tools import normalized
from tools.normalized import batches, layers

WORLD = 3


def network() -> nn.Sequential:
    """Without torch's SyncBatchNorm, which refuses to work in several processes on a CPU."""
    model = normalized.network()
    plain = nn.BatchNorm1d(5)
    plain.load_state_dict(model[9].state_dict())
    model[9] = plain
    return model


def doubles(data: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.double() for x in data]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    group = distributed.group.WORLD
    data = batches((16, 9, 5, 2))
    share = [data[:3], [], data[3:]][rank]  # uneven, and one of nothing

    def save(name: str, value: Any) -> None:
        torch.save(value, f"{folder}/{name}-{rank}.pt")

    save("exact", batchnorm.recalibrate(network(), share, group=group).state_dict())
    save("averaged", batchnorm.recalibrate(network(), share, group=group, variance="averaged").state_dict())
    save(
        "sequential",
        batchnorm.recalibrate(network().double(), doubles(share), group=group, mode="sequential").state_dict(),
    )
    short = iter(doubles(share)) if rank == 2 else doubles(share)
    failing = [*share, torch.zeros(2, 3, 9, 9)] if rank == 2 else share
    for name, loader, mode in (
        ("failing", failing, "one-pass"),
        ("empty", [], "one-pass"),
        ("short", short, "sequential"),
    ):
        model = network().double() if name == "short" else network()
        try:
            batchnorm.recalibrate(model, loader, group=group, inplace=True, mode=mode)
        except (RuntimeError, ValueError) as error:
            save(name, (str(error), model.state_dict()))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("shares")
    multiprocessing.spawn(_process, (str(folder),), nprocs=WORLD)
    names = ("exact", "averaged", "sequential", "failing", "empty", "short")
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(WORLD)] for name in names}


@pytest.mark.parametrize("variance", ["exact", "averaged"])
def test_all_have_the_statistics_of_all_shares(found: dict[str, list[Any]], variance: Any) -> None:
    first, *others = found[variance]
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())
    alone = batchnorm.recalibrate(network(), batches((16, 9, 5, 2)), variance=variance).state_dict()
    for name in layers(network()):
        # The same float64 sums, merged in another order, then rounded to float32.
        for buffer in ("running_mean", "running_var"):
            np.testing.assert_allclose(first[f"{name}.{buffer}"], alone[f"{name}.{buffer}"], rtol=2e-7, atol=1e-9)
        assert first[f"{name}.num_batches_tracked"] == 4


def test_layer_by_layer_all_have_the_statistics_of_the_frozen_network(found: dict[str, list[Any]]) -> None:
    first, *others = found["sequential"]
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())
    alone = batchnorm.recalibrate(network().double(), doubles(batches((16, 9, 5, 2))), mode="sequential").state_dict()
    torch.testing.assert_close(first, alone, rtol=1e-10, atol=1e-10)


def test_when_the_loader_of_one_ends_early_nobody_waits(found: dict[str, list[Any]]) -> None:
    messages = [message for message, _ in found["short"]]
    assert "ranks [2] of the group raised" in messages[0] == messages[1]
    assert "gave 1 batches the first time and 0 later" in messages[2]
    before = network().double().state_dict()
    for _, after in found["short"]:
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_when_one_raises_nobody_waits_and_all_models_are_as_they_were(found: dict[str, list[Any]]) -> None:
    messages = [message for message, _ in found["failing"]]
    assert "ranks [2] of the group raised" in messages[0] == messages[1]
    assert "mat1 and mat2" in messages[2]
    before = network().state_dict()
    for _, after in found["failing"]:
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_population_of_nothing_is_an_error_for_all(found: dict[str, list[Any]]) -> None:
    assert all("at least one batch; the loader gave none" in message for message, _ in found["empty"])
