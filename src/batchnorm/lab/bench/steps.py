"""One training step of a whole network: torch, this package, and the limit.

What counts in the end: kernels that are quick alone may leave y out of the cache of the next convolution, or allocate
more, and then a step gains little.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from json import dumps, loads

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own way

import batchnorm
from batchnorm.lab.bench.cases import StepCase
from batchnorm.lab.bench.config import Network
from batchnorm.lab.bench.gate import GateError
from batchnorm.lab.bench.measure import Arm
from batchnorm.lab.bench.resnet import CLASSES, ResNet, limit

ARMS = ("torch", "batchnorm", "limit")
LEARNING_RATE = 1e-3
STEPS_FOR_PEAK = 3
# For the gate: no further from the float64 network than twice as far as torch is, or, where torch is lucky, than a few
# values within rounding of a ReLU's kink explain: each that falls on the other side moves its gradient wholly.
TIMES_TORCH = 2
LUCK = {"float32": 2e-3, "bfloat16": 5e-2}
# The weight of the last BN of each block there. With 1, a fresh network amplifies a rounding until the gradients of
# bfloat16 have no right digit in either arm, and nothing could be told from them.
GATE_WEIGHT = 0.1
GATE_BATCH, GATE_RESOLUTION = 4, 64


def build(case: StepCase, arm: str, *, last_weight: float = 1.0) -> tuple[nn.Module, str]:
    """Build the network of one arm.

    Parameters
    ----------
    case : StepCase
        What is measured.
    arm : {'torch', 'batchnorm', 'limit'}
        Which.
    last_weight : float, default=1.0
        Weight of the last BN of each block.

    Returns
    -------
    network : Module
        In training mode and the case's layout; the same initial weights in torch and batchnorm.
    how : str
        What made the network of the arm batchnorm; empty for the others.
    """
    torch.manual_seed(0)
    network: nn.Module = ResNet(case.network, last_weight)
    how = ""
    if arm == "limit":
        assert isinstance(network, ResNet)
        network = limit(network)
    elif arm == "batchnorm":
        network, how = _ours(network)
    if case.layout == "channels_last":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # it does take this
    return network.train(), how


def step(case: StepCase, network: nn.Module) -> Callable[[], None]:
    """Make one training step: forward, cross-entropy, backward, SGD with momentum, gradients set to None.

    Parameters
    ----------
    case : StepCase
        What is measured; fixes the batch.
    network : Module
        Whose step it is.

    Returns
    -------
    callable
    """
    images, labels = _batch(case)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def arms(case: StepCase) -> tuple[dict[str, Arm], str]:
    """Make the three arms of a step.

    Parameters
    ----------
    case : StepCase
        What is measured.

    Returns
    -------
    arms : dict of str to Arm
        torch, batchnorm and limit.
    how : str
        What made the network of the arm batchnorm.
    """
    networks = {arm: build(case, arm) for arm in ARMS}
    return {arm: Arm(step(case, network)) for arm, (network, _) in networks.items()}, networks["batchnorm"][1]


def check(case: StepCase) -> None:
    """Check that this package's network computes what torch's does, on a small batch.

    Parameters
    ----------
    case : StepCase
        What is measured.

    Raises
    ------
    GateError
        Logits or gradients are further from the float64 network than torch's own are, by much.
    """
    small = StepCase(case.network, GATE_BATCH, GATE_RESOLUTION, case.layout, case.dtype)
    truth = _truth(case.network)
    errors = {}
    for arm in ("torch", "batchnorm"):
        network, _ = build(small, arm, last_weight=GATE_WEIGHT)
        errors[arm] = _errors(_answers(small, network), truth)
    for name, error in errors["batchnorm"].items():
        allowed = max(TIMES_TORCH * errors["torch"][name], LUCK[case.dtype])
        if not error <= allowed:
            raise GateError(
                f"batchnorm, {small}: {name} is {error:.3g} of its norm away from the float64 network's; "
                f"torch's is {errors['torch'][name]:.3g} away, allowed {allowed:.3g}"
            )


def peak_memory(case: StepCase, arm: str, threads: int) -> float:
    """Measure the largest resident memory of a process of its own that does a few steps of one arm.

    Parameters
    ----------
    case : StepCase
        What is measured.
    arm : {'torch', 'batchnorm', 'limit'}
        Which.
    threads : int
        Of torch.

    Returns
    -------
    float
        In 10^6 bytes. NaN where the process ended early or the system does not say.
    """
    task = {"task": "memory", "case": asdict(case), "arm": arm, "threads": threads}
    done = subprocess.run(  # this Python, this package
        [sys.executable, "-m", "batchnorm.lab.bench.worker"],
        input=dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    return float(loads(done.stdout)["peak_mb"]) if done.returncode == 0 else float("nan")


def run_for_peak(case: StepCase, arm: str) -> None:
    """Do the steps whose memory is measured.

    Parameters
    ----------
    case : StepCase
        What is measured.
    arm : {'torch', 'batchnorm', 'limit'}
        Which.
    """
    call = step(case, build(case, arm)[0])
    for _ in range(STEPS_FOR_PEAK):
        call()


def _ours(network: nn.Module) -> tuple[nn.Module, str]:
    convert = getattr(batchnorm, "convert", None)
    if convert is not None:
        converted: nn.Module = convert(network)
        return converted, "batchnorm.convert"
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                layer = batchnorm.BatchNorm2d(child.num_features)
                layer.load_state_dict(child.state_dict())
                setattr(parent, name, layer)
    return network, "layers swapped, nothing fused"


def _batch(case: StepCase) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, case.resolution, case.resolution, generator=generator)
    if case.layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (case.batch,), generator=generator)


@cache
def _truth(name: Network) -> dict[str, Tensor]:
    """Return the answers of the float64 network, the same for every layout and dtype."""
    case = StepCase(name, GATE_BATCH, GATE_RESOLUTION, "contiguous", "float32")
    network, _ = build(case, "torch", last_weight=GATE_WEIGHT)
    return _answers(case, network.double())


def _answers(case: StepCase, network: nn.Module) -> dict[str, Tensor]:
    """Return the logits and one vector of all gradients, in float64."""
    images, labels = _batch(case)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
        logits: Tensor = network(images.to(next(network.parameters()).dtype))
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = [p.grad.flatten() for _, p in sorted(network.named_parameters()) if p.grad is not None]
    return {"logits": logits.detach().double(), "gradients": torch.cat(gradients).double()}


def _errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    return {name: ((got[name] - want[name]).norm() / want[name].norm()).item() for name in want}
