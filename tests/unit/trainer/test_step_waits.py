"""No step asks the device for a value: on a GPU each such question would stall it."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.engines.accelerator import make_accelerator
from trainer.run_data import build_train_loader
from trainer.session import start_session
from trainer.step import train_step

# Operations whose result must reach the host before the program can go on
_ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")


class Questions(TorchDispatchMode):
    """Notes where values are asked for, but for what is allowed to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in _ASKING):
            stack = traceback.extract_stack()
            if not any(_may_ask(frame) for frame in stack):
                self.found.append(f"{func} at {[f'{f.filename}:{f.lineno}' for f in stack[-4:]]}")
        return func(*args, **(kwargs or {}))


def _may_ask(frame):
    # Optimizers keep their step counts on the CPU, and the groups are made once a run.
    return "torch/optim" in frame.filename or frame.name == "_start_groups"


@pytest.mark.parametrize("recipe", ["affinity", "published"])
def test_steps_ask_nothing(rooms_config, forget_accelerate, recipe):
    forget_accelerate()
    config = rooms_config(f"grouping.recipe={recipe}", "optim.max_grad_norm=1.0")
    with start_session(config, make_accelerator(config)) as session:
        place = {"rank": 0, "world_size": 1}
        batches = build_train_loader(
            config, session.data.manifest, session.tasks, start_step=0, end_step=6, **place
        )
        with Questions() as questions:
            assert torch.ones(1).item() == 1 and len(questions.found) == 1, "questions are noticed"
            questions.found.clear()
        for batch in batches:
            with questions:
                objective = train_step(session, [batch]).objective
            session.step += 1
        assert objective.isfinite().all() and session.step == 6
    assert not questions.found
