"""How models of timm are divided into stages that feed each other one tensor.

The tables were read from the method `forward_features` of timm 1.0.31's classes; tests compare each
with what the undivided model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from model.encoders.feature_maps import ChannelsFirst, TokensToMap


class _Chain(NamedTuple):
    """Names of a model's modules in the order in which they run; those that are absent are skipped.

    Attributes:
        stem: Together the first stage.
        stages: One module whose children are the stages, or a module for each stage.
        end: Run at the end of the last stage.
    """

    stem: tuple[str, ...]
    stages: tuple[str, ...]
    end: tuple[str, ...] = ()


_STEM, _PATCHES = ("stem",), ("patch_embed",)
# By the name of the model's class. A subclass may compute something else.
_CHAINS = {
    "ByobNet": _Chain(_STEM, ("stages",), ("final_conv",)),
    "ConvNeXt": _Chain(_STEM, ("stages",), ("norm_pre",)),
    "CspNet": _Chain(_STEM, ("stages",)),
    "DaVit": _Chain(_STEM, ("stages",), ("norm_pre",)),
    "DenseNet": _Chain((), ("features",)),
    "EdgeNeXt": _Chain(_STEM, ("stages",), ("norm_pre",)),
    "EfficientFormerV2": _Chain(_STEM, ("stages",), ("norm",)),
    "EfficientNet": _Chain(("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2")),
    "EfficientVit": _Chain(_STEM, ("stages",)),
    "EfficientVitLarge": _Chain(_STEM, ("stages",)),
    "FastVit": _Chain(_STEM, ("stages",), ("final_conv",)),
    "FocalNet": _Chain(_STEM, ("layers",), ("norm",)),
    "GhostNet": _Chain(("conv_stem", "bn1", "act1"), ("blocks",)),
    "GlobalContextVit": _Chain(_STEM, ("stages",)),
    "HighPerfGpuNet": _Chain(_STEM, ("stages",)),
    "MambaOut": _Chain(_STEM, ("stages",)),
    "MaxxVit": _Chain(_STEM, ("stages",), ("norm",)),
    "MetaFormer": _Chain(_STEM, ("stages",)),
    "MetaNeXt": _Chain(_STEM, ("stages",)),
    "MobileNetV3": _Chain(("conv_stem", "bn1"), ("blocks",)),
    "NextViT": _Chain(_STEM, ("stages",), ("norm",)),
    "NormFreeNet": _Chain(_STEM, ("stages",), ("final_conv", "final_act")),
    "PyramidVisionTransformerV2": _Chain(_PATCHES, ("stages",)),
    "RDNet": _Chain(_STEM, ("dense_stages",), ("norm_pre",)),
    "RegNet": _Chain(_STEM, ("s1", "s2", "s3", "s4"), ("final_conv",)),
    "RepVit": _Chain(_STEM, ("stages",)),
    "ResNet": _Chain(("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4")),
    "ResNetV2": _Chain(_STEM, ("stages",), ("norm",)),
    "StarNet": _Chain(_STEM, ("stages",), ("norm",)),
    "SwiftFormer": _Chain(_STEM, ("stages",), ("norm",)),
    "SwinTransformer": _Chain(_PATCHES, ("layers",), ("norm",)),
    "SwinTransformerV2": _Chain(_PATCHES, ("layers",), ("norm",)),
    "TinyVit": _Chain(_PATCHES, ("stages",)),
    "VovNet": _Chain(_STEM, ("stages",)),
}


class _Tokens(nn.Module):
    """The tokens [B,P+T,C] before the first block of a transformer whose blocks are removed."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - timm has no types
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


class _RotaryBlock(nn.Module):
    """A block of a transformer with rotary positions, which are the same for all blocks.

    Args:
        block: The block.
        rope: Computes the positions; None if there are none.
        grid: h and w; None if `rope` was made for them.
    """

    def __init__(
        self, block: nn.Module, rope: nn.Module | None, grid: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.block = block
        self.rope = rope
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        rope: Any = self.rope
        if rope is None:
            return self.block(tokens, rope=None)
        positions = rope.get_embed() if self.grid is None else rope.get_embed(shape=self.grid)
        return self.block(tokens, rope=positions)


class LastMap(nn.Module):
    """The last feature map [B,C,h,w] of a model that is used whole."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - timm has no types
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the map of the images [B,3,H,W]."""
        maps = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps[-1]


def divided(model: Any, image_size: tuple[int, int]) -> list[nn.Module] | None:  # noqa: ANN401
    """Return the stages of a model, from images to a feature map; None if it cannot be divided.

    The first is everything before the first block or stage. The model is taken apart.

    Args:
        model: Of timm, without its classifier.
        image_size: H and W.
    """
    name = type(model).__name__
    if name in _TRANSFORMERS:
        return _TRANSFORMERS[name](model, image_size)
    if name not in _CHAINS:
        return None
    chain = _CHAINS[name]
    stages = _modules(model, chain.stages)
    if len(chain.stages) == 1:
        stages = list(stages[0].children())
    if chain.stem:
        stages.insert(0, _joined(_modules(model, chain.stem)))
    end = _modules(model, chain.end)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        end.append(ChannelsFirst())
    stages[-1] = _joined([stages[-1], *end])
    return stages


def families() -> list[str]:
    """Return the names of the classes of timm whose models `divided` can divide."""
    return sorted([*_CHAINS, *_TRANSFORMERS])


def _modules(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    found = [getattr(model, name, None) for name in names]
    return [module for module in found if isinstance(module, nn.Module)]


def _joined(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _vit_stages(model: Any, image_size: tuple[int, int]) -> list[nn.Module]:  # noqa: ANN401
    blocks, norm = list(model.blocks), model.norm
    to_map = TokensToMap(norm, _grid(model, image_size), model.num_prefix_tokens)
    model.blocks, model.norm = nn.Sequential(), nn.Identity()
    *first, last = blocks
    return [_Tokens(model), *first, nn.Sequential(last, to_map)]


def _eva_stages(model: Any, image_size: tuple[int, int]) -> list[nn.Module] | None:  # noqa: ANN401
    if getattr(model, "rope_mixed", False):  # the positions of each block are learned together
        return None
    grid = _grid(model, image_size)
    fixed = hasattr(model.rope, "feat_shape") and not model.dynamic_img_size
    blocks = [_RotaryBlock(block, model.rope, None if fixed else grid) for block in model.blocks]
    to_map = TokensToMap(model.norm, grid, model.num_prefix_tokens)
    model.blocks, model.norm = nn.ModuleList(), nn.Identity()
    *first, last = blocks
    return [_Tokens(model), *first, nn.Sequential(last, to_map)]


def _grid(model: Any, image_size: tuple[int, int]) -> tuple[int, int]:  # noqa: ANN401
    height, width = model.patch_embed.dynamic_feat_size(image_size)
    return (height, width)


_TRANSFORMERS: dict[str, Callable[[Any, tuple[int, int]], list[nn.Module] | None]] = {
    "Eva": _eva_stages,
    "VisionTransformer": _vit_stages,
}
