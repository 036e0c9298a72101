"""The rendezvous of a run's processes, separate for every restart by the same launcher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import PrefixStore, Store, register_rendezvous_handler, rendezvous

URL = "dmtg://"


def _meet(
    url: str,  # noqa: ARG001 - the environment has it all
    timeout: timedelta,
    **_options: object,
) -> Iterator[tuple[Store, int, int]]:
    """Return the store of `env://` with keys that no other start has.

    A launcher that restarts its workers keeps its store. The new workers would read the addresses
    of processes that are gone and wait for them.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for store, rank, world_size in rendezvous("env://", timeout=timeout):
        yield PrefixStore(f"start-{start}", store), rank, world_size


register_rendezvous_handler(URL.partition(":")[0], _meet)
