"""AlphaEarth Foundations, trainable: satellite time series in, one 64-d unit vector per 10 m pixel and period out.

Importing `aef` is light on purpose: it loads neither torch nor geospatial libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from aef.mapping.trained_model import TrainedModel

__version__ = "0.1.0"


def load(run: str | os.PathLike, *, device: str = "cpu") -> TrainedModel:
    """The trained model of a run folder: ``aef.load(RUN).embed(chip, ("2018-01-01", "2019-01-01"))``.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU where there is one.

    Raises:
        aef.run.RunError: there is no such device, or the folder is missing, foreign, partial or of a newer version of this software.
    """
    from aef.mapping.trained_model import load as load_trained

    return load_trained(run, device=device)
