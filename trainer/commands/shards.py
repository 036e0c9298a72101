"""The commands `dmtg shards`: convert data sets to WebDataset shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.commands.options import Overwrite, Plugins
from trainer.commands.output import AsJson, finish, table_console
from trainer.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.shards.manifest import Manifest

shards = typer.Typer(help="Write data sets as WebDataset shards.", no_args_is_help=True)

NewDir = Annotated[Path, typer.Option("--out", help="Folder to write; must hold no data set.")]
OutDir = Annotated[
    Path, typer.Option("--out", help="Folder to write; a rerun continues where it stopped.")
]
Root = Annotated[Path, typer.Option("--root", help="Folder of the data set as released.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed writes the same bytes.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]
Portable = Annotated[
    bool, typer.Option("--portable", help="Store PNG, for other readers of WebDataset shards.")
]
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels of the shorter side; larger pictures shrink.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Samples of each split at most.")]
Tasks = Annotated[str | None, typer.Option(help="Labels to convert, separated by commas.")]
PerShard = Annotated[int, typer.Option(min=1, help="Samples of a shard.")]
MapFile = Annotated[Path, typer.Option("--map", help="YAML file that describes the fields.")]


@shards.command()
def rooms(
    out: NewDir,
    samples: Annotated[int, typer.Option(min=1, help="Samples of both splits together.")] = 2400,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    seed: Seed = 0,
    missing: Annotated[float, typer.Option(help="Fraction of labels left out at random.")] = 0.0,
    val_fraction: Annotated[float, typer.Option(help="Fraction of samples in val.")] = 0.15,
    workers: Workers = 1,
    portable: Portable = False,
    as_json: AsJson = False,
) -> None:
    """Ray-cast rooms with exact labels in the released Taskonomy's conventions."""
    from data_pipelines.synthetic.rooms import write_rooms

    with _user_errors():
        manifest = write_rooms(
            out,
            samples,
            size,
            seed,
            missing=missing,
            val_fraction=val_fraction,
            workers=workers,
            portable=portable,
        )
    finish(as_json, {"out": str(out), "samples": _counts(manifest)})


@shards.command()
def digits(
    out: NewDir, seed: Seed = 0, portable: Portable = False, as_json: AsJson = False
) -> None:
    """Pairs of real handwritten digits (scikit-learn's), 24 tasks."""
    from data_pipelines.synthetic.digits import write_digits

    manifest = write_digits(out, seed=seed, portable=portable)
    finish(as_json, {"out": str(out), "samples": _counts(manifest)})


@shards.command()
def taskonomy(
    root: Root,
    out: OutDir,
    tasks: Tasks = None,
    size: Size = None,
    limit: Limit = None,
    splits: Annotated[
        Path | None, typer.Option(help="CSV of buildings (id, train, val, test).")
    ] = None,
    val_buildings: Annotated[
        str | None, typer.Option(help="Buildings of the split val, separated by commas.")
    ] = None,
    val_share: Annotated[
        float,
        typer.Option(help="Fraction of buildings in val without --splits and --val-buildings."),
    ] = 0.1,
    seed: Seed = 0,
    workers: Workers = 1,
    samples_per_shard: PerShard = 1000,
    portable: Portable = False,
    as_json: AsJson = False,
) -> None:
    """A Taskonomy release: DOMAIN/BUILDING/point_P_view_V_domain_D.png."""
    from data_pipelines.convert.options import ConversionOptions
    from data_pipelines.convert.taskonomy.buildings import BuildingSplits
    from data_pipelines.convert.taskonomy.converter import write_taskonomy

    options = ConversionOptions(
        tasks=_split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with _user_errors():
        buildings = BuildingSplits(splits, _split_names(val_buildings) or (), val_share)
        manifest = write_taskonomy(root, out, buildings, options)
    _summarise(as_json, out, manifest)


@shards.command()
def celeba(
    root: Root,
    out: OutDir,
    tasks: Tasks = None,
    size: Size = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 1,
    samples_per_shard: PerShard = 1000,
    portable: Portable = False,
    as_json: AsJson = False,
) -> None:
    """CelebA: img_align_celeba, list_attr_celeba.txt, list_eval_partition.txt."""
    from data_pipelines.convert.celeba import write_celeba
    from data_pipelines.convert.options import ConversionOptions

    options = ConversionOptions(
        tasks=_split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with _user_errors():
        manifest = write_celeba(root, out, options)
    _summarise(as_json, out, manifest)


@shards.command()
def convert(
    name: Annotated[str, typer.Argument(help="Name of a registered converter.")],
    root: Root,
    out: OutDir,
    plugin: Plugins = None,
    tasks: Tasks = None,
    size: Size = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 1,
    samples_per_shard: PerShard = 1000,
    portable: Portable = False,
    as_json: AsJson = False,
) -> None:
    """A data set with a converter of that name: celeba, taskonomy or one of a plug-in."""
    from data_pipelines.convert.converter import Converter
    from data_pipelines.convert.options import ConversionOptions
    from dmtg.plugins import CONVERTERS, load_plugins

    options = ConversionOptions(
        tasks=_split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with _user_errors():
        load_plugins(plugin or ())
        converter: Converter = CONVERTERS[name]
        manifest = converter(root, out, options)
    _summarise(as_json, out, manifest)


@shards.command()
def huggingface(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name on the hub, local folder or parquet file.")
    ],
    out: OutDir,
    map_file: MapFile,
    tasks: Tasks = None,
    size: Size = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 1,
    samples_per_shard: PerShard = 1000,
    portable: Portable = False,
    as_json: AsJson = False,
) -> None:
    """Any data set that `datasets` can stream; needs twice the disk space while it writes."""
    from data_pipelines.convert.huggingface import write_huggingface
    from data_pipelines.convert.mapping import FieldMap
    from data_pipelines.convert.options import ConversionOptions

    options = ConversionOptions(
        tasks=_split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with _user_errors():
        manifest = write_huggingface(dataset, out, FieldMap.load(map_file), options)
    _summarise(as_json, out, manifest)


@shards.command()
def index(
    root: Annotated[Path, typer.Argument(help="Folder of .tar files.")],
    map_file: MapFile,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Write the manifest and the indexes of existing WebDataset shards."""
    from data_pipelines.convert.index import index_shards
    from data_pipelines.convert.mapping import FieldMap

    _summarise(as_json, root, index_shards(root, FieldMap.load(map_file), workers=workers))


@shards.command()
def images(
    root: Annotated[Path, typer.Argument(help="Folder of shards.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the images.")],
    split: Annotated[str, typer.Option(help="Split to read.")] = "val",
    limit: Annotated[int, typer.Option(min=1, help="Number of images.")] = 6,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Extract the first images of a split from the shards."""
    from data_pipelines.shards.extract import extract_images

    paths = extract_images(root, out, split=split, limit=limit, overwrite=overwrite)
    finish(as_json, {"images": len(paths)})


def _split_names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(filter(None, (name.strip() for name in text.split(","))))


@contextmanager
def _user_errors() -> Iterator[None]:
    """Raise a ValueError of the block as the command's error message."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def _counts(manifest: Manifest) -> dict[str, int]:
    return {name: split.num_samples for name, split in manifest.splits.items()}


def _summarise(as_json: bool, out: Path, manifest: Manifest) -> None:
    splits = manifest.splits
    labelled = {
        field: {name: split.labelled.get(field, 0) for name, split in splits.items()}
        for field in manifest.fields
    }
    conversion = manifest.conversion
    skipped = conversion.skipped if conversion else {}
    missing = conversion.missing if conversion else {}
    values: dict[str, Any] = {"out": str(out), "samples": _counts(manifest), "skipped": skipped}
    if as_json:
        finish(True, values | {"labelled": labelled, "missing": missing})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("field", *(escape(name) for name in splits), "left out")
    for name, counts in labelled.items():
        reasons = ", ".join(f"{count} {why}" for why, count in missing.get(name, {}).items())
        table.add_row(escape(name), *(str(count) for count in counts.values()), escape(reasons))
    table_console().print(table)
    finish(False, values)
