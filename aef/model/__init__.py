"""The network: `aef.py` is the place to start reading."""

from .aef import AEF, Output

__all__ = ["AEF", "Output"]
