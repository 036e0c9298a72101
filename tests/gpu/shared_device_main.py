"""Train as one of two processes that share the first device, over gloo: NCCL refuses that.

Usage: shared_device_main.py RANK PORT ARGUMENTS, where the arguments are those of trainer/main.py.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(rank: str, port: str, *arguments: str) -> None:
    # By the local rank a process takes its device.
    place = {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    import torch

    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    import trainer.engines.accelerator as module

    original = module.InitProcessGroupKwargs
    module.InitProcessGroupKwargs = lambda _backend, *rest: original("gloo", *rest)
    sys.argv = [str(ROOT / "trainer" / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
