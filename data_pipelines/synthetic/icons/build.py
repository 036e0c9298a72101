"""Write the embedded file of drawings from the npm package `@mdi/svg`.

curl -O https://registry.npmjs.org/@mdi/svg/-/svg-7.4.47.tgz
python -m data_pipelines.synthetic.icons.build svg-7.4.47.tgz
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.synthetic.icons.icon_set import FILE, Icon, save_icons
from data_pipelines.synthetic.icons.split import Variant, divide
from data_pipelines.synthetic.icons.tasks import positives

_SVG = re.compile(
    r'<svg xmlns="http://www\.w3\.org/2000/svg" id="mdi-([a-z0-9-]+)" viewBox="0 0 24 24">'
    r'<path d="([MmLlHhVvCcSsQqTtAaZz0-9,. -]+)" /></svg>'
)


def build(package: Path, out: Path = FILE) -> list[Icon]:
    """Write the drawings of a package that are not deprecated, and return them.

    The deprecated ones are logos of companies and products.

    Args:
        package: The file `svg-VERSION.tgz` of npm.
        out: File to write.

    Raises:
        DataError: The package has another form than the one that is known.
    """
    files = _files(package)
    version = json.loads(_file(files, "package.json"))["version"]
    every = json.loads(_file(files, "meta.json"))
    metas = sorted((m for m in every if not m["deprecated"]), key=lambda meta: meta["name"])
    outlines = {meta["name"]: _outline(files, meta["name"]) for meta in metas}
    split_of = divide([_variant(meta, outlines[meta["name"]]) for meta in metas])
    icons = [
        Icon(
            name=meta["name"],
            aliases=tuple(meta["aliases"]),
            tags=tuple(meta["tags"]),
            split=split_of[meta["name"]],
            outline=outlines[meta["name"]],
        )
        for meta in metas
    ]
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    save_icons(icons, {"package": "@mdi/svg", "version": version, "sha256": sha256}, out)
    return icons


def _files(package: Path) -> dict[str, str]:
    """Return the text of the drawings and of the descriptions, by name."""
    with tarfile.open(package) as tar:
        opened = ((info.name, tar.extractfile(info)) for info in tar)
        return {
            name: file.read().decode()
            for name, file in opened
            if file is not None and name.endswith((".svg", ".json"))
        }


def _file(files: dict[str, str], name: str) -> str:
    try:
        return files[f"package/{name}"]
    except KeyError:
        raise DataError(f"package/{name}: not in the package") from None


def _outline(files: dict[str, str], name: str) -> str:
    match = _SVG.fullmatch(_file(files, f"svg/{name}.svg").strip())
    if match is None or match[1] != name:
        raise DataError(f"package/svg/{name}.svg: is not one path in a square of 24 units")
    return match[2]


def _variant(meta: dict[str, Any], outline: str) -> Variant:
    """Return a drawing with what it shares with its variants.

    That is the first word of the name, the drawing that it was made from, or the outline.
    """
    first = meta["name"].split("-")[0]
    related = (f"word {first}", f"id {meta['id']}", f"id {meta['baseIconId']}", outline)
    return Variant(meta["name"], related, frozenset(positives(meta["name"], meta["tags"])))


def main() -> None:
    """Write the file from the package that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="svg-VERSION.tgz of npm")
    parser.add_argument("--out", type=Path, default=FILE, help="file to write")
    arguments = parser.parse_args()
    icons = build(arguments.package, arguments.out)
    print(f"{len(icons)} drawings in {arguments.out}, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
