"""Train from Python: `Trainer` and `fit`, which the command line uses, too."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from trainer.config.config import Config
from trainer.config.loading import configure
from trainer.errors import INTERRUPT, INTERRUPTED, Preempted, UserError
from trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.callback import Callback
    from trainer.export import ExportReport
    from trainer.health.watchdog import Watchdog
    from trainer.results.groups import RunGroups
    from trainer.results.result import RunResult
    from trainer.run_data import RunData
    from trainer.scoring.scores import Evaluation

logger = logging.getLogger(__name__)

Overrides = Mapping[str, Any] | Iterable[str]


class Trainer:
    """A run: its configuration, and what can be done with its folder.

    Everything but `train` reads the folder `run.out`, and so also works beside a training in other
    processes, and after one by `accelerate.notebook_launcher(trainer.train, num_processes=2)`.

    Args:
        config: A `Config`, the path of a YAML file, or a mapping of sections.
        overrides: Values by dotted key, as `{"run.steps": 100}`, or `section.key=value` texts.
        data: Data in place of those that the configuration names.
        callbacks: Called during the training on every process.

    Attributes:
        config: The resolved configuration.

    Raises:
        UserError: The file cannot be read, or keys or values are not allowed.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | str | Path,
        overrides: Overrides = (),
        *,
        data: RunData | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config = configure(config, overrides)
        self._data = data
        self._callbacks = tuple(callbacks)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        overrides: Overrides = (),
        *,
        data: RunData | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Self:
        """Return the trainer of a run that was started before; `train` continues it.

        Args:
            run: Folder of the run.
            overrides: What a resume may change, as in the constructor.
            data: As in the constructor.
            callbacks: As in the constructor.

        Raises:
            UserError: The folder holds no run, or as the constructor.
        """
        config = configure(
            RunFolder(Path(run)).load_config(), {"run.out": str(run), "run.resume": "auto"}
        )
        return cls(config, overrides, data=data, callbacks=callbacks)

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.config.run.out

    @property
    def branches(self) -> RunGroups:
        """The branch of every task at this moment, with its probability while it is undecided.

        Raises:
            UserError: There is no run yet, or it has not logged a step.
        """
        from trainer.results.groups import read_groups

        return read_groups(self.run)

    @property
    def groups(self) -> list[list[str]]:
        """The names of the tasks that share a branch, as in `branches`."""
        return self.branches.groups

    def train(self) -> RunResult:
        """Train from the beginning, or from the newest checkpoint with `run.resume=auto`.

        Under a launcher every process calls it, once. Where one of several processes fails, all of
        them end, with one message. A first Ctrl-C saves before `KeyboardInterrupt` is raised.

        Returns:
            The groups and the evaluation, the same on every process.

        Raises:
            UserError, DataError: Something the user gave cannot be used.
            NonFiniteLossError: Training diverged.
            KeyboardInterrupt: The run was interrupted; it is saved unless that came twice, or
                before the first step.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return self._train_as_rank()
        with _recorded_signals(), _logging():
            try:
                return self.train_here()
            except Preempted as stop:
                if stop.cause == INTERRUPT:
                    raise KeyboardInterrupt(str(stop)) from None
                return self._stopped_result(stop)

    def _train_as_rank(self) -> RunResult:
        """Train as one of several processes; a failure ends this process as it ends the command."""
        from trainer.guarded import leave, run_guarded

        results: list[RunResult] = []

        def run(watchdog: Watchdog) -> int:
            try:
                results.append(self.train_here(watchdog))
            except Preempted as stop:
                logger.info("%s", stop)
                if stop.cause == INTERRUPT:
                    return INTERRUPTED
                results.append(self._stopped_result(stop))
            return 0

        code = run_guarded(run)
        if not results:
            leave(code)
        return results[0]

    def train_here(self, watchdog: Watchdog | None = None) -> RunResult:
        """Train without handling signals or errors, as a start of the command line does itself.

        Args:
            watchdog: Started when the processes have formed a group.

        Raises:
            Preempted: A signal, the time limit or a callback asked to stop; the run is saved.
            UserError, DataError, NonFiniteLossError: As `train`.
        """
        from trainer.engines.accelerator import make_accelerator
        from trainer.results.result import result_of
        from trainer.run import train_run

        with _accelerate_state():
            accelerator = make_accelerator(self.config)
            if watchdog is not None:
                watchdog.start(self.config.run.stall_seconds, _report_after(self, accelerator))
            session, metrics = train_run(self.config, accelerator, self._data, self._callbacks)
            accelerator.end_training()
            return result_of(session, metrics)

    def _stopped_result(self, stop: Preempted) -> RunResult:
        """Return the result of a start that was asked to stop and has saved."""
        from trainer.monitoring.status import read_status
        from trainer.results.result import RunResult

        num_steps = int(read_status(self.run).get("num_steps", stop.step))
        recipe, branches = self.config.grouping.recipe, self.branches
        return RunResult(self.run, recipe, stop.step, num_steps, branches, {}, {}, (), stop.cause)

    def evaluate(self, shards: str | Path | None = None, *, split: str | None = None) -> Evaluation:
        """Evaluate the newest checkpoint's pruned model beside the best constant predictions.

        Args:
            shards: Folder or URL of shards; None for those of the run.
            split: Split to evaluate; None for that of the run.

        Raises:
            UserError: There is no whole checkpoint, or the run's data are not shards.
        """
        from tempfile import TemporaryDirectory

        from trainer.scoring.scores import score_model

        data = self.config.data
        location = shards if shards is not None else data.shards
        if location is None:
            raise UserError("shards: not given, and the data of the run are not shards")
        with TemporaryDirectory() as folder:
            model = Path(folder) / "model.safetensors"
            self.export(model, shards=None if shards is None else str(shards))
            return score_model(
                model,
                location,
                split=split or data.eval_split,
                train_split=data.train_split,
                batch=self.config.eval.batch_size,
            )

    def export(self, out: str | Path, *, shards: str | None = None) -> ExportReport:
        """Write the newest checkpoint's pruned model as one safetensors file.

        Args:
            out: The file to write.
            shards: Folder or URL of the batches on which it is compared with the full model; None
                for those of the run.

        Raises:
            UserError: There is no whole checkpoint.
        """
        from trainer.export import export_run

        return export_run(self.run, Path(out), shards)


def fit(
    config: Config | Mapping[str, Any] | str | Path,
    overrides: Overrides = (),
    *,
    data: RunData | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a run and return its result: `Trainer(config, overrides).train()`."""
    return Trainer(config, overrides, data=data, callbacks=callbacks).train()


def _report_after(trainer: Trainer, accelerator: Accelerator) -> float | None:
    """Return when to report a wait: NCCL ends a process that waits too long without an error."""
    on_gpu = accelerator.device.type == "cuda"
    return 0.9 * trainer.config.run.timeout_seconds if on_gpu else None


@contextmanager
def _accelerate_state() -> Iterator[None]:
    """Drop the state of accelerate that a training of one process has made, for the next one."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    mine = alone and not AcceleratorState._shared_state
    try:
        yield
    finally:
        if mine:
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()


def _recorded_signals() -> AbstractContextManager[None]:
    """Record signals that ask to stop; only the main thread of Python can."""
    from trainer.health.stop_signals import listening

    main = threading.current_thread() is threading.main_thread()
    return listening() if main else nullcontext()


@contextmanager
def _logging() -> Iterator[None]:
    """Show the log of the training, unless the program has set up logging itself."""
    from trainer.monitoring.logs import setup_logging

    root = logging.getLogger()
    with ExitStack() as stack:
        if not root.handlers:
            level = root.level
            setup_logging(0, 1)
            stack.callback(root.handlers.clear)
            stack.callback(root.setLevel, level)
            stack.callback(logging.captureWarnings, False)
        yield
