"""What a decoder of dense tasks defines: the heads of one signature as one module.

Legend: M heads of the stack, m heads of one branch, B batch, C channels, O outputs,
h, w feature size, H, W image size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from model.rows import Rows


class DenseDecoder(nn.Module):
    """Dense heads; `dmtg.plugins.register_dense_decoder` gives a decoder its name.

    A decoder is called with the keywords `num_heads` (M), `channels` (C of the feature map),
    `outputs` (O, the values predicted for a pixel), `image_size` (H, W) and those in
    `model.decoder_options`.

    Every parameter and buffer has the heads as its leading axis: those that are pruned are cut from
    it. Parameters belong to the decoder itself, not to a submodule, because ZeRO-3 gathers what the
    module that is called holds; `model.heads.branch_rows.rows_of_each_branch` takes the rows of
    each branch from them.

    Attributes:
        takes_dense_widths: Whether the keyword `widths` is given, from `model.dense_widths`.
    """

    takes_dense_widths: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self, features: Sequence[Tensor | None], rows: Sequence[Rows | None]
    ) -> list[Tensor | None]:
        """Compute the chosen heads of each branch.

        Args:
            features: Per branch [B,C,h,w]; unused where rows is None.
            rows: Per branch the heads to compute.

        Returns:
            Per branch predictions [m,B,O,H,W], or None where rows is None.
        """
