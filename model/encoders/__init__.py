"""Encoders by name: a shared trunk and K branches."""

from model.encoders.build import build_encoder
from model.encoders.encoder import Encoder

__all__ = ["Encoder", "build_encoder"]
