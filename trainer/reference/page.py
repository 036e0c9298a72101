"""The page docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterable

from dmtg.plugins import ENCODERS
from trainer.config.keys import Key
from trainer.config.unions import CHOICES
from trainer.reference.entries import (
    OPTIONS,
    Entry,
    describe_alternative,
    describe_encoder,
    entries,
    unions,
)

_HEAD = """\
# Configuration

<!-- Written by `make reference` from trainer/config/, trainer/recipes/ and model/encoders/. -->

A run is a YAML file, and `section.key=value` on the command line over it:

```bash
dmtg train experiments/digits.yaml optim.lr=1e-3 --print-config
```

`--print-config` prints all keys with their values and stops. `dmtg init SHARDS` writes a file to
start with, `dmtg keys optim.schedule` prints a part of this page.

- `base: other.yaml` takes the keys of another file, relative to this one; only what differs is
  given. Another recipe or schedule than that of the base replaces the whole section.
- `model.encoder: NAME` stands for `{name: NAME}`, `optim.schedule: NAME` too, and
  `data.image_size: 64` for `[64, 64]`.
- An empty section has the defaults of all its keys.
- All errors are reported at once, one line each: the key, the value found, what is allowed, and the
  name that was probably meant.

**Editors.** `dmtg schema --out dmtg.schema.json` writes a JSON Schema, and this first line of a
file beside it gives completion and checks in editors with a YAML language server (VS Code, Neovim,
PyCharm):

```yaml
# yaml-language-server: $schema=dmtg.schema.json
```

Names of recipes, encoders and other parts are checked in a file without `plugins` and `base`; with
them every name is accepted, because a plug-in may register it. `dmtg schema --plugin MODULE` adds
the names and keys of a plug-in.

A key whose default is "required" must be given. Numbers may have an exponent, as in `3e-4`.
"""


def configuration_page() -> str:
    """Return the page as Markdown: a section for each section of the configuration."""
    listed = list(entries())
    parts = [_HEAD]
    for top in [entry for entry in listed if "." not in entry.path]:
        parts.append(f"## `{top.path}`\n\n{top.meaning}\n" if top.is_section else _plain(top))
        inner = [e for e in listed if e.path.startswith(f"{top.path}.") and not e.of]
        parts += _tables(top.path, inner)
        for union, noun in unions():
            if union.path.partition(".")[0] == top.path:
                parts += _alternatives(union, noun, listed)
        if top.path == "model":
            parts += _encoders(listed)
    return "\n".join(parts)


def _plain(entry: Entry) -> str:
    return f"## `{entry.path}`\n\n{_table([entry])}"


def _tables(path: str, inner: list[Entry]) -> Iterable[str]:
    """Yield the table of a section's own keys, then those of the mappings in it."""
    own = [entry for entry in inner if "." not in entry.path.removeprefix(f"{path}.")]
    if own:
        yield _table(own)
    deeper = [entry for entry in inner if entry not in own and not entry.is_section]
    for parent in dict.fromkeys(entry.path.rpartition(".")[0] for entry in deeper):
        meaning = next(entry.meaning for entry in inner if entry.path == parent)
        yield f"### `{parent}`\n\n{meaning}\n"
        yield _table([entry for entry in deeper if entry.path.rpartition(".")[0] == parent])


def _alternatives(union: Key, noun: str, listed: list[Entry]) -> Iterable[str]:
    """Yield a table for each recipe, schedule or the like."""
    for name in union.alternatives:
        own = [e for e in listed if e.of == f"{noun} {name}" and e.path.startswith(union.path)]
        yield f"### {noun.capitalize()} `{name}`\n\n{describe_alternative(union, name)}\n"
        yield _table(own) if own else f"No keys but `{CHOICES[union.path][0]}`.\n"


def _encoders(listed: list[Entry]) -> Iterable[str]:
    for name in ENCODERS.names():
        own = [e for e in listed if e.of == f"encoder {name}"]
        yield f"### Options of the encoder `{name}`\n\n{describe_encoder(name)}\n"
        yield _table(own) if own else "No options.\n"
        if ENCODERS[name].more_options:
            yield f"Other keys of `{OPTIONS}` are passed on to the library, which knows them.\n"


def _table(own: list[Entry]) -> str:
    lines = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for entry in own:
        default = entry.default if entry.default in ("", "required") else f"`{entry.default}`"
        cells = (f"`{entry.path}`", entry.allowed, default, entry.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
