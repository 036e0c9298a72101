"""Predictions of a few evaluation samples beside their labels, for the page.

Legend: C channels, H, W.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.reading.collate import Batch
from dmtg.names import one_line
from model.kinds.kind import get_kind
from model.network import MultiTaskNetwork
from model.tasks.decode import natural
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from trainer.doctor.contact_sheet import label_picture

_SIDE = 128  # pixels of the longer side of a picture in the page
_DIGITS = 4  # of a value that is shown


@torch.no_grad()
def predicted_samples(
    network: MultiTaskNetwork, batch: Batch, max_picture_bytes: int
) -> dict[str, Any]:
    """Return the samples of a batch with their predictions and labels, as JSON values.

    Args:
        network: One head per task, in evaluation mode.
        batch: The samples.
        max_picture_bytes: Pictures of dense tasks are left out when they would take more.

    Returns:
        `samples`: for each its `key`, the `image` as a data URL, and by task `values`
        [prediction, label or null, whether they agree or null] and `pictures`
        [prediction, label or null, caption]. `left_out`: tasks whose pictures are too large, or
        whose kind cannot be shown.
    """
    outputs = network(batch.images, network.select(network.heads))["predictions"]
    predictions = {spec.name: natural(spec, outputs[spec.name]) for spec in network.tasks}
    kept = [n for n, key in enumerate(batch.keys) if key]
    samples: list[dict[str, Any]] = [
        {
            "key": one_line(batch.keys[n]),
            "image": picture_url(np.moveaxis(batch.images[n].numpy(), 0, -1)),
            "values": {},
            "pictures": {},
        }
        for n in kept
    ]
    left_out, used = [], 0
    for spec in network.tasks:
        describe = _pictures if spec.dense else _values
        try:
            entries = [describe(spec, predictions[spec.name][n], batch, n) for n in kept]
        except NotImplementedError:  # a kind of a plug-in that says nothing about display
            left_out.append(spec.name)
            continue
        if spec.dense:
            size = sum(len(url) for entry in entries for url in entry[:2] if url)
            if used + size > max_picture_bytes:
                left_out.append(spec.name)
                continue
            used += size
        for sample, entry in zip(samples, entries, strict=True):
            sample["pictures" if spec.dense else "values"][spec.name] = entry
    return {"samples": samples, "left_out": left_out}


def picture_url(picture: Picture) -> str:
    """Return a small JPEG of a picture [H,W,3] as a data URL."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _values(spec: TaskSpec, prediction: torch.Tensor, batch: Batch, sample: int) -> list[Any]:
    kind = get_kind(spec.kind)
    record = kind.record(spec, prediction)
    value = record["value"]
    predicted = _text(spec, value)
    if "probability" in record:
        predicted += f" ({record['probability']:.2f})"
    if "probabilities" in record:
        predicted += f" ({record['probabilities'][value]:.2f})"
    if not bool(batch.valid[spec.name][sample]):
        return [predicted, None, None]
    label = kind.label_text(spec, float(batch.labels[spec.name][sample]))
    agrees = None if isinstance(value, float) else _text(spec, value) == label
    return [predicted, label, agrees]


def _text(spec: TaskSpec, value: object) -> str:
    """Return a predicted value in the words of `TaskKind.label_text`."""
    if isinstance(value, bool):
        return get_kind(spec.kind).label_text(spec, float(value))
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g} {spec.unit}".rstrip()
    return str(value)


def _pictures(spec: TaskSpec, prediction: torch.Tensor, batch: Batch, sample: int) -> list[Any]:
    kind = get_kind(spec.kind)
    values = prediction.numpy()
    drawn, caption = picture_url(kind.draw(spec, values)), kind.caption(spec, values)
    if not bool(batch.valid[spec.name][sample]):
        return [drawn, None, caption]
    stored = batch.labels[spec.name][sample].numpy()  # [C,H,W]
    picture, label_caption = label_picture(spec, stored)
    if not caption:
        return [drawn, picture_url(picture), label_caption]
    return [drawn, picture_url(picture), f"predicted {caption}; label {label_caption}"]
