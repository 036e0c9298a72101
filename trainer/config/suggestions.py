"""The key that a wrong dotted path of a configuration was meant to be."""

from __future__ import annotations

from dmtg.suggestions import closest
from trainer.config.allowed import either
from trainer.config.keys import all_keys
from trainer.config.section import Section

# What other programs call a key.
_OTHER_NAMES = {
    "accumulate_grad_batches": "optim.gradient_accumulation_steps",
    "amp": "run.precision",
    "backbone": "model.encoder",
    "batch": "data.global_batch",
    "batch_size": "data.global_batch",
    "checkpoint": "run.checkpoint_every",
    "clip_grad": "optim.max_grad_norm",
    "dataset": "data.shards",
    "epoch": "run.epochs",
    "epochs": "run.epochs",
    "eval_every": "eval.every",
    "eval_steps": "eval.every",
    "gradient_clip_val": "optim.max_grad_norm",
    "image_size": "data.image_size",
    "img_size": "data.image_size",
    "k": "model.branches",
    "learning_rate": "optim.lr",
    "log_every": "log.every",
    "logging_steps": "log.every",
    "lr": "optim.lr",
    "lr_scheduler": "optim.schedule",
    "max_epochs": "run.epochs",
    "max_steps": "run.steps",
    "mixed_precision": "run.precision",
    "num_branches": "model.branches",
    "num_epochs": "run.epochs",
    "num_train_epochs": "run.epochs",
    "num_workers": "data.workers",
    "optimizer": "optim.name",
    "output_dir": "run.out",
    "resolution": "data.image_size",
    "save_every": "run.checkpoint_every",
    "save_steps": "run.checkpoint_every",
    "scheduler": "optim.schedule",
    "steps": "run.steps",
    "train_batch_size": "data.global_batch",
    "warmup": "optim.warmup_steps",
    "wd": "optim.weight_decay",
}
_NEARLY_EQUAL = 0.85  # similarity of a wrongly written name to that of another program


def suggest_key(path: str, section: type[Section] | None = None, choice: str = "") -> str:
    """Return the end of a message about an unknown key, such as `; did you mean optim.lr?`.

    Args:
        path: Dotted path of the unknown key.
        section: The section that holds it; None for a key that is in no section.
        choice: The value that chose the section among those of a union; empty outside of unions.

    Returns:
        Nothing if no key is close.
    """
    here, _, key = path.rpartition(".")
    if section is not None and choice:
        others = [
            each.choice
            for each in all_keys()
            if each.path == path and each.choice and each.choice != choice
        ]
        if others:
            return f"; {key} is a key of {section.noun} {either(others)}"
    near = None if section is None else closest(key, section.model_fields)
    same = [
        each.path
        for each in all_keys()
        if each.path.rpartition(".")[2] == key
        and not any(part.isupper() for part in each.path.split("."))
    ]
    candidates = [
        _OTHER_NAMES.get(key.lower()),
        near if near is None or not here else f"{here}.{near}",
        _OTHER_NAMES.get(closest(key, _OTHER_NAMES, _NEARLY_EQUAL) or ""),
        *same,
    ]
    found = next((each for each in candidates if each is not None and each != path), None)
    return "" if found is None else f"; did you mean {found}?"
