"""What a task is: the kind of its label, its loss and how raw label values are scaled and shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

TaskKind = Literal["binary", "multiclass", "regression", "dense_regression", "dense_classification"]
Signature = tuple[str, int, str]

DENSE_KINDS = frozenset({"dense_regression", "dense_classification"})
DISPLAYS = ("grey", "depth", "normal", "classes", "signed")

# The first loss of each kind is its default.
LOSSES: dict[str, tuple[str, ...]] = {
    "binary": ("bce", "cross_entropy"),
    "multiclass": ("cross_entropy",),
    "regression": ("l1", "mse"),
    "dense_regression": ("l1", "mse", "l1_shift"),
    "dense_classification": ("cross_entropy",),
}


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        name: Unique among the tasks of a run.
        kind: What a label is.
        channels: Number of classes (multiclass, dense_classification), of values per pixel
            (dense_regression); 1 for binary and regression.
        field: Label field in the data; empty means the name.
        loss: Empty means the kind's default. A binary task with `cross_entropy` has two outputs.
        mean: Subtracted from raw values, one per channel or one for all.
        scale: Divides what is left, so that target = (raw - mean) / scale.
        valid_below: Raw dense values at or above it are invalid pixels.
        ignore_index: Class id of a dense_classification that is not labelled.
        unit: Name of the natural unit, as in "m".
        unit_scale: Natural value = raw * unit_scale + unit_offset.
        unit_offset: See `unit_scale`.
        positive_above: Natural value above which a pixel of a one-channel map is positive (an edge,
            a keypoint), which adds the metric `f1`.
        display: How a dense prediction is drawn.
        classes: Names of the classes, in order of their ids.

    Raises:
        ValueError: If the attributes contradict each other; the message names the task.
    """

    name: str
    kind: TaskKind
    channels: int = 1
    field: str = ""
    loss: str = ""
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    valid_below: float | None = None
    ignore_index: int | None = None
    unit: str = ""
    unit_scale: float = 1.0
    unit_offset: float = 0.0
    positive_above: float | None = None
    display: str = "grey"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("task name is empty; give every task a name")
        if self.kind not in get_args(TaskKind):
            raise self._error("kind", self.kind, f"one of {', '.join(get_args(TaskKind))}")
        object.__setattr__(self, "field", self.field or self.name)
        object.__setattr__(self, "loss", self.loss or LOSSES[self.kind][0])
        for name in ("mean", "scale", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_channels()
        self._check_scaling()
        self._check_positive()
        if self.loss not in LOSSES[self.kind]:
            allowed = ", ".join(LOSSES[self.kind])
            raise self._error("loss", self.loss, f"one of {allowed} for a {self.kind} task")
        if self.display not in DISPLAYS:
            raise self._error("display", self.display, f"one of {', '.join(DISPLAYS)}")

    def _error(self, attribute: str, found: object, allowed: str) -> ValueError:
        return ValueError(f"task {self.name!r}: {attribute} is {found!r}, must be {allowed}")

    def _check_channels(self) -> None:
        if self.kind in ("binary", "regression") and self.channels != 1:
            raise self._error("channels", self.channels, f"1 for a {self.kind} task")
        if self.kind in ("multiclass", "dense_classification") and self.channels < 2:
            raise self._error("channels", self.channels, "the number of classes, at least 2")
        if self.channels < 1:
            raise self._error("channels", self.channels, "at least 1")
        named = 2 if self.kind == "binary" else self.channels
        if self.classes and len(self.classes) != named:
            raise self._error("classes", self.classes, f"empty or {named} names")

    def _check_scaling(self) -> None:
        for name in ("mean", "scale"):
            values = getattr(self, name)
            if len(values) not in {1, self.channels} or not all(map(math.isfinite, values)):
                raise self._error(name, values, f"one finite number or {self.channels} of them")
        if min(self.scale) <= 0:
            raise self._error("scale", self.scale, "above 0")
        if "regression" not in self.kind and (self.mean, self.scale) != ((0.0,), (1.0,)):
            raise self._error("mean, scale", (self.mean, self.scale), "left out: labels are ids")
        if self.valid_below is not None and self.kind != "dense_regression":
            raise self._error("valid_below", self.valid_below, f"left out for a {self.kind} task")
        if self.ignore_index is not None and self.kind != "dense_classification":
            raise self._error("ignore_index", self.ignore_index, f"left out for a {self.kind} task")
        if not math.isfinite(self.unit_scale) or self.unit_scale == 0:
            raise self._error("unit_scale", self.unit_scale, "a finite number other than 0")

    def _check_positive(self) -> None:
        if self.positive_above is None:
            return
        if (self.kind, self.channels) != ("dense_regression", 1) or self.display == "depth":
            raise self._error(
                "positive_above",
                self.positive_above,
                "left out except for a dense_regression of one channel that is no depth",
            )
        if not math.isfinite(self.positive_above):
            raise self._error("positive_above", self.positive_above, "a finite number")

    @property
    def dense(self) -> bool:
        """Whether there is a label for every pixel."""
        return self.kind in DENSE_KINDS

    @property
    def outputs(self) -> int:
        """Number of values a head predicts, per pixel for a dense task."""
        return 2 if self.kind == "binary" and self.loss == "cross_entropy" else self.channels

    @property
    def signature(self) -> Signature:
        """Kind, outputs and loss: heads of tasks that agree in it are computed together."""
        return (self.kind, self.outputs, self.loss)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as values that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Rebuild a task from `to_dict`.

        Raises:
            ValueError: If an attribute is unknown or its value not allowed.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"task {values.get('name')!r}: unknown attribute {unknown[0]!r}, "
                f"must be one of {', '.join(known)}"
            )
        missing = {"name", "kind"} - set(values)
        if missing:
            raise ValueError(f"task {dict(values)!r}: {min(missing)!r} is missing")
        return cls(**values)
