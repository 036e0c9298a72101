"""The section `model` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dmtg.plugins import DENSE_DECODERS, ENCODERS
from model.bounds import MAX_BRANCHES
from trainer.config.allowed import NameIn, Words
from trainer.config.section import NonNegativeInt, Options, PositiveInt, Section

# With torch.compile's default mode, or with CUDA graphs.
Compile = bool | Literal["reduce-overhead"]

_PRETRAINED = (
    "a folder, a repository of the Hugging Face hub as OWNER/NAME or OWNER/NAME@REVISION, or true"
)


class EncoderSection(Section):
    """The encoder that is divided into trunk and branches; `NAME` stands for `{name: NAME}`."""

    name: Annotated[str, NameIn(ENCODERS)]
    """The encoder."""
    options: Options = Field(default_factory=dict)
    """Options of the encoder."""
    pretrained: Annotated[str | bool | None, Words(_PRETRAINED)] = None
    """Pretrained weights; true for those that timm names for its model, which may also be written
    among the options."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _pretrained_of_timm(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Move `options.pretrained` of timm to where other encoders have it."""
        if not isinstance(values, dict) or values.get("name") != "timm":
            return values
        options = values.get("options")
        if not isinstance(options, dict) or "pretrained" not in options:
            return values
        if values.get("pretrained") not in (None, options["pretrained"]):
            raise ValueError("pretrained and options.pretrained differ; one of them is enough")
        kept = {name: value for name, value in options.items() if name != "pretrained"}
        return {**values, "options": kept, "pretrained": options["pretrained"]}

    @field_validator("pretrained")
    @classmethod
    def _written_one_way(cls, value: str | bool | None) -> str | bool | None:
        if isinstance(value, str):
            return str(Path(value))
        return value or None


# ResNet-18 with random weights: it needs no network, and takes images of any size from 32 pixels.
DEFAULT_ENCODER = EncoderSection(
    name="backbone",
    options={
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
    },
)
Deviation = Annotated[float, Field(gt=0.0)]


class ModelSection(Section):
    """Trunk, branches and heads."""

    encoder: EncoderSection = DEFAULT_ENCODER
    """The encoder that is divided into trunk and branches; ResNet-18 with random weights unless
    given."""
    image_mean: tuple[float, float, float] | None = None
    """Mean of each channel of images scaled to 0..1; null takes that of the pretrained weights,
    else ImageNet's."""
    image_std: tuple[Deviation, Deviation, Deviation] | None = None
    """Standard deviation of each channel of images scaled to 0..1, as `model.image_mean`."""
    branches: Annotated[int, Field(gt=0, le=MAX_BRANCHES)]
    """Number of branches K at the beginning, the largest number of groups."""
    trunk_depth: NonNegativeInt = 0
    """Number of the encoder's first stages that all branches share."""
    branch_init: Literal["independent", "copies"] = "independent"
    """Give the branches independent random weights, or copies of the same ones."""
    paired_init: bool = False
    """Give each branch and head of given groups the random weights that it has in the network of
    all K*N heads, so that recipes with the same seed start equal; `dmtg compare` sets it."""
    init_from: tuple[Path, ...] = ()
    """Exported models whose weights initialise the network: one for all branches, or one for
    each."""
    gradient_scale: Literal["none", "paper", "published_code"] = "none"
    """Scale the gradients into trunk and branches by 1/sqrt(K) and 1/sqrt(N), as the paper says, or
    both by 1/sqrt(K), as its code does."""
    decoder: Annotated[str, NameIn(DENSE_DECODERS)] = "resize"
    """The decoder of dense tasks."""
    decoder_options: Options = Field(default_factory=dict)
    """Options of a decoder of a plug-in; the built-in ones have none."""
    dense_widths: tuple[PositiveInt, ...] = (64, 32)
    """Channels of the stages of the decoder `resize`, multiples of 8."""
    sync_batchnorm: Literal["auto", "never"] = "auto"
    """`auto` takes batch statistics of all ranks where several GPUs train, `never` those of each
    rank."""
    channels_last: Literal["auto", "never"] = "auto"
    """`auto` stores the weights of convolutions channels-last where one process on a GPU or DDP
    trains."""
    compile: Compile = False
    """Compile trunk and branches in the first step; `reduce-overhead` also records them as CUDA
    graphs, on GPUs only."""
    activation_checkpointing: bool = False
    """Save memory: the backward pass computes each branch's forward pass again."""

    @property
    def compile_mode(self) -> str | None:
        """The `mode` of torch.compile where `compile` is set; None is its default."""
        return self.compile if isinstance(self.compile, str) else None
