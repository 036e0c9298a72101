import io

import pytest
from rich.console import Console

from trainer.tables import print_table


def printed(header, rows, width=80):
    out = io.StringIO()
    print_table(Console(file=out, width=width, force_terminal=False), header, rows)
    return out.getvalue()


def cells(text):
    """The rows of cells of a table, without its borders."""
    lines = (line.strip("│┃") for line in text.splitlines() if line[0] in "│┃")
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in lines]


def test_a_small_table_is_printed_at_once():
    text = printed(["task", "error"], [["a [b]", "0.1"], ["c", "0.2"]])
    assert cells(text) == [["task", "error"], ["a [b]", "0.1"], ["c", "0.2"]]


@pytest.mark.parametrize("count", [3, 7, 40])
def test_every_value_is_there_and_nothing_is_wider_than_the_terminal(count):
    header = ["task", *(f"recipe {n}" for n in range(count))]
    rows = [[f"task_{r}", *(f"0.{r}{n:04d} ± 0.0012" for n in range(count))] for r in range(3)]
    text = printed(header, rows)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for row in rows:
        assert all(text.count(value) == 1 for value in row[1:])
    assert text.count("task_0") == text.count("┏"), "the first column is in every table"


def test_long_names_are_folded():
    name = "a_task_with_a_name_of_one_hundred_characters_" + "x" * 55
    text = printed(["task", "error"], [[name, "0.1"]])
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(row[0] for row in cells(text)[1:]) == name
