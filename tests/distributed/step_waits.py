"""Train some steps, and print what would make the host wait for a GPU: `step_waits.py FOLDER`."""

import sys
from pathlib import Path

from tests.waits import Waits
from trainer.bench.planted import PlantedData, PlantedProblem, planted_config
from trainer.engines.accelerator import make_accelerator
from trainer.health.preemption import StopVote
from trainer.session import start_session
from trainer.step import train_step

STEPS = 6


def main(folder: str) -> None:
    overrides = ("optim.max_grad_norm=0.05",)
    config = planted_config(Path(folder) / "run", 2, 0, "published", STEPS, 64, overrides)
    accelerator = make_accelerator(config)
    data = PlantedData(PlantedProblem(4, 2, seed=0), config)
    waits = Waits("trainer/health/preemption.py")  # whose copy has an event
    with start_session(config, accelerator, data) as session:
        vote = StopVote(accelerator, None)
        for batch in data.train_batches(0, STEPS, rank=accelerator.process_index, world_size=2):
            with waits:
                vote.cast()
                train_step(session, [batch])
            session.step += 1
            if session.step == 2:
                waits.found.clear()  # DDP arranges its buckets anew
    if accelerator.is_main_process:
        print("\n".join(["steps:", *sorted(set(waits.found))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
