"""Train some steps in fp32, in fp16 and in fp16 from a far too large loss scale.

Usage: fp16_steps.py FOLDER. It writes NAME.json there with `scale`, `skipped` and `losses` of every
step, and NAME.safetensors with the first moments at the end.
"""

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file

from model.network import MultiTaskNetwork
from tests.distributed.train_cells import RemainsRecorder
from trainer.bench.planted import PlantedData, PlantedProblem, planted_config
from trainer.checkpoints.state import read_state
from trainer.engines import device
from trainer.engines.accelerator import make_accelerator
from trainer.session import start_session
from trainer.step import train_step

STEPS = 16
TOO_LARGE = 2.0**28  # a gradient of a linear layer, in fp16, is at most 65504


def steps(out: Path, precision: str, scale: float | None) -> None:
    overrides = (f"run.precision={precision}", "optim.max_grad_norm=0.05", "optim.skip_nonfinite=2")
    config = planted_config(out, 2, 0, "published", STEPS, 64, overrides)
    accelerator = make_accelerator(config)
    data = PlantedData(PlantedProblem(4, 2, seed=0), config)
    records = []
    with start_session(config, accelerator, data) as session:
        scaler = session.engine.scaler
        assert (scaler is None) == (precision == "fp32")
        if scale is not None:
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
        place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        for batch in data.train_batches(0, STEPS, **place):
            batch = batch.to(accelerator.device)
            before = None if scaler is None else scaler.get_scale()
            result = train_step(session, [batch])
            session.step += 1
            losses = result.losses.flatten().tolist()
            skipped = session.engine.step_was_skipped
            records.append({"scale": before, "skipped": skipped, "losses": losses})
            assert not result.left_out
        state = read_state(session.engine)
        scale = None if scaler is None else scaler.state_dict()
        del scaler
        network = MultiTaskNetwork.from_config(session.engine.module.config())
        with RemainsRecorder() as old_engine:
            session.replace_engine(network, state)
        assert old_engine.replaced == 1 and not old_engine.remains
        assert scale is None or session.engine.scaler.state_dict() == scale
        if accelerator.is_main_process:
            out.with_suffix(".json").write_text(json.dumps(records))
            save_file(state.moments["exp_avg"], out.with_suffix(".safetensors"))
    for state in (AcceleratorState, GradientState):
        state._reset_state()


def train_all(folder: Path) -> None:
    for name, precision, scale in (
        ("fp32", "fp32", None), ("fp16", "fp16", None), ("too_large", "fp16", TOO_LARGE),
    ):  # fmt: skip
        steps(folder / name, precision, scale)


def main(folder: str) -> None:
    # torch computes in fp16 on the CPU, too, slowly.
    device.check_precision = lambda _: None
    train_all(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
