"""The commands and examples of README.md and docs/: found, checked against parsers, and run.

A block of commands, or of Python, is run by a test unless a comment above it names a reason:
`<!-- not run: needs Slurm -->`. What is not run, and commands within sentences, is checked against
the parser of its program, the keys of configurations, and the files of the repository.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt

from tests.processes import ROOT, SETTINGS
from trainer.commands.app import app
from trainer.config.loading import load_config
from trainer.main import parse_arguments

PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
REASONS = (
    "needs Slurm",
    "needs a GPU",
    "needs network",
    "needs a data set",
    "takes minutes",
)
SHELLS = ("bash", "console", "sh")
# `text` is what a program prints; `{...}` is a directive of MyST.
LANGUAGES = (*SHELLS, "python", "text", "yaml", "toml", "json", "{eval-rst}", "{toctree}")
# Nothing of ours is in the arguments of these.
_FOREIGN = ("find", "hf", "kill", "python3", "scancel", "scontrol", "source")
_OURS = ("accelerate", "dmtg", "make", "pip", "python", "sbatch", "srun")
_EXAMPLE = ROOT / "experiments" / "demo.yaml"  # has every section


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Path of the page in the repository.
        line: Number of its first line.
        not_run: The reason why no test runs it; empty if one does.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a block of the shell, with continued lines joined."""
        if self.language not in SHELLS:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]


@dataclass(frozen=True)
class Page:
    """What a page holds.

    Attributes:
        blocks: All fenced blocks, in their order.
        inline: Commands within sentences and tables.
        problems: What no reader of the page should find there.
    """

    blocks: tuple[Block, ...]
    inline: tuple[str, ...]
    problems: tuple[str, ...]

    def commands(self) -> list[str]:
        """Return the commands that a test has to run."""
        return [line for block in self.blocks if not block.not_run for line in block.commands]


@cache
def read_page(name: str) -> Page:
    """Read a page by its path in the repository."""
    return parse_page(name, PAGES[name].read_text())


def parse_page(name: str, text: str) -> Page:
    """Find the blocks and commands of a page."""
    blocks: list[Block] = []
    inline: list[str] = []
    problems: list[str] = []
    reason = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        place = f"{name}:{token.map[0] + 1}" if token.map else name
        if reason and token.type != "fence":
            problems.append(f"{place}: 'not run: {reason}' is above no block")
            reason = ""
        if token.type == "html_block":
            found = re.fullmatch(r"<!-- not run: (.*) -->\n?", token.content)
            reason = found[1] if found else ""
            if reason and reason not in REASONS:
                problems.append(f"{place}: the reason {reason!r} is none of {', '.join(REASONS)}")
        elif token.type == "fence":
            assert token.map is not None
            block = Block(name, token.map[0] + 1, token.info.split(" ")[0], token.content, reason)
            if block.language not in LANGUAGES:
                problems.append(
                    f"{place}: a block of {block.language!r}, which is no language here"
                )
            if reason and not (block.commands or block.language == "python"):
                problems.append(f"{place}: 'not run' is above a block that nothing can run")
            blocks.append(block)
            reason = ""
        elif token.type == "code_block" and _is_command(token.content):
            problems.append(f"{place}: commands in an indented block; use ```bash")
        elif token.type == "inline":
            code = (child for child in token.children or () if child.type == "code_inline")
            inline += [child.content for child in code if _is_command(child.content)]
    if reason:
        problems.append(f"{name}: 'not run: {reason}' is above no block")
    return Page(tuple(blocks), tuple(inline), tuple(problems))


def _is_command(text: str) -> bool:
    return text.split(" ")[0] in _OURS and " " in text.strip()


# --- commands that are not run ---


def check_command(line: str) -> None:
    """Check a command as far as that is possible without running it.

    Words in capitals stand for something of the user, and `...` for more words.

    Raises:
        AssertionError: A file, target or key does not exist, or the program is unknown.
        click.UsageError, SystemExit: An option does not exist.
    """
    words = shlex.split(re.sub(r"\$\(\(.*?\)\)|\$\w+", "8", line), comments=True)
    words = [word for word in words if word not in ("...", "[overrides]")]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program in _CHECKS:
        _CHECKS[program](arguments)
    else:
        assert program in _FOREIGN, f"nothing is known of the program {program!r}"


def _check_dmtg(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0].isupper() or words[0] == "--help":
            return
        assert words[0] in command.commands, f"dmtg has no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    if words and words[-1].startswith("--") and _takes_value(command, words[-1]):
        words.append("VALUE")  # an option that a sentence names alone
    values, rest, _ = command.make_parser(command.context_class(command)).parse_args(words)
    assert not rest, f"too many words: {rest}"
    overrides = [text for text in values.get("overrides") or () if "=" in text]
    if values.get("config"):
        _check_config(values["config"], overrides)


def _takes_value(command: Any, option: str) -> bool:
    found = [param for param in command.params if option in param.opts]
    return bool(found) and not getattr(found[0], "is_flag", False)


def _check_config(path: str, overrides: list[str]) -> None:
    """Check that a configuration of the repository exists, and that overrides are of its keys."""
    if path.startswith("experiments/"):
        load_config(ROOT / path, overrides)
    else:
        load_config(_EXAMPLE, overrides)


def _check_main(words: list[str]) -> None:
    if not words:
        return
    parsed = parse_arguments(words)
    _check_config(str(parsed.config), parsed.overrides)


def _check_python(words: list[str]) -> None:
    if words[0] in ("-c", "-m"):
        return
    script = ROOT / words[0]
    if words[0] == "trainer/main.py":
        _check_main(words[1:])
    elif words[0].startswith("benchmarks/"):
        source = script.read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), words
    else:
        assert any(f"# {words[0]}\n" in page.read_text() for page in PAGES.values()), words[0]


def _check_accelerate(words: list[str]) -> None:
    assert words[0] == "launch", words[0]
    if len(words) == 1:
        return
    parsed = launch_command_parser().parse_args(words[1:])
    if parsed.config_file and not parsed.config_file.isupper():
        assert (ROOT / parsed.config_file).is_file(), parsed.config_file
    if parsed.training_script == "trainer/main.py":
        _check_main(parsed.training_script_args)


def _check_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, given, _ = word.partition("=")
        pattern = rf"\$\({name}\)" if given else rf"^{name}[^:=\n]*:|^[^:=\n]* {name}[ :]"
        assert re.search(pattern, text, re.MULTILINE), f"make has no {word!r}"


def _check_pip(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    known = re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1], re.M)
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        missing = set(extras.split(",")) - set(known)
        assert not missing, f"no extras {missing}"
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()


def _check_sbatch(words: list[str]) -> None:
    script = next(n for n, word in enumerate(words) if not word.startswith("-"))
    assert (ROOT / words[script]).is_file(), words[script]
    _check_main(words[script + 1 :])


def _check_srun(words: list[str]) -> None:
    if "-c" in words:
        check_command(words[words.index("-c") + 1])
    elif "accelerate" in words:
        check_command(shlex.join(words[words.index("accelerate") :]))


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "accelerate": _check_accelerate,
    "dmtg": _check_dmtg,
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_python,
    "sbatch": _check_sbatch,
    "srun": _check_srun,
}


# --- pages that are run ---


def run_page(name: str, dmtg: Callable[..., Any], like_a_process: Callable[..., Any]) -> str:
    """Run a page in the current folder: all its commands and examples, in their order.

    Python that begins with the name of a file, as `# read.py`, is written to it and not run.

    Args:
        dmtg: Runs `dmtg` with arguments and returns how it ended.
        like_a_process: The fixture.

    Returns:
        What the commands and examples have printed.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = io.StringIO()
    for block in read_page(name).blocks:
        if block.not_run:
            continue
        for line in block.commands:
            shown.write(run_command(line, dmtg))
        if block.language == "python":
            found = re.match(r"# (\w+\.py)\n", block.text)
            if found:
                Path(found[1]).write_text(block.text)
                continue
            with like_a_process(), contextlib.redirect_stdout(shown):
                exec(compile(block.text, str(block), "exec"), names)
    return shown.getvalue()


def run_command(line: str, dmtg: Callable[..., Any]) -> str:
    """Run a command in the current folder and return what it has printed."""
    if line.startswith("dmtg "):
        # The arguments as a shell gives them: patterns in quotation marks stay as they are.
        end = dmtg(*shlex.split(line, comments=True)[1:])
        assert end.code == 0, f"{line}\n{end.stdout}\n{end.stderr}"
        return end.stdout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line,
        shell=True,
        env={**os.environ, **SETTINGS, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def all_pages() -> Iterator[tuple[str, Page]]:
    """Yield the pages by name."""
    return ((name, read_page(name)) for name in PAGES)
