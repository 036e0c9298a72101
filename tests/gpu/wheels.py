"""Gather the wheels that the GPU tests and benchmarks need beside torch, for use without network.

.venv/bin/python tests/gpu/wheels.py wheels --python-version 3.12 --have installed.txt

The versions are those of this environment, where the other Python can use them. The wheels come in
folders `1`, `2`, ... of limited size, each with a `requirements.txt` that pip installs from it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name as canonical

MIB = 2**20
TOOLS = ("psutil", "pytest", "pytest-xdist")  # of the tests
# torch brings its own; the others are imported by commands that no GPU test and no benchmark calls.
LEFT_OUT = ("torch", "datasets", "hf-xet", "matplotlib", "resvg-py", "tensorboard")
FROM_SOURCE = ("deepspeed",)  # there are no wheels of it; with DS_BUILD_OPS=0 it is pure Python
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)  # pip matches the tag of a platform exactly


def needed(python: str, have: dict[str, str]) -> dict[str, SpecifierSet]:
    """Return the packages that are missing, each with the versions that others ask for.

    Args:
        python: Version of the other machine's Python, as in 3.12.
        have: Versions of the packages that it has.
    """
    environment = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, SpecifierSet] = {}
    stack = [r for r in _requirements("dmtg", environment) if not r.marker] + [
        Requirement(name) for name in TOOLS
    ]
    while stack:
        requirement = stack.pop()
        name = canonical(requirement.name)
        present = have.get(name)
        if name in LEFT_OUT or (present and requirement.specifier.contains(present, True)):
            continue
        if name not in found:
            stack += _requirements(name, environment)
        found[name] = found.get(name, SpecifierSet()) & requirement.specifier
    return found


def _requirements(name: str, environment: dict[str, str]) -> Iterator[Requirement]:
    for line in requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            yield requirement


def fetch(name: str, specifier: SpecifierSet, python: str, folder: Path) -> None:
    """Put a wheel into the folder: of the version here, or else of one that the others ask for.

    Raises:
        SystemExit: There is none for this Python.
    """
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-qq", "--no-deps"]
    for wanted in (f"=={version(name)}", str(specifier)):
        if name in FROM_SOURCE:
            command = [*pip, "wheel", *quiet, "--no-build-isolation", "-w", str(folder)]
        else:
            tags = [f"manylinux_2_{n}_x86_64" for n in GLIBC] + ["manylinux2014_x86_64"]
            platforms = [option for tag in tags for option in ("--platform", tag)]
            command = [*pip, "download", *quiet, "--only-binary=:all:", "-d", str(folder)]
            command += ["--python-version", python, "--implementation", "cp", *platforms]
        environment = {**os.environ, "DS_BUILD_OPS": "0"}
        done = subprocess.run(
            [*command, f"{name}{wanted}"], env=environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            return
    raise SystemExit(f"error: no wheel of {name} for Python {python}: {done.stderr[-1000:]}")


def share_out(wheels: list[Path], limit: int) -> list[list[Path]]:
    """Return the wheels in as few parts of limited bytes as first fit finds, the largest first."""
    parts: list[list[Path]] = []
    for wheel in sorted(wheels, key=lambda path: -path.stat().st_size):
        size = wheel.stat().st_size
        room = (p for p in parts if sum(w.stat().st_size for w in p) + size <= limit)
        part = next(room, None)
        if part is None:
            parts.append(part := [])
        part.append(wheel)
    return parts


def main() -> None:
    """Gather the wheels and print the size of each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python-version", default=here, help="of the other machine")
    parser.add_argument("--have", type=Path, help="its `pip list --format=freeze`")
    parser.add_argument("--limit", type=float, default=55.0, help="MiB of a part")
    arguments = parser.parse_args()
    have = {}
    if arguments.have:
        lines = (line.strip().split("==") for line in arguments.have.read_text().splitlines())
        have = {canonical(parts[0]): parts[1] for parts in lines if len(parts) == 2}
    packages = needed(arguments.python_version, have)
    shutil.rmtree(arguments.folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        names = {}
        for name, specifier in sorted(packages.items()):
            folder = Path(temporary) / name
            fetch(name, specifier, arguments.python_version, folder)
            (wheel,) = folder.glob("*.whl")
            names[wheel] = f"{name}{specifier}"
        for number, part in enumerate(share_out(list(names), round(arguments.limit * MIB)), 1):
            target = arguments.folder / str(number)
            target.mkdir(parents=True)
            for wheel in part:
                shutil.move(wheel, target)
            lines = sorted(names[wheel] for wheel in part)
            (target / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
            sizes = {path.name: path.stat().st_size for path in target.glob("*.whl")}
            largest = ", ".join(
                f"{name.split('-')[0]} {size / MIB:.1f}"
                for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:4]
            )
            total = sum(sizes.values()) / MIB
            sys.stdout.write(f"{target}: {len(sizes)} wheels, {total:.1f} MiB ({largest})\n")


if __name__ == "__main__":
    main()
