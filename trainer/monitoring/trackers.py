"""The trackers of a run: curves and images for TensorBoard, Weights & Biases, MLflow and others.

`accelerate.tracking` has the classes. They are used without the accelerator, which would drop a
tracker that is not installed, and which keeps one list of them while a process may train two runs,
the search for groups and the training.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from numpy.typing import NDArray

from trainer.config.log import LogSection
from trainer.errors import UserError

logger = logging.getLogger(__name__)

Kind = Literal["train", "eval"]

TENSORBOARD = "tensorboard"
_WITH_IMAGES = (TENSORBOARD, "wandb")


@dataclass(frozen=True)
class _Service:
    """How a tracker names its runs and continues one.

    Attributes:
        project: Option that names the project.
        run: Option that names a run of it.
        arguments: Options that continue the run of an id; None where no run is continued.
        run_id: Id of a run, from the object that the tracker wraps.
    """

    project: str = "project"
    run: str | None = None
    arguments: Callable[[str], dict[str, Any]] | None = None
    run_id: Callable[[GeneralTracker], str] | None = None


_SERVICES = {
    "mlflow": _Service(
        "experiment_name",
        "run_name",
        lambda run_id: {"run_id": run_id},
        lambda tracker: tracker.tracker.info.run_id,
    ),
    "swanlab": _Service(run="experiment_name"),
    # Its runs are folders, and events of later steps are discarded by `purge_step`.
    TENSORBOARD: _Service(arguments=lambda _: {}, run_id=lambda _: TENSORBOARD),
    "trackio": _Service(
        run="name",
        arguments=lambda run_id: {"name": run_id, "resume": "allow"},
        run_id=lambda tracker: tracker.tracker.name,
    ),
    "wandb": _Service(
        run="name",
        arguments=lambda run_id: {"id": run_id, "resume": "allow"},
        run_id=lambda tracker: tracker.tracker.id,
    ),
}
# A registered class from outside continues a run if it has `run_id` and takes it as an argument.
_REGISTERED = _Service(
    arguments=lambda run_id: {"run_id": run_id}, run_id=lambda tracker: tracker.run_id
)


@dataclass(frozen=True)
class _Open:
    """A tracker that was started, and the last step of each kind that its run has already."""

    tracker: GeneralTracker
    logged: Mapping[Kind, int]


def check_trackers(section: LogSection) -> None:
    """Refuse trackers that cannot be started here.

    Raises:
        UserError: A tracker is unknown or not installed.
    """
    available = {str(LoggerType(name).value) for name in get_available_trackers()}
    for name in section.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            allowed = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"log.trackers: found {name!r}; allowed are {allowed}")
        if name in _built_in() and name not in available:
            package = name.replace("_", "-")
            raise UserError(
                f"log.trackers: {name} is not installed; run `pip install {package}`, or leave it "
                "out of log.trackers"
            )


class Trackers:
    """The trackers that `log.trackers` names, on the main process.

    A resumed run continues the tracker runs of its checkpoint, and logs no step twice: steps that
    the interrupted process logged after the checkpoint are computed again with the same result, so
    they are left out, and TensorBoard discards the first ones. A tracker that fails while the run
    trains is dropped with a warning, because `metrics.jsonl` has all values.

    Args:
        section: The `log` section, which `check_trackers` accepts.
        out: Folder of the run; its name is the run's, that of the folder around it the project's.
        start_step: Steps done before.
        run_ids: Ids of the tracker runs to continue, by tracker.
        logged: Last step that was logged before, by kind of record.
        settings: The configuration, which a new tracker run shows.

    Raises:
        UserError: A tracker cannot be started.
    """

    def __init__(
        self,
        section: LogSection,
        out: Path,
        *,
        start_step: int,
        run_ids: Mapping[str, str],
        logged: Mapping[Kind, int],
        settings: Mapping[str, Any],
    ) -> None:
        self.run_ids: dict[str, str] = {}
        self._open: dict[str, _Open] = {}
        for name in section.trackers:
            service, run_id = _service(name), run_ids.get(name)
            continues = run_id is not None and service.arguments is not None
            options = section.tracker_options.get(name, {})
            try:
                tracker = _start(name, options, out.resolve(), start_step, run_id)
                if service.run_id is not None:
                    self.run_ids[name] = service.run_id(tracker)
                if not continues and name != TENSORBOARD:
                    tracker.store_init_configuration(dict(_flat(settings)))
            except Exception as error:  # of any library
                self.close()
                raise UserError(
                    f"log.trackers: {name} cannot be started: {type(error).__name__}: {error}"
                ) from error
            if start_step and service.arguments is None:
                logger.warning("log.trackers: %s begins a new run at every start", name)
            self._open[name] = _Open(
                tracker, _already_logged(name, start_step, logged) if continues else {}
            )

    def log(self, step: int, values: Mapping[str, float], kind: Kind) -> None:
        """Log values of a step, unless the tracker's run has them."""
        self._each(step, kind, lambda tracker: tracker.log(dict(values), step=step))

    def log_image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log a grey image [H,W] of a step to the trackers that take images."""
        colours = np.repeat(image[None, :, :, None], 3, axis=3)  # [1,H,W,3]

        def log(tracker: GeneralTracker) -> None:
            if tracker.name in _WITH_IMAGES:
                of_tensorboard = tracker.name == TENSORBOARD
                images = np.moveaxis(colours, 3, 1) if of_tensorboard else colours
                tracker.log_images({name: images}, step=step)

        self._each(step, "train", log)

    def close(self) -> None:
        """Finish all tracker runs."""
        self._each(None, "train", lambda tracker: tracker.finish())
        self._open.clear()

    def _each(self, step: int | None, kind: Kind, use: Callable[[GeneralTracker], None]) -> None:
        for name, opened in list(self._open.items()):
            if step is not None and step <= opened.logged.get(kind, -1):
                continue
            try:
                use(opened.tracker)
            except Exception as error:  # of any library, and only a copy is at stake
                logger.warning("log.trackers: %s failed and is not used any more: %s", name, error)
                del self._open[name]


def _start(
    name: str, options: Mapping[str, Any], out: Path, start_step: int, run_id: str | None
) -> GeneralTracker:
    """Start a tracker with the options of the configuration over those of the run."""
    service, tracker_class = _service(name), LOGGER_TYPE_TO_CLASS[name]
    arguments: dict[str, Any] = {service.project: out.parent.name or "dmtg"}
    if name == TENSORBOARD:
        arguments = {service.project: TENSORBOARD, "purge_step": start_step + 1}
    if name == "wandb":
        arguments["dir"] = str(out)
    if service.run is not None:
        arguments[service.run] = out.name
    if run_id is not None and service.arguments is not None:
        arguments |= service.arguments(run_id)
    arguments |= options
    project = arguments.pop(service.project)
    folder = [str(out)] if tracker_class.requires_logging_directory else []
    tracker = tracker_class(project, *folder, **arguments)
    tracker.start()
    return tracker


def _service(name: str) -> _Service:
    if name in _SERVICES:
        return _SERVICES[name]
    return _REGISTERED if hasattr(LOGGER_TYPE_TO_CLASS[name], "run_id") else _Service()


def _built_in() -> set[str]:
    return {str(kind.value) for kind in LoggerType}


def _already_logged(name: str, start_step: int, logged: Mapping[Kind, int]) -> dict[Kind, int]:
    if name != TENSORBOARD:
        return dict(logged)
    return {kind: min(step, start_step) for kind, step in logged.items()}  # the rest is purged


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots and plain values; a list becomes JSON."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, str | int | float):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", json.dumps(value)
