"""The options of a transformers backbone that a configuration or an exported model may set.

The library's configs take any attribute, and some select what is loaded: `attn_implementation` may
name a repository of kernels on the hub, a nested config another model. An option must therefore be
an attribute that the family itself defines, and its value plain data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dmtg.names import shortened
from dmtg.suggestions import did_you_mean

if TYPE_CHECKING:  # the library takes seconds to import, and only this encoder needs it
    from transformers import PretrainedConfig

MAX_OPTION = 2**16  # of a number, and of the sum of a list: sizes, layers of all stages
_WORD = re.compile(r"[\w.-]*")  # no slash: text such as `gelu`, never a path or a repository

# Attributes of a family that are no options: they select another model, or `Backbone` sets them.
_NOT_OPTIONS = frozenset(
    {
        "backbone",
        "backbone_config",
        "backbone_kwargs",
        "num_labels",
        "out_features",
        "out_indices",
        "quantization_config",
        "stage_names",
        "torch_dtype",
        "use_pretrained_backbone",
        "use_timm_backbone",
    }
)
_OF_CLASSIFIERS = frozenset({"is_encoder_decoder", "problem_type"})  # in files of earlier versions


def allowed_options(config_class: type[PretrainedConfig]) -> frozenset[str]:
    """Return the names of the options of a family: the attributes that no other config has."""
    from transformers import PretrainedConfig

    own = set(config_class().to_dict()) - set(PretrainedConfig().to_dict()) - _NOT_OPTIONS
    public = {name for name in own if not name.startswith("_")}
    return frozenset(public.union(k for k, v in config_class.attribute_map.items() if v in public))


def check_options(base: PretrainedConfig, options: Mapping[str, Any]) -> None:
    """Check names and values of options, before a config is built from them.

    The library checks the types of the values when it builds the config.

    Args:
        base: A config of the family.
        options: By name.

    Raises:
        ValueError: An option is unknown, or its value is no plain data or too large.
    """
    known = allowed_options(type(base)) | _OF_CLASSIFIERS
    for name, value in options.items():
        if name not in known:
            raise _unknown(base, name)
        if not isinstance(value, Mapping):
            check_value(f"model.encoder.options.{name}", value)


def check_nested(config: PretrainedConfig, options: Mapping[str, Any]) -> None:
    """Check that options which are mappings only repeat what a config has anyway.

    They are configs of other models and are never set, but files of earlier versions hold them.

    Args:
        config: Built without them.
        options: All options.

    Raises:
        ValueError: One differs.
    """
    nested = {name: value for name, value in options.items() if isinstance(value, Mapping)}
    if nested:
        whole = json.loads(config.to_json_string(use_diff=False))
        for name, value in nested.items():
            if not _is_part(value, whole.get(name)):
                found = shortened(repr(value))
                raise ValueError(f"model.encoder.options.{name} is {found}, must not be a mapping")


def _is_part(value: object, whole: object) -> bool:
    """Return whether values are equal, or a mapping holds entries of another."""
    if isinstance(value, Mapping) and isinstance(whole, Mapping):
        return all(name in whole and _is_part(part, whole[name]) for name, part in value.items())
    return value == whole


def _unknown(config: PretrainedConfig, name: str) -> ValueError:
    allowed = sorted(allowed_options(type(config)))
    return ValueError(
        f"model.encoder.options has {name!r}, {config.model_type} knows only "
        f"{', '.join(allowed)}{did_you_mean(name, allowed)}"
    )


def chosen_options(config: PretrainedConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the constructor: what `config` sets, and options over it."""
    allowed = allowed_options(type(config))
    chosen = {**_differences(config), **options}
    return {n: v for n, v in chosen.items() if n in allowed and not isinstance(v, Mapping)}


def to_options(config: PretrainedConfig) -> dict[str, Any]:
    """Return options that rebuild the config without its folder."""
    return {"model_type": config.model_type, **_differences(config)}


def _differences(config: PretrainedConfig) -> dict[str, Any]:
    allowed = allowed_options(type(config))
    return {name: value for name, value in config.to_diff_dict().items() if name in allowed}


def check_value(place: str, value: object) -> None:
    """Check that an option is a word, a number, a truth value, or lists of these.

    Args:
        place: Its dotted path, for the message.
        value: Plain data, see `check_plain_options`.

    Raises:
        ValueError: It is something else or too large.
    """
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise ValueError(f"{place} is {shortened(value)!r}, must be a word")
    if isinstance(value, Mapping):  # inside a list
        raise ValueError(f"{place} has {shortened(repr(value))}, must not have a mapping")
    if not sum(abs(number) for number in _numbers(place, value)) <= MAX_OPTION:
        found = shortened(repr(value))
        raise ValueError(f"{place} is {found}, must be at most {MAX_OPTION}, the sum for a list")


def _numbers(place: str, value: object) -> Iterator[int | float]:
    if isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, (str, Mapping)):
                check_value(place, part)
            yield from _numbers(place, part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
