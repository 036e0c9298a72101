"""A model as another program calls it: one input, one named output per task.

Legend: B batch, H, W size of a photo, h, w size of the network's images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kinds.kind import get_kind
from model.pruned_model import PrunedModel
from model.tasks.decode import natural
from trainer.errors import UserError

Preprocessing = Literal["none", "normalize", "resize"]
TOLERANCE = 1e-4  # of outputs of order one; of class ids the share that differs
METADATA_KEY = "dmtg"  # of the description in a file


class DeployedModel(nn.Module):
    """The network of an exported model, with as much preprocessing as is wanted.

    Args:
        model: The exported model.
        preprocessing: What the graph does before the network. `none`: the input is float32
            [B,3,h,w] that the caller has normalized; `normalize`: uint8 [B,3,h,w]; `resize`: uint8
            [B,H,W,3], photos of one size, which are resized as a whole. Other inputs than photos
            are taken as they are.

    Raises:
        UserError: The model does not take photos, and preprocessing is `resize`.
    """

    def __init__(self, model: PrunedModel, preprocessing: Preprocessing = "normalize") -> None:
        super().__init__()
        if preprocessing == "resize" and not model.takes_photos:
            raise UserError("--preprocessing resize: the inputs of this model are not photos")
        self.preprocessing: Preprocessing = preprocessing if model.takes_photos else "none"
        self.takes_photos = model.takes_photos
        self.network = model.network
        if self.preprocessing == "none" and model.takes_photos:
            self.network = copy.deepcopy(model.network)
            self.network.image_mean.zero_()
            self.network.image_std.fill_(1)
        self.tasks = model.tasks
        self.groups = model.groups
        self.metadata = model.metadata
        self._selection = self.network.select(self.network.heads)

    @property
    def input_name(self) -> str:
        """The name of the input, which no task has."""
        name = "images"
        while any(task.name == name for task in self.tasks):
            name = f"input_{name}"
        return name

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """The axes of the input that may have any length, by their names."""
        sides = {1: "height", 2: "width"} if self.preprocessing == "resize" else {}
        return {0: "batch", **sides}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return per task its prediction in natural terms, as the exported model does."""
        if self.preprocessing == "resize":
            images = F.interpolate(
                images.permute(0, 3, 1, 2).float(),
                self.network.image_size,
                mode="bilinear",
                antialias=True,
            )
        predictions = self.network(images, self._selection)["predictions"]
        return {spec.name: natural(spec, predictions[spec.name]) for spec in self.tasks}

    def inputs(self, images: Tensor) -> Tensor:
        """Return images in the form that `forward` takes.

        Args:
            images: As the network of the exported model takes them, uint8 [B,3,h,w] for photos.
        """
        if self.preprocessing == "resize":
            return images.permute(0, 2, 3, 1).contiguous()
        if self.preprocessing == "none" and self.takes_photos:
            mean, std = (
                255 * torch.tensor(self.network.config()[f"image_{name}"])
                for name in ("mean", "std")
            )
            return (images.float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return images

    def description(self) -> dict[str, Any]:
        """Return what a program needs to know to use the outputs, as JSON can hold it."""
        config = self.network.config()
        return {
            "input": {
                "name": self.input_name,
                "preprocessing": self.preprocessing,
                "image_size": list(self.network.image_size),
                "image_mean": config["image_mean"],
                "image_std": config["image_std"],
            },
            "tasks": [
                {
                    "name": task.name,
                    "kind": task.kind,
                    "output": get_kind(task.kind).output,
                    "unit": task.unit,
                    "classes": list(get_kind(task.kind).class_names(task)),
                }
                for task in self.tasks
            ],
            "groups": self.groups,
            "metadata": self.metadata,
        }


def preprocessing_of(name: str) -> Preprocessing:
    """Return a name of preprocessing.

    Raises:
        UserError: It is none of them.
    """
    for allowed in get_args(Preprocessing):
        if name == allowed:
            return allowed
    raise UserError(
        f"--preprocessing: found {name!r}; allowed: {', '.join(get_args(Preprocessing))}"
    )


def check_agreement(
    what: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> float:
    """Return the largest difference of any output, relative to a task's largest where over one.

    Args:
        what: What computed the outputs that are compared, for the message.
        expected: Outputs of the model, by task.
        found: Outputs to compare with them.

    Raises:
        ValueError: It is larger than `TOLERANCE`.
    """
    largest = 0.0
    for name, value in expected.items():
        if value.is_floating_point():
            difference = (found[name] - value).abs().max() / value.abs().max().clamp_min(1.0)
        else:
            difference = (found[name] != value).float().mean()
        if not difference <= TOLERANCE:  # also where it is NaN
            raise ValueError(
                f"{what} computes outputs of task {name!r} that differ from the model's by "
                f"{float(difference):.3g}, allowed is {TOLERANCE}; nothing was written"
            )
        largest = max(largest, float(difference))
    return largest
