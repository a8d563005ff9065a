"""The tables of operations: rows in, cells out."""

import io

from rich.console import Console

from batchnorm.lab.bench import table
from lab.bench.measured import operation, ours

SMALL = {"shape": "8x64x28x28", "bytes": 1605632}
MEASURED = [operation(), operation(arm="torch_inplace", median_ms=39.0), ours(opponent="torch_inplace")]


def test_compile_gets_its_column_and_backends_theirs_when_they_differ():
    measured = [operation(), operation(arm="compile", median_ms=80.0), ours(), operation(**SMALL)]
    (made,) = table.tables([*measured, ours(**SMALL, backend="eager", target="")])
    assert made.columns[5] == "compile ms"
    assert [row[5] for row in made.rows] == ["80.0", ""]
    assert [row[-1] for row in made.rows] == ["backend native avx512", "backend eager"]


def test_what_was_asked_gets_its_columns():
    (plain,) = table.tables(MEASURED)
    (judged,) = table.tables(MEASURED, asked=lambda row: (f"{row.ratio} of 9", "copies of 9"))
    assert [c for c in judged.columns if c != "asked"] == plain.columns
    assert judged.rows[0][-4:] == ["5.0 of 9", "4.00", "copies of 9", "0.500"]
    assert plain.rows[0][-3:] == ["5.00 (4.75-5.25)", "4.00", "0.500"]


def test_a_pipe_gets_the_tables_without_control_codes():
    file = io.StringIO()
    table.print_tables(Console(file=file, width=200), MEASURED)
    assert "\x1b" not in file.getvalue()
    assert "39.0*          8.00  5.00 (4.75-5.25)" in file.getvalue()
    assert "15 pairs, interleaved" in file.getvalue()
