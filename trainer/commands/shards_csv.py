"""The command `dmtg shards csv`: shards from a table of labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.commands.output import AsJson, echo, finish, table_console
from trainer.commands.shards_options import (
    GroupBy,
    Limit,
    OutDir,
    PerShard,
    Portable,
    Seed,
    Size,
    Tasks,
    ValShare,
    Workers,
    split_names,
)
from trainer.commands.shards_summary import WIDTH, summarise, user_errors
from trainer.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.convert.table.source import TableSource

_VALUES_SHOWN = 5
MAP_NAME = "fields.yaml"
_CORRECT = " (correct it and give it back with --map)"
_MAX_ROWS = 60  # of the printed table; columns that need attention are always among them


def csv(
    table: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines (.jsonl) or parquet.")],
    out: OutDir,
    images: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the images. [default: the folder of the table]"),
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Corrected mapping file; else it is inferred.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of image paths or URLs; else it is inferred.")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column that names the split of each row.")
    ] = None,
    val_share: ValShare = None,
    group_by: GroupBy = None,
    tasks: Tasks = None,
    size: Size = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 1,
    samples_per_shard: PerShard = 1000,
    portable: Portable = False,
    skip_unreachable: Annotated[
        bool, typer.Option("--skip-unreachable", help="Leave out images of servers that fail.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what is inferred and write the mapping.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """A table of your own: one row for each image, one column for each label.

    Kinds of labels, the column of images and the splits are inferred, printed, and written to
    fields.yaml beside the shards; correct this file and give it back with --map. Without a column
    of splits, a share of 0.1 becomes the split val. The exit code is 1 if nothing of a column can
    be read.
    """
    from data_pipelines.convert.mapping import FieldMap
    from data_pipelines.convert.options import ConversionOptions
    from data_pipelines.convert.table.source import TableOptions, convert_table, open_table

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
        source = open_table(
            table,
            None if map_file is None else FieldMap.load(map_file),
            options,
            TableOptions(images, image_column, split_column, val_share, group_by, skip_unreachable),
        )
        if not as_json:
            _print_columns(source)
        map_path = _keep_map(source, out) if source.is_inferred else map_file
        if not as_json:
            echo(f"mapping: {map_path}" + (_CORRECT if source.is_inferred else ""))
        columns = {"map": str(map_path), "columns": [asdict(column) for column in source.columns]}
        if dry_run:
            sizes = {name: len(rows) for name, rows in source.splits.items()}
            if as_json:
                finish(True, {"out": str(out), "samples": sizes, **columns})
            else:
                finish(False, {"would write": str(out), "samples": sizes})
            return
        manifest = convert_table(source, out, options)
    summarise(as_json, out, manifest, columns)


def _print_columns(source: TableSource) -> None:
    """Print what was found in each column, and how the rows are divided."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from data_pipelines.convert.unreadable import counted

    columns = source.columns
    num_rows = source.rows.table.num_rows
    echo(f"{source.path}: {num_rows} rows, {len(columns)} columns")
    chosen = columns
    if len(columns) > _MAX_ROWS:
        urgent = [column for column in columns if column.unreadable or not column.kind]
        others = [column for column in columns if column not in urgent]
        chosen = tuple(urgent + others[: max(0, _MAX_ROWS - len(urgent))])
    table = Table("column", "kind", "values", "empty", box=box.SIMPLE)
    for column in chosen:
        found = column.found if column.kind else column.note
        kind = column.kind or "left out"
        table.add_row(escape(column.column), kind, escape(found), str(column.empty or ""))
    table.columns[1].no_wrap = True
    table_console(WIDTH, highlight=False).print(table)
    if len(chosen) < len(columns):
        echo(f"and {len(columns) - len(chosen)} more columns")
    for column in columns:
        if column.unreadable:
            echo(f"{column.column}: not read: {counted(column.unreadable, _VALUES_SHOWN)}")
        if column.note and column.kind:
            echo(f"{column.column}: {column.note}")
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in source.splits.items())
    echo(f"splits: {sizes}\n        {_division(source)}")
    if "val" not in source.splits:
        echo("no split val, which training evaluates on: add --val-share 0.1")
    for reason, count in source.skipped.items():
        echo(f"left out: {count} rows: {reason}")


def _division(source: TableSource) -> str:
    """Return in words how the rows were divided into splits."""
    field_map = source.field_map
    named = f"column {field_map.split_column}" if field_map.split_column else "all rows"
    if not field_map.val_share:
        return named
    by = f"column {field_map.group_by}" if field_map.group_by else "image"
    return f"{named}; {field_map.val_share:.3g} of train to val by a hash of the {by}"


def _keep_map(source: TableSource, out: Path) -> Path:
    """Write the inferred mapping beside the shards, unless a user has changed it there.

    Raises:
        UserError: Another mapping is there.
    """
    from data_pipelines.convert.mapping import FieldMap
    from dmtg.files import atomic_write

    path = out / MAP_NAME
    if path.exists():
        if FieldMap.load(path) != source.field_map:
            raise UserError(
                f"{path}: differs from what is inferred now; give it with --map {path}, or remove "
                "it"
            )
        return path
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(_map_text(source))
    return path


def _map_text(source: TableSource) -> str:
    from dmtg.yaml_text import dump_yaml

    lines = [
        f"# Inferred by `dmtg shards csv` from {source.path.name}; give it back with --map.",
        "# docs/data.md describes the entries.",
    ]
    mapped = {entry.get("column", name) for name, entry in source.field_map.fields.items()}
    left_out = [c for c in source.columns if not c.kind and c.column not in mapped]
    if left_out:
        lines.append("# Columns that are no labels:")
        lines += [f"#   {column.column}: {column.note}" for column in left_out]
    tree = source.field_map.model_dump(exclude_defaults=True)
    return "\n".join(lines) + "\n" + dump_yaml(tree, compact=True)
