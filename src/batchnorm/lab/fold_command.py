"""``batchnorm fold``: a model from Python, or an exported program, with its batch normalization folded away."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from batchnorm.lab.errors import LabError, meant
from batchnorm.lab.files import reason_of

if TYPE_CHECKING:
    from batchnorm.tools.report import Report

WEIGHTS = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class FoldConfig:
    """Fold the batch normalization of a model into the layers beside it, and print a certificate for each.

    Example: batchnorm fold package.module:factory --weights in.safetensors --out folded.safetensors
    """

    model: tyro.conf.Positional[str]
    """package.module:factory, called without arguments; or a .pt2 file of torch.export."""
    out: Path
    """The folded weights (.safetensors, .pt, .pth), or an exported program (.pt2)."""
    weights: Path | None = None
    """The weights that the model is given first. No pickle is run: .safetensors, or .pt with tensors only."""
    shape: tuple[int, ...] = ()
    """Shape of an example input, such as 1 3 224 224: with it outputs are compared, and .pt2 can be written."""


def run(config: FoldConfig) -> int:
    """Fold, print the report and write the result.

    Parameters
    ----------
    config : FoldConfig
        The arguments.

    Returns
    -------
    int
        Exit code: 0.

    Raises
    ------
    LabError
        An input that cannot be used, or a file that cannot be written.
    """
    if config.out.suffix not in (*WEIGHTS, ".pt2"):
        raise LabError(f"--out must end in {', '.join(WEIGHTS)} or .pt2; got {config.out.name!r}")
    if not config.out.absolute().parent.is_dir():
        raise LabError(f"--out is in {config.out.parent}, which is no directory. Make it first.")
    report = _fold_program(config) if config.model.endswith(".pt2") else _fold_model(config)
    sys.stdout.write(f"{report}\n\nfolded: {config.out}\n")
    return 0


def _fold_program(config: FoldConfig) -> Report:
    import torch

    from batchnorm.tools.program import fold_program, load_program

    if config.weights or config.shape or config.out.suffix != ".pt2":
        raise LabError("a .pt2 file has its own weights and example inputs, and becomes a .pt2 file: pass --out only")
    path = Path(config.model)
    if not path.is_file():
        raise LabError(f"{path} is not there")
    try:
        program = load_program(path)
    except ValueError as error:
        raise LabError(str(error)) from None
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise LabError(f"{path} is no exported program that this torch can read: {_first_line(error)}") from None
    try:
        program, report = fold_program(program)
    except (ValueError, RuntimeError) as error:
        raise LabError(str(error)) from None
    _write(config.out, lambda file: torch.export.save(program, file))
    return report


def _fold_model(config: FoldConfig) -> Report:
    import torch

    from batchnorm.tools import fold

    if config.out.suffix == ".pt2" and not config.shape:
        raise LabError("a .pt2 file needs the shape of an input. Try --shape 1 3 224 224")
    if any(size < 1 for size in config.shape):
        raise LabError(f"--shape must be positive numbers; got {' '.join(map(str, config.shape))}")
    tensors = None if config.weights is None else _read(config.weights)  # first: no code runs if it is unusable
    model = _made(config.model)
    if tensors is not None:
        _load(model, tensors, config)
    model.eval()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs = (
        (torch.randn(config.shape, generator=torch.Generator().manual_seed(0)).to(dtype),) if config.shape else None
    )
    try:
        model, report = fold(model, inputs, inplace=True, report=True)
        program = torch.export.export(model, inputs) if config.out.suffix == ".pt2" and inputs else None
    except Exception as error:  # the model's own errors too, such as a shape that it does not take
        raise LabError(f"{config.model} could not be folded: {_first_line(error)}") from None
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    if program is not None:
        _write(config.out, lambda file: torch.export.save(program, file))
    elif config.out.suffix == ".safetensors":
        save = _safetensors().save_file
        _write(config.out, lambda file: save(state, file))
    else:
        _write(config.out, lambda file: torch.save(state, file))
    return report


def _made(name: str) -> Any:
    """Import and call the factory."""
    from torch import nn

    module_name, colon, factory_name = name.partition(":")
    if not colon or not module_name or not factory_name:
        raise LabError(f"the model must be package.module:factory or a .pt2 file; got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        made = importlib.import_module(module_name)
        for part in factory_name.split("."):
            if not hasattr(made, part):
                raise LabError(f"{module_name} has no {factory_name!r}{meant(part, dir(made))}")
            made = getattr(made, part)
        model: Any = made if isinstance(made, nn.Module) else made()  # type: ignore[operator]  # a factory, as asked
    except LabError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise LabError(f"{name} cannot be made: {type(error).__name__}: {_first_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise LabError(f"{name} must give a torch.nn.Module; it gave {type(model).__name__}")
    return model


def _read(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a checkpoint, without running any code in it."""
    import torch

    if path.suffix not in WEIGHTS:
        raise LabError(f"--weights must end in {', '.join(WEIGHTS)}; got {path.name!r}")
    if not path.is_file():
        raise LabError(f"--weights names {path}, which is not there")
    try:
        if path.suffix == ".safetensors":
            found: Any = _safetensors().load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except LabError:
        raise
    except Exception as error:  # whatever a file that is no checkpoint makes the readers raise
        raise LabError(
            f"{path} holds no tensors that can be read without running code: {_first_line(error)} Try to save "
            "model.state_dict() as .safetensors."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise LabError(f"{path} must hold a state_dict, tensors by name; it holds {type(found).__name__}")
    return found


def _load(model: Any, tensors: Mapping[str, Any], config: FoldConfig) -> None:
    expected = model.state_dict()
    wrong = {
        "lacks": expected.keys() - tensors.keys(),
        "has besides": tensors.keys() - expected.keys(),
        "has in another shape": {n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape},
    }
    if any(wrong.values()):
        said = "; ".join(f"it {what} {_some(names)}" for what, names in wrong.items() if names)
        raise LabError(f"{config.weights} is of another architecture than {config.model}: {said}")
    model.load_state_dict(tensors)


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise LabError("a .safetensors file needs safetensors. Try pip install 'batchnorm[safetensors]'") from None


def _write(path: Path, save: Any) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, suffix=path.suffix)
    os.close(handle)
    try:
        save(name)
        Path(name).replace(path)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {reason_of(error)}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
