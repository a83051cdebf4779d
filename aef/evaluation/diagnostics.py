"""Health of an embedding: does it give its inputs away, does it use its directions, is it spread over the sphere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Literal

import numpy as np

from aef.data.chips import Chip
from aef.evaluation.labels import unit_numbers
from aef.evaluation.probes import Labelled, better, effective_rank, probe
from aef.mapping.trained_model import TrainedModel
from aef.timecode import Period

PIXELS_PER_CHIP = 64
BLOCK_PX = 8
LINEAR_KINDS = ("linear", "ridge")
LEAST_PLACES = 6
"""From so many on a linear probe finds a direction that places share."""

WITHIN = " within places"


def presence_split(places: Iterable[str]) -> Literal["place", "block"]:
    """What `source_presence` keeps apart: places, or blocks of ground within places where there are fewer than six.

    Within a place the two embeddings are two tight clusters, which a plane tells apart in 64 dimensions whatever moved
    them: blocks give an upper bound near 1. Only what places share is a trace of the sensor; but a probe that learns on
    one or two places finds nothing even where they share it, and its 0.5 would say nothing.
    """
    return "place" if len(set(places)) >= LEAST_PLACES else "block"


def source_presence(
    model: TrainedModel,
    chips: Sequence[Chip],
    fields: Sequence[np.ndarray],
    period_of: Callable[[Chip], Period],
    *,
    trials: int = 5,
    seed: int = 0,
    on_chip: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Balanced accuracy of a linear probe for "was source X among the inputs?", per input source; 0.5 is chance. Names
    end in " within places" where the places at which a source counts are too few to split by place.

    ``fields`` (D, h, w) are the chips' over their periods, with all inputs. ``on_chip`` is called for each chip and source.

    The paper watches this (section 5, S3): an embedding should describe the ground, not the set of sensors. Each chip
    is embedded with and without the source, so that presence says nothing about the place. The probe is the better of λ
    = 0 and ridge; `presence_split` of the chips that count says what it is tested on. A chip counts where the source has a frame in the period,
    and another input one too: without the source it would else be embedded from the very same frames, or from none.
    """
    rng = np.random.default_rng(seed)
    number: dict[str, int] = {}
    places, pixels, complete, seen = [], [], [], []
    for chip, field in zip(chips, fields, strict=True):
        rows, columns, block = _drawn(chip, rng, number.setdefault(chip.place, len(number)))
        places.append(chip.place)
        pixels.append((rows, columns, block))
        complete.append(field[:, rows, columns].T)
        seen.append(set(model.passes(chip, [period_of(chip)])[0].sources))
    found = {}
    for name in model.inputs:
        vectors, labels, ground = [], [], []
        counting = [name in sources and sources != {name} for sources in seen]
        by_place = presence_split(compress(places, counting)) == "place"
        for index, counts in enumerate(counting):
            if counts:
                chip, (rows, columns, block) = chips[index], pixels[index]
                without = model.embed_array(chip, [period_of(chip)], leave_out=(name,))[0]
                for present, table in ((1, complete[index]), (0, without[:, rows, columns].T)):
                    vectors.append(table)
                    labels.append(np.full(PIXELS_PER_CHIP, present))
                    ground.append(block[:1] if by_place else block)
            on_chip()
        units = unit_numbers(*np.concatenate(ground, axis=1)) if ground else np.zeros(0)
        if len(np.unique(units)) >= 2:
            labelled = Labelled(np.concatenate(labels), units)
            scores = probe(
                {name: np.concatenate(vectors)}, labelled, shots=None, trials=trials, seed=seed, kinds=LINEAR_KINDS
            )
            found[name if by_place else f"{name}{WITHIN}"] = better(scores[name], LINEAR_KINDS)[1].balanced_accuracy
    return found


def _drawn(chip: Chip, rng: np.random.Generator, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of a chip, and the block of ground that each lies in: (3, N), number of the place, row and column."""
    rows, columns = rng.integers(0, chip.height, PIXELS_PER_CHIP), rng.integers(0, chip.width, PIXELS_PER_CHIP)
    return rows, columns, np.stack([np.full_like(rows, place), rows // BLOCK_PX, columns // BLOCK_PX])


def spread(fields: Sequence[np.ndarray], *, seed: int = 0) -> dict[str, float]:
    """Norm, uniformity, effective rank and variance between places of embedding fields (D, h, w) of different places.

    ``uniformity`` is the mean |cosine| of pixels drawn from different places (as in Eq. 3's term; its floor on random
    directions in 64 dimensions is 0.100, a collapse gives 1). ``between_places`` is the share of all variance
    that lies between the places' means: much of it where places look alike says that something else of a place, such
    as the orbits that see it, is in the embedding. Both are NaN for a single field.
    """
    rng = np.random.default_rng(seed)
    tables = [field.reshape(field.shape[0], -1).T for field in fields]
    drawn = [table[rng.integers(0, len(table), PIXELS_PER_CHIP)] for table in tables]
    pairs = [np.abs((one * other).sum(axis=1)).mean() for one, other in zip(drawn, [*drawn[1:], drawn[0]])]
    every = np.concatenate(drawn)
    within = sum(((table - table.mean(axis=0)) ** 2).sum() for table in tables)
    whole = np.concatenate(tables)
    total = ((whole - whole.mean(axis=0)) ** 2).sum()
    return {
        "norm": float(np.linalg.norm(every, axis=1).mean()),
        "uniformity": float(np.mean(pairs)) if len(fields) > 1 else float("nan"),
        "effective_rank": effective_rank(whole),
        "between_places": float(1 - within / total) if len(fields) > 1 and total > 0 else float("nan"),
    }
