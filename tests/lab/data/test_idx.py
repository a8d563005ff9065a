"""MNIST and Fashion-MNIST: checked before they are parsed, and the values that they hold."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from batchnorm.lab import data
from batchnorm.lab.data import idx
from batchnorm.lab.errors import DataError
from lab.data.published import idx_bytes, small_idx

LAST = "t10k-images-idx3-ubyte"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Four files like MNIST's, with five images to train and three to test, in a folder."""
    archive, content = small_idx(idx.MNIST, tmp_path)
    monkeypatch.setattr(idx, "MNIST", archive)
    return tmp_path, content


def test_binary_mnist_is_one_above_one_half(small):
    root, content = small
    mnist = data.load("mnist_binary", root)
    expected = (content["train-images-idx3-ubyte"] / 255 > 0.5).astype(np.float32)
    np.testing.assert_array_equal(mnist.train.x.squeeze(1).numpy(), expected)
    np.testing.assert_array_equal(mnist.test.targets.numpy(), content["t10k-labels-idx1-ubyte"])
    assert (mnist.input_shape, mnist.train.targets.dtype) == ((1, 28, 28), torch.int64)
    assert mnist.preprocessing == "pixels scaled to [0, 1], then binary: 1 above 0.5, else 0"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_grey_images_are_standardized_by_the_training_images(tmp_path, monkeypatch, name):
    archive, content = small_idx(getattr(idx, name.upper()), tmp_path)
    monkeypatch.setattr(idx, name.upper(), archive)
    found = data.load(name, tmp_path)
    train = content["train-images-idx3-ubyte"].astype(np.float64)
    for part, images in ((found.train, train), (found.test, content[LAST])):
        expected = (images - train.mean()) / train.std()
        # Three roundings of float32, of values up to 255 / 74 times eps: the mean, the deviation, the quotient.
        np.testing.assert_allclose(part.x.squeeze(1).numpy(), expected, rtol=0, atol=4 * 1.2e-7 * 3)
    assert f"mean {train.mean() / 255:.4f}" in found.preprocessing
    assert f"deviation {train.std() / 255:.4f}" in found.preprocessing


def test_files_extracted_by_torchvision_are_read(small):
    root, content = small
    for file in (root / "MNIST" / "raw").glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    np.testing.assert_array_equal(data.load("mnist", root).train.targets.numpy(), content["train-labels-idx1-ubyte"])


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:30] + b"\xff\x00" + b[32:], lambda b: b""])
def test_damaged_file_is_refused_before_it_is_parsed_and_left_alone(small, no_network, suffix, damage, monkeypatch):
    root, _ = small
    compressed = root / f"MNIST/raw/{LAST}.gz"
    file = compressed.with_suffix(suffix)
    if not suffix:
        file.write_bytes(gzip.decompress(compressed.read_bytes()))
        compressed.unlink()
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    parsed = []
    parse = idx.parse_idx
    monkeypatch.setattr(idx, "parse_idx", lambda content, path: parsed.append(path.name) or parse(content, path))
    with pytest.raises(DataError, match=rf"{file} is damaged .* SHA-256 must be .*; got .*; delete the file"):
        data.load("mnist", root)
    assert LAST not in parsed
    assert file.read_bytes() == damaged
    assert no_network == []


def test_unreadable_file_is_refused(small):
    root, _ = small
    file = root / f"MNIST/raw/{LAST}.gz"
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=rf"{file} must be readable; got is a directory"):
        data.load("mnist", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"PK\x03\x04", "must start with the bytes 00 00 08 .* got 50 4b 03 04"),
        (idx_bytes(np.zeros((2, 3), np.uint8))[:7], "must hold a header of 12 bytes; got 7 bytes in all"),
        (idx_bytes(np.zeros((2, 3), np.uint8))[:-1], "must hold 18 bytes, as its dimensions are 2 x 3; got 17"),
        (idx_bytes(np.zeros((2, 3), np.uint8)) + b"\0", "must hold 18 bytes, as its dimensions are 2 x 3; got 19"),
    ],
)
def test_idx_refuses(content, message):
    with pytest.raises(DataError, match=message):
        idx.parse_idx(content, Path("some-idx3-ubyte"))


def test_idx_round_trip():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(idx.parse_idx(idx_bytes(array), Path("some")), array)


def test_missing_file_is_downloaded_into_its_place(small, monkeypatch, tmp_path):
    root, content = small
    empty = tmp_path / "empty"

    def retrieve(url, known_hash, fname, path, progressbar):
        name = url.rpartition("/")[2]
        assert url.startswith("https://")
        assert known_hash == f"sha256:{idx.MNIST.files[name.removesuffix('.gz')][0]}"
        assert progressbar is False  # a test has no terminal
        Path(path).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "MNIST" / "raw" / name, Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    np.testing.assert_array_equal(data.load("mnist", empty).test.targets.numpy(), content["t10k-labels-idx1-ubyte"])
    assert (empty / "MNIST/raw/train-images-idx3-ubyte.gz").is_file()


def test_without_network_says_where_the_files_must_lie(tmp_path, no_network):
    with pytest.raises(DataError) as refusal:
        data.load("mnist", tmp_path)
    message = str(refusal.value)
    assert f"put the four .gz files of MNIST into {tmp_path / 'MNIST/raw'}" in message
    assert "ConnectionError: no route to host" in message
    assert "--data-dir" in message
    assert no_network == ["https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"]


def test_real_mnist(data_dir):
    mnist, binary = data.load("mnist", data_dir), data.load("mnist_binary", data_dir)
    assert len(mnist.train) == 60_000
    assert mnist.test.targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert binary.test.x.unique().tolist() == [0, 1]
    # As everybody quotes them.
    assert "(mean 0.1307, deviation 0.3081, of 1 for white)" in mnist.preprocessing
