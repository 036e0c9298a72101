"""Runs trainer/main.py so that its start takes for ever: `waiting_main.py PLACE ARGUMENTS`.

It writes the file `waiting` into the working directory where it begins to wait.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def wait(*_arguments, **_options):
    Path("waiting").touch()
    time.sleep(600)


def wait_in_first_step() -> None:
    import trainer.loop

    trainer.loop.train_step = wait


def wait_in_hashing() -> None:
    import trainer.run_data

    trainer.run_data.check_shards = wait


def wait_in_rendezvous() -> None:
    """The other of two processes is never started."""
    import trainer.engines.rendezvous as rendezvous

    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["WAITING_PORT"],
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    original = rendezvous.rendezvous

    def begin(*arguments, **options):
        Path("waiting").touch()
        return original(*arguments, **options)

    rendezvous.rendezvous = begin


def wait_in_import() -> None:
    """A module that takes long to import is named as a plug-in."""
    Path("slow_plugin.py").write_text(
        "import time; from pathlib import Path; Path('waiting').touch(); time.sleep(600)"
    )
    sys.path.append(os.getcwd())


def main(place: str, *arguments: str) -> None:
    # A shell may have started the tests with SIGINT ignored, as it does in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    globals()[f"wait_in_{place}"]()
    sys.argv = [str(ROOT / "trainer" / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
