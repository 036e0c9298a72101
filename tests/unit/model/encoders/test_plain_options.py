import pytest

from model.encoders.plain_options import MAX_VALUES, check_plain_options


def test_what_json_can_hold_is_allowed():
    check_plain_options({"a": None, "b": [1, 2.5, True], "c": {"d": ["x", (1, 2)]}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": object()}, r"model.encoder.options.a is <object .*, must be text, a number, true"),
        ({"a": [1, float("nan")]}, r"model.encoder.options.a\[1\] is nan, must be a number of at"),
        ({"a": {"b": -(10**400)}}, r"model.encoder.options.a.b is -10000.*\.\.\., must be a num"),
        ({"a": "x" * 1001}, r"model.encoder.options.a is 'xxx.*\.\.\.', must have at most 1000"),
        ({"a": [0] * (MAX_VALUES + 1)}, "options.a holds 10001 values, allowed are 10000"),
        ({str(n): [0] * 100 for n in range(101)}, "options holds more than 10000 values"),
        ({"a": [[[[[[0]]]]]]}, r"options.a\[0\]\[0\]\[0\]\[0\]\[0\] is nested deeper than 6"),
        ([], r"model.encoder.options is \[\], must be a mapping"),
    ],
)
def test_faults(options, message):
    with pytest.raises(ValueError, match=message):
        check_plain_options(options)
