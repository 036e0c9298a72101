"""The files that predictions are written to, in the formats that were asked for.

Legend: C channels, H, W size of a photo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from dmtg.files import atomic_path, atomic_write
from model.kinds.kind import get_kind
from model.pruned_model import described
from model.tasks.spec import TaskSpec
from trainer.errors import UserError
from trainer.json_file import to_json, with_digits
from trainer.prediction.overview import draw_overview
from trainer.prediction.photos import Prepared

FORMATS = ("png", "npy", "jsonl")
LINES = "predictions.jsonl"
_DIGITS = 7  # of numbers that were computed in 32 bits


@dataclass(frozen=True)
class Outputs:
    """Where predictions go.

    `png` writes NAME.TASK.png, a picture of each dense task in the size of the photo, and
    NAME.overview.png; `npy` NAME.TASK.npy with the values [C,H,W] or the class ids [H,W]. The
    other tasks are in NAME.json, or with `jsonl` in one line of `predictions.jsonl` for each photo.

    Attributes:
        out: Folder.
        tasks: Of the model.
        formats: Some of `FORMATS`.
        overview: Whether `png` writes the overview.
    """

    out: Path
    tasks: Sequence[TaskSpec]
    formats: Sequence[str] = ("png",)
    overview: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            found = repr(unknown[0]) if unknown else "none"
            raise UserError(f"--format: found {found}; allowed: {', '.join(FORMATS)}")
        if tuple(self.formats) == ("jsonl",) and all(task.dense for task in self.tasks):
            raise UserError(
                "--format: found 'jsonl' alone, which holds no maps, and all tasks of this model "
                "are maps; add png or npy"
            )

    @property
    def draws(self) -> bool:
        """Whether an overview is drawn."""
        return self.overview and "png" in self.formats

    def planned(self, names: Sequence[str], sources: Sequence[str]) -> Iterator[tuple[Path, str]]:
        """Yield the files that are going to be written, and what each of them is.

        Args:
            names: Of the outputs of each photo.
            sources: What each photo is called in a message.
        """
        for name, source in zip(names, sources, strict=True):
            for task in self.tasks:
                if task.dense:
                    for file in self._files(name, task):
                        yield file, f"task {task.name!r} of {source}"
            if "jsonl" not in self.formats:
                yield self._record_file(name), f"the attributes of {source}"
            if self.draws:
                yield self._overview_file(name), f"the overview of {source}"
        if "jsonl" in self.formats:
            yield self.out / LINES, "the predictions"

    @contextmanager
    def open(self) -> Iterator[IO[str] | None]:
        """Open the file of lines; it gets its name when the block ends without an error."""
        self.out.mkdir(parents=True, exist_ok=True)
        if "jsonl" not in self.formats:
            yield None
            return
        with atomic_write(self.out / LINES, sync=False) as lines:
            yield lines

    def write(
        self,
        name: str,
        source: str,
        photo: Prepared,
        predictions: Mapping[str, Tensor],
        lines: IO[str] | None,
    ) -> dict[str, Any]:
        """Write the predictions of a photo and return its record.

        Args:
            name: Of its outputs.
            source: Where it is from.
            photo: The photo.
            predictions: Natural predictions of the photo by task, on the CPU.
            lines: From `open`.
        """
        self._record_file(name).parent.mkdir(parents=True, exist_ok=True)
        attributes = {
            task.name: get_kind(task.kind).record(task, predictions[task.name])
            for task in self.tasks
            if not task.dense
        }
        record: dict[str, Any] = {"image": source, "attributes": with_digits(attributes, _DIGITS)}
        dense = {task: predictions[task.name] for task in self.tasks if task.dense}
        if dense and set(self.formats) & {"png", "npy"}:
            record["files"] = {
                task.name: [str(file.relative_to(self.out)) for file in self._files(name, task)]
                for task in dense
            }
        if photo.labels:
            record["labels"] = with_digits(photo.labels, _DIGITS)
        for task, values in dense.items():
            self._write_maps(name, task, values, photo.size)
        self._write_record(record, self._record_file(name), lines)
        if self.draws:
            assert photo.shown is not None, "a photo that is drawn has been kept"
            maps = {task: values.numpy() for task, values in dense.items()}
            overview = self._overview_file(name)
            draw_overview(overview, photo.shown, maps, attributes, photo.labels, photo.drawn)
        return record

    def write_error(self, source: str, error: str, lines: IO[str] | None) -> dict[str, Any]:
        """Return the record of a photo that cannot be read; in a file of lines it has one, too."""
        record = {"image": source, "error": error}
        if lines is not None:
            lines.write(to_json(record) + "\n")
        return record

    def _write_record(self, record: Mapping[str, Any], path: Path, lines: IO[str] | None) -> None:
        if lines is not None:
            lines.write(to_json(dict(record)) + "\n")
            return
        with atomic_write(path, sync=False) as file:
            file.write(to_json(dict(record), indent=1) + "\n")

    def _write_maps(self, name: str, task: TaskSpec, values: Tensor, size: tuple[int, int]) -> None:
        for path in self._files(name, task):
            with atomic_path(path, sync=False) as partial:
                if path.suffix == ".npy":
                    np.save(partial, described(task, values, size)["value"])
                else:
                    _picture(task, values, size).save(partial)

    def _files(self, name: str, task: TaskSpec) -> list[Path]:
        """Return the files of a dense task."""
        suffixes = [suffix for suffix in ("png", "npy") if suffix in self.formats]
        return [self.out / f"{name}.{task.name}.{suffix}" for suffix in suffixes]

    def _record_file(self, name: str) -> Path:
        return self.out / f"{name}.json"

    def _overview_file(self, name: str) -> Path:
        return self.out / f"{name}.overview.png"


def _picture(task: TaskSpec, values: Tensor, size: tuple[int, int]) -> Image.Image:
    """Return a natural prediction drawn, in the size H, W of the photo."""
    drawn = Image.fromarray(get_kind(task.kind).draw(task, values.numpy()))
    smooth = values.is_floating_point()
    resampling = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return drawn if drawn.size == size[::-1] else drawn.resize(size[::-1], resampling)
