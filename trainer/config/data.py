"""The section `data` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from data_pipelines.shards.remote import check_url
from trainer.config.section import Fraction, PositiveFloat, PositiveInt, Section


def _location(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return a path, or a URL as it is: a path would lose one of its slashes."""
    if isinstance(value, str):
        return check_url(value) if "://" in value else Path(check_url(value))
    return value


class DataSection(Section):
    """Which shards are read, and how the global batch is made of them.

    `tar_urls` names tar files that replace the train split and are read without an index.
    `cache_dir` keeps copies of remote shards. `on_error: replace` continues without damaged
    samples. Failed requests to a remote source are repeated for `retry_seconds`. `num_streams` is
    the number of parts of the train split that are read and shuffled side by side.
    """

    shards: Annotated[Path | str, BeforeValidator(_location)]
    tar_urls: Annotated[str, AfterValidator(check_url)] | None = None
    cache_dir: Path | None = None
    cache_gb: PositiveFloat = 100.0
    retry_seconds: Annotated[float, Field(ge=0.0)] = 120.0
    on_error: Literal["stop", "replace"] = "stop"
    max_bad_fraction: Fraction = 0.01
    train_split: str = "train"
    eval_split: str = "val"
    image_size: tuple[PositiveInt, PositiveInt]
    global_batch: PositiveInt
    workers: Annotated[int, Field(ge=0)] = 2
    num_streams: PositiveInt | None = None
    flip: bool = False
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    allow_flat_labels: bool = False
