"""An exported model in use: predictions of images, of photos, and gradients in images.

Legend: B batch, C channels, H, W size of a photo, h, w size of the network's images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import TypeIs

from model.kinds.kind import get_kind
from model.network import IMAGE_MEAN, MultiTaskNetwork
from model.preprocessing import PhotoLike, load_photo, resized, resized_back, to_images
from model.tasks.decode import natural
from model.tasks.spec import TaskSpec

Prediction = dict[str, dict[str, Any]]  # by task; every entry has a key `value`
_LEVELS = 255


class PrunedModel(nn.Module):
    """An exported model: one head per task.

    `predict` takes photos as they are. `forward` takes a batch of images and is differentiable:
    parameters need no gradient until `requires_grad_()` is called, images may.

    Attributes:
        network: The network behind it.
        tasks: The task specs.
        groups: Per branch the names of its tasks.
        metadata: What the exporter added.
    """

    def __init__(self, network: MultiTaskNetwork, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.tasks = network.tasks
        self.groups = groups_of(network)
        self.metadata = dict(metadata)
        self.requires_grad_(False)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes."""
        return self.network.image_size

    @property
    def takes_photos(self) -> bool:
        """Whether an input is a picture of three colours, rather than a vector or other maps."""
        return len(self.network.image_mean) == len(IMAGE_MEAN) and self.image_size != (1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return per task its prediction in natural terms, see `model.tasks.decode.natural`.

        Args:
            images: uint8 [B,3,h,w] from 0 to 255, or floats [B,3,h,w] from 0 to 1; mean and
                deviation are applied by the network. A model whose inputs are not photos takes
                floats as they are.

        Raises:
            ValueError: The images have another size, type or range.
        """
        images = self._levels(images)
        predictions = self.network(images, self.network.select(self.network.heads))["predictions"]
        return {spec.name: natural(spec, predictions[spec.name]) for spec in self.tasks}

    def preprocess(self, photos: PhotoLike | Sequence[PhotoLike]) -> Tensor:
        """Return photos of any size and mode as images for `forward`, uint8 [B,3,h,w].

        A photo is turned upright, converted to RGB and resized as a whole, as in training.

        Args:
            photos: One photo or several: a path, a picture of Pillow, or uint8 [H,W,3] or [H,W].

        Raises:
            DataError: A photo cannot be read.
            ValueError: The model does not take photos, or there are none.
        """
        several = [photos] if _is_one(photos) else list(photos)
        self._check_photos(several)
        images = to_images([resized(load_photo(photo), self.image_size) for photo in several])
        return images.to(self.network.device)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a sequence, too
        self, photos: PhotoLike, *, batch_size: int = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, photos: Sequence[PhotoLike], *, batch_size: int = ...
    ) -> list[Prediction]: ...
    @torch.no_grad()
    def predict(
        self, photos: PhotoLike | Sequence[PhotoLike], *, batch_size: int = 16
    ) -> Prediction | list[Prediction]:
        """Return the predictions of one photo, or of each of several.

        A prediction has one entry for each task, a dict whose key `value` is the decision, the
        class or the number; `probability`, `probabilities`, `unit` and `classes` are beside it
        where the task has them. The value of a dense task is an array of the photo's size: floats
        [C,H,W] in the natural unit, or class ids [H,W].

        Args:
            photos: See `preprocess`.
            batch_size: Photos that are computed together.

        Raises:
            DataError: A photo cannot be read.
            ValueError: The model does not take photos, or there are none.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        if _is_one(photos):
            return next(self._predictions([photos], 1))
        return list(self._predictions(list(photos), batch_size))

    def _predictions(self, photos: list[PhotoLike], batch_size: int) -> Iterator[Prediction]:
        self._check_photos(photos)
        waiting = iter(photos)
        while batch := [self._loaded(photo) for photo in islice(waiting, batch_size)]:
            sizes = [size for _, size in batch]
            images = to_images([image for image, _ in batch]).to(self.network.device)
            outputs = self(images)
            for index, size in enumerate(sizes):
                yield {
                    spec.name: described(spec, outputs[spec.name][index], size)
                    for spec in self.tasks
                }

    def _loaded(self, photo: PhotoLike) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a photo in the network's size [h,w,3], and its own size H and W."""
        pixels = load_photo(photo)
        return resized(pixels, self.image_size), (pixels.shape[0], pixels.shape[1])

    def _check_photos(self, photos: Sequence[object]) -> None:
        if not self.takes_photos:
            shape = ", ".join(map(str, (len(self.network.image_mean), *self.image_size)))
            raise ValueError(f"this model takes floats [B, {shape}], not photos: call it directly")
        if not photos:
            raise ValueError("photos is empty, must hold at least one")

    def _levels(self, images: Tensor) -> Tensor:
        """Return images as the network takes them: values from 0 to 255."""
        if not self.takes_photos or images.dtype == torch.uint8:
            return images
        allowed = "must be uint8 from 0 to 255, or floats from 0 to 1 (not normalized)"
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, {allowed}")
        if images.numel():
            low, high = (float(value) for value in images.detach().aminmax())
            if not (low >= 0 and high <= 1):  # also where they are NaN
                raise ValueError(
                    f"images are {images.dtype} from {low:.4g} to {high:.4g}, {allowed}"
                )
        return images.float() * _LEVELS


def described(spec: TaskSpec, value: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Return a task's natural prediction of one photo with its key `value`, see `predict`.

    Args:
        spec: The task.
        value: As `natural` returns it for a batch, of one sample.
        size: H and W of the photo.
    """
    kind = get_kind(spec.kind)
    if not spec.dense:
        return kind.record(spec, value)
    if not value.is_floating_point():  # class ids
        value = value.to(torch.uint8 if spec.channels <= 2**8 else torch.int32)
        return {"value": resized_back(value, size), "classes": list(kind.class_names(spec))}
    return {"value": resized_back(value, size), "unit": spec.unit}


def groups_of(network: MultiTaskNetwork) -> list[list[str]]:
    """Return per branch the names of the tasks with a head on it."""
    groups: list[list[str]] = [[] for _ in range(network.num_branches)]
    for task, branch in sorted(network.heads):
        groups[branch].append(network.tasks[task].name)
    return groups


def _is_one(photos: PhotoLike | Sequence[PhotoLike]) -> TypeIs[PhotoLike]:
    return isinstance(photos, (str, os.PathLike, Image.Image, np.ndarray))
