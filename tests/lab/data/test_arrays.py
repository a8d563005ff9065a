"""Your own arrays: every shape, name and format that is promised, and one clear error for all else."""

import io
import os
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from batchnorm.lab import data
from batchnorm.lab.data import arrays as readers
from batchnorm.lab.errors import DataError

random = np.random.default_rng(0)
X = random.normal(3.0, 2.0, (12, 5))
Y = np.arange(12) % 3
IMAGES = random.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    def to(suffix=".npz", **arrays):
        path = tmp_path / f"own{suffix}"
        savemat(path, arrays) if suffix == ".mat" else np.savez(path, **arrays)
        return path

    return to


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
@pytest.mark.parametrize("style", readers.STYLES)
def test_every_way_to_name_the_arrays(write, style, suffix):
    parts = (X, Y, X[:6] + 1, Y[:6], X[:3] - 1, Y[:3])
    found = readers.load(write(suffix, **dict(zip(style, parts, strict=True))))
    for part, (x, y) in zip(
        (found.train, found.validation, found.test), zip(parts[::2], parts[1::2], strict=True), strict=True
    ):
        np.testing.assert_array_equal(part.x.numpy(), x.astype(np.float32))
        np.testing.assert_array_equal(part.y.numpy(), y)
    without = readers.load(write(suffix, **dict(zip(style[:2], parts, strict=False))))
    assert (without.validation, without.test, without.classes) == (None, None, 3)
    lone = readers.load(write(suffix, **dict(zip(style[:4], parts, strict=False))))
    assert lone.validation is None
    np.testing.assert_array_equal(lone.test.x.numpy(), (X[:6] + 1).astype(np.float32))


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
@pytest.mark.parametrize("shape", [(5,), (8, 6), (8, 6, 3)])
def test_examples_may_come_last_as_matlab_keeps_them(write, suffix, shape):
    x = random.integers(0, 256, (12, *shape), dtype=np.uint8)
    found = readers.load(write(suffix, X=np.moveaxis(x, 0, -1), y=Y[None] + 1.0))
    expected = x if x.ndim == 2 else x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found.train.x.numpy(), expected)
    np.testing.assert_array_equal(found.train.y.numpy(), Y)
    assert found.class_names == ("1", "2", "3")


@pytest.mark.parametrize("pair", [(-1, 1), (7, 60_000_000), (False, True), (0.0, 4.0)])
def test_two_classes_may_be_any_two_numbers(write, pair):
    found = readers.load(write(x=X, y=np.array(pair)[Y % 2], x_test=X, y_test=np.full(12, pair[1])))
    assert found.classes == 2
    np.testing.assert_array_equal(found.train.y.numpy(), Y % 2)
    np.testing.assert_array_equal(found.test.y.numpy(), np.ones(12))


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
    found = readers.load(write(x=x, y=Y[:, None]))
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
        ({"a": X, "b": Y}, "must hold x_train and y_train, .* or x and y; or Xtrain and ytrain; got a, b"),
        ({}, "got nothing"),
        ({"x": X, "y": Y, "x_test": X}, "must hold y_test as well as x_test; got x, x_test, y"),
        ({"x": X, "y": Y[:-1]}, "y must have one class per example of x, 12; got 11"),
        ({"x": X[:, :, None, None, None], "y": Y}, r"x must hold numbers of shape .* got float64 of shape \(12, 5, 1"),
        ({"x": X.astype(str), "y": Y}, "x must hold numbers of shape .* got <U"),
        ({"x": X[:0], "y": Y[:0]}, r"x must hold numbers .* of shape \(0, 5\)"),
        ({"x": np.where(X.max() == X, np.nan, X), "y": Y}, "x must hold finite numbers; got NaN or infinity"),
        ({"x": X * 1e300, "y": Y}, "x must hold finite numbers"),
        ({"x": X, "y": Y / 2}, r"y must hold integers; got float64; save it as y.astype\(np.int64\)"),
        ({"x": X, "y": Y * np.nan}, "y must hold integers; got float64"),
        ({"x": X, "y": Y.astype(str)}, "y must hold integers; got <U"),
        ({"x": X, "y": Y - 1}, "numbered from 0 or 1 without a gap, or any two numbers; got -1 0 1; number them with"),
        ({"x": X, "y": Y + 2}, "y must hold at least two classes, numbered from 0 or 1 .*; got 2 3 4; number"),
        ({"x": X, "y": 2 * Y}, "without a gap, or any two numbers; got 0 2 4"),
        ({"x": X, "y": 0 * Y}, "at least two classes, .*; got 0"),
        (
            {"x": X, "y": np.eye(3)[Y]},
            r"y must have shape \(N,\), \(N, 1\) or \(1, N\); got \(12, 3\); .* take y.argmax\(1\)",
        ),
        (
            {"x": X, "y": Y, "x_test": X, "y_test": Y + 1},
            "y_test must hold the classes of y, 0 1 2, and no others; got 3",
        ),
        ({"x": X, "y": Y, "x_test": X[:, 1:], "y_test": Y}, r"x_test must hold examples like x, float32 of shape \(5,"),
    ],
)
def test_what_is_refused(write, arrays, message):
    with pytest.raises(DataError, match=message):
        readers.load(write(**arrays))


def test_python_objects_are_refused_and_not_read(tmp_path):
    marker = tmp_path / "was here"

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(marker)!r}, 'w').close()",))

    np.savez(tmp_path / "own.npz", x=np.array([Evil()], dtype=object), y=Y)
    with pytest.raises(DataError, match=r"own.npz: x must hold numbers; got Python objects, which are not read"):
        readers.load(tmp_path / "own.npz")
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
            readers.load(tmp_path / name)
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"one.npz must be a .npz file .* got one array; write it with np.savez"):
        readers.load(tmp_path / "one.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match=r"zip\.npz must hold x_train"):
        readers.load(tmp_path / "zip.npz")
    with pytest.raises(DataError, match=r"cannot read .*none.npz: no such file or directory"):
        readers.load(tmp_path / "none.npz")


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
def test_a_stray_label_of_60_million_is_named_at_once(write, suffix):
    stray = Y.copy()
    stray[5] = 60_000_000
    path = write(suffix, x=X, y=stray)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(DataError, match="got 0 1 2 60000000; number them with"):
        readers.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # a list of the classes between took 8.4 GB and 79 s
    assert time.perf_counter() - start < 10


def member(shape, *, descr="<f8", body=b"\0" * 64):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue() + body


@pytest.mark.parametrize("shape", [(10**13, 2), (10**30, 2), (4, 3), (2, 2), (-4, -2)])
def test_a_header_that_lies_about_sizes_is_found_before_anything_is_read(tmp_path, shape):
    path = tmp_path / "lie.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member(shape))
        archive.writestr("y.npy", member((4,), descr="<i8", body=np.arange(4).tobytes()))
    said = r"lie.npz is damaged: the header of x says shape \(.*\) of float64, [\d,]+ bytes, and 64 follow"
    with pytest.raises(DataError, match=said) as refused:
        readers.load(path)
    assert "\n" not in str(refused.value)


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((1000, 10_000)), y=np.arange(1000) % 2)
    assert path.stat().st_size < 1e6
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb.npz needs 0.12 GB of memory, and 0.05 GB are available; store fewer"):
        readers.read(path, free=50_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    assert len(readers.read(path, free=130_000_000).train.x) == 1000


def test_a_bomb_in_a_mat_file_is_refused_by_the_sizes_that_it_lists(tmp_path):
    path = tmp_path / "bomb.mat"
    savemat(path, {"X": np.zeros((1000, 10_000)), "y": np.arange(1000) % 2}, do_compression=True)
    assert path.stat().st_size < 1e6
    with pytest.raises(DataError, match=r"bomb.mat needs 0.12 GB of memory"):
        readers.read(path, free=50_000_000)


def test_arrays_that_nobody_asked_for_are_not_read(write, tmp_path):
    path = write(x=X, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.npy", member((10**13,)))
    assert readers.load(path).classes == 3


def test_mat_files_that_are_not_are_refused(tmp_path, write):
    whole = write(".mat", x=X, y=Y).read_bytes()
    for name, content in {"text.mat": b"no matlab", "empty.mat": b"", "cut.mat": whole[:-20]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} must be a .mat file; it is damaged or something else") as refused:
            readers.load(tmp_path / name)
        assert "\n" not in str(refused.value)
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(DataError, match=r"new.mat is of MATLAB version 7.3; save it with -v7"):
        readers.load(tmp_path / "new.mat")


def test_an_encrypted_or_unknown_member_is_one_line(tmp_path, write):
    path = write(x=X, y=Y)
    content = bytearray(path.read_bytes())
    for mark, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + flag] |= 1  # encrypted
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"own.npz must be a .npz file; it is damaged or something else \(.*encrypted"):
        readers.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe.npz must be a file; it is a pipe, a device or a folder"):
        readers.load(tmp_path / "pipe.npz")
