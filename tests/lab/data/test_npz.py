"""One's own arrays: every shape and name that is promised, and one clear error for all else."""

import zipfile

import numpy as np
import pytest
import torch

from batchnorm.lab import data
from batchnorm.lab.data import npz
from batchnorm.lab.errors import DataError

random = np.random.default_rng(0)
X = random.normal(3.0, 2.0, (12, 5))
Y = np.arange(12) % 3
IMAGES = random.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    def to(**arrays):
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"

    return to


@pytest.mark.parametrize("style", npz.STYLES)
def test_every_way_to_name_the_arrays(write, style):
    parts = (X, Y, X[:6] + 1, Y[:6], X[:3] - 1, Y[:3])
    found = npz.load(write(**dict(zip(style, parts, strict=True))))
    for part, (x, y) in zip(
        (found.train, found.validation, found.test), zip(parts[::2], parts[1::2], strict=True), strict=True
    ):
        np.testing.assert_array_equal(part.x.numpy(), x.astype(np.float32))
        np.testing.assert_array_equal(part.y.numpy(), y)
    without = npz.load(write(**dict(zip(style[:2], parts, strict=False))))
    assert (without.validation, without.test, without.classes) == (None, None, 3)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (IMAGES, (3, 6, 8)),
        (IMAGES.transpose(0, 3, 1, 2), (3, 6, 8)),
        (IMAGES[..., 0], (1, 6, 8)),
        (IMAGES[..., :1], (1, 6, 8)),
    ],
)
def test_every_layout_of_images(write, x, shape):
    found = npz.load(write(x=x, y=Y[:, None]))
    assert tuple(found.train.x.shape[1:]) == shape
    assert found.train.x.dtype == torch.uint8
    np.testing.assert_array_equal(found.train.x.numpy(), IMAGES.transpose(0, 3, 1, 2)[:, : shape[0]])
    np.testing.assert_array_equal(found.train.y.numpy(), Y)


def test_a_file_is_loaded_by_its_path_and_split(write):
    path = write(x=X.repeat(5, 0), y=Y.repeat(5))
    found = data.load(str(path), validation=0.2)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [36, 12, 12]
    assert (found.name, found.input_shape) == (str(path), (5,))
    assert "each value standardized" in found.preprocessing
    with pytest.raises(DataError, match="has no test examples of its own: give --validation"):
        data.load(str(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X, "b": Y}, "must hold x_train and y_train, .* or x and y; got a, b"),
        ({}, "got nothing"),
        ({"x": X, "y": Y, "x_test": X}, "must hold y_test as well as x_test; got x, x_test, y"),
        ({"x": X, "y": Y[:-1]}, "y must have one class per example of x, 12; got 11"),
        ({"x": X[:, :, None, None, None], "y": Y}, r"x must hold numbers of shape .* got float64 of shape \(12, 5, 1"),
        ({"x": X.astype(str), "y": Y}, "x must hold numbers of shape .* got <U"),
        ({"x": X[:0], "y": Y[:0]}, r"x must hold numbers .* of shape \(0, 5\)"),
        ({"x": np.where(X.max() == X, np.nan, X), "y": Y}, "x must hold finite numbers; got NaN or infinity"),
        ({"x": X * 1e300, "y": Y}, "x must hold finite numbers"),
        ({"x": X, "y": Y / 2}, r"y must hold integers; got float64; save it as y.astype\(np.int64\)"),
        ({"x": X, "y": Y - 1}, "y must hold classes from 0; got -1; number them with np.unique"),
        ({"x": X, "y": Y + 1}, "y must hold at least two classes, numbered from 0 without a gap; got 1 2 3; number"),
        ({"x": X, "y": 2 * Y}, "without a gap; got 0 2 4"),
        ({"x": X, "y": 0 * Y}, "at least two classes, .*; got 0"),
        ({"x": X, "y": np.eye(3)[Y]}, r"y must have shape \(N,\) or \(N, 1\); got \(12, 3\); .* take y.argmax\(1\)"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "y_test must hold classes from 0 to 2, as y does; got 3"),
        ({"x": X, "y": Y, "x_test": X[:, 1:], "y_test": Y}, r"x_test must hold examples like x, float32 of shape \(5,"),
    ],
)
def test_what_is_refused(write, arrays, message):
    with pytest.raises(DataError, match=message):
        npz.load(write(**arrays))


def test_python_objects_are_refused_and_not_read(tmp_path):
    marker = tmp_path / "was here"

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(marker)!r}, 'w').close()",))

    np.savez(tmp_path / "own.npz", x=np.array([Evil()], dtype=object), y=Y)
    with pytest.raises(DataError, match=r"own.npz: x must hold numbers; got Python objects, which are not read"):
        npz.load(tmp_path / "own.npz")
    assert not marker.exists()


def test_files_that_are_not_npz_are_refused(tmp_path, write):
    whole = write(x=X, y=Y).read_bytes()
    for name, content in {
        "text.npz": b"x,y\n1,2\n",
        "empty.npz": b"",
        "cut.npz": whole[: len(whole) // 2],
        "flipped.npz": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} must be a .npz file; it is damaged or something else"):
            npz.load(tmp_path / name)
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"one.npz must be a .npz file .* got one array; write it with np.savez"):
        npz.load(tmp_path / "one.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match=r"zip\.npz must hold x_train"):
        npz.load(tmp_path / "zip.npz")
    with pytest.raises(DataError, match=r"none.npz must be readable; got no such file or directory"):
        npz.load(tmp_path / "none.npz")
