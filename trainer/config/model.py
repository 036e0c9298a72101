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
    """The encoder that is divided into trunk and branches."""

    name: str
    options: Options = Field(default_factory=dict)
    pretrained: Path | None = None


class ModelSection(Section):
    """Trunk, branches and heads.

    `branch_init` gives the branches independent random weights or copies of the same ones.
    `init_from` names exported models whose weights initialise the network: one for all branches,
    or one for each. `decoder` names the decoder of dense tasks and `decoder_options` its options;
    `dense_widths` are the channels of the decoder `resize`. With
    `sync_batchnorm: auto`, batch statistics are those of all ranks where the device supports it
    (several GPUs), else those of each rank. `compile` compiles trunk and branches in the first
    step; `reduce-overhead` also records them as CUDA graphs, which start all kernels of a part
    with one call (on GPUs only). `activation_checkpointing` saves memory: the backward pass
    computes each branch's forward pass again. With `channels_last: auto`, one process on a GPU
    and DDP store the weights of convolutions as the maps are.
    """

    encoder: EncoderSection
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
