"""Training: batch -> forward -> objective -> backward -> step -> log. Read `engine.py` first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Trainer

__all__ = ["Trainer"]


def __getattr__(name: str):
    # Importing the engine loads torch; `aef.training` itself stays light.
    if name == "Trainer":
        from .engine import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
