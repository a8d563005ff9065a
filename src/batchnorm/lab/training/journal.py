"""What a training writes down: the run directory, and TensorBoard when asked; in the first process alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from batchnorm.lab.errors import OutputError
from batchnorm.lab.files import reason_of
from batchnorm.lab.recording import Recorder

WEIGHTS = "weights.safetensors"


class Journal:
    """Records of one run. In every process but the first it writes nothing.

    Parameters
    ----------
    recorder : Recorder or None
        None: this process writes nothing.
    tensorboard : bool
        Whether to write for TensorBoard too.
    step : int
        Steps done before: what TensorBoard has of later ones is dropped.
    """

    def __init__(self, recorder: Recorder | None, *, tensorboard: bool = False, step: int = 0) -> None:
        self.recorder = recorder
        self.board: Any = None
        if recorder is not None and tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            purge = step + 1 if step else None
            self.board = SummaryWriter(str(recorder.path / "tensorboard"), purge_step=purge)

    def metrics(self, kind: str, *, step: int, epoch: float, seconds: float, **values: float | str | None) -> None:
        """Append one record of numbers, as `Recorder.metrics`."""
        if self.recorder is None:
            return
        self.recorder.metrics(kind, step=step, epoch=epoch, seconds=seconds, **values)
        self._scalars(kind, values, step)

    def probe(
        self,
        name: str,
        *,
        step: int,
        epoch: float,
        scalars: Mapping[str, float],
        layers: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Append what one probe saw, as `Recorder.probe`."""
        if self.recorder is None:
            return
        self.recorder.probe(name, step=step, epoch=epoch, scalars=scalars, layers=layers)
        self._scalars(name, scalars, step)
        for layer, values in layers.items():
            self._scalars(f"{name}/{layer}", values, step)

    def weights(self, model: nn.Module) -> Path | None:
        """Write the weights and buffers, for ``load_state_dict(safetensors.torch.load_file(path))``.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        if self.recorder is None:
            return None
        path = self.recorder.path / WEIGHTS
        part = path.with_name(path.name + ".part")
        # Copies: tensors that share memory are one to safetensors, and a strict load misses the other.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
        try:
            save_file(tensors, part)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"cannot write {path}: {reason_of(error)}") from error
        return path

    def end(self, *, status: str, step: int, reason: str = "") -> None:
        """Say how the run ended, and close."""
        if self.recorder is not None:
            self.recorder.end(status=status, step=step, reason=reason)
        if self.board is not None:
            self.board.close()

    def _scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(f"{group}/{name}", value, step)
