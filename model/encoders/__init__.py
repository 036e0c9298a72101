"""Encoders by name: each a shared trunk and K branches; a module here for each architecture.

`build_encoder` is called by `trainer.builders` and by `MultiTaskNetwork.from_config`.
"""

from model.encoders.build import build_encoder
from model.encoders.encoder import Encoder

__all__ = ["Encoder", "build_encoder"]
