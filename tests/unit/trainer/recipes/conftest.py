from collections.abc import Callable
from itertools import islice

import pytest

from data_pipelines.reading.collate import Batch
from trainer.engines.accelerator import make_accelerator
from trainer.session import Session, start_session


@pytest.fixture
def multitask_session(rooms_config, forget_accelerate) -> Callable[..., Session]:
    """Starts a run with one branch for all tasks."""

    def start(*overrides: str) -> Session:
        forget_accelerate()
        config = rooms_config("grouping.recipe=multitask", *overrides)
        return start_session(config, make_accelerator(config))

    return start


@pytest.fixture
def batches_of() -> Callable[[Session, int], list[Batch]]:
    """The first batches of a session's run."""

    def read(session: Session, number: int) -> list[Batch]:
        loader = session.data.train_batches(0, session.num_steps, rank=0, world_size=1)
        return list(islice(loader, number))

    return read
