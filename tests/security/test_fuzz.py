"""Mutated files of every format load to something valid, or are refused by name, and no more.

`python benchmarks/fuzz.py` tries more of them.
"""

import pytest

from tests.security.fuzz_formats import FORMATS
from tests.security.fuzzing import LOADED, REFUSED, fuzz

NUM_CASES = 100


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files(name):
    report = fuzz(FORMATS[name](), NUM_CASES)
    assert not report.failures, report.describe()
    assert set(report.counts) <= {LOADED, REFUSED}
    assert report.num_cases > NUM_CASES / 2
    assert report.counts[REFUSED] > NUM_CASES / 10, "the mutations reach what is checked"
