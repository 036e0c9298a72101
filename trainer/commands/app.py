"""The command `dmtg`."""

from __future__ import annotations

import sys

import typer

from dmtg.terminal import protect_output
from trainer.commands.bench import bench
from trainer.commands.compare import compare
from trainer.commands.doctor import doctor
from trainer.commands.evaluate import evaluate
from trainer.commands.export import export
from trainer.commands.groups import groups
from trainer.commands.init import init
from trainer.commands.keys import keys
from trainer.commands.launch_files import launch_files
from trainer.commands.plan import plan
from trainer.commands.predict import predict
from trainer.commands.push import push
from trainer.commands.report import report
from trainer.commands.schema import schema
from trainer.commands.shards import shards
from trainer.commands.slurm import slurm
from trainer.commands.status import status
from trainer.commands.train import train
from trainer.errors import report_error

app = typer.Typer(
    help="Multi-task training that learns the grouping: data, training, export, prediction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would double the time that it takes
)
app.add_typer(shards, name="shards")
app.add_typer(bench, name="bench")
app.command()(train)
app.command()(compare)
app.command()(plan)
app.command()(slurm)
app.command()(status)
app.command()(groups)
app.command()(export)
app.command("eval")(evaluate)
app.command()(predict)
app.command()(push)
app.command()(report)
app.command()(doctor)
app.command()(init)
app.command()(keys)
app.command()(schema)
app.command("launch-files")(launch_files)


def main() -> None:
    """Run `dmtg`; an error that the user can correct is one message and exit code 2."""
    protect_output()
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_error(error))
