"""Fabric, set up for one process or for those that torchrun started, and what they do together."""

import atexit
import inspect
import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.training.config import TrainConfig

_OF_DDP = inspect.signature(nn.parallel.DistributedDataParallel).parameters
#: The argument of DDP by which rank 0's buffers go to the others before each forward; torch 2.13 gave it a new name.
RANK_0_AT_EACH_STEP = "forward_sync_buffers" if "forward_sync_buffers" in _OF_DDP else "broadcast_buffers"


def make_fabric(config: TrainConfig) -> Fabric:
    """Make the Fabric of this process.

    Under ``torchrun`` (WORLD_SIZE in the environment) there is one process for each device, and Fabric takes ranks and
    addresses from torchrun; it must be told how many devices a machine has and how many machines there are. Otherwise
    there is one process with one device.

    Parameters
    ----------
    config : TrainConfig
        ``device``, ``precision`` and ``stochastic_depth`` count.

    Returns
    -------
    Fabric
        Launched: the process group is there.

    Raises
    ------
    LabError
        There is no such device here.
    """
    for name in ("lightning.fabric", "lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces precision and ranks
    world = int(os.environ.get("WORLD_SIZE", 1)) if torch.distributed.is_torchelastic_launched() else 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world > 1 else 1
    device = choose_device(config.device)
    # Running statistics differ between processes and are averaged where they are used (average_statistics), so DDP need
    # not send rank 0's at each step. A branch that stochastic depth drops gets no gradient in that step.
    apart: dict[str, Any] = {RANK_0_AT_EACH_STEP: False}
    strategy = DDPStrategy(find_unused_parameters=config.stochastic_depth > 0, **apart)
    # Fabric's own choice for 16-mixed on a CPU is bf16-mixed with a warning; torch can do it there.
    mixed = config.precision == "16-mixed"
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy=strategy if world > 1 else "auto",
        precision=None if mixed else config.precision,
        plugins=[MixedPrecision("16-mixed", device=device)] if mixed else None,
    )
    fabric.launch()
    if world > 1:
        # At the exit and not before: under one torchrun the group cannot be made twice, and there may be another
        # training. Without it gloo's threads abort the process.
        atexit.unregister(_leave)
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def choose_device(asked: str) -> str:
    """Return the accelerator that ``asked`` names; "auto" takes a GPU if there is one.

    Parameters
    ----------
    asked : {'auto', 'cpu', 'cuda', 'mps'}
        The setting.

    Returns
    -------
    str

    Raises
    ------
    LabError
        This machine has no such device.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[asked]:
        here = ", ".join(name for name, there in available.items() if there)
        raise LabError(f"device must be one that torch finds here, {here}; got {asked}")
    return asked


@torch.no_grad()
def average_statistics(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the same buffers: running means and variances averaged over processes, the rest from rank 0.

    Running statistics are linear in those of the batches, so that averaging them now and then gives what averaging
    those of the batches at each step would have given. (torch's DDP would take those of rank 0, which have seen its
    share of the data alone; timm's ``distribute_bn`` offers both, at the end of an epoch.)

    Parameters
    ----------
    fabric : Fabric
        With one process nothing is done.
    model : Module
        The network, unwrapped.
    """
    if fabric.world_size == 1:
        return
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(total(fabric, buffer) / fabric.world_size)
        else:
            torch.distributed.broadcast(buffer, src=0)


def total(fabric: Fabric, values: Tensor) -> Tensor:
    """Sum a tensor over the processes."""
    return fabric.all_reduce(values.clone(), reduce_op="sum") if fabric.world_size > 1 else values  # type: ignore[return-value]


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """Collect a value of every process, in the order of their ranks."""
    values = [value]
    if fabric.world_size > 1:
        values = [None] * fabric.world_size
        torch.distributed.all_gather_object(values, value)
    return values
