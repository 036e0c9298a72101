"""The commands that write the reference, each in a process without the plug-ins of other tests."""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The texts of `docs/configuration.md` and `experiments/dmtg.schema.json`, written anew."""
    folder = tmp_path_factory.mktemp("reference")
    page, schema = folder / "configuration.md", folder / "dmtg.schema.json"
    code = "import sys; from trainer.commands.app import main; main()"
    for arguments in (["keys", "--markdown", page], ["schema", "--out", schema]):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return page.read_text(), schema.read_text()
