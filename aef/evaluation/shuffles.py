"""Was it learned for the right reason? Chips whose time or neighbourhood has been destroyed, labels intact.

Applied when embedding, without retraining: a gain that rests on phenology falls when frames trade their dates, and one
that rests on neighbours falls when pixels move away from theirs, their labels moving with them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from aef.data.chips import Chip, Label, SourceSeries


def shuffle_time(chip: Chip, seed: int = 0) -> Chip:
    """Frames of each source trade places in time: values, masks and weights are permuted against the dates."""
    rng = np.random.default_rng(seed)

    def shuffled(series: SourceSeries) -> SourceSeries:
        if series.time_ms is None or series.row is not None:
            return series
        order = rng.permutation(series.frames)
        weight = None if series.weight is None else series.weight[order]
        return dataclasses.replace(series, values=series.values[order], valid=series.valid[order], weight=weight)

    return dataclasses.replace(chip, sources={name: shuffled(series) for name, series in chip.sources.items()})


def pixel_order(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Where `shuffle_pixels` takes each pixel of a chip from: (H W,) flat indices."""
    return np.random.default_rng(seed).permutation(height * width)


def shuffle_pixels(chip: Chip, seed: int = 0) -> Chip:
    """Pixels move to random places, the same move in every source on the chip's grid, and in the labels."""
    order = pixel_order(chip.height, chip.width, seed)
    side = (chip.height, chip.width)

    def moved(array: np.ndarray) -> np.ndarray:
        if array.shape[-2:] != side:
            return array
        flat = array.reshape(*array.shape[:-2], -1)
        return flat[..., order].reshape(array.shape)

    def shuffled(series: SourceSeries) -> SourceSeries:
        if series.transform is not None or series.row is not None:
            return series
        weight = None if series.weight is None else moved(series.weight)
        return dataclasses.replace(series, values=moved(series.values), valid=moved(series.valid), weight=weight)

    def relabelled(label: Label) -> Label:
        fields = None if label.fields is None else moved(label.fields)
        return dataclasses.replace(label, values=moved(label.values), fields=fields)

    return dataclasses.replace(
        chip,
        sources={name: shuffled(series) for name, series in chip.sources.items()},
        labels={name: relabelled(label) for name, label in chip.labels.items()},
    )


def put_back(field: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A field (D, h, w) of a chip with shuffled pixels, each pixel again where it came from."""
    out = np.empty_like(field).reshape(field.shape[0], -1)
    out[:, order] = field.reshape(field.shape[0], -1)
    return out.reshape(field.shape)
