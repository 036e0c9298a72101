"""Count the operations of a step once for each network, in a process that trains many alike."""

from collections.abc import Callable

from data_pipelines.reading.collate import Batch
from model.heads.layout import HeadSelection
from model.network import MultiTaskNetwork
from trainer.monitoring import throughput

Count = Callable[[MultiTaskNetwork, HeadSelection, Batch], int]


def remember_operations() -> None:
    """Let every run of this process use the counts of the runs before.

    A count takes as long as many steps of a small network, and a run counts anew whenever heads are
    switched off.
    """
    throughput.count_flops = remembering(throughput.count_flops)


def remembering(count: Count) -> Count:
    """Return the function with a memory of its results."""
    known: dict[object, int] = {}

    def counted(module: MultiTaskNetwork, selection: HeadSelection, batch: Batch) -> int:
        trained = tuple(parameter.requires_grad for parameter in module.parameters())
        tensors = (batch.images, batch.scalars, batch.valid_rows, *batch.dense.values())
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        key = (repr(module.config()), tuple(selection.heads), trained, shapes, tuple(batch.dense))
        if key not in known:
            known[key] = count(module, selection, batch)
        return known[key]

    return counted
