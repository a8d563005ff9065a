"""CIFAR: the archive and its extracted form, and pickles that can do nothing."""

import pickle
import shutil

import numpy as np
import pytest

from batchnorm.lab import data
from batchnorm.lab.data import cifar
from batchnorm.lab.errors import DataError
from lab.data.published import python2_pickle, small_cifar


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, tmp_path, monkeypatch):
    """The name of a set, a folder with its archive and its extracted form, what it is, and what is in it."""
    archive, arrays = small_cifar(getattr(cifar, request.param.upper()), tmp_path)
    monkeypatch.setattr(cifar, request.param.upper(), archive)
    return request.param, tmp_path, archive, arrays


def archive_file(root, archive):
    return root / archive.url.rpartition("/")[2]


@pytest.mark.parametrize("form", ["archive", "extracted"])
def test_images_and_classes_are_those_of_the_files(small, form, no_network):
    name, root, archive, arrays = small
    shutil.rmtree(root / archive.folder) if form == "archive" else archive_file(root, archive).unlink()
    found = data.load(name, root)
    assert (found.classes, found.input_shape) == (archive.classes, (3, 32, 32))
    assert found.class_names == tuple(f"class {k}" for k in range(archive.classes))
    images = np.concatenate([arrays[member][0] for member in archive.train]).astype(np.float64)
    mean, std = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True)
    for part, members in ((found.train, archive.train), (found.test, archive.test)):
        assert part.targets.tolist() == [label for member in members for label in arrays[member][1]]
        images = np.concatenate([arrays[member][0] for member in members])
        # Three roundings of float32 of values up to 2.
        np.testing.assert_allclose(part.x.numpy(), (images - mean) / std, rtol=0, atol=4 * 1.2e-7 * 2)
    # Nothing was unpacked.
    assert (root / archive.folder).exists() == (form == "extracted")
    assert no_network == []


def test_a_folder_that_is_not_whole_is_passed_over(small):
    name, root, archive, _ = small
    (root / archive.folder / archive.meta[0]).unlink()
    whole = data.load(name, root)
    assert len(whole.train) == 4 * len(archive.train)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:]])
@pytest.mark.parametrize("form", ["archive", "extracted"])
def test_damage_is_found_before_anything_is_unpickled(small, form, damage, no_network, monkeypatch):
    name, root, archive, _ = small
    if form == "archive":
        shutil.rmtree(root / archive.folder)
    file = archive_file(root, archive) if form == "archive" else root / archive.folder / next(iter(archive.test))
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    monkeypatch.setattr(cifar, "unpickle", lambda *_: pytest.fail("it was unpickled"))
    with pytest.raises(DataError, match=f"{file} is damaged or is another file: its SHA-256 must be"):
        data.load(name, root)
    assert file.read_bytes() == damaged
    assert no_network == []


def test_without_network_says_what_to_put_where(tmp_path, no_network):
    with pytest.raises(DataError) as refusal:
        data.load("cifar10", tmp_path)
    message = str(refusal.value)
    assert f"{tmp_path / 'cifar-10-python.tar.gz'} must hold cifar-10-python.tar.gz of CIFAR-10" in message
    assert f"or the extracted folder cifar-10-batches-py with all its files, into {tmp_path}" in message
    assert no_network == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path):
    marker = tmp_path / "was here"

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(marker)!r}, 'w').close()",))

    content = pickle.dumps({"data": Evil()}, protocol=2)
    # The naive reader runs it: so the test can fail.
    pickle.loads(content)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(DataError, match=r"some file must hold .* the name \w+\.exec is not allowed in a data file"):
        cifar.unpickle(content, "some file")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02cos\nsystem\n.", r"the name os\.system is not allowed"),
        (b"\x80\x02cnumpy\nload\n.", r"the name numpy\.load is not allowed"),
        # What is allowed does only what the files need.
        (b"\x80\x02cnumpy\nndarray\n(J\x00\x00\x00\x7ftR.", "an array must be rebuilt"),
        (b"\x80\x02cnumpy\ndtype\n(U\x01OtR.", r"must hold bytes \(u1\), not b'O'"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\ntR.", "only arrays can be rebuilt"),
        (b"\x80\x02cnumpy\ndtype\n}U\x05_callNsb.", "a name has no state"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "TypeError|UnpicklingError"),
        (python2_pickle({b"data": [1]})[:-3], "EOFError|UnpicklingError"),
        (b"", "EOFError"),
        (b"not a pickle", "UnpicklingError|ValueError|KeyError"),
        (python2_pickle([1, 2]), "must hold a dictionary; got list"),
    ],
)
def test_other_pickles_are_refused(content, message):
    with pytest.raises(DataError, match=message):
        cifar.unpickle(content, "some file")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({b"data": [1]}, r"must hold data of shape \(N, 3072\) and as many labels; got data"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "as many labels; got data, labels"),
        ({b"data": np.zeros((2, 99), np.uint8), b"labels": [1, 2]}, "as many labels; got data, labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}, "must hold labels from 0 to 9"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -1]}, "must hold labels from 0 to 9"),
    ],
)
def test_other_tables_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        cifar._images(cifar.unpickle(python2_pickle(table), "some file"), cifar.CIFAR10, "some file")


def test_real_cifar10(data_dir):
    if not (data_dir / "cifar-10-batches-py").is_dir():
        pytest.skip(f"{data_dir} holds no cifar-10-batches-py")
    found = data.load("cifar10", data_dir)
    assert found.class_names[:3] == ("airplane", "automobile", "bird")
    assert found.train.targets.bincount().tolist() == [5000] * 10
    assert found.test.targets.bincount().tolist() == [1000] * 10
    assert found.train.targets[:5].tolist() == [6, 9, 9, 4, 1]
    # As everybody quotes them.
    assert "mean 0.4914 0.4822 0.4465, deviation 0.2470 0.2435 0.2616" in found.preprocessing
