"""Any model of the library timm as an encoder, split into trunk and branch if it can be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dmtg.memory import is_out_of_memory
from dmtg.names import one_line, shortened
from dmtg.plugins import register_encoder
from model.encoders.backbone_options import check_value
from model.encoders.family import EncoderFamily, Option, Parts
from model.encoders.pretrained import (
    WEIGHTS,
    Normalisation,
    checkpoint_folder,
    hub_file,
    normalisation,
    read_json,
)
from model.encoders.stages import drop_unused, split_stages
from model.encoders.timm_library import import_timm
from model.encoders.timm_stages import LastMap, divided, families

_MODEL = "model.encoder.options.model"
_NAME = re.compile(r"\w+(\.[\w-]+)?", re.ASCII)  # a name and a tag, never a path or a repository
# Keywords that are no options: the encoder sets them, or they select what is loaded and built.
_NOT_OPTIONS = frozenset(
    {
        "cfg", "checkpoint_path", "device", "dtype", "feature_cls", "features_only", "global_pool",
        "img_size", "in_chans", "num_classes", "out_indices", "pretrained", "pretrained_cfg",
        "pruned", "weight_init",
    }
)  # fmt: skip
# Of an unused part. An exported model holds none, and what is built from it is bounded by its size
# (`model.skeleton.BYTES_BESIDES`).
_MAX_UNUSED_BYTES = 2**26


@register_encoder("timm")
class Timm(EncoderFamily):
    """A model of timm by its name; the classes that are divided are in `timm_stages`.

    Args:
        options: `model`: a name of `timm.list_models()`, with or without the tag of its weights;
            and keywords of the constructor of its class, such as `drop_path_rate`.
        image_size: H and W.
        pretrained: True for the weights that timm names for the model; else a folder, or a
            repository of the hub, with timm's `config.json` and `model.safetensors`.

    Raises:
        ValueError: timm cannot be imported; the model, an option or `pretrained` is not usable.
    """

    takes_pretrained: ClassVar[bool] = True
    has_default_weights: ClassVar[bool] = True
    documented_options: ClassVar[Mapping[str, Option]] = {
        "model": Option(
            "a name of timm.list_models(), with or without the tag of its weights",
            None,
            "The model; required unless `model.encoder.pretrained` names a folder or repository.",
        )
    }
    more_options: ClassVar[bool] = True  # those of the model's constructor

    def __init__(
        self,
        options: Mapping[str, Any],
        image_size: tuple[int, int],
        pretrained: str | bool | None = None,
    ) -> None:
        super().__init__(options, image_size, pretrained)
        chosen = dict(options)
        described: dict[str, Any] = {}
        if isinstance(pretrained, str):
            self._folder = checkpoint_folder(pretrained)
            described = read_json(self._folder / "config.json")
            chosen = _with_described(chosen, described, pretrained)
        name = chosen.pop("model", None)
        for option, value in chosen.items():
            if option in _NOT_OPTIONS:
                raise _refused(option)
            check_value(f"model.encoder.options.{option}", value)
        self._name = _checked_name(name)
        self._keywords = chosen
        self._check_keywords()
        self._check_size()
        self.options = {"model": self._name.partition(".")[0], **chosen}
        if pretrained is not None:
            self._normalise(described, pretrained)

    @cached_property
    def _described(self) -> Any:  # noqa: ANN401 - timm has no types
        """What timm knows of the model's weights and images."""
        return import_timm().get_pretrained_cfg(self._name)

    def _normalise(self, described: dict[str, Any], pretrained: str | bool) -> None:
        found: Normalisation
        if pretrained is True:
            found = normalisation(self._described.mean, self._described.std, _MODEL)
        else:
            images = described.get("pretrained_cfg", described)
            place = f"model.encoder.pretrained: {self._folder / 'config.json'}"
            found = normalisation(images.get("mean"), images.get("std"), place)
        self.image_mean, self.image_std = found.mean, found.std

    def _check_keywords(self) -> None:
        """Check that no keyword is one of the functions by which timm loads and builds a model."""
        timm = import_timm()
        for function in (timm.create_model, timm.models.build_model_with_cfg):
            for name in inspect.signature(function).parameters:
                if name in self._keywords:
                    raise _refused(name)

    def _check_size(self) -> None:
        smallest = getattr(self._described, "min_input_size", None)
        if smallest is not None and any(
            side < least for side, least in zip(self.image_size, smallest[1:], strict=True)
        ):
            raise ValueError(
                f"data.image_size is {tuple(self.image_size)}, must be at least "
                f"{tuple(smallest[1:])} for {self._name}"
            )

    def build_parts(self, trunk_depth: int) -> Parts:
        """Build a trunk of the first `trunk_depth` stages and a branch of the others.

        The first stage is what comes before the first block or stage of the model.

        Raises:
            ValueError: If the model cannot be built, loaded or split there.
        """
        model = self._loaded() if self._loads else self._build(self._keywords)
        weights = list(model.parameters())
        stages = divided(model, self.image_size)
        if stages is not None:
            parts = split_stages(stages, trunk_depth, self._name)
            self._check_unused(weights, parts)
            return parts
        family = type(model).__name__
        if trunk_depth != 0:
            raise ValueError(
                f"model.trunk_depth is {trunk_depth!r}, must be 0 for {self._name}, whose class "
                f"{family} is not divided; those that are: {', '.join(families())}"
            )
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{_MODEL} is {self._name!r}, which has no feature maps to use")
        return Parts(nn.Identity(), LastMap(model))

    def _check_unused(self, weights: list[nn.Parameter], parts: Parts) -> None:
        used = {id(weight) for part in parts for weight in part.parameters()}
        unused = max((w.nbytes for w in weights if id(w) not in used), default=0)
        if unused > _MAX_UNUSED_BYTES:
            raise ValueError(
                f"{_MODEL} is {self._name!r}, whose classifier has a part of {unused} bytes that "
                f"would be built and not used, allowed are {_MAX_UNUSED_BYTES}"
            )

    def finish(self, parts: Parts) -> None:
        """Remove classifiers, mask tokens and the like.

        Raises:
            ValueError: If the model cannot take images of this size.
        """
        weights = list(nn.ModuleList(parts).parameters())
        try:
            drop_unused(parts, self.image_size, self._name)
        except (AssertionError, IndexError, RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"{_MODEL} is {self._name!r}, which cannot compute images of "
                f"{tuple(self.image_size)} (data.image_size): {_cause(error)}"
            ) from error
        self._check_unused(weights, parts)

    @property
    def _loads(self) -> bool:
        """Whether weights are read; tensors on the device `meta` have none."""
        return self.pretrained is not None and torch.get_default_device().type != "meta"

    def _build(self, keywords: Mapping[str, Any], **loading: Any) -> Any:  # noqa: ANN401
        arguments = {"num_classes": 0, "in_chans": 3, **keywords, **loading}
        if getattr(self._described, "fixed_input_size", False):
            arguments["img_size"] = tuple(self.image_size)
        try:
            model = import_timm().create_model(self._name, **arguments)
        except Exception as error:  # its constructors check their arguments by all kinds
            if is_out_of_memory(error):
                raise
            found = {"model": self._name, **keywords}
            source = f" with the weights of {self._weights}" if loading else ""
            raise ValueError(
                f"model.encoder.options is {shortened(repr(found), 500)}, with which timm cannot "
                f"build it for images of {tuple(self.image_size)}{source}: {_cause(error)}"
            ) from error
        return model.train()

    @cached_property
    def _weights(self) -> Path:
        """The safetensors file with the weights; it is fetched if it is not in the hub's cache."""
        if self.pretrained is not True:
            path = self._folder / WEIGHTS
            if not path.is_file():
                raise ValueError(
                    f"model.encoder.pretrained is {self.pretrained!r}, which has no {WEIGHTS}"
                )
            return path
        repository = self._described.hf_hub_id
        name = self._described.hf_hub_filename or WEIGHTS
        name = name.replace("pytorch_model.bin", WEIGHTS)
        if not repository or not name.endswith(".safetensors"):
            raise ValueError(
                f"{_MODEL} is {self._name!r}, of which timm names no weights on the hub in the "
                "format safetensors"
            )
        fetched = hub_file(repository, name)
        assert fetched is not None, "it is required"
        return fetched

    def _loaded(self) -> Any:  # noqa: ANN401
        """Return the model with its pretrained weights."""
        loading = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(self._weights)}}
        if self._checked:
            return self._build(self._keywords, **loading)
        models = []
        for arguments in ({}, loading):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                models.append(self._build(self._keywords, **arguments))
        random, model = models
        left = dict(random.named_parameters())
        # timm loads what it finds. A parameter that still has its random values was not found.
        for name, value in model.named_parameters():
            if value.numel() > 1 and value.std() > 0 and torch.equal(value, left[name]):
                raise ValueError(
                    f"model.encoder.pretrained: {self._weights} has no weights {name!r} of "
                    f"{self._name}"
                )
        self._checked = True
        return model

    _checked = False


def _with_described(
    options: dict[str, Any], described: dict[str, Any], pretrained: str
) -> dict[str, Any]:
    """Return options with the model and its keywords that a checkpoint's `config.json` has."""
    architecture = described.get("architecture")
    keywords = described.get("model_args") or {}
    if not isinstance(architecture, str) or not isinstance(keywords, dict):
        raise ValueError(
            f"model.encoder.pretrained is {pretrained!r}, whose config.json is not one of timm: "
            "it names no architecture"
        )
    name = options.get("model", architecture)
    if str(name).partition(".")[0] != architecture:
        raise ValueError(f"{_MODEL} is {name!r}, must be {architecture!r}, as in {pretrained}")
    kept = {key: value for key, value in keywords.items() if key not in _NOT_OPTIONS}
    return {**kept, **options, "model": architecture}


def _refused(option: str) -> ValueError:
    return ValueError(f"model.encoder.options has {option!r}, which cannot be chosen")


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{_MODEL} is {name!r}, must be a name of timm such as convnext_tiny")
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.6)
        hint = f"; close are {', '.join(close)}" if close else ""
        raise ValueError(f"{_MODEL} is {name!r}, which timm {timm.__version__} does not know{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}*")
            if full.partition(".")[0] == architecture]  # fmt: skip
    if tag and tag not in tags:
        known = ", ".join(tags) or "none"
        raise ValueError(f"{_MODEL} is {name!r}, {architecture} has the tags {known}")
    return name


def _cause(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)
