"""The section `model` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from dmtg.plugins import DENSE_DECODERS
from model.bounds import MAX_BRANCHES
from trainer.config.section import NonNegativeInt, Options, PositiveInt, Section


def _check_compile(value: Any, check: ValidatorFunctionWrapHandler) -> bool | str:  # noqa: ANN401
    try:
        return check(value)
    except ValidationError:
        allowed = "true, false, reduce-overhead"
        raise ValueError(f"found {value!r}; allowed are {allowed}") from None


# With torch.compile's default mode, or with CUDA graphs.
Compile = Annotated[bool | Literal["reduce-overhead"], WrapValidator(_check_compile)]


class EncoderSection(Section):
    """The encoder that is divided into trunk and branches.

    `pretrained` names a folder with weights, or a repository of the Hugging Face hub as OWNER/NAME
    or OWNER/NAME@REVISION. It is true for the weights that timm names for its model, which may
    also be written among the options.
    """

    name: str
    options: Options = Field(default_factory=dict)
    pretrained: str | bool | None = None

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
    """Trunk, branches and heads.

    The default `encoder` is ResNet-18 with random weights. `image_mean` and `image_std` are those
    of the channels of images scaled to 0..1; left out, they are those that the pretrained weights
    were trained with, else ImageNet's. `branch_init` gives the branches independent random weights
    or copies of the same ones. `init_from` names exported models whose weights initialise the
    network: one for all branches, or one for each. `decoder` names the decoder of dense tasks and
    `decoder_options` its options; `dense_widths` are the channels of the decoder `resize`. With
    `sync_batchnorm: auto`, batch statistics are those of all ranks where the device supports it
    (several GPUs), else those of each rank. `compile` compiles trunk and branches in the first
    step; `reduce-overhead` also records them as CUDA graphs, which start all kernels of a part
    with one call (on GPUs only). `activation_checkpointing` saves memory: the backward pass
    computes each branch's forward pass again. With `channels_last: auto`, one process on a GPU
    and DDP store the weights of convolutions as the maps are.
    """

    encoder: EncoderSection = DEFAULT_ENCODER
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[Deviation, Deviation, Deviation] | None = None
    branches: Annotated[int, Field(gt=0, le=MAX_BRANCHES)]
    trunk_depth: NonNegativeInt = 0
    branch_init: Literal["independent", "copies"] = "independent"
    init_from: tuple[Path, ...] = ()
    gradient_scale: Literal["none", "paper", "published_code"] = "none"
    decoder: Annotated[str, AfterValidator(DENSE_DECODERS.check)] = "resize"
    decoder_options: Options = Field(default_factory=dict)
    dense_widths: tuple[PositiveInt, ...] = (64, 32)
    sync_batchnorm: Literal["auto", "never"] = "auto"
    channels_last: Literal["auto", "never"] = "auto"
    compile: Compile = False
    activation_checkpointing: bool = False

    @property
    def compile_mode(self) -> str | None:
        """The `mode` of torch.compile where `compile` is set; None is its default."""
        return self.compile if isinstance(self.compile, str) else None
