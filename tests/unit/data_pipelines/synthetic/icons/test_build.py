"""The embedded file is made from the npm package: on small packages whose families are known."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.synthetic.icons.build import build
from data_pipelines.synthetic.icons.icon_set import load_icons
from data_pipelines.synthetic.icons.split import Variant, divide

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" id="mdi-{name}" viewBox="0 0 24 24">'
    '<path d="{outline}" /></svg>'
)
DRAWINGS = {  # name: outline, base, deprecated
    "star": ("M1,1H2", "star", False),
    "star-off": ("M1,1H3", "star", False),
    "sun": ("M1,1H4", "star", False),
    "spark": ("M1,1H2", "spark", False),
    "tree": ("M1,1H5", "tree", False),
    "logo": ("M1,1H6", "logo", True),
}


def pack(path: Path, svg: str = SVG, leave_out: str = "") -> Path:
    metas = [
        {"id": f"id-{name}", "baseIconId": f"id-{base}", "name": name, "deprecated": deprecated,
         "aliases": [f"{name}-alias"], "tags": ["Nature / Sky"]}
        for name, (_, base, deprecated) in reversed(DRAWINGS.items())
    ]  # fmt: skip
    files = {"meta.json": json.dumps(metas), "package.json": '{"version": "9.1.2"}'}
    files |= {
        f"svg/{name}.svg": svg.format(name=name, outline=outline)
        for name, (outline, *_) in DRAWINGS.items()
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            if name != leave_out:
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_a_package_becomes_the_file(tmp_path: Path) -> None:
    package, out = pack(tmp_path / "svg.tgz"), tmp_path / "icons.json.xz"
    assert build(package, out) == load_icons(out)
    icons = {icon.name: icon for icon in load_icons(out)}
    assert list(icons) == ["spark", "star", "star-off", "sun", "tree"]
    assert icons["sun"].outline == "M1,1H4" and icons["sun"].aliases == ("sun-alias",)
    assert icons["sun"].tags == ("Nature / Sky",)
    # The same first word, the same base, the same outline.
    assert len({icons[name].split for name in ("star", "star-off", "sun", "spark")}) == 1
    again = tmp_path / "again.json.xz"
    build(package, again)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    assert again.read_bytes() == out.read_bytes()
    source = json.loads(lzma.decompress(out.read_bytes()))
    assert (source["package"], source["version"], source["sha256"]) == ("@mdi/svg", "9.1.2", digest)


def test_markup_in_an_outline_is_refused(tmp_path: Path) -> None:
    svg = SVG.replace("{outline}", "{outline}&quot;")
    with pytest.raises(DataError, match=r"package/svg/spark\.svg: is not one path in a square of"):
        build(pack(tmp_path / "svg.tgz", svg), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_absent_drawing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"package/svg/tree\.svg: not in the package"):
        build(pack(tmp_path / "svg.tgz", leave_out="svg/tree.svg"), tmp_path / "out")


def test_families_stay_together_and_labels_reach_every_split() -> None:
    """100 families of two or three, each with one of five labels: twenty families for a label."""
    variants = [
        Variant(f"{family:03}-{part}", (str(family),), frozenset({f"label {family % 5}"}))
        for family in range(100)
        for part in range(2 + family % 2)
    ]
    split_of = divide(variants)
    assert split_of == divide(variants)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("train", "val", "test")}
    for variant in variants:
        assert split_of[variant.name] == split_of[f"{variant.name[:3]}-0"]
        counts[split_of[variant.name]].update(variant.labels)
    for split, share, least in (("train", 0.7, 12), ("val", 0.15, 4), ("test", 0.15, 4)):
        assert counts[split].total() / len(variants) == pytest.approx(share, abs=0.02)
        assert len(counts[split]) == 5 and min(counts[split].values()) >= least
