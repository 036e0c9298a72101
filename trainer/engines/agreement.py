"""Lets all ranks fail with one message, where only one of them knows what went wrong."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


def first_message(accelerator: Accelerator, own: str | None) -> str | None:
    """The message of the first rank that has one, the same on every rank, all of which must call.

    Without a message this costs a sum of one number.
    """
    if accelerator.num_processes == 1:
        return own
    found = torch.tensor(float(own is not None), device=accelerator.device)
    if not float(accelerator.reduce(found, reduction="sum")):
        return None
    messages = gather_object([own])
    return next(message for message in messages if message is not None)
