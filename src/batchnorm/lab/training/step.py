"""One training step: from a batch to new weights, with whatever precision, processes and pieces."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from batchnorm.lab.data import Batch
from batchnorm.lab.training.config import TrainConfig
from batchnorm.lab.training.evaluation import to_device
from batchnorm.lab.training.optimizers import add_l1, clip, make_optimizer
from batchnorm.probes import Probe, Reading, Step

Network = Callable[[Tensor], Tensor]
Piece = tuple[Tensor, Tensor]


class Run:
    """A network in training: its optimizer, what Fabric made of both, and one step of them.

    Parameters
    ----------
    config : TrainConfig
        Every setting, resolved.
    model : Module
        The network.
    fabric : Fabric
        Device, precision and processes.

    Attributes
    ----------
    wrapped, optimizer : Module, Optimizer
        For forward and backward passes in training: as Fabric wrapped them, where it has something to do.
    plain_optimizer : Optimizer
        As it was, for checkpoints and probes.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, fabric: Fabric) -> None:
        self.config = config
        self.model = model
        self.fabric = fabric
        self.plain_optimizer = make_optimizer(model, config)
        network: Any = torch.compile(model) if config.compile else model
        self.wrapped, self.optimizer = fabric.setup(network, self.plain_optimizer)
        self._backward: Callable[[Tensor], None] = fabric.backward
        if fabric.world_size == 1 and config.precision == "32":
            # The wrappers have nothing to do, and cost 0.15 ms a step: a quarter of one of the mlp.
            self.wrapped, self.optimizer, self._backward = network, self.plain_optimizer, Tensor.backward

    def step(self, batch: Batch, lr: float, probes: Sequence[Probe] = ()) -> tuple[Tensor, dict[str, Reading]]:
        """Update the parameters once.

        Parameters
        ----------
        batch : Batch
            This process's share of a batch.
        lr : float
            Learning rate of this step.
        probes : sequence of Probe
            Measure this step with them.

        Returns
        -------
        Tensor, dict of str to Reading
            This process's share of the loss, whose mean over processes is the loss, and the reading of each probe.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        pieces = self._pieces(batch)
        with ExitStack() as watching:
            for probe in probes:
                watching.enter_context(probe.watch())
            loss = self._forward_backward(pieces, self._network(watched=bool(probes)))
        self.fabric.strategy.precision.unscale_gradients(self.plain_optimizer)
        seen = Step(self.model, lambda: self._whole_loss(pieces), self.plain_optimizer)
        readings = {probe.name: probe.measure(seen) for probe in probes}
        clip(self.model, norm=self.config.clip_norm, value=self.config.clip_value)
        add_l1(self.optimizer)
        self.optimizer.step()
        return loss, readings

    def _forward_backward(self, pieces: list[Piece], network: Network) -> Tensor:
        """Leave in the gradients those of the mean loss over the joint batch, however it is shared and cut up.

        A piece counts by its share of the joint batch. DDP averages over processes, hence their number.
        """
        assert self.config.batch_size is not None
        losses = []
        for number, (x, y) in enumerate(pieces, start=1):
            share = len(y) * self.fabric.world_size / self.config.batch_size
            with self._apart(number < len(pieces)):
                loss = self._loss(network, x, y) * share
                self._backward(loss)
            losses.append(loss.detach())
        return sum(losses[1:], start=losses[0])

    def _pieces(self, batch: Batch) -> list[Piece]:
        x = to_device(self.fabric, batch.x, self.config.channels_last)
        y = self.fabric.to_device(batch.y)
        count = self.config.accumulate
        return [(x, y)] if count == 1 else list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))

    def _apart(self, apart: bool) -> AbstractContextManager[None]:
        """Keep DDP from averaging over processes after a piece that is not the last."""
        if self.fabric.world_size == 1:
            return nullcontext()
        return self.fabric.no_backward_sync(self.wrapped, enabled=apart)

    def _loss(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(x), y, label_smoothing=self.config.label_smoothing)

    def _whole_loss(self, pieces: list[Piece]) -> Tensor:
        """Loss of this process's share at the present weights, with its graph: what probes may ask for again."""
        examples = sum(len(y) for _, y in pieces)
        return torch.stack([self._loss(self._eager, x, y) * (len(y) / examples) for x, y in pieces]).sum()

    def _network(self, *, watched: bool) -> Network:
        """Choose what runs; what torch.compile made of a network has no modules to watch."""
        return self._eager if watched and self.config.compile else self.wrapped

    def _eager(self, x: Tensor) -> Tensor:
        with self.fabric.autocast():
            scores: Tensor = self.model(x)
        return scores.float()
