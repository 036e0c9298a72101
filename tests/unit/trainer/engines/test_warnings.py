"""Which warnings of libraries a run does not show."""

import warnings

import pytest

from trainer.engines.accelerator import _ignore_warnings

STRIDES = (
    "Grad strides do not match bucket view strides. This is not an error.\n"
    "grad.sizes() = [{}], strides() = [49, 1, 7, 1]\nbucket_view.sizes() = [{}], strides() = [1]"
)


@pytest.mark.parametrize(
    ("message", "category", "shown"),
    [
        ("`broadcast_buffers` is deprecated. Use `forward_sync_buffers`", FutureWarning, False),
        ("`torch.distributed.all_gather_into_tensor` is deprecated.", FutureWarning, False),
        ("`torch.distributed.all_reduce` is deprecated.", FutureWarning, True),
        (STRIDES.format("16, 1, 7, 7", "16, 1, 7, 7"), UserWarning, False),
        (STRIDES.format("16, 8, 1, 1", "16, 8, 1, 1"), UserWarning, False),
        (STRIDES.format("16, 11, 3, 3", "16, 11, 3, 3"), UserWarning, True),
    ],
)
def test_warnings(message, category, shown):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ignore_warnings()
        warnings.warn(message, category, stacklevel=1)
    assert len(caught) == shown
