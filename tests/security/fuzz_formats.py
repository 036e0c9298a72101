"""The formats that are fuzzed, by name: all that strangers can hand to a user."""

from __future__ import annotations

from collections.abc import Callable

from tests.security.fuzz_model import model_format
from tests.security.fuzz_runs import checkpoint_format, configuration_format
from tests.security.fuzz_shards import (
    damaged_shard_format,
    index_format,
    manifest_format,
    mapping_format,
    shard_format,
    stream_format,
)
from tests.security.fuzzing import Format

FORMATS: dict[str, Callable[[], Format]] = {
    "model": model_format,
    "manifest": manifest_format,
    "index": index_format,
    "damaged_shard": damaged_shard_format,
    "shard": shard_format,
    "stream": stream_format,
    "checkpoint": checkpoint_format,
    "configuration": configuration_format,
    "mapping": mapping_format,
}
