"""The run folder: its paths, its lock, and the check whether a start may use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from dmtg.files import atomic_write
from dmtg.secrets import without_secrets_in
from dmtg.yaml_text import YamlError, read_yaml
from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.config.renamed import migrated
from trainer.config.unions import CHOICES
from trainer.errors import UserError
from trainer.run_lock import lock

# Keys and sections that may change when a run is resumed. What is learned follows the new value
# from there on (docs/failures.md says what that means for the length of a run); a change of any
# other key makes it another run.
_LEARNING = (
    "run.steps",
    "run.epochs",
    "optim.lr",
    "optim.heads_lr",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.max_grad_norm",
)
# These change nothing that is learned, or less than another number of processes does.
_FREE = (
    "run.out",
    "run.resume",
    "run.max_minutes",
    "run.timeout_seconds",
    "run.stall_seconds",
    "run.checkpoint_every",
    "run.device",
    "run.cudnn_benchmark",
    "run.overlap_comm",
    "run.keep_last",
    "run.keep_every",
    "run.async_checkpoint",
    "run.profile",
    "run.profile_ranks",
    "data.shards",
    "data.eval_split",
    "data.cache_dir",
    "data.cache_gb",
    "data.retry_seconds",
    "data.on_error",
    "data.max_bad_fraction",
    "data.allow_flat_labels",
    "data.workers",
    "model.channels_last",
    "model.compile",
    "model.activation_checkpointing",
    "optim.gradient_accumulation_steps",
    "optim.skip_nonfinite",
    "eval",
    "log",
)
_NOT_NOTED = ("run.out", "run.resume")


class RunFolder:
    """The folder `run.out` of a run.

    Attributes:
        changes: What the configuration changes of that in the folder, a line each; for the process
            that has claimed it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.config = out / "config.yaml"
        self.metrics = out / "metrics.jsonl"
        self.grouping = out / "grouping.jsonl"
        self.checkpoints = out / "checkpoints"
        self.logs = out / "logs"
        self.changes: list[str] = []
        self._lock: BaseFileLock | None = None
        self._made: list[Path] = []

    def load_config(self) -> Config:
        """Return the configuration of the run.

        Raises:
            UserError: The folder holds no run, or its configuration cannot be used.
        """
        if not self.config.is_file():
            raise UserError(f"{self.out} holds no run (config.yaml is missing)")
        try:
            tree = read_yaml(self.config)
        except YamlError as error:
            raise UserError(f"{self.config}: {error}") from None
        if not isinstance(tree, dict):
            raise UserError(f"{self.config}: holds no mapping of sections")
        if "plugins" not in tree:  # written by version 1, which had other keys
            tree = migrated(tree)
        return parse_config(tree, str(self.config))

    def claim(self, config: Config, wait_seconds: float | None = None) -> None:
        """Lock the folder for this process, and then check that this run may write to it.

        The folder is made if it does not exist; `release` deletes it again unless `create` was
        called. A claim may be made again by the same process, and is released as often.

        Args:
            config: Of the run.
            wait_seconds: How long to wait for another process that uses the folder; as `lock`.

        Raises:
            UserError: Another process uses the folder, or as `check`.
            OSError: The folder cannot be made or written to.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"run.out: {self.out} exists and is not the folder of a run")
        path = self.out / "lock"
        made = [each for each in (path, self.out, *self.out.parents) if not each.exists()]
        self._lock = lock(path, wait_seconds)
        self._made = made
        try:
            self.check(config)
        except BaseException:
            self.release()
            raise

    def check(self, config: Config, *, may_change: bool = True) -> None:
        """Check that this run may write to the folder, which is decided by who holds its lock.

        Credentials of URLs are not compared: a run continues with new ones.

        Args:
            config: Of the run.
            may_change: Whether what is learned may change from here on, as in a resume.

        Raises:
            UserError: The folder holds another run, or this run while `run.resume` is `never`.
        """
        if not self.config.exists():
            if self.out.exists() and (not self.out.is_dir() or self.checkpoints.exists()):
                raise UserError(f"run.out: {self.out} exists and is not the folder of a run")
            return
        if config.run.resume == "never":
            raise UserError(
                f"run.out: {self.out} already holds a run; set run.resume=auto to continue it, "
                "or name another folder"
            )
        saved, new = (without_secrets_in(c.model_dump()) for c in (self.load_config(), config))
        changes = dict(_differences(saved, new))
        allowed = (*_FREE, *_LEARNING) if may_change else _FREE
        refused = [text for path, text in changes.items() if not _is_in(path, allowed)]
        if refused:
            listed = "\n".join(f"  {text}" for text in refused)
            raise UserError(
                f"run.out: {self.out} holds another run:\n{listed}\n"
                + (_way_forward(self.out) if may_change else "name another folder")
            )
        self.changes = [text for path, text in changes.items() if not _is_in(path, _NOT_NOTED)]

    def create(self, config: Config) -> None:
        """Save the resolved configuration in the claimed folder, which makes it that of a run."""
        with atomic_write(self.config) as file:
            file.write(config.to_yaml())
        self.checkpoints.mkdir(exist_ok=True)

    def release(self) -> None:
        """Release the lock of the folder; delete what `claim` made if it holds no run."""
        held, self._lock = self._lock, None
        if held is None:
            return
        made = [] if self.config.exists() else self._made
        for path in made:  # while it is locked: a process that waits makes it anew
            with suppress(OSError):  # not empty, or gone
                path.rmdir() if path.is_dir() else path.unlink()
        held.release()


def _way_forward(out: Path) -> str:
    return (
        f"a resume may change {', '.join(_LEARNING)}, the sections eval and log, data.workers and "
        "other keys that only concern the machine; for a new run from these weights: dmtg export "
        f"{out} --out model.safetensors, and then run.out=NEW model.init_from=[model.safetensors]"
    )


def _is_in(path: str, keys: Sequence[str]) -> bool:
    """Return whether a dotted key is one of these keys, or in one of these sections."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and a line of text for every value that differs."""
    for key in old:
        path = f"{prefix}{key}"
        if old[key] == new[key]:
            continue
        choice, _ = CHOICES.get(path, (None, None))
        if choice is not None and old[key][choice] != new[key][choice]:
            was, is_ = old[key][choice], new[key][choice]
            yield f"{path}.{choice}", f"{path}.{choice} was {was!r}, is {is_!r}"
        elif (
            isinstance(old[key], dict)
            and isinstance(new[key], dict)
            and old[key].keys() == new[key].keys()
        ):
            yield from _differences(old[key], new[key], f"{path}.")
        else:
            yield path, f"{path} was {old[key]!r}, is {new[key]!r}"
