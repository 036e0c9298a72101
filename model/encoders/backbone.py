"""Any backbone of the transformers library as an encoder, split into trunk and branch if it can be.

Legend: B batch, T tokens, C channels, h, w feature size.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from dmtg.memory import is_out_of_memory
from dmtg.names import one_line, shortened
from dmtg.optional_packages import hide_if_broken, import_package
from dmtg.plugins import register_encoder
from dmtg.suggestions import did_you_mean
from model.encoders.backbone_options import (
    check_nested,
    check_options,
    chosen_options,
    to_options,
)
from model.encoders.family import EncoderFamily, Option, Parts
from model.encoders.feature_maps import TokensToMap
from model.encoders.pretrained import (
    PREPROCESSOR,
    checkpoint_folder,
    preprocessor_normalisation,
)
from model.encoders.stages import drop_unused, split_stages

if TYPE_CHECKING:  # the library takes seconds to import, and only this encoder needs it
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

_VIT = "vit"  # has no backbone class: its plain model is used


class _VitEmbeddings(nn.Module):
    """Patch tokens [B,1+T,C]; the positions are interpolated to the size of the images."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings(images, interpolate_pos_encoding=True)


class _LastMap(nn.Module):
    """The last feature map [B,C,h,w] of a backbone that is used whole."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).feature_maps[-1]


def _resnet_stages(model: PreTrainedModel, _image_size: tuple[int, int]) -> list[nn.Module]:
    return [model.embedder, *model.encoder.stages]


def _convnext_stages(model: PreTrainedModel, _image_size: tuple[int, int]) -> list[nn.Module]:
    *first, last = model.encoder.stages
    (norm,) = model.hidden_states_norms.values()
    return [model.embeddings, *first, nn.Sequential(last, norm)]


def _patch_grid(model: PreTrainedModel, image_size: tuple[int, int]) -> tuple[int, int]:
    patch_height, patch_width = model.embeddings.patch_embeddings.patch_size
    return (image_size[0] // patch_height, image_size[1] // patch_width)


def _dinov2_stages(model: PreTrainedModel, image_size: tuple[int, int]) -> list[nn.Module]:
    norm = model.layernorm if model.config.apply_layernorm else nn.Identity()
    to_map = TokensToMap(norm, _patch_grid(model, image_size))
    *first, last = model.encoder.layer
    return [model.embeddings, *first, nn.Sequential(last, to_map)]


def _vit_stages(model: PreTrainedModel, image_size: tuple[int, int]) -> list[nn.Module]:
    to_map = TokensToMap(model.layernorm, _patch_grid(model, image_size))
    *first, last = model.layers
    return [_VitEmbeddings(model.embeddings), *first, nn.Sequential(last, to_map)]


# How a family falls into stages that feed each other one tensor; the embedding is the first.
SPLITTERS = {
    "resnet": _resnet_stages,
    "convnext": _convnext_stages,
    "convnextv2": _convnext_stages,
    "dinov2": _dinov2_stages,
    _VIT: _vit_stages,
}


def _import_transformers() -> None:
    # The library only asks whether torchvision is installed, and fails with a broken one.
    hide_if_broken("torchvision")
    advice = "install it with pip install 'transformers>=5.0'"
    import_package("transformers", "model.encoder.name backbone", advice)


def _model_types() -> list[str]:
    from transformers import MODEL_FOR_BACKBONE_MAPPING

    types = {config.model_type for config in MODEL_FOR_BACKBONE_MAPPING}
    return sorted(types - {"timm_backbone"} | {_VIT})


def resolve_config(
    options: Mapping[str, Any], pretrained: str | None, image_size: tuple[int, int]
) -> PretrainedConfig:
    """Return the backbone's config: the family's defaults or the pretrained ones, overridden.

    Raises:
        ValueError: If the folder, the model type or an option is not usable.
    """
    _import_transformers()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    overrides = dict(options)
    model_type = overrides.pop("model_type", None)
    if pretrained is not None:
        base = AutoConfig.from_pretrained(
            pretrained, local_files_only=True, trust_remote_code=False
        )
        model_type = model_type or base.model_type
        if model_type != base.model_type:
            raise ValueError(
                f"model.encoder.options.model_type is {model_type!r}, "
                f"must be {base.model_type!r}, as in {pretrained}"
            )
    if model_type not in _model_types():
        types = _model_types()
        raise ValueError(
            f"model.encoder.options.model_type is {model_type!r}, must be one of "
            f"{', '.join(types)}{did_you_mean(model_type, types)}"
        )
    if pretrained is None:
        base = AutoConfig.for_model(model_type)
        if hasattr(base, "image_size"):
            # Square, as most families take it; they adapt their positions to other shapes.
            overrides.setdefault("image_size", max(image_size))
    check_options(base, overrides)
    try:
        # Built anew, because some attributes (the names of the stages) follow from others.
        config = type(base)(**chosen_options(base, overrides))
        if model_type != _VIT:
            config.out_features = [config.stage_names[-1]]
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(
            f"model.encoder.options is {dict(options)!r}, not allowed by {model_type}: {error}"
        ) from error
    check_nested(config, overrides)
    return config


def build_parts(
    config: PretrainedConfig,
    trunk_depth: int,
    image_size: tuple[int, int],
    pretrained: str | None,
) -> Parts:
    """Build a trunk of the first `trunk_depth` stages and a branch of the others.

    The first stage of every family is its embedding: for a transformer a depth of 1 + L shares L
    layers (ViT-B/16 with 6 shared blocks: `vit` with its default options and a depth of 7).

    Raises:
        ValueError: If the family cannot be split there.
    """
    from transformers import MODEL_FOR_BACKBONE_MAPPING, ViTModel

    family, arguments = config.model_type, {}
    if family == _VIT:
        backbone_class, arguments = ViTModel, {"add_pooling_layer": False}
    else:
        backbone_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    # The classes are used directly: the Auto class asks the hub even about a local folder.
    try:
        if pretrained is None:
            model = backbone_class(config, **arguments)
        else:
            with _quiet():
                model, found = backbone_class.from_pretrained(
                    pretrained,
                    config=config,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    **arguments,
                )
            _check_found(pretrained, model, sorted(found["missing_keys"]))
    except OSError as error:
        raise ValueError(
            f"model.encoder.pretrained is {pretrained!r}, no weights can be read from it: "
            f"{_cause(error)}"
        ) from error
    except (ArithmeticError, LookupError, RuntimeError) as error:
        # The library looks at some options only when it uses them: KeyError for an activation.
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"model.encoder.options is {shortened(repr(to_options(config)), 500)}, with which "
            f"transformers cannot build it: {_cause(error)}"
        ) from error
    model.train()
    if family not in SPLITTERS:
        if trunk_depth != 0:
            raise ValueError(
                f"model.trunk_depth is {trunk_depth!r}, must be 0 for {family}; "
                f"only {', '.join(SPLITTERS)} can be split"
            )
    else:
        # transformers 5.23 puts hooks on stages that record outputs for the whole backbone, which
        # is never run here; torch.compile cannot trace their `ContextVar`.
        for module in model.modules():
            module._forward_hooks.clear()
        return split_stages(SPLITTERS[family](model, image_size), trunk_depth, family)
    return Parts(nn.Identity(), _LastMap(model))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from a table and a bar for the weights of each branch."""
    from transformers.utils import logging as library

    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()


def _check_found(pretrained: str, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Check that a checkpoint has weights of the model; log once which it has not.

    Raises:
        ValueError: It has none.
    """
    if missing and len(missing) >= len(list(model.parameters())):
        raise ValueError(
            f"model.encoder.pretrained is {pretrained!r}, which has no weights of this "
            f"{model.config.model_type}"
        )
    if missing:
        _log_missing(pretrained, tuple(missing))


@functools.cache
def _log_missing(pretrained: str, missing: tuple[str, ...]) -> None:
    logger.warning(
        "model.encoder.pretrained: %s has no weights for %s, which start fresh",
        pretrained,
        shortened(", ".join(missing), 300),
    )


def _cause(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)


@register_encoder("backbone")
class Backbone(EncoderFamily):
    """A backbone of the transformers library.

    `build_parts` says how it is split into trunk and branch.

    Args:
        options: `model_type` (unless it is pretrained) and options of that family's config.
        image_size: H and W.
        pretrained: Folder with a `config.json` and weights as safetensors, or a repository of the
            hub with these; they decide the options left out.

    Raises:
        ValueError: If the folder, the model type or an option is not usable.
    """

    takes_pretrained: ClassVar[bool] = True
    documented_options: ClassVar[Mapping[str, Option]] = {
        "model_type": Option(
            f"a family of backbones of transformers: {', '.join(SPLITTERS)} and others",
            None,
            "The family; required unless `model.encoder.pretrained` names one.",
        )
    }
    more_options: ClassVar[bool] = True  # those of the family

    def __init__(
        self,
        options: Mapping[str, Any],
        image_size: tuple[int, int],
        pretrained: str | None = None,
    ) -> None:
        super().__init__(options, image_size, pretrained)
        self._folder: str | None = None
        if pretrained is not None:
            folder = checkpoint_folder(pretrained, [PREPROCESSOR])
            self._folder = str(folder)
            normalisation = preprocessor_normalisation(folder)
            if normalisation is not None:
                self.image_mean, self.image_std = normalisation.mean, normalisation.std
        self._config = resolve_config(options, self._folder, image_size)
        self.options = to_options(self._config)

    def build_parts(self, trunk_depth: int) -> Parts:
        """Build a trunk and one branch, see the function `build_parts`."""
        return build_parts(self._config, trunk_depth, self.image_size, self._folder)

    def finish(self, parts: Parts) -> None:
        """Remove mask tokens, norms of other outputs and the like."""
        drop_unused(parts, self.image_size, self._config.model_type)
