"""The samples that all processes of a run together train on."""

from itertools import chain

from data_pipelines.reading.order import TrainBatches


def steps_of(order, world_size=1, accumulation=1, start_step=0, num_steps=9, global_batch=16):
    """Per step, the samples joined over micro-batches and ranks."""
    ranks = []
    for rank in range(world_size):
        batches = TrainBatches(
            order,
            global_batch=global_batch,
            num_steps=num_steps,
            rank=rank,
            world_size=world_size,
            gradient_accumulation_steps=accumulation,
            start_step=start_step,
        )
        micro = list(batches)
        assert len(micro) == len(batches) == (num_steps - start_step) * accumulation
        assert {len(batch) for batch in micro} <= {global_batch // world_size // accumulation}
        ranks.append(
            [list(chain(*micro[n : n + accumulation])) for n in range(0, len(micro), accumulation)]
        )
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
