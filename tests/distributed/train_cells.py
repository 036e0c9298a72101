"""Train several runs one after the other in the same processes, which start only once.

Usage: train_cells.py CONFIG JOBS, where JOBS is a JSON file with a list of `Cell.job`.
"""

import contextlib
import gc
import json
import os
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch._dynamo.utils import counters

import trainer.session
from tests.operations import remember_operations
from tests.processes import TIMM
from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.engines.engine import Engine
from trainer.engines.optim import MOMENTS, base_optimizer
from trainer.monitoring.logs import setup_logging
from trainer.recipes.published import PublishedGroups
from trainer.run import train_run
from trainer.session import Session

sys.path.append(str(TIMM))
# What recipes keep of the losses and of the start, by the first letters of the names.
LEARNED = ("average", "paired_losses.", "firmness")
TORN_BYTES = 1000  # that are left of the weights in a torn checkpoint


class UpdateRecorder(contextlib.AbstractContextManager):
    """Keeps the arguments of every `PublishedGroups.update`, and the logits after it."""

    def __enter__(self) -> "UpdateRecorder":
        self.gradients, self.factors, self.logits = [], [], []
        recorder, self._update = self, PublishedGroups.update

        def update(learner, inputs):
            recorder.gradients.append(inputs.logits_gradient.detach().cpu().numpy().copy())
            recorder.factors.append(inputs.lr_factor)
            recorder._update(learner, inputs)
            logits = learner.grouping.logits.detach()
            assert str(logits.dtype) == "torch.float32"
            recorder.logits.append(logits.cpu().numpy().copy())

        PublishedGroups.update = update
        return self

    def __exit__(self, *_: object) -> None:
        PublishedGroups.update = self._update

    def save(self, path: Path) -> None:
        np.savez(
            path,
            factors=self.factors,
            gradients=np.stack(self.gradients),
            logits=np.stack(self.logits),
        )


def copy_checkpoints(job: dict[str, Any]) -> None:
    """Make the folder of a run that was killed some steps after the last of its checkpoints."""
    source, out = Path(job["source"]), Path(job["out"])
    for step in job["steps"]:
        name = f"checkpoints/step-{step:09d}"
        shutil.copytree(source / name, out / name)
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(source / name, out)
    if job["torn"]:
        weights = out / f"checkpoints/step-{max(job['steps']):09d}/weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:TORN_BYTES])


class RemainsRecorder(contextlib.AbstractContextManager):
    """Keeps what can be reached of every network, and of its optimizer, that was replaced."""

    def __enter__(self) -> "RemainsRecorder":
        self.replaced, self.remains = 0, []
        recorder, self._replace = self, Session.replace_engine

        def replace(session, module, state):
            old = {name: weakref.ref(part) for name, part in _parts(session.engine)}
            prepare = trainer.session.prepare_engine

            def prepare_and_look(*arguments):
                recorder.remains += [n for n, part in old.items() if part() is not None]
                return prepare(*arguments)

            trainer.session.prepare_engine = prepare_and_look
            try:
                recorder._replace(session, module, state)
            finally:
                trainer.session.prepare_engine = prepare
            recorder.replaced += 1
            recorder.remains += [n for n, part in old.items() if part() is not None]

        Session.replace_engine = replace
        return self

    def __exit__(self, *_: object) -> None:
        Session.replace_engine = self._replace


def _parts(engine: Engine) -> Iterator[tuple[str, object]]:
    """Network, optimizer, and every tensor of theirs."""
    yield "network", engine.network
    yield "optimizer", engine.optimizer
    for name, module in engine.module.named_modules():
        yield f"module {name}", module
    yield from engine.module.named_parameters()
    yield from engine.module.named_buffers()
    optimizer = base_optimizer(engine.optimizer)
    for group in optimizer.param_groups:
        for number, master in enumerate(group["params"]):
            yield f"master weights {group['name']} {number}", master
            for moment in MOMENTS:
                if moment in optimizer.state[master]:
                    yield f"{moment} {group['name']} {number}", optimizer.state[master][moment]


def train_job(config_file: Path, job: dict[str, Any]) -> Accelerator:
    """Train one run, and write beside its other files what each rank has in the end."""
    rank, out = int(os.environ.get("RANK", "0")), Path(job["out"])
    config = load_config(config_file, [f"run.out={out}", *job["overrides"]])
    accelerator = make_accelerator(config)
    if job["source"] is not None:
        with accelerator.main_process_first():
            if rank == 0:
                copy_checkpoints(job)
    recording = UpdateRecorder() if job["record_updates"] else contextlib.nullcontext()
    torch.compiler.reset()
    counters.clear()
    with recording as recorder, RemainsRecorder() as old_engines:
        session, metrics = train_run(config, accelerator)
    if recorder is not None:
        recorder.save(out / f"updates-{rank}.npz")
    learner = session.learner
    margins = learner.paired_losses.margins([branch for _, branch in learner.chosen_heads()])
    record = {
        "heads": learner.chosen_heads(),
        "learned": {
            name: value.tolist()
            for name, value in learner.tensors().items()
            if name.startswith(LEARNED)
        },
        "margins": [margin and (margin.mean, margin.standard_error) for margin in margins],
        "metrics": metrics,
        "replaced": old_engines.replaced,
        "remains": old_engines.remains,
        "graphs": counters["stats"]["unique_graphs"],
    }
    (out / f"record-{rank}.json").write_text(json.dumps(record))
    return accelerator


def main(config_file: str, jobs: str) -> None:
    remember_operations()
    for job in json.loads(Path(jobs).read_text()):
        # Every run collects garbage several times: without the million objects of modules.
        gc.collect()
        gc.freeze()
        setup_logging(0, 1)
        accelerator = train_job(Path(config_file), job)
        accelerator.wait_for_everyone()
        for state in (AcceleratorState, GradientState):
            state._reset_state()
    accelerator.end_training()
    PartialState._reset_state()


if __name__ == "__main__":
    main(*sys.argv[1:])
