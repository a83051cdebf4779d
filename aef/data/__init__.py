"""From rasters to batches: chips, their folders and shards, statistics, sampling, collation."""

from __future__ import annotations

from typing import Any

__all__ = ["AEFNPZDataset"]


def __getattr__(name: str) -> Any:
    # Lazily, so that reading chips does not load torch.
    if name in __all__:
        from aef.data.dataset import AEFNPZDataset

        return AEFNPZDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
