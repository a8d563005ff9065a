"""The command ``batchnorm diagnose``: a model from its factory, its weights, data of the lab; table, JSON and page."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from batchnorm.lab.errors import LabError
from batchnorm.lab.files import make_run_directory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from batchnorm.lab.data import Dataset
    from batchnorm.probes.diagnosis import Diagnosis

DONE, WRONG = 0, 1


@dataclass(frozen=True)
class DiagnoseCommand:
    """Find out why a model is worse in eval() than in train(): the cause, the layers, the evidence, the fix.

    Exit codes: 0 batch normalization is not the cause, or the evidence is not enough; 1 a cause is named; 2 bad input.

    Example: batchnorm diagnose my_networks:make --weights weights.safetensors --data cifar10
    """

    model: tyro.conf.Positional[str]
    """package.module:factory, or a network of the lab such as resnet20."""

    weights: Path | None = None
    """Checkpoint: a .safetensors file, or a state_dict that torch.save wrote. None: the factory loads its own."""

    data: str | None = None
    """Data to evaluate on, as for train: a name, an .npz or .mat file, a folder of images. None: a static look."""

    data_dir: Path | None = None
    """Folder of the files of named data sets."""

    split: Literal["test", "validation", "train"] = "test"
    """Part of the data."""

    validation: float = 0.0
    """Share of the training examples that is held out as validation data; as in the training."""

    image_size: int | None = None
    """Side of the square that images of a folder become."""

    batch_size: int = 64
    """Samples in a batch: that of the training, where statistics of the batch matter."""

    batches: int | None = None
    """Batches to read, at most. None: all."""

    seed: int = 0
    """Of the order of the examples, and of the weights where there are none."""

    out: Path | None = None
    """Directory, new or empty. None: runs/diagnose-MODEL-TIME."""


def run(command: DiagnoseCommand) -> int:
    """Diagnose, print the table, and write diagnosis.json and diagnosis.html.

    Parameters
    ----------
    command : DiagnoseCommand
        The flags.

    Returns
    -------
    int
        Exit code: 1 if a cause is named, else 0.

    Raises
    ------
    LabError
        A model, a checkpoint or data that cannot work.
    """
    import batchnorm
    from batchnorm.lab.data import load
    from batchnorm.lab.report.diagnosis import FILE, make_diagnosis_page
    from batchnorm.lab.terminal import console

    if command.data is None and ":" not in command.model:
        raise LabError(
            f"a network of the lab is built for its data; give --data, or a factory instead of {command.model}"
        )
    if command.batch_size < 1:
        raise LabError(f"batch_size must be at least 1; got {command.batch_size}")
    dataset = None
    if command.data is not None:
        dataset = load(command.data, command.data_dir, validation=command.validation, image_size=command.image_size)
    network = _network(command, dataset)
    checkpoint = None if command.weights is None else _load_weights(network, command.weights)
    loader = None if dataset is None else _Batches(command, dataset)
    try:
        found: Diagnosis = batchnorm.diagnose(
            network, loader, _accuracy, state_dict=checkpoint, batches=command.batches
        )
    except (TypeError, ValueError) as error:
        raise LabError(str(error)) from error
    folder = command.out or _new_directory(command)
    make_run_directory(folder)
    found.save(folder / FILE)
    page = make_diagnosis_page(folder)
    out = console()
    out.print(str(found), soft_wrap=True)
    out.print(f"\nreport: {page}", soft_wrap=True)
    return WRONG if found.verdict == "cause" else DONE


def _network(command: DiagnoseCommand, dataset: "Dataset | None") -> "nn.Module":
    from batchnorm.lab.models import build
    from batchnorm.lab.models.factory import made_alone
    from batchnorm.lab.models.normalization import Normalization

    if dataset is None:
        return made_alone(command.model)
    return build(
        command.model,
        Normalization("batch"),
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        seed=command.seed,
    )


def _load_weights(network: "nn.Module", path: Path) -> dict[str, "Tensor"]:
    """Load a checkpoint; only buffers of batch normalization may be missing, which is then diagnosed."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise LabError(f"{path} cannot be read as a checkpoint: {error}") from error
    except Exception as error:  # pickle's own, of a file that is no state_dict
        raise LabError(f"{path} must hold a state_dict of tensors: {error}; save model.state_dict()") from error
    state = read.get("state_dict", read) if isinstance(read, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise LabError(f"{path} must hold a state_dict of tensors; save model.state_dict()")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise LabError(f"{path} does not fit the model: {error}") from error
    buffers = {name for name, _ in network.named_buffers()}
    lost = [name for name in missing if name not in buffers]
    if lost or unexpected:
        raise LabError(
            f"{path} does not fit the model: it lacks {', '.join(lost[:3]) or 'nothing'} and has "
            f"{', '.join(unexpected[:3]) or 'nothing'} beyond it. Build the model as it was trained"
        )
    return state


class _Batches:
    """Batches (x, y) of one part of a data set, the same in every reading."""

    def __init__(self, command: DiagnoseCommand, dataset: "Dataset") -> None:
        from batchnorm.lab.data import Loader

        examples = getattr(dataset, command.split)
        if examples is None:
            raise LabError(f"these data have no {command.split} part; give --validation 0.1, or another --split")
        self._loader = Loader(examples, command.batch_size, seed=command.seed, classes=dataset.classes, drop_last=False)

    def __iter__(self) -> Iterator[tuple["Tensor", "Tensor"]]:
        for batch in self._loader.epoch(0):
            yield batch.x, batch.y


def _accuracy(output: "Tensor", target: "Tensor") -> float:
    return float((output.argmax(1) == target).float().mean())


def _new_directory(command: DiagnoseCommand) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("runs") / f"diagnose-{command.model.replace(':', '.').replace('/', '.')}-{stamp}"
