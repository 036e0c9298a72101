"""The section `data` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from data_pipelines.shards.remote import check_url
from dmtg.plugins import DATA_SOURCES
from model.bounds import MAX_IMAGE_SIDE
from trainer.config.section import (
    MAX_SECONDS,
    Fraction,
    Options,
    PositiveFloat,
    PositiveInt,
    Section,
)

MAX_WORKERS = 1024  # reading processes of one rank
Side = Annotated[int, Field(gt=0, le=MAX_IMAGE_SIDE)]


def _location(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return a path, or a URL as it is: a path would lose one of its slashes."""
    if isinstance(value, str):
        return check_url(value) if "://" in value else Path(check_url(value))
    return value


class DataSection(Section):
    """Where samples come from, and how the global batch is made of them.

    `source` names a registered data source and `source_options` its options; the built-in source
    `shards` reads `shards`. `tar_urls` names tar files that replace the train split and are read
    without an index.
    `cache_dir` keeps copies of remote shards. `on_error: replace` continues without damaged
    samples. Failed requests to a remote source are repeated for `retry_seconds`. `num_streams` is
    the number of parts of the train split that are read and shuffled side by side.
    """

    source: Annotated[str, AfterValidator(DATA_SOURCES.check)] = "shards"
    source_options: Options = Field(default_factory=dict)
    shards: Annotated[Path | str, BeforeValidator(_location)] | None = None
    tar_urls: Annotated[str, AfterValidator(check_url)] | None = None
    cache_dir: Path | None = None
    cache_gb: PositiveFloat = 100.0
    retry_seconds: Annotated[float, Field(ge=0.0, le=MAX_SECONDS)] = 120.0
    on_error: Literal["stop", "replace"] = "stop"
    max_bad_fraction: Fraction = 0.01
    train_split: str = "train"
    eval_split: str = "val"
    image_size: tuple[Side, Side]
    global_batch: PositiveInt
    workers: Annotated[int, Field(ge=0, le=MAX_WORKERS)] = 2
    num_streams: PositiveInt | None = None
    flip: bool = False
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    allow_flat_labels: bool = False

    @model_validator(mode="after")
    def _shards_given(self) -> DataSection:
        if self.source == "shards" and self.shards is None:
            raise ValueError("shards is required by source 'shards' and not given")
        if self.source == "shards" and self.source_options:
            raise ValueError("source_options are not used by source 'shards'")
        return self
