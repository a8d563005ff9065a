"""Holding out examples: by class, and by a seed of its own, so that all runs are judged by the same examples."""

import torch
from torch import Tensor

from batchnorm.lab.errors import DataError


def hold_out(targets: Tensor, count: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Choose ``count`` examples with the same shares of the classes as the rest.

    Parameters
    ----------
    targets : Tensor of shape (N,), int64
        Class of each example.
    count : int
        How many are held out.
    seed : int
        Of the choice.
    name : str
        Of the data set, for the message.

    Returns
    -------
    kept, held : Tensor, int64
        Increasing indices; each example is in one of them.

    Raises
    ------
    DataError
        There are too few examples to leave some of each class on both sides.
    """
    # Imported here, because scikit-learn takes a second to import and few runs need it.
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]  # ships no types

    sizes = targets.bincount()
    classes = int((sizes > 0).sum())
    if count < classes or len(targets) - count < classes or int(sizes[sizes > 0].min()) < 2:
        smallest = int(sizes[sizes > 0].min())
        raise DataError(
            f"{name} must leave at least one example of each of its {classes} classes on both sides of a split; got "
            f"{len(targets)} examples, {smallest} in the smallest class, and {count} to hold out; give another "
            f"--validation"
        )
    kept, held = train_test_split(range(len(targets)), test_size=count, stratify=targets.numpy(), random_state=seed)
    return torch.tensor(sorted(kept)), torch.tensor(sorted(held))


def count_of(share: float, examples: int) -> int:
    """Return how many of so many examples a share is, at least one."""
    return max(1, round(share * examples))
