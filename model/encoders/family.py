"""What an encoder's module defines: how its trunk and one of its branches are built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from dmtg.suggestions import did_you_mean
from model.encoders.encoder import Pool


class Parts(NamedTuple):
    """A trunk and one branch.

    Attributes:
        trunk: From images [B,C,H,W] to the input of the branch; `nn.Identity` where nothing is
            shared.
        branch: From the trunk's output to a feature map [B,C,h,w].
    """

    trunk: nn.Module
    branch: nn.Module


class Option(NamedTuple):
    """An option of an encoder, for documentation and editors.

    Attributes:
        allowed: What values it may have, in words.
        default: The value where it is left out; None if that follows from something else.
        meaning: One sentence.
    """

    allowed: str
    default: Any
    meaning: str


class EncoderFamily(ABC):
    """An encoder architecture; `dmtg.plugins.register_encoder` gives it its name.

    `build_encoder` makes one object and calls `build_parts` once for each branch. It keeps the
    trunk of the first call.

    Args:
        options: `model.encoder.options`, as the configuration has them.
        image_size: H and W.
        pretrained: Folder or repository with pretrained weights; None unless `takes_pretrained`.
            True, where the class has `has_default_weights`, for the weights of that name.

    Attributes:
        pool: How a feature map becomes the feature vector of a linear head: its mean over the
            pixels, or all its values.
        takes_pretrained: Whether `model.encoder.pretrained` may be given.
        documented_options: The options by name, for documentation and editors.
        more_options: Whether there are others than the documented ones.
        has_default_weights: Whether it may be true, for the weights that the options name.
        options: Options that rebuild the architecture without other files, as JSON can hold them.
            An exported model keeps them.
        image_size: See the argument.
        pretrained: See the argument.
        in_channels: Channels C of an image.
        image_mean: Per channel of an image scaled to 0..1, as the pretrained weights expect it;
            None for ImageNet's.
        image_std: See `image_mean`.

    Raises:
        ValueError: If an option is unknown or a value not allowed; the message begins with the
            dotted path of the option, such as `model.encoder.options.channels`.
    """

    pool: ClassVar[Pool] = "mean"
    takes_pretrained: ClassVar[bool] = False
    documented_options: ClassVar[Mapping[str, Option]] = {}
    more_options: ClassVar[bool] = False
    has_default_weights: ClassVar[bool] = False

    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None

    def __init__(
        self,
        options: Mapping[str, Any],
        image_size: tuple[int, int],
        pretrained: str | bool | None = None,
    ) -> None:
        self.options = dict(options)
        self.image_size = image_size
        self.pretrained = pretrained
        self.in_channels = 3

    @abstractmethod
    def build_parts(self, trunk_depth: int) -> Parts:
        """Build a trunk and one branch with new random weights.

        Args:
            trunk_depth: Number of leading stages that belong to the trunk.

        Raises:
            ValueError: If the encoder cannot be split there.
        """

    def finish(self, parts: Parts) -> None:  # noqa: B027 - most families have nothing to do
        """Remove parameters that the output does not depend on, which may take a run on an image.

        Called after each `build_parts`, except for an exported model: its file has only the
        parameters that were left.

        Raises:
            ValueError: If the encoder cannot be trained in every parameter.
        """


def check_option_names(encoder: str, options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Check the names in `model.encoder.options`.

    Args:
        encoder: Its registered name, for the message.
        options: By name.
        allowed: Names of all options of the encoder.

    Raises:
        ValueError: If an option is unknown.
    """
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(
            f"model.encoder.options has {unknown[0]!r}, {encoder} knows only {listed}"
            f"{did_you_mean(unknown[0], allowed)}"
        )
