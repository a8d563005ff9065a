"""Published protocols that several claims train by, at the size that a budget allows.

Nothing here imports torch.
"""

from collections.abc import Mapping
from typing import Any

from batchnorm.lab.training.config import TrainConfig


def small_vgg(settings: Mapping[str, Any], **changes: Any) -> TrainConfig:
    """Return the training of a VGG by Santurkar et al., with the first three stages of configuration A.

    Plain SGD in batches of 128 at a constant rate from Glorot's weights, without augmentation and penalty.

    Parameters
    ----------
    settings : mapping
        Of a claim: ``data``, ``width``, ``lr`` and ``steps``.
    **changes
        Settings of the training that differ.

    Returns
    -------
    TrainConfig

    References
    ----------
    Santurkar, Tsipras, Ilyas and Madry 2018, :arxiv:`1805.11604`, appendix.
    """
    made: dict[str, Any] = {
        "data": settings["data"], "model": "vgg_small", "width": settings["width"], "initializer": "xavier_normal",
        "optimizer": "sgd", "schedule": "constant", "lr": settings["lr"], "batch_size": 128, "l2": 0.0, "flip": False,
        "crop": 0, "steps": settings["steps"], "evaluate_every": settings["steps"], "train_subset": 0, "probes": (),
    }  # fmt: skip
    return TrainConfig(**{**made, **changes})
