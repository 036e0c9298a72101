"""A whole run in this process: the search of recipes that have one, training, evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from accelerate import Accelerator

from trainer.callback import Callback, Callbacks
from trainer.config.config import Config
from trainer.engines.device import describe_device
from trainer.evaluation import Metrics
from trainer.health.stop_signals import undoing
from trainer.loop import train
from trainer.monitoring.status import reported
from trainer.recipes.learner import recipe_of
from trainer.results.result import result_of, write_result
from trainer.run_data import RunData
from trainer.search import search_groups
from trainer.session import Session, claim_folder, start_session

logger = logging.getLogger(__name__)


def train_run(
    config: Config,
    accelerator: Accelerator,
    data: RunData | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Session, Metrics]:
    """Train from the start, or from the newest checkpoint, to the end; every rank must call it.

    Args:
        data: In place of the shards that the configuration names.
        callbacks: Called during the training, not in the search of recipes that have one.

    Returns:
        The closed session, without a network, and the metrics of the last evaluation.

    Raises:
        UserError, DataError: Something the user gave cannot be used.
        NonFiniteLossError: Training diverged.
        Preempted: As `train`.
    """
    with ExitStack() as stack:
        folder = claim_folder(config, accelerator)  # for the search and the training
        stack.callback(folder.release)
        stack.enter_context(undoing(folder.release))
        begun = folder.config.exists()  # a new folder gets its status with its configuration
        stack.enter_context(reported(folder.out, main=accelerator.is_main_process, begun=begun))
        return _train_run(config, accelerator, data, Callbacks(callbacks))


def _train_run(
    config: Config, accelerator: Accelerator, data: RunData | None, callbacks: Callbacks
) -> tuple[Session, Metrics]:
    if recipe_of(config).searches:
        search_groups(config, accelerator, data)
    with start_session(config, accelerator, data) as session:
        where = describe_device(config, accelerator.device)
        logger.info("one of %d process(es), on %s", accelerator.num_processes, where)
        if session.step >= session.num_steps:
            logger.info("%s is complete (%d steps), evaluating it", config.run.out, session.step)
        session.callbacks, session.with_constants = callbacks, True
        metrics = train(session)
        result = result_of(session, metrics)
        if accelerator.is_main_process:
            write_result(result)
        session.monitor.note_groups(result.branches.to_json())
        return session, metrics
