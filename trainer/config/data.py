"""The section `data` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from data_pipelines.shards.remote import check_url
from dmtg.plugins import DATA_SOURCES
from model.bounds import MAX_IMAGE_SIDE
from trainer.config.allowed import NameIn, Words
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
_SIZE = Words(
    f"[height, width], two whole numbers from 1 to {MAX_IMAGE_SIDE}, or one number for both", Side
)
_WEIGHTS = Words("one or more names of sources with numbers above 0")


def _location(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return a path, or a URL as it is: a path would lose one of its slashes."""
    if isinstance(value, str):
        return check_url(value) if "://" in value else Path(check_url(value))
    return value


def _pair(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return height and width of one number, which stands for both."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return (value, value) if whole and 0 < value <= MAX_IMAGE_SIDE else value


class DataSection(Section):
    """Where samples come from, and how the global batch is made of them."""

    source: Annotated[str, NameIn(DATA_SOURCES)] = "shards"
    """The data source: `shards` reads `data.shards`, others are of plug-ins."""
    source_options: Options = Field(default_factory=dict)
    """Options of a data source of a plug-in; `shards` has none."""
    shards: (
        Annotated[Path | str, BeforeValidator(_location), Words("a folder or a URL of shards")]
        | None
    ) = None
    """The folder of the shards and their manifest, or its URL; required by the source `shards`."""
    tar_urls: Annotated[str, AfterValidator(check_url), Words("paths or URLs of tars")] | None = (
        None
    )
    """Tars that replace the train split and are read without an index, as in
    `https://host/train-{000..099}.tar`."""
    cache_dir: Path | None = None
    """Folder for local copies of remote shards; null keeps none."""
    cache_gb: PositiveFloat = 100.0
    """Size in GB that the copies in `data.cache_dir` may take."""
    retry_seconds: Annotated[float, Field(ge=0.0, le=MAX_SECONDS)] = 120.0
    """Seconds for which failed requests to a remote source are repeated."""
    on_error: Literal["stop", "replace"] = "stop"
    """A damaged sample stops the run, or is replaced by a sample without labels."""
    max_bad_fraction: Fraction = 0.01
    """With `data.on_error: replace`, the fraction of damaged samples above which the run stops."""
    train_split: str = "train"
    """The split to train on."""
    eval_split: str = "val"
    """The split to evaluate on."""
    image_size: Annotated[tuple[Side, Side], BeforeValidator(_pair), _SIZE]
    """Height and width to which images and dense labels are resized; one number stands for both."""
    global_batch: PositiveInt
    """Samples of one step, over all processes and micro-batches."""
    workers: Annotated[int, Field(ge=0, le=MAX_WORKERS)] = 2
    """Processes that read data for each rank; 0 reads in the process that trains."""
    num_streams: PositiveInt | None = None
    """Parts of the train split that are read and shuffled side by side; null takes the largest
    power of two up to 64 that divides `data.global_batch`."""
    mix: Annotated[dict[str, PositiveFloat], Field(min_length=1), _WEIGHTS] | None = None
    """Relative weight of each source of a mix in the training stream, by name; a source that is not
    named has the weight 1, and null reads every sample once in an epoch."""
    flip: bool = False
    """Mirror training samples left and right with probability one half."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Crop training samples at random to between this fraction and all of their area; null does not
    crop."""
    allow_flat_labels: bool = False
    """Train although the first batches have labels that are flattened or have no valid pixel."""

    @model_validator(mode="after")
    def _shards_given(self) -> DataSection:
        if self.source == "shards" and self.shards is None:
            raise ValueError("data.shards: required by data.source 'shards' and not given")
        if self.source == "shards" and self.source_options:
            raise ValueError("data.source_options: given, but data.source 'shards' has no options")
        return self

    @model_validator(mode="after")
    def _mix_of_indexed_shards(self) -> DataSection:
        if self.mix is not None and self.source != "shards":
            raise ValueError(f"data.mix: given, but data.source {self.source!r} has no sources")
        if self.mix is not None and self.tar_urls is not None:
            raise ValueError("data.mix: given, but data.tar_urls has no sources")
        return self
