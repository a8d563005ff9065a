"""The CSV files: what is written comes back, and what is not ours is said to be so."""

import dataclasses
import math

import pytest

from batchnorm.lab.bench import rows
from batchnorm.lab.bench.rows import OperationRow
from batchnorm.lab.errors import OutputError
from benchmarks.measured import step
from lab.bench.measured import operation
from step_rows import StepRow


def same(a, b):
    return all(
        x == y or (isinstance(x, float) and math.isnan(x) and math.isnan(y))
        for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        (OperationRow, [operation(), operation(arm="batchnorm", backend="native", target="avx2", faults=math.nan)]),
        (StepRow, [step(), step(arm="batchnorm", how="layers swapped, nothing fused", removed=math.nan)]),
    ],
)
def test_round_trip(tmp_path, kind, written):
    path = tmp_path / "deep" / "results.csv"
    rows.open_results(path, kind)
    rows.append(path, written[:1])
    rows.open_results(path, kind)  # a second run appends under the one header
    rows.append(path, written[1:])
    assert path.read_text().splitlines()[0] == ",".join(rows.header(kind))
    assert path.read_text().count("date,commit") == 1
    back = rows.read(path, OperationRow, StepRow)
    assert len(back) == len(written)
    assert all(map(same, back, written))


def test_discard_takes_out_one_run(tmp_path):
    path = tmp_path / "results.csv"
    rows.open_results(path, OperationRow)
    rows.append(path, [operation(date="1"), operation(date="2"), operation(date="1")])
    rows.discard(path, OperationRow, "1")
    assert rows.read(path, OperationRow) == [operation(date="2")]


def test_the_last_measurement_of_a_case_counts_with_all_its_arms():
    old = [operation(date="1"), operation(date="1", arm="compile"), operation(date="1", shape="2x3")]
    new = [operation(date="2"), operation(date="2", arm="batchnorm")]
    assert rows.latest([*old, *new]) == [old[2], *new]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is not a result of a benchmark: its first line names other columns"),
        ("", "is not a result of a benchmark"),
        (",".join(rows.header(StepRow)) + "\n1,2\n", ":2: 2 cells in a table of 32 columns; remove the line"),
        (",".join(rows.header(StepRow)) + "\n" + ",".join(["x"] * 32) + "\n", "cores must be a number; got 'x'"),
    ],
)
def test_what_is_not_a_result_is_refused(tmp_path, text, message):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(OutputError) as refused:
        rows.read(path, OperationRow, StepRow)
    assert message in str(refused.value)


def test_a_file_of_the_other_kind_is_not_appended_to(tmp_path):
    path = tmp_path / "results.csv"
    rows.open_results(path, StepRow)
    with pytest.raises(OutputError, match="columns are not those of OperationRow; give another --out"):
        rows.open_results(path, OperationRow)
    with pytest.raises(OutputError, match="cannot write"):
        rows.open_results(path / "below", StepRow)
