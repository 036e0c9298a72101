"""Paths of the training script, launch files and job templates in a checkout or a wheel."""

from __future__ import annotations

from pathlib import Path

import accelerate_configs

TRAIN_SCRIPT = Path(__file__).resolve().with_name("main.py")
_FOLDER = Path(accelerate_configs.__file__).resolve().parent


def find_launch_files() -> dict[str, Path]:
    """Return the files for `accelerate launch --config_file`, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def launch_file(name: str) -> Path:
    """Return the path of a launch file, such as `zero2`."""
    return _FOLDER / f"{name}.yaml"


def job_template(name: str) -> Path:
    """Return the path of a Slurm job template: `train.sbatch` or `compare.sbatch`."""
    return _FOLDER / "slurm" / name


def describe(path: Path) -> str:
    """Return the comment in the first line of a launch file."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()
