"""Figures show names as they are."""

import pytest
from matplotlib.text import Text
from PIL import Image

from trainer.figures import figure_file


def test_dollar_signs_are_no_markup_in_any_text(tmp_path):
    broken = r"$\frac{$"  # an error of matplotlib if it is parsed
    with figure_file(tmp_path / "a.png", 1, 2, size=(4, 2), dpi=50) as axes:
        left, right = axes[0]
        left.set(title=broken, xlabel=broken, ylabel=broken)
        left.text(0, 0, broken)
        left.annotate(broken, (0, 0))
        right.set_xticks(range(3), [broken] * 3)
        right.set_yscale("log")
        texts = left.figure.findobj(Text)
    assert texts and not any(text.get_parse_math() for text in texts)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (200, 100)


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), figure_file(tmp_path / "a.png", 1, 1, size=(2, 2)):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
