"""What the page shows of the data of a run: constants, counts of labels, sample predictions.

All of it is read again when the page is written, because a run does not keep its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from data_pipelines.errors import DataError
from data_pipelines.reading.collate import Batch
from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest
from dmtg.plugins import PluginError
from model.network import MultiTaskNetwork
from model.subset import subset
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.state import load_weights
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.evaluation import Metrics, evaluate_constants
from trainer.recipes.learner import hard_heads
from trainer.report.samples import predicted_samples
from trainer.run_data import (
    LABELLED_SAMPLES,
    build_eval_loader,
    open_data,
    open_manifest,
    open_shards,
)
from trainer.tasks import label_requests

_SAMPLES = 6  # whose predictions are shown


@dataclass(frozen=True)
class DataFacts:
    """What was read of the data.

    Attributes:
        missing: Why the other values are empty; None if they are not.
        constants: Metrics of the best constant prediction of every task on the evaluation split.
        labelled: By split, the number of its samples and of the labels of each field.
        skipped: Source samples that the conversion left out, by reason.
        lost: Labels that the conversion left out, by field and reason.
        samples: From `predicted_samples`.
    """

    missing: str | None = None
    constants: Metrics = field(default_factory=dict)
    labelled: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    lost: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: dict[str, Any] | None = None


def read_data_facts(
    config: Config,
    checkpoint: Checkpoint,
    constants: Metrics,
    *,
    max_picture_bytes: int,
    progress: bool,
) -> DataFacts:
    """Read the evaluation split of a run and predict some of its samples.

    Args:
        config: Of the run.
        checkpoint: The checkpoint that predicts.
        constants: Those that the run has kept; without any they are computed.
        max_picture_bytes: See `predicted_samples`.
        progress: Whether to show a progress bar.
    """
    try:
        return _read(config, checkpoint, constants, max_picture_bytes, progress)
    except (UserError, DataError, PluginError, OSError) as error:
        missing = f"The data of this run could not be read: {error}"
        return DataFacts(missing=missing, constants=constants)


def _read(
    config: Config,
    checkpoint: Checkpoint,
    constants: Metrics,
    max_picture_bytes: int,
    progress: bool,
) -> DataFacts:
    manifest = open_manifest(config) if config.data.shards is not None else None
    network = MultiTaskNetwork.from_config(checkpoint.progress.network).eval()
    load_weights(network, checkpoint.state)
    heads = hard_heads(checkpoint.grouping["logits"], checkpoint.grouping["alive"])
    network = subset(network, heads).eval()
    if not constants:
        training, batches = _batches(config, manifest, network)
        constants = evaluate_constants(
            network,
            _shown(training, "constants", progress),
            _shown(batches, "evaluation split", progress),
        )
    batch = _sample_batch(config, manifest, network)
    samples = predicted_samples(network, batch, max_picture_bytes)
    facts = DataFacts(constants=constants, samples=samples)
    return facts if manifest is None else _with_counts(facts, config, manifest)


def _with_counts(facts: DataFacts, config: Config, manifest: Manifest) -> DataFacts:
    splits = {config.data.train_split, config.data.eval_split} & set(manifest.splits)
    conversion = manifest.conversion
    return replace(
        facts,
        labelled={
            name: {
                "samples": manifest.splits[name].num_samples,
                "labels": dict(manifest.splits[name].labelled),
            }
            for name in sorted(splits)
        },
        skipped={} if conversion is None else dict(conversion.skipped),
        lost={} if conversion is None else {k: dict(v) for k, v in conversion.missing.items()},
    )


def _batches(
    config: Config, manifest: Manifest | None, network: MultiTaskNetwork
) -> tuple[Iterable[Batch], Iterable[Batch]]:
    """Return training batches for the constants, and those of the evaluation split."""
    if manifest is None or config.data.tar_urls is not None:
        data = open_data(config)
        count = -(-LABELLED_SAMPLES // config.data.global_batch)
        training = data.train_batches(0, count, rank=0, world_size=1)
        return training, data.eval_batches(rank=0, world_size=1)
    split, batch_size = config.data.train_split, config.eval.batch_size
    return (
        _even_samples(config, manifest, network, split, LABELLED_SAMPLES, batch_size),
        build_eval_loader(config, manifest, network.tasks, rank=0, world_size=1, workers=0),
    )


def _even_samples(
    config: Config,
    manifest: Manifest,
    network: MultiTaskNetwork,
    split: str,
    limit: int,
    batch_size: int,
) -> Iterable[Batch]:
    return eval_loader(
        open_shards(config),
        manifest,
        label_requests(network.tasks),
        network.image_size,
        batch_size=batch_size,
        split=split,
        limit=limit,
        on_error=config.data.on_error,
    )


def _sample_batch(config: Config, manifest: Manifest | None, network: MultiTaskNetwork) -> Batch:
    """Return a few samples of the evaluation split, evenly spaced where the data allow it."""
    if manifest is not None:
        split = config.data.eval_split
        return next(iter(_even_samples(config, manifest, network, split, _SAMPLES, _SAMPLES)))
    batch = next(iter(open_data(config).eval_batches(rank=0, world_size=1)))
    return replace(
        batch,
        images=batch.images[:_SAMPLES],
        scalars=batch.scalars[:, :_SAMPLES],
        dense={task: labels[:_SAMPLES] for task, labels in batch.dense.items()},
        valid_rows=batch.valid_rows[:, :_SAMPLES],
        keys=batch.keys[:_SAMPLES],
    )


def _shown(batches: Iterable[Batch], what: str, progress: bool) -> Iterator[Batch]:
    return iter(tqdm(batches, desc=what, unit="batch", leave=False, disable=not progress))
