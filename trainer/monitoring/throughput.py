"""Floating-point operations of a step, and the fraction of the device's peak that a run reaches."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from data_pipelines.reading.collate import Batch
from model.heads.layout import HeadSelection
from model.network import MultiTaskNetwork
from trainer.monitoring.flops import flop_counter

logger = logging.getLogger(__name__)

# Dense bf16 and fp16 matrix products with fp32 sums, TFLOP/s, from the makers' data sheets; those
# of TF32 are half as fast. A name comes before the names that it contains.
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "MI300X": 1307.0,
}
_OF_PEAK = {"bf16": 1.0, "fp16": 1.0, "tf32": 0.5}
_WITHOUT_TF32 = ("V100", "T4")


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return the peak of a device in TFLOP/s; None if it is not known.

    Args:
        precision: As `run.precision`; the peak of `fp32` is not known.
    """
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device), precision)


def peak_of_name(name: str, precision: str = "bf16") -> float | None:
    """Return the peak in TFLOP/s of a device of this name; None if it is not in the table."""
    words = f" {name.replace('-', ' ')} "
    model = next((model for model in _PEAK_TFLOPS if f" {model} " in words), None)
    if model is None or precision not in _OF_PEAK:
        return None
    if precision == "tf32" and model in _WITHOUT_TF32:
        return None
    return _OF_PEAK[precision] * _PEAK_TFLOPS[model]


class StepFlops:
    """Counts the floating-point operations of a step, again when they may have changed."""

    def __init__(self) -> None:
        self._counted: tuple[object, ...] | None = None
        self._count: int | None = None

    def of(
        self, module: MultiTaskNetwork, selection: HeadSelection, micro_batches: Sequence[Batch]
    ) -> int | None:
        """Return the operations of this process in a step, or None if they cannot be counted.

        Args:
            module: The network.
            selection: The heads that are computed.
            micro_batches: Of the step.
        """
        # All heads of a task cost the same, whatever the branch, and so do all branches.
        tasks = tuple(sorted(task for task, _ in selection.heads))
        trained = tuple(parameter.requires_grad for parameter in module.parameters())
        counted = (tasks, len(selection.branches), trained, len(micro_batches))
        if counted != self._counted:
            self._counted = counted
            try:
                self._count = len(micro_batches) * count_flops(module, selection, micro_batches[0])
            except Exception as error:  # of any library's encoder; the run needs no such number
                logger.info("the operations of a step cannot be counted: %s", error)
                self._count = None
        return self._count


def count_flops(module: MultiTaskNetwork, selection: HeadSelection, batch: Batch) -> int:
    """Return the operations of a forward and a backward pass; a multiply-add counts as two.

    They are counted on a copy on the `meta` device: nothing is computed, and neither the weights,
    which an engine may have sharded, nor the random numbers of the run change.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        copy = MultiTaskNetwork.from_config(module.config())
        for copied, original in zip(copy.parameters(), module.parameters(), strict=True):
            copied.requires_grad_(original.requires_grad)
        shapes = batch.to("meta")
        targets = copy.labels.targets(shapes.scalars, shapes.dense, shapes.valid_rows)
        with flop_counter() as counter:
            copy(shapes.images, copy.select(selection.heads), targets)["losses"].sum().backward()
    return counter.get_total_flops()
