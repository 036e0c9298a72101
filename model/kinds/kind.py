"""The base class of task kinds: all that depends on the type of a label.

Legend: n tasks of one signature, B batch, C channels or classes, O outputs, H, W.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmtg.plugins import LOSSES, METRICS, TASK_KINDS
from dmtg.suggestions import did_you_mean
from model.losses.loss import Loss
from model.losses.options import OptionValue
from model.tasks.constant import ConstantPredictor
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets


class StoredField(Protocol):
    """The entry of a label field in a manifest, as far as a kind reads it.

    Attributes:
        classes: Names of the classes; may be empty.
        channels: Channels that are stored.
        mean: Of the values over the training split, if known.
        std: Standard deviation of the values, if known.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def mean(self) -> float | None: ...
    @property
    def std(self) -> float | None: ...


class TaskKind(ABC):
    """A kind of task. Register a subclass with `@register_task_kind("name")`.

    It is made without arguments and holds no state: methods take the tasks. Most subclasses are a
    `ClassKind` or a `ValueKind`. A scalar kind defines `record` and `label_text`, a dense kind
    `draw`, `caption` and `draw_label`.

    Attributes:
        default_loss: Name of the loss of a task that names none.
        losses: Names of further losses; those that have the kind among their `kinds` are allowed
            without being named here.
        loss_class: Base class of the losses.
        default_metric: Name of the metric of a task that names none; `metric_name` may choose
            another.
        metrics: Names of further metrics, as with `losses`.
        dense: Whether there is a label for every pixel.
        stored_as: Kind of the fields of shards that hold such labels: binary, multiclass,
            regression, dense_regression or dense_classification.
        stored_dtype: Type in which shards store a dense label.
        output: What `natural` returns, in a word for programs that use a deployed model.
    """

    default_loss: ClassVar[str]
    losses: ClassVar[tuple[str, ...]] = ()
    loss_class: ClassVar[type[Loss]]
    default_metric: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ()
    dense: ClassVar[bool] = False
    stored_as: ClassVar[str]
    stored_dtype: ClassVar[torch.dtype] = torch.float32
    output: ClassVar[str] = "value"

    @abstractmethod
    def targets(
        self,
        specs: Sequence[TaskSpec],
        raw: Tensor | Sequence[Tensor],
        valid: Tensor,
        scaled: Callable[[Tensor], Tensor],
    ) -> Targets:
        """Return the targets of one batch for n tasks of one signature.

        Args:
            raw: Labels as stored: fp32 [n,B] of a scalar kind, else for each task
                [B,stored_channels,H,W] of any dtype.
            valid: Which samples have a label, bool [n,B].
            scaled: From values [n,B] or [n,B,C,H,W] to (values - mean) / scale of each task.
        """

    @abstractmethod
    def natural(self, spec: TaskSpec, prediction: Tensor) -> Tensor:
        """Return a prediction in natural units for the outputs [B,O] or [B,O,H,W] of a head.

        Built-in kinds return, binary: probability [B]; multiclass: probabilities [B,C];
        regression: values in the natural unit [B]; dense_regression: the same [B,C,H,W];
        dense_classification: class ids [B,H,W].
        """

    @abstractmethod
    def constant_predictor(self, spec: TaskSpec) -> ConstantPredictor[Any]:
        """Return a predictor that learns the best constant from labels."""

    def metric_name(self, spec: TaskSpec) -> str:
        """Return the name of the metric of a task."""
        return spec.metric or self.default_metric

    def allowed_losses(self, name: str) -> tuple[str, ...]:
        """Return the losses of the kind, registered as `name`; the default first."""
        declared = [loss for loss in LOSSES.names() if name in LOSSES[loss].kinds]
        return tuple(dict.fromkeys([self.default_loss, *self.losses, *declared]))

    def allowed_metrics(self, name: str) -> tuple[str, ...]:
        """Return the metrics of the kind, registered as `name`; the default first."""
        declared = [metric for metric in METRICS.names() if name in METRICS[metric].kinds]
        return tuple(dict.fromkeys([self.default_metric, *self.metrics, *declared]))

    def check(self, spec: TaskSpec) -> None:
        """Check the attributes of a task; its `loss` is set.

        Raises:
            ValueError: An attribute has a value that the kind does not allow.
        """
        if spec.channels < 1:
            raise spec.error("channels", "at least 1")
        named = self.num_names(spec)
        if spec.classes and len(spec.classes) != named:
            raise spec.error("classes", f"empty or {named} names")
        for name in ("mean", "scale"):
            values = getattr(spec, name)
            if len(values) not in {1, spec.channels} or not all(map(math.isfinite, values)):
                raise spec.error(name, f"one finite number or {spec.channels} of them")
        if min(spec.scale) <= 0:
            raise spec.error("scale", "above 0")
        self.check_options(spec)
        if not math.isfinite(spec.unit_scale) or spec.unit_scale == 0:
            raise spec.error("unit_scale", "a finite number other than 0")
        self._check_loss(spec)
        self._check_metric(spec)

    def check_options(self, spec: TaskSpec) -> None:
        """Check the attributes that only some kinds have; by default all must be left out."""
        for name in ("valid_below", "ignore_index", "positive_above"):
            self.check_left_out(spec, name)

    def check_left_out(self, spec: TaskSpec, name: str) -> None:
        """Check that an attribute is None."""
        if getattr(spec, name) is not None:
            raise spec.error(name, f"left out for a {spec.kind} task")

    def _check_loss(self, spec: TaskSpec) -> None:
        allowed = self.allowed_losses(spec.kind)
        if spec.loss not in allowed:
            raise spec.error("loss", f"one of {', '.join(allowed)} for a {spec.kind} task")
        if not issubclass(LOSSES[spec.loss], self.loss_class):
            raise spec.error("loss", f"a {self.loss_class.__name__} for a {spec.kind} task")

    def loss_options(self, spec: TaskSpec) -> dict[str, OptionValue]:
        """Return the checked options of a task's loss, see `LossOption.value`.

        Raises:
            ValueError: The loss has no such option, or does not allow the value.
        """
        options, given = LOSSES[spec.loss].options, spec.loss_options
        if given == {}:
            return {}
        listed = ", ".join(options) or "none"
        if not isinstance(given, Mapping):
            raise spec.error("loss_options", f"a mapping from options of {spec.loss}: {listed}")
        unknown = next((name for name in given if name not in options), None)
        if unknown is not None:
            raise ValueError(
                f"task {spec.name!r}: loss_options has {unknown!r}; options of {spec.loss}: "
                f"{listed}{did_you_mean(unknown, options)}"
            )
        place, classes = f"task {spec.name!r}: loss_options", self.class_names(spec)
        return {
            name: options[name].value(f"{place}.{name}", value, classes)
            for name, value in given.items()
        }

    def _check_metric(self, spec: TaskSpec) -> None:
        if not spec.metric:
            return
        allowed = self.allowed_metrics(spec.kind)
        if spec.metric not in allowed:
            raise spec.error("metric", f"one of {', '.join(allowed)} for a {spec.kind} task")
        for name in METRICS[spec.metric].needs:
            if getattr(spec, name) is None:
                raise spec.error(name, f"set for the metric {spec.metric}")

    def num_names(self, spec: TaskSpec) -> int:
        """Return how many names `classes` must have."""
        return spec.channels

    def class_names(self, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of the classes; empty where labels are values."""
        return spec.classes

    @abstractmethod
    def from_field(self, field: StoredField) -> dict[str, Any]:
        """Return the attributes of a task that follow from the manifest's entry of its field."""

    @abstractmethod
    def stored_channels(self, spec: TaskSpec) -> int:
        """Return how many channels of the stored label the task reads; 1 for a scalar."""

    def label_rule(self, spec: TaskSpec) -> dict[str, Any]:
        """Return how stored labels are checked: arguments of the data pipelines' `LabelRule`."""
        return {
            "kind": self.stored_as,
            "classes": self.class_names(spec),
            "scale": spec.scale,
            "valid_below": spec.valid_below,
            "ignore_index": spec.ignore_index,
        }

    def record(self, spec: TaskSpec, value: Tensor) -> dict[str, Any]:
        """Return the natural prediction of a sample as JSON can hold it, with a key `value`."""
        raise NotImplementedError(f"{type(self).__name__} defines no record")

    def label_text(self, spec: TaskSpec, value: float) -> str:
        """Return a stored scalar label as text."""
        raise NotImplementedError(f"{type(self).__name__} defines no label_text")

    def label_value(self, spec: TaskSpec, value: float) -> Any:  # noqa: ANN401 - as in `record`
        """Return a stored scalar label as JSON can hold it; by default its text."""
        return self.label_text(spec, value)

    def draw(self, spec: TaskSpec, values: NDArray[np.generic]) -> Picture:
        """Draw the natural prediction of a sample, as `natural` returns it for a batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no draw")

    def caption(self, spec: TaskSpec, values: NDArray[np.generic]) -> str:
        """Return the range of values that the colours of `draw` cover, as text; may be empty."""
        raise NotImplementedError(f"{type(self).__name__} defines no caption")

    def draw_label(
        self, spec: TaskSpec, label: NDArray[np.generic], mask: NDArray[np.bool_]
    ) -> tuple[Picture, str]:
        """Draw a stored label [C,H,W] and return the picture with a caption.

        Args:
            mask: Which pixels [H,W] are valid, at least one; the others may have any colour.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no draw_label")


def get_kind(name: str) -> TaskKind:
    """Return a registered kind.

    Raises:
        ValueError: The name is unknown; the message lists those that are registered.
    """
    return _instance(TASK_KINDS[name])


@cache
def _instance(kind: type[TaskKind]) -> TaskKind:
    return kind()
