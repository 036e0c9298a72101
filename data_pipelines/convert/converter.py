"""What a converter is: the type of the functions in the registry of converters."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from data_pipelines.convert.options import ConversionOptions
from data_pipelines.shards.manifest import Manifest


class Converter(Protocol):
    """Shards from a folder; `dmtg.plugins.register_converter` gives a converter its name.

    Most converters fix the samples of every shard and call `data_pipelines.convert.run.convert`
    with a reader of samples: this writes shards in parallel, and a rerun continues.
    """

    def __call__(self, root: Path, out: Path, options: ConversionOptions) -> Manifest:
        """Write shards and their manifest, and return the manifest.

        Args:
            root: Folder of the data set as released.
            out: Folder of the shards.
            options: The options that do not depend on the data set.

        Raises:
            DataError: The source or `out` cannot be used.
            ValueError: An option is not allowed.
        """
