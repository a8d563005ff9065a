"""Files of one's own: both sets of names, both orientations, and one line for everything else."""

import numpy as np
import pytest
from scipy.io import savemat

from batchnorm.lab.errors import DataError
from batchnorm.lab.experiments.claims.regularizers import generate, load

POINTS = generate(0)


def write(path, names, *, turned=False, offset=0, **changes):
    x, y, x_test, y_test = POINTS
    values = [x.T, y[None] + offset, x_test.T, y_test[None] + offset] if turned else [x, y + offset, x_test,
                                                                                      y_test + offset]  # fmt: skip
    arrays = {**dict(zip(names, values, strict=True)), **changes}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    (savemat if path.suffix == ".mat" else lambda p, a: np.savez(p, **a))(path, arrays)
    return path


def test_generated_points_are_as_many_as_in_the_source_and_differ_by_seed():
    assert [a.shape for a in POINTS] == [(211, 2), (211,), (200, 2), (200,)]
    assert 0.35 < POINTS.y.mean() < 0.65
    np.testing.assert_array_equal(generate(0).x, POINTS.x)
    assert not np.array_equal(generate(1).x, POINTS.x)


@pytest.mark.parametrize("names", [("X", "y", "Xval", "yval"), ("Xtrain", "ytrain", "Xtest", "ytest")])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_both_names_orientations_and_formats(tmp_path, names, turned, suffix):
    found = load(write(tmp_path / f"points{suffix}", names, turned=turned, offset=1))
    for ours, theirs in zip(found, POINTS, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"yval": None}, "must hold yval as well as Xval; got X, Xval, y"),
        ({"Xval": None, "yval": None}, "and none to test on; give X, y, Xval, yval or Xtrain, ytrain"),
        ({"y": np.ones(211)}, "y must hold at least two classes"),
        ({"y": np.arange(211) % 3, "yval": np.arange(200) % 3}, "must hold two classes, and points to test on; got 3"),
        ({"yval": np.full(200, 7.0)}, "yval must hold the classes of y, 0 1, and no others; got 7"),
        ({"y": np.zeros(3)}, "y must have one class per example of X, 211; got 3"),
        ({"X": np.ones((211, 3))}, "X must hold finite numbers of shape (N, 2) or (2, N)"),
        ({"X": np.full((211, 2), np.nan)}, "X must hold finite numbers"),
        ({"X": np.array(["a"])}, "X must hold numbers"),
    ],
)
def test_wrong_content_is_one_line(tmp_path, change, message):
    with pytest.raises(DataError, match=None) as caught:
        load(write(tmp_path / "points.npz", ("X", "y", "Xval", "yval"), **change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("a.npz", b"no zip"), ("a.mat", b"no matlab"), ("a.npz", b""),
                                               ("a.mat", b""), ("a.csv", b"1,2")])  # fmt: skip
def test_damaged_and_foreign_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere.npz")
