"""Options that several commands of `dmtg` have."""

from __future__ import annotations

from typing import Annotated

import typer

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="Module that registers parts, such as my_package.my_module; may be repeated.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that exist; without it they are an error."),
]
Preprocess = Annotated[
    str,
    typer.Option(
        "--preprocessing",
        help="Inside the graph of ONNX or torch.export: none, normalize (the input is uint8 "
        "[B,3,h,w]), or resize (uint8 [B,H,W,3], photos of any size).",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Only this task; repeatable. Only what these tasks need is read from the file.",
    ),
]
