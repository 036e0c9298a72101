"""A checkpoint whose hashes are right and whose content is not that of one is refused by name."""

import hashlib
import json

import pytest

from tests.security.fuzz_runs import checkpoint_format
from tests.security.fuzzing import write_files
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.errors import UserError

STEP = "step-000000004"


def renamed_moment(data):
    return data.replace(b'"exp_avg/w0"', b'"strange/w0"', 1)


def progress(**changes):
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weights.safetensors", lambda _: b"no tensors", "weights.safetensors cannot be used: "),
        ("grouping.safetensors", lambda data: data[:-4], "grouping.safetensors cannot be used: "),
        ("moments.safetensors", renamed_moment, "moments.safetensors holds 'strange/w0', a name"),
        ("progress.json", lambda _: b"[4]", "progress.json cannot be used: list found"),
        ("progress.json", lambda _: b"\xff{}", "progress.json cannot be used: 'utf-8' codec"),
        ("progress.json", lambda _: b"[" * 10**5, "progress.json cannot be used: "),
        ("progress.json", progress(step=-1), "step: Input should be greater than or equal to 0"),
        ("progress.json", progress(step=0.5), "step: Input should be a valid integer"),
        ("progress.json", progress(version=9), "format version is 9"),
    ],
)
def test_a_checkpoint_that_was_made_on_purpose(tmp_path, name, change, message):
    write_files(checkpoint_format().valid.files, tmp_path)
    folder = tmp_path / STEP
    data = change((folder / name).read_bytes())
    (folder / name).write_bytes(data)
    listed = json.loads((folder / "files.json").read_text())
    listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "files.json").write_text(json.dumps(listed))
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
