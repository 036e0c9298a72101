"""Raise one error on all ranks where only one of them has it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


def first_message(accelerator: Accelerator, message: str | None) -> str | None:
    """Return the message of the first rank that has one; every rank must call it.

    Where no rank has a message this costs a sum of one number.
    """
    if accelerator.num_processes == 1:
        return message
    count = torch.tensor(float(message is not None), device=accelerator.device)
    if not float(accelerator.reduce(count, reduction="sum")):
        return None
    messages = gather_object([message])
    return next(message for message in messages if message is not None)
