"""The files of a pretrained encoder: in a folder, or in a repository of the Hugging Face hub.

Only JSON and safetensors are read or fetched; no code of a repository is.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmtg.names import one_line, shortened

logger = logging.getLogger(__name__)

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 2**24  # of a configuration or an index of weights
_REPOSITORY = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*))?", re.ASCII)
_WEIGHT_FILE = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
_KEY = "model.encoder.pretrained"


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of every channel, of images scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def checkpoint_folder(pretrained: str, optional: Sequence[str] = ()) -> Path:
    """Return the folder with configuration and weights of a checkpoint.

    Args:
        pretrained: A folder with a `config.json`; else `OWNER/NAME` or `OWNER/NAME@REVISION` of
            the hub, whose files are fetched into its cache. `HF_HUB_OFFLINE=1` uses the cache
            only.
        optional: Other files to fetch, which a repository need not have.

    Raises:
        ValueError: It is neither, a file is missing or cannot be fetched.
    """
    folder = Path(pretrained)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{_KEY} is {pretrained!r}, must be a folder with a {CONFIG}")
        return folder
    if _REPOSITORY.fullmatch(pretrained) is None:
        raise ValueError(
            f"{_KEY} is {pretrained!r}, must be a folder with a {CONFIG}, or a repository of the "
            "hub: OWNER/NAME or OWNER/NAME@REVISION"
        )
    config = hub_file(pretrained, CONFIG)
    assert config is not None, "it is required"
    # The other files are those of the same commit, in the same folder.
    commit = f"{pretrained.partition('@')[0]}@{config.parent.name}"
    for name in optional:
        hub_file(commit, name, required=False)
    _fetch_weights(commit)
    return config.parent


def _fetch_weights(repository: str) -> None:
    """Fetch the weights of a repository: one file, or several that an index names."""
    try:
        hub_file(repository, WEIGHTS)
    except ValueError as error:
        from huggingface_hub.errors import EntryNotFoundError

        missing = isinstance(error.__cause__, EntryNotFoundError)
        index = hub_file(repository, _INDEX, required=False, quiet=True) if missing else None
        if index is None:
            raise
        for name in _weight_files(index):
            hub_file(repository, name)


def hub_file(
    repository: str, name: str, *, required: bool = True, quiet: bool = False
) -> Path | None:
    """Return a file of a repository of the hub, from its cache or else fetched into it.

    Args:
        repository: `OWNER/NAME` or `OWNER/NAME@REVISION`.
        name: Of the file.
        required: Whether the repository must have it.
        quiet: Whether to log nothing of a file that the cache may lack.

    Returns:
        Its path; None if it is not required and not there.

    Raises:
        ValueError: It is required and not there, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    parts = _REPOSITORY.fullmatch(repository)
    assert parts is not None, "the caller has checked it"
    fetch = functools.partial(hf_hub_download, parts["id"], name, revision=parts["revision"])
    with suppress(LocalEntryNotFoundError):
        return Path(fetch(local_files_only=True))
    requests = logging.getLogger("huggingface_hub.utils._http")  # warns of each attempt
    level = requests.level
    try:
        requests.setLevel(logging.ERROR)
        return Path(fetch())
    except Exception as error:  # of the library, of its HTTP client, of the disk
        if isinstance(error, EntryNotFoundError) and not required:
            if isinstance(error, LocalEntryNotFoundError) and not quiet:
                logger.warning(
                    "%s of %s is not in the cache of the hub, which cannot be asked; "
                    "the run goes on without it",
                    name,
                    repository,
                )
            return None
        raise ValueError(
            f"{_KEY} is {repository!r}, which is no folder here, and {name} of a repository of "
            f"this name cannot be had from the hub or its cache: {_reason(error, name)}"
        ) from error
    finally:
        requests.setLevel(level)


def _reason(error: Exception, name: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return "it is not in the cache, and the hub is offline or cannot be reached"
    if isinstance(error, errors.GatedRepoError):
        return "access must be granted first, and HF_TOKEN set"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is none, or it is private and HF_TOKEN is not set"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.EntryNotFoundError):
        only = "; only weights in the format safetensors are read"
        return f"it has no {name}{only if name.endswith('.safetensors') else ''}"
    return one_line(f"{type(error).__name__}: {error}", 300)


def _weight_files(index: Path) -> list[str]:
    """Return the names of the files with the weights of a checkpoint in several files."""
    files = read_json(index).get("weight_map")
    names = sorted(set(map(str, files.values()))) if isinstance(files, Mapping) else []
    if not names or not all(_WEIGHT_FILE.fullmatch(name) for name in names):
        raise ValueError(f"{_KEY}: {index} names no files of weights: {shortened(repr(names))}")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint.

    Raises:
        ValueError: The file is too large or holds no object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{_KEY}: {path} has more than {MAX_JSON_BYTES} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_KEY}: {path} is not JSON: {one_line(str(error))}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{_KEY}: {path} holds {type(values).__name__}, must hold an object")
    return values


def preprocessor_normalisation(folder: Path) -> Normalisation | None:
    """Return the normalisation that a checkpoint's preprocessor configuration has, if it has one.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return None
    values = read_json(path)
    # A preprocessor multiplies levels from 0 to 255 by a factor first, 1/255 unless it says so.
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    mean, std = values.get("image_mean"), values.get("image_std")
    if not values.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    elif mean is None or std is None:
        return None
    if not _is_number(factor) or factor <= 0:
        raise ValueError(f"{_KEY}: {path} has rescale_factor {factor!r}, must be above 0")
    scale = 1.0 if factor == 1 / 255 else 255 * factor
    found = normalisation(mean, std, f"{_KEY}: {path}")
    return Normalisation(
        tuple(value / scale for value in found.mean), tuple(value / scale for value in found.std)
    )


def normalisation(mean: object, std: object, place: str) -> Normalisation:
    """Return mean and deviation of three channels, as read from a file.

    Raises:
        ValueError: They are not three finite numbers each, the deviations above 0.
    """
    for name, values in (("image_mean", mean), ("image_std", std)):
        listed = isinstance(values, (list, tuple)) and len(values) == 3
        if not listed or not all(_is_number(value) for value in values):  # type: ignore[attr-defined]
            raise ValueError(f"{place} has {name} {values!r}, must be three numbers")
    if min(std) <= 0:  # type: ignore[call-overload]
        raise ValueError(f"{place} has image_std {std!r}, must be above 0")
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[call-overload]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
