"""Which data sets there are, and how one is loaded by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchnorm.lab.data import arrays, cifar, digits, folder, idx, points
from batchnorm.lab.data.dataset import Dataset
from batchnorm.lab.data.parts import Parts, assemble
from batchnorm.lab.data.verified import data_root
from batchnorm.lab.errors import DataError


@dataclass(frozen=True)
class Source:
    """A data set that has a name.

    Parameters
    ----------
    about : str
        What it is, for the help.
    parts : callable
        Read it, from files under ``data_root`` of what it is given if it lies in files.
    """

    about: str
    parts: Callable[[Path | None], Parts]


def _from_files(read: Callable[[Path], Parts]) -> Callable[[Path | None], Parts]:
    return lambda data_dir: read(data_root(data_dir))


SOURCES = {
    "digits": Source("1797 handwritten digits of 8x8 pixels, which come with scikit-learn", lambda _: digits.digits()),
    "mnist": Source("70000 grey handwritten digits of 28x28 pixels", _from_files(idx.mnist)),
    "mnist_binary": Source("MNIST in black and white, as in the paper", _from_files(idx.mnist_binary)),
    "fashion_mnist": Source("70000 grey pictures of clothes, 28x28 pixels", _from_files(idx.fashion_mnist)),
    "cifar10": Source("60000 colour photographs of 32x32 pixels, 10 classes", _from_files(cifar.cifar10)),
    "cifar100": Source("60000 colour photographs of 32x32 pixels, 100 classes", _from_files(cifar.cifar100)),
    "two_moons": Source("points in the plane: two half circles", lambda _: points.two_moons()),
    "circles": Source("points in the plane: one circle around another", lambda _: points.circles()),
    "spirals": Source("points in the plane: three arms", lambda _: points.spirals()),
    "blobs": Source("points in the plane: five clouds", lambda _: points.blobs()),
}


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    validation: float = 0.0,
    seed: int = 0,
    image_size: int | None = None,
) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name : str
        A key of ``SOURCES``, or the path of an ``.npz`` or ``.mat`` file or of a folder of images (see
        :mod:`batchnorm.lab.data.arrays` and :mod:`batchnorm.lab.data.folder`).
    data_dir : Path, optional
        Folder that holds ``MNIST/raw``, ``cifar-10-batches-py`` and so on, in torchvision's layout. None: the
        environment variable ``BATCHNORM_DATA``, else the user's cache. Files that are not there are downloaded into it.
    validation : float
        Share of the training examples that is held out to validate on, by class; 0 for none. A set without test
        examples needs it, and then as many again are held out to test on.
    seed : int
        Of that choice alone. Keep it while the seed of a run changes, and all runs are judged by the same examples.
    image_size : int, optional
        Side of the square that images of a folder become. None: they must all have one size already.

    Returns
    -------
    Dataset
        In memory, but for a folder of images.

    Raises
    ------
    DataError
        There is no such set, a file is damaged, or is missing and cannot be downloaded, or the share does not fit.
    """
    if not 0 <= validation < 1:
        raise DataError(f"the validation share must be above 0 and below 1, or 0 for none; got {validation:g}")
    path = Path(name).expanduser()
    if name not in SOURCES and path.is_dir():
        return folder.load(path, validation=validation, seed=seed, image_size=image_size)
    if image_size is not None:
        raise DataError(f"an image size is for folders of images; {name} has its own, so leave out --image-size")
    if name in SOURCES:
        return assemble(name, SOURCES[name].parts(data_dir), validation=validation, seed=seed)
    if path.suffix in arrays.SUFFIXES:
        return assemble(name, arrays.load(path), validation=validation, seed=seed)
    what = "is none" if path.exists() else "does not exist, and is none"
    raise DataError(
        f"data must be one of {', '.join(SOURCES)}, an .npz or .mat file or a folder of images; got {name!r}, which "
        f"{what} of them"
    )
