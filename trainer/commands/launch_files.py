"""The command `dmtg launch-files`."""

from __future__ import annotations

from trainer.commands.output import AsJson, echo, print_json, wrapped


def launch_files(as_json: AsJson = False) -> None:
    """List the launch files and the training script that are installed with this program.

    Start a run with: accelerate launch --config_file FILE SCRIPT --config RUN.yaml
    """
    from trainer.launch_files import TRAIN_SCRIPT, describe, find_launch_files

    files = find_launch_files()
    if as_json:
        listed = {
            name: {"path": str(path), "description": describe(path)} for name, path in files.items()
        }
        print_json({"script": str(TRAIN_SCRIPT), "files": listed})
        return
    described = {path: describe(path) for path in files.values()}
    for path, description in {**described, TRAIN_SCRIPT: "The training script."}.items():
        echo(str(path))
        echo(wrapped(description, "    ", "    "))
