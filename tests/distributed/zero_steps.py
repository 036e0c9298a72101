"""Count how often DeepSpeed synchronises with the device in steps with and without overlap.

Usage: zero_steps.py FOLDER. Rank 0 writes NAME.json there with `synchronised`, the calls of all
steps, `losses` of the last step, and `overlaps`, whether DeepSpeed was told so.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from trainer.bench.planted import PlantedData, PlantedProblem, planted_config
from trainer.engines.accelerator import make_accelerator
from trainer.session import start_session
from trainer.step import train_step

STEPS = 5  # DeepSpeed's timer starts with the third


def steps(out: Path, overlap: str) -> None:
    from deepspeed.accelerator import get_accelerator

    calls = []
    device = get_accelerator()
    overrides = (f"run.overlap_comm={overlap}", "optim.max_grad_norm=0.05")
    config = planted_config(out, 2, 0, "published", STEPS, 64, overrides)
    accelerator = make_accelerator(config)
    data = PlantedData(PlantedProblem(4, 2, seed=0), config)
    with start_session(config, accelerator, data) as session:
        device.synchronize = lambda *_: calls.append(session.step)
        for batch in data.train_batches(0, STEPS, rank=accelerator.process_index, world_size=2):
            result = train_step(session, [batch])
            session.step += 1
        del device.synchronize
        record = {
            "synchronised": len(calls),
            "losses": result.losses.flatten().tolist(),
            "overlaps": session.engine.network.zero_overlap_comm(),
            "threads": torch.get_num_threads(),
        }
        if accelerator.is_main_process:
            out.with_suffix(".json").write_text(json.dumps(record))
    for state in (AcceleratorState, GradientState):
        state._reset_state()


def main(folder: str) -> None:
    for overlap in ("null", "true", "false"):
        steps(Path(folder) / overlap, overlap)


if __name__ == "__main__":
    main(*sys.argv[1:])
