"""The commands `dmtg shards`: convert data sets to WebDataset shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.options import Overwrite, Plugins
from trainer.commands.output import AsJson, finish
from trainer.commands.shards_csv import csv
from trainer.commands.shards_options import (
    GroupBy,
    Limit,
    MapFile,
    OutDir,
    PerShard,
    Portable,
    Root,
    Seed,
    Size,
    Tasks,
    ValShare,
    Workers,
    split_names,
)
from trainer.commands.shards_summary import (
    next_commands,
    split_sizes,
    summarise,
    summarise_mix,
    user_errors,
)

shards = typer.Typer(help="Write data sets as WebDataset shards.", no_args_is_help=True)
shards.command()(csv)

NewDir = Annotated[Path, typer.Option("--out", help="Folder to write; must hold no data set.")]


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

    with user_errors():
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
    finish(as_json, {"out": str(out), "samples": split_sizes(manifest)})
    if not as_json:
        next_commands(out)


@shards.command()
def digits(
    out: NewDir, seed: Seed = 0, portable: Portable = False, as_json: AsJson = False
) -> None:
    """Pairs of real handwritten digits (scikit-learn's), 24 tasks."""
    from data_pipelines.synthetic.digits import write_digits

    manifest = write_digits(out, seed=seed, portable=portable)
    finish(as_json, {"out": str(out), "samples": split_sizes(manifest)})
    if not as_json:
        next_commands(out)


@shards.command()
def icons(
    out: NewDir,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 48,
    seed: Seed = 0,
    limit: Limit = None,
    workers: Workers = 1,
    samples_per_shard: PerShard = 1000,
    as_json: AsJson = False,
) -> None:
    """Drawings of the Material Design icons, 103 binary tasks: words of names, and tags."""
    from data_pipelines.synthetic.icons.write import write_icons

    with user_errors():
        manifest = write_icons(
            out, size, seed, limit=limit, workers=workers, samples_per_shard=samples_per_shard
        )
    tasks = len(manifest.fields) - 1  # without the image
    finish(as_json, {"out": str(out), "samples": split_sizes(manifest), "tasks": tasks})
    if not as_json:
        next_commands(out)


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
        tasks=split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with user_errors():
        buildings = BuildingSplits(splits, split_names(val_buildings) or (), val_share)
        manifest = write_taskonomy(root, out, buildings, options)
    summarise(as_json, out, manifest)


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
        tasks=split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with user_errors():
        manifest = write_celeba(root, out, options)
    summarise(as_json, out, manifest)


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
        tasks=split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with user_errors():
        load_plugins(plugin or ())
        converter: Converter = CONVERTERS[name]
        manifest = converter(root, out, options)
    summarise(as_json, out, manifest)


@shards.command()
def huggingface(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name on the hub, local folder or parquet file.")
    ],
    out: OutDir,
    map_file: MapFile,
    val_share: ValShare = None,
    group_by: GroupBy = None,
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
        tasks=split_names(tasks),
        image_size=size,
        limit=limit,
        seed=seed,
        portable=portable,
        samples_per_shard=samples_per_shard,
        workers=workers,
    )
    with user_errors():
        field_map = FieldMap.load(map_file).updated(val_share=val_share, group_by=group_by)
        manifest = write_huggingface(dataset, out, field_map, options)
    summarise(as_json, out, manifest)


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

    summarise(as_json, root, index_shards(root, FieldMap.load(map_file), workers=workers))


@shards.command()
def mix(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Folders or URLs of shards; NAME=FOLDER gives a name."
        ),
    ],
    out: OutDir,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Names of sources, separated by commas, or 'all': their tasks are called "
            "NAME_TASK, as two data sets with different labels of one name need."
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy shards that could be hard links.")
    ] = False,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Join folders of shards to one data set; data.mix weighs its sources."""
    from data_pipelines.convert.mix import mix_shards

    names = split_names(prefix) or ()
    manifest = mix_shards(sources, out, prefix=names, copy=copy, workers=workers)
    summarise_mix(as_json, out, manifest)


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
