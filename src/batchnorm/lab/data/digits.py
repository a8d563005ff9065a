"""The handwritten digits that come with scikit-learn: always there."""

import numpy as np
import torch

from batchnorm.lab.data.parts import Part, Parts


def digits() -> Parts:
    """Return 1797 images of 8x8 pixels, 1437 to train on and 360 to test on."""
    # Imported here, because scikit-learn takes a second to import and the other sets do not need it.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships no types
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    bunch = load_digits()
    # The split belongs to the data set: it is the same for every seed.
    train, test = train_test_split(np.arange(len(bunch.target)), test_size=360, stratify=bunch.target, random_state=0)
    # 0 to 16, so that bytes hold them and dividing by 16 is exact. (N, 1, 8, 8)
    all_of_them = Part(
        torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1), torch.from_numpy(bunch.target.astype(np.int64))
    )
    return Parts(
        all_of_them.of(torch.from_numpy(train)),
        all_of_them.of(torch.from_numpy(test)),
        classes=10,
        divisor=16,
        said="1437 images to train and 360 to test, split at random by class",
    )
