import pytest

from dmtg.nesting import is_deeper


def nested(levels, innermost, wrap):
    tree = innermost
    for _ in range(levels):
        tree = wrap(tree)
    return tree


@pytest.mark.parametrize("wrap", [lambda t: [t], lambda t: {"a": t}, lambda t: [0, t, "b"]])
@pytest.mark.parametrize(("innermost", "more"), [(0, 0), ("[[[", 0), (None, 0), ([], 1), ({}, 1)])
def test_every_list_and_mapping_is_a_level(wrap, innermost, more):
    tree = nested(5, innermost, wrap)
    assert is_deeper(tree, 4 + more) and not is_deeper(tree, 5 + more)


def test_a_plain_value_has_no_level():
    assert not is_deeper(0, 0) and is_deeper([], 0)
