"""Tables of every format are the same texts, and faults are named with their row."""

import pyarrow
import pytest
from pyarrow import parquet

from data_pipelines.convert.table import read
from data_pipelines.convert.table.read import read_table
from data_pipelines.errors import DataError

EXPECTED = {
    "path": ["a.jpg", "b, c.jpg", "d.jpg"],
    "old": ["1", None, "0"],
    "name": ['the "first"', None, "two\nlines"],
}
CSV = 'path,old,name\na.jpg,1,"the ""first"""\n"b, c.jpg",  ,\n\nd.jpg,0,"two\nlines"\n'
JSON = """
{"path": "a.jpg", "old": true, "name": "the \\"first\\""}
{"path": "b, c.jpg", "old": null}

{"path": "d.jpg", "old": false, "name": "two\\nlines"}
"""


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", CSV),
        ("t.CSV", "\ufeff" + CSV.replace("\n", "\r\n").replace("two\r\nlines", "two\nlines")),
        ("t.csv", CSV.replace("b, c", "b@ c").replace(",", ";").replace("@", ",")),
        ("t.tsv", CSV.replace("b, c", "b@ c").replace(",", "\t").replace("@", ",")),
    ],
)
def test_text_formats(tmp_path, name, data):
    assert read_table(written(tmp_path, name, data)).to_pydict() == EXPECTED


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson"])
def test_json_lines(tmp_path, name):
    expected = EXPECTED | {"old": ["true", None, "false"]}
    assert read_table(written(tmp_path, name, JSON)).to_pydict() == expected


def test_parquet_columns_of_every_type(tmp_path):
    table = pyarrow.table(
        {
            "whole": [1.0, float("nan"), None],
            "half": pyarrow.array([0.5, 0.1, 1e20], pyarrow.float32()),
            "id": pyarrow.array([1, None, 3], pyarrow.uint8()),
            "flag": [True, False, None],
            "name": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "list": [[1], None, [2]],
            "bytes": [b"\xff", None, b"a"],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").to_pydict() == {
        "whole": ["1", None, None],
        "half": ["0.5", "0.1", "1e+20"],
        "id": ["1", None, "3"],
        "flag": ["true", "false", None],
        "name": ["x", "y", "x"],
        "list": ["(list<element: int64>)", None, "(list<element: int64>)"],
        "bytes": ["(binary)", None, "(binary)"],
    }


def test_a_column_without_a_name_is_numbered(tmp_path):
    table = read_table(written(tmp_path, "t.csv", ",a\n0,x\n1,y\n"))
    assert table.column_names == ["column 1", "a"]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("t.xlsx", "", "'.xlsx' is not one of .csv, .tsv, .jsonl, .ndjson, .parquet"),
        ("t.csv", "", "Empty CSV file"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", "Row #3: Expected 2 columns, got 3: 1,2,3"),
        ("t.csv", "a,a\n1,2\n", "two columns have the name 'a'"),
        ("t.csv", b"a,b\n1,\xff\n", "Row #2: .* invalid UTF8 data; save the table as UTF-8"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16 text; save the table as UTF-8"),
        ("t.csv", "a,\x1b[31m\n1,2\n", "column 2: the name is .* must be at most"),
        ("t.jsonl", '{"a": 1}\n[2]\n', "line 2: list found, each line is an object"),
        ("t.jsonl", '{"a": 1, "a": 2}', "line 1: not JSON: an object has a key twice"),
        ("t.jsonl", "[" * 10**5, "line 1: not JSON"),
        ("t.parquet", "x", "t.parquet: cannot be read: Parquet file size is 1 bytes"),
    ],
)
def test_faults_are_named(tmp_path, name, data, expected):
    with pytest.raises(DataError, match=expected):
        read_table(written(tmp_path, name, data))


def test_bounds(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        read_table(tmp_path / "absent.csv")
    monkeypatch.setattr(read, "MAX_COLUMNS", 2)
    for name, data in (("t.csv", "a,b,c\n1,2,3\n"), ("t.jsonl", '{"a":1,"b":1,"c":1}')):
        with pytest.raises(DataError, match=r"columns.*2|2 columns"):
            read_table(written(tmp_path, name, data))
    monkeypatch.setattr(read, "MAX_TABLE_BYTES", 10)
    parquet.write_table(pyarrow.table({"a": ["x" * 100]}), tmp_path / "t.parquet")
    for path in (written(tmp_path, "t.csv", CSV), tmp_path / "t.parquet"):
        with pytest.raises(DataError, match=r"bytes of text, allowed are at most 10"):
            read_table(path)
