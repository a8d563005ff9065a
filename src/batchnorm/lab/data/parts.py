"""From what a source found in memory to a data set: what is held out, and how values are normalized."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from batchnorm.lab.data.dataset import Dataset, InMemory
from batchnorm.lab.data.split import count_of, hold_out
from batchnorm.lab.errors import DataError


class Part(NamedTuple):
    r"""Values (N, \*input_shape), uint8 or float32, and classes (N,), int64, as they were read."""

    x: Tensor
    y: Tensor

    def of(self, indices: Tensor) -> "Part":
        """Return the examples of these indices."""
        return Part(self.x[indices], self.y[indices])


@dataclass(frozen=True)
class Parts:
    """What a source holds.

    Parameters
    ----------
    train : Part
        To train on.
    test : Part or None
        To test on. None: examples of ``train`` must be held out for it.
    classes : int
        Number of classes.
    validation : Part or None
        To choose by, if the source has such a part of its own.
    class_names : tuple of str
        What they are called, if known.
    divisor : float or None
        What values are divided by. None: they are standardized, each channel by the training part.
    said : str
        What else to say of the preprocessing, with its end.
    """

    train: Part
    test: Part | None
    classes: int
    validation: Part | None = None
    class_names: tuple[str, ...] = ()
    divisor: float | None = None
    said: str = ""


def check_share(name: str, validation: float, *, has_validation: bool, has_test: bool) -> None:
    """Check what is to be held out against what the source has.

    Parameters
    ----------
    name : str
        Of the data set.
    validation : float
        Share of the training examples to hold out; 0 for none.
    has_validation, has_test : bool
        Whether the source has such a part of its own.

    Raises
    ------
    DataError
        It has its own, or has nothing to test on and nothing may be held out.
    """
    if has_validation and validation:
        raise DataError(
            f"{name} has validation examples of its own, so none can be held out of training; got a validation share "
            f"of {validation:g}; leave out --validation"
        )
    if not has_test and not 0 < validation < 0.5:
        raise DataError(
            f"{name} has no test examples of its own: give --validation a share above 0 and below 0.5, and as many "
            f"are held out to validate on as to test on; got {validation:g}"
        )


def division(targets: Tensor, validation: float, seed: int, name: str, *, test: bool) -> tuple[Tensor, ...]:
    """Say which examples are to train, to validate and to test on.

    Parameters
    ----------
    targets : Tensor of shape (N,), int64
        Class of each example.
    validation : float
        Share to hold out; 0 for none.
    seed : int
        Of the choice.
    name : str
        Of the data set, for messages.
    test : bool
        Hold out as many again to test on.

    Returns
    -------
    train, validation, test : Tensor, int64
        Increasing indices; the last two may be empty.

    Raises
    ------
    DataError
        Too few examples.
    """
    train, none = torch.arange(len(targets)), torch.arange(0)
    held_to_test = held = none
    if validation:
        count = count_of(validation, len(targets))
        if test:
            train, held_to_test = hold_out(targets, count, seed, name)
        kept, chosen = hold_out(targets[train], count, seed, name)
        train, held = train[kept], train[chosen]
    return train, held, held_to_test


def assemble(name: str, parts: Parts, *, validation: float, seed: int) -> Dataset:
    """Hold out, normalize, describe.

    Parameters
    ----------
    name : str
        Of the data set.
    parts : Parts
        What the source holds.
    validation : float
        Share of the training examples to hold out; 0 for none.
    seed : int
        Of the choice.

    Returns
    -------
    Dataset
        In memory.

    Raises
    ------
    DataError
        The share does not fit the data.
    """
    check_share(name, validation, has_validation=parts.validation is not None, has_test=parts.test is not None)
    train, held, test = parts.train, parts.validation, parts.test
    if validation:
        kept, chosen, tested = division(train.y, validation, seed, name, test=test is None)
        train, held, test = train.of(kept), train.of(chosen), test or train.of(tested)
    assert test is not None
    mean, std, said = _scale(train.x, parts.divisor)

    def examples(part: Part) -> InMemory:
        return InMemory(*part, mean, std)

    return Dataset(
        name,
        examples(train),
        examples(held) if held else None,
        examples(test),
        classes=parts.classes,
        input_shape=tuple(train.x.shape[1:]),
        preprocessing="; ".join(filter(None, [said, parts.said, held_out_text(validation, held, seed, parts.test)])),
        class_names=parts.class_names,
    )


def held_out_text(validation: float, held: object, seed: int, test: object) -> str:
    """Say what was held out of the training examples, for the report."""
    if not validation:
        return ""
    assert held is not None
    to_test = "" if test is not None else ", and as many again to test on"
    return f"a share of {validation:g} of the examples held out by class to validate on{to_test} (split seed {seed})"


def _scale(x: Tensor, divisor: float | None) -> tuple[Tensor | None, Tensor | None, str]:
    """Return mean, deviation and their description."""
    if divisor == 1:
        return None, None, ""
    if divisor is not None:
        return None, torch.tensor(divisor), "pixels scaled to [0, 1]"
    mean, std = moments(x)
    # A value that never changes carries nothing; dividing by one leaves it at zero.
    std = torch.where(std > 0, std, 1.0)
    unit = 255 if x.dtype == torch.uint8 else 1
    if mean.numel() <= 4:
        numbers = f" (mean {_list(mean / unit)}, deviation {_list(std / unit)}{', of 1 for white' if unit > 1 else ''})"
    else:
        numbers = ""
    what = "channel" if x.dim() > 2 else "value"
    shape = (-1, *[1] * (x.dim() - 2))
    return (
        mean.float().view(shape),
        std.float().view(shape),
        f"each {what} standardized by its mean and deviation over the training examples{numbers}",
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return mean and deviation of each channel (of each value where there are no channels), in float64.

    Parameters
    ----------
    x : Tensor of shape (N, C, \*), uint8 or float32
        The examples.

    Returns
    -------
    mean, std : Tensor of shape (C,), float64
    """
    channels = x.transpose(0, 1)  # (C, N, *)
    if x.dtype == torch.uint8:
        # Counting bytes reads them once, and the sums over 256 values are exact to the last digits.
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in channels]).double()
        weights = counts / counts.sum(1, keepdim=True)  # (C, 256)
        value = torch.arange(256, dtype=torch.float64)
        mean = weights @ value
        return mean, (weights * (value - mean[:, None]).square()).sum(1).sqrt()
    # One channel at a time in float64, as all of them at once would need three times the memory of the data.
    pairs = [torch.var_mean(channel.double(), correction=0) for channel in channels]
    return torch.stack([mean for _, mean in pairs]), torch.stack([var for var, _ in pairs]).sqrt()


def _list(numbers: Tensor) -> str:
    return " ".join(f"{number:.4f}" for number in numbers.tolist())
