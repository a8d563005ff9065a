"""Data: what is in it, that it is checked before it is parsed, and that batches depend on the seed alone."""

import gzip
import itertools
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from batchnorm.lab import data
from batchnorm.lab.errors import DataError


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Four files like MNIST's, with five images to train and three to test, and their checksums."""
    random = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    content = {}
    for name in data.MNIST_FILES:
        n = 5 if name.startswith("train") else 3
        shape, high = ((n, 28, 28), 256) if "images" in name else ((n,), 10)
        content[name] = random.integers(0, high, shape, dtype=np.uint8)
        (raw / name).write_bytes(idx(content[name]))
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(content[name])))
    checksums = {name: (pooch.file_hash(str(raw / f"{name}.gz")), pooch.file_hash(str(raw / name))) for name in content}
    monkeypatch.setattr(data, "MNIST_FILES", checksums)
    for name in content:
        (raw / name).unlink()
    return tmp_path, content


@pytest.fixture
def no_network(monkeypatch):
    """Fail like a machine without a network, and list what was asked for."""
    asked = []

    def retrieve(url, **_):
        asked.append(url)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return asked


def test_digits_are_all_of_scikit_learns_and_always_split_alike():
    from sklearn.datasets import load_digits

    first, second = data.load("digits"), data.load("digits")
    assert first.train_x.shape == (1437, 1, 8, 8)
    assert first.test_x.shape == (360, 1, 8, 8)
    assert first.input_shape == (1, 8, 8)
    assert first.train_x.dtype == torch.float32
    assert (first.train_x.min(), first.train_x.max()) == (0, 1)
    for name in ("train_x", "train_y", "test_x", "test_y"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)
    # Each image with its class is there once, in one part or the other.
    found = torch.cat(
        [torch.cat([first.train_x, first.test_x]).flatten(1) * 16, torch.cat([first.train_y, first.test_y])[:, None]], 1
    )
    bunch = load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    np.testing.assert_array_equal(sorted(found.tolist()), sorted(expected.tolist()))
    # Stratified: each class has its share of the test set, to within one image.
    share = np.bincount(bunch.target) * 360 / 1797
    assert np.abs(first.test_y.bincount().numpy() - share).max() < 1


def test_mnist_is_binary_above_one_half(small_mnist):
    root, content = small_mnist
    mnist = data.load("mnist", root)
    expected = (content["train-images-idx3-ubyte"] / 255 > 0.5).astype(np.float32)
    np.testing.assert_array_equal(mnist.train_x.squeeze(1).numpy(), expected)
    np.testing.assert_array_equal(mnist.test_y.numpy(), content["t10k-labels-idx1-ubyte"])
    assert (mnist.train_x.shape, mnist.train_y.dtype) == ((5, 1, 28, 28), torch.int64)


def test_mnist_extracted_by_torchvision_is_read(small_mnist):
    root, content = small_mnist
    for file in (root / "MNIST" / "raw").glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    np.testing.assert_array_equal(data.load("mnist", root).train_y.numpy(), content["train-labels-idx1-ubyte"])


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:30] + b"\xff\x00" + b[32:], lambda b: b""])
def test_damaged_file_is_refused_before_it_is_parsed_and_left_alone(small_mnist, no_network, suffix, damage):
    root, _ = small_mnist
    compressed = root / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    file = compressed.with_suffix(suffix)
    if not suffix:
        file.write_bytes(gzip.decompress(compressed.read_bytes()))
        compressed.unlink()
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"{file} is damaged .* SHA-256 must be .*; got .*; delete the file"):
        data.load("mnist", root)
    assert file.read_bytes() == damaged
    assert no_network == []


def test_unreadable_file_is_refused(small_mnist):
    root, _ = small_mnist
    file = root / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=rf"{file} must be readable; got Is a directory"):
        data.load("mnist", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"PK\x03\x04", "must start with the bytes 00 00 08 .* got 50 4b 03 04"),
        (idx(np.zeros((2, 3), np.uint8))[:7], "must hold a header of 12 bytes; got 7 bytes in all"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "must hold 18 bytes, as its dimensions are 2 x 3; got 17"),
        (idx(np.zeros((2, 3), np.uint8)) + b"\0", "must hold 18 bytes, as its dimensions are 2 x 3; got 19"),
    ],
)
def test_idx_refuses(content, message):
    with pytest.raises(DataError, match=message):
        data.parse_idx(content, Path("some-idx3-ubyte"))


def test_idx_round_trip():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(data.parse_idx(idx(array), Path("some")), array)


def test_missing_file_is_downloaded_into_its_place(small_mnist, monkeypatch, tmp_path):
    root, content = small_mnist
    empty = tmp_path / "empty"

    def retrieve(url, known_hash, fname, path):
        name = url.rpartition("/")[2]
        assert url.startswith("https://")
        assert known_hash == f"sha256:{data.MNIST_FILES[name.removesuffix('.gz')][0]}"
        Path(path).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "MNIST" / "raw" / name, Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    np.testing.assert_array_equal(data.load("mnist", empty).test_y.numpy(), content["t10k-labels-idx1-ubyte"])
    assert (empty / "MNIST/raw/train-images-idx3-ubyte.gz").is_file()


def test_without_network_says_where_the_files_must_lie(tmp_path, no_network):
    with pytest.raises(DataError) as refusal:
        data.load("mnist", tmp_path)
    message = str(refusal.value)
    assert f"put the four .gz files of MNIST into {tmp_path / 'MNIST/raw'}" in message
    assert "ConnectionError: no route to host" in message
    assert "--data-dir" in message
    assert no_network == ["https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"]


def test_root_is_the_option_else_the_environment_else_the_cache(monkeypatch):
    monkeypatch.setenv("BATCHNORM_DATA", "/from/environment")
    assert data.data_root(Path("/from/option")) == Path("/from/option")
    assert data.data_root() == Path("/from/environment")
    monkeypatch.delenv("BATCHNORM_DATA")
    assert data.data_root() == Path(pooch.os_cache("batchnorm"))


def test_real_mnist():
    root = os.environ.get("BATCHNORM_DATA")
    if not root:
        pytest.skip("BATCHNORM_DATA is not set: no folder with the real MNIST")
    if not (Path(root) / "MNIST/raw").is_dir():
        pytest.skip(f"{root} holds no MNIST/raw")
    mnist = data.load("mnist")
    assert mnist.train_x.shape == (60_000, 1, 28, 28)
    assert mnist.test_y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.train_x.unique().tolist() == [0, 1]


def test_batches_are_epochs_without_repetition():
    drawn = list(itertools.islice(data.batches(10, 4, seed=0), 6))
    assert all(batch.shape == (4,) for batch in drawn)
    for epoch in zip(drawn[::2], drawn[1::2], strict=True):
        assert len(set(torch.cat(epoch).tolist())) == 8
    # The two examples that an epoch leaves out are not always the same.
    assert len({frozenset(range(10)) - frozenset(torch.cat(drawn[k : k + 2]).tolist()) for k in (0, 2, 4)}) > 1


def test_batches_depend_on_the_seed_alone():
    def draw(seed):
        return torch.stack(list(itertools.islice(data.batches(100, 10, seed), 25)))

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(draw(0), first)
    assert not torch.equal(draw(1), first)
    assert torch.equal(torch.get_rng_state(), before)
