"""Training from Python in several processes: from a notebook, and in a program of one's own."""

import pytest

from tests.distributed.cells import TWELVE_STEPS, twelve_steps
from trainer.results.groups import read_groups

pytestmark = pytest.mark.distributed

NUM_STEPS = 12
WHOLE = twelve_steps("ddp_cpu")

NOTEBOOK = """
import sys
from accelerate import notebook_launcher
from trainer import Callback, Trainer

class Note(Callback):
    def on_train_end(self, session, metrics):
        print("rank", session.accelerator.process_index, "step", session.step, len(metrics))

if __name__ == "__main__":
    overrides = [*sys.argv[2:], "run.device=cpu"]
    run = Trainer(sys.argv[1], overrides, callbacks=[Note()])
    notebook_launcher(run.train, num_processes=2, use_port="0")
    print(run.groups)
"""
PROGRAM = """
import sys
from trainer import Trainer

result = Trainer(sys.argv[1], sys.argv[2:]).train()
print(f"{result.step} {result.groups}\\n", end="")  # at once: the lines of two processes
"""


def cells():
    return [WHOLE]


def written(out, name):
    return (out / name).read_bytes()


def test_a_notebook(launcher, rooms_yaml, trained, free_port, tmp_path):
    """What the processes learn is what two processes of the command learn."""
    out = tmp_path / "run"
    code = NOTEBOOK.replace('use_port="0"', f'use_port="{free_port()}"')
    end = launcher.python(code, str(rooms_yaml), f"run.out={out}", *TWELVE_STEPS)
    assert end.code == 0, end.stderr[-4000:]
    lines = end.stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("rank")) == [
        f"rank {rank} step {NUM_STEPS} 6" for rank in (0, 1)
    ]
    assert lines[-1] == str(read_groups(out).groups)
    whole = trained(WHOLE)
    for name in ("metrics.jsonl", f"checkpoints/step-{NUM_STEPS:09d}/weights.safetensors"):
        assert written(out, name) == written(whole, name), name


@pytest.mark.slow
def test_a_program_of_ones_own(launcher, rooms_yaml, tmp_path):
    script, out = tmp_path / "mine.py", tmp_path / "run"
    script.write_text(PROGRAM)
    arguments = (str(rooms_yaml), f"run.out={out}", *TWELVE_STEPS)
    end = launcher.start(*arguments, engine="ddp_cpu", script=script).finish()
    assert end.code == 0, end.stderr[-4000:]
    shown = f"{NUM_STEPS} {read_groups(out).groups}"
    assert end.stdout.splitlines().count(shown) == 2, "every process has the result"
    end = launcher.start(*arguments, engine="ddp_cpu", script=script).finish()
    assert end.code == 1
    errors = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "already holds a run" in errors[0]
