"""What a task is: the kind of its label, its loss and how raw label values are scaled and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from dataclasses import field as dataclass_field
from typing import Any

from dmtg.names import check_file_name, check_text
from dmtg.plugins import LOSSES, TASK_KINDS
from dmtg.suggestions import did_you_mean
from model.bounds import MAX_CLASSES, MAX_PIXEL_CHANNELS
from model.tasks.display import DISPLAYS

Signature = tuple[str, int, str]


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        name: Unique among the tasks of a run; part of file names.
        kind: What a label is.
        channels: Number of classes (multiclass, dense_classification), of values per pixel
            (dense_regression); 1 for binary and regression.
        field: Label field in the data; empty means the name.
        loss: Empty means the kind's default; a binary task with `cross_entropy` has two outputs.
        mean: Subtracted from raw values, one per channel or one for all.
        scale: Divides the difference, so that target = (raw - mean) / scale.
        valid_below: Raw dense values at or above it are invalid pixels.
        ignore_index: Class id of a dense_classification that is not labelled.
        unit: Name of the natural unit, as in "m".
        unit_scale: Natural value = raw * unit_scale + unit_offset.
        unit_offset: Added to raw * unit_scale.
        positive_above: Natural value above which a pixel of a one-channel map is positive (an edge,
            a keypoint), which adds the metric `f1`.
        display: How a dense prediction is drawn.
        classes: Names of the classes, in order of their ids.
        metric: Name of the metric class; empty means the kind's choice.
        loss_options: Options of the loss by name, such as class weights; see docs/losses.md.

    Raises:
        ValueError: If the attributes contradict each other; the message names the task.
    """

    name: str
    kind: str
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
    metric: str = ""
    loss_options: Mapping[str, Any] = dataclass_field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("task name is empty; give every task a name")
        check_file_name("task name", str(self.name))
        if self.kind not in TASK_KINDS.names():
            raise self.error("kind", f"one of {', '.join(TASK_KINDS.names())}")
        kind = TASK_KINDS[self.kind]()
        most = MAX_PIXEL_CHANNELS if kind.dense else MAX_CLASSES
        if not isinstance(self.channels, int) or self.channels > most:
            raise self.error("channels", f"an integer of at most {most}")
        object.__setattr__(self, "field", self.field or self.name)
        object.__setattr__(self, "loss", self.loss or kind.default_loss)
        for name in ("mean", "scale", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in (self.field, self.unit, *self.classes):
            check_text(f"task {self.name!r}: a field, unit or class", str(name))
        kind.check(self)
        object.__setattr__(self, "loss_options", kind.loss_options(self))
        if self.display not in tuple(DISPLAYS):
            raise self.error("display", f"one of {', '.join(DISPLAYS)}")

    def error(self, attribute: str, allowed: str) -> ValueError:
        """Return the error that an attribute, or several separated by `, `, has a wrong value."""
        values = tuple(getattr(self, name) for name in attribute.split(", "))
        value = values if len(values) > 1 else values[0]
        return ValueError(f"task {self.name!r}: {attribute} is {value!r}, must be {allowed}")

    @property
    def dense(self) -> bool:
        """Whether there is a label for every pixel."""
        return TASK_KINDS[self.kind].dense

    @property
    def outputs(self) -> int:
        """Number of values a head predicts, per pixel for a dense task."""
        return LOSSES[self.loss]().outputs(self.channels)

    @property
    def signature(self) -> Signature:
        """Kind, outputs and loss: heads of tasks that agree in it are computed together."""
        return (self.kind, self.outputs, self.loss)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as values that JSON can hold.

        Without `metric` and `loss_options` if they are empty: an earlier version can read it.
        """
        values = {name: _as_json(value) for name, value in asdict(self).items()}
        return {
            name: value
            for name, value in values.items()
            if value or name not in ("metric", "loss_options")
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Make a task from what `to_dict` returned.

        Raises:
            ValueError: If an attribute is unknown or its value not allowed.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"task {values.get('name')!r}: unknown attribute {unknown[0]!r}, "
                f"must be one of {', '.join(known)}{did_you_mean(unknown[0], known)}"
            )
        missing = {"name", "kind"} - set(values)
        if missing:
            raise ValueError(f"task {dict(values)!r}: {min(missing)!r} is missing")
        return cls(**values)


def _as_json(value: Any) -> Any:  # noqa: ANN401 - of any attribute
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    return list(value) if isinstance(value, tuple) else value
