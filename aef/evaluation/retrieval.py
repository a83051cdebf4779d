"""Do words find their place? Retrieval of text points by their embeddings, on places that training never read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aef.data.chips import PIXEL_M, Chip, TextPoint
from aef.data.contract import grid_position
from aef.mapping.trained import TrainedModel
from aef.objective.contrastive import disc_mean
from aef.timecode import Period


class RetrievalError(ValueError):
    """There is nothing to retrieve; one line."""


@dataclass(frozen=True)
class Retrieval:
    """How well each text finds its own place among the places of the other texts of the same dates.

    Dates are part of the question (the text head reads the valid period) and a place shows the year in which it was
    embedded, so that places of other dates would be told apart without a word.

    Attributes:
        texts: number of texts.
        places: chips that they come from.
        top1, top5: share of texts whose place is first, or among the first five.
        chance1, chance5: what drawing at random would give.
        percentile: mean share of the other places that come after the true one; 0.5 is chance.
    """

    texts: int
    places: int
    top1: float
    top5: float
    chance1: float
    chance5: float
    percentile: float


def rank_places(
    text: np.ndarray, place: np.ndarray, identity: Sequence[str], dates: Sequence[Period]
) -> tuple[np.ndarray, np.ndarray]:
    """For each text, how many other places of the same dates come before its own, and how many there are.

    Places of the same text are no mistakes: they are left out, as they are no negatives in training.

    Args:
        text, place: (K, D) unit vectors; row k of both belong together.
        identity, dates: the K texts and when they hold.
    """
    score = text @ place.T
    names, starts, ends = np.asarray(identity), *np.asarray(dates, np.int64).reshape(-1, 2).T
    other = names[:, None] != names[None, :]
    other &= (starts[:, None] == starts[None, :]) & (ends[:, None] == ends[None, :])
    before = ((score > np.diagonal(score)[:, None]) & other).sum(1)
    return before, other.sum(1)


def summarise(before: np.ndarray, others: np.ndarray, places: int) -> Retrieval:
    """Counts of `rank_places` as shares, beside chance; a text without a rival does not count.

    Raises RetrievalError where none has.
    """
    before, others = before[others > 0], others[others > 0]
    if not len(before):
        raise RetrievalError("retrieval needs at least two different texts of the same dates")

    def chance(first: int) -> float:
        return float(np.minimum(first / (others + 1), 1).mean())

    return Retrieval(
        texts=len(before),
        places=places,
        top1=float((before < 1).mean()),
        top5=float((before < 5).mean()),
        chance1=chance(1),
        chance5=chance(5),
        percentile=float(1 - (before / others).mean()),
    )


def text_retrieval(
    model: TrainedModel,
    chips: Iterable[Chip],
    vectors: Callable[[str], np.ndarray | None],
    *,
    keep: Callable[[Chip, TextPoint], bool] = lambda chip, point: True,
) -> Retrieval:
    """Retrieve the text points of chips, each embedded over its own dates.

    Args:
        model: with a text head.
        chips: places that training never read.
        vectors: a text's vector by the tower that the run learnt from (`aef.text.cache.VectorCache`).
        keep: which text points.

    Raises:
        RetrievalError: the model learnt from no text, or no two different texts have the same dates.
    """
    if model.model.text_head is None:
        raise RetrievalError("this model has no text head: it learnt from no text")
    texts, places, names, dates, count = [], [], [], [], 0
    for chip in chips:
        points = [point for point in chip.texts if vectors(point.text) is not None and keep(chip, point)]
        for point, text, place in _aligned(model, chip, points, vectors):
            texts.append(text)
            places.append(place)
            names.append(point.text)
            dates.append(Period(point.time_ms, point.time_end_ms))
        count += bool(points)
    if not names:
        raise RetrievalError("there is no text with a vector: attach and encode some")
    return summarise(*rank_places(np.stack(texts), np.stack(places), names, dates), count)


def _aligned(
    model: TrainedModel, chip: Chip, points: list[TextPoint], vectors: Callable[[str], np.ndarray | None]
) -> Iterator[tuple[TextPoint, np.ndarray, np.ndarray]]:
    """Each text point with the direction of its text and that of its place, over the dates of the text."""
    head = model.model.text_head
    assert head is not None
    for period in dict.fromkeys(Period(point.time_ms, point.time_end_ms) for point in points):
        own = [point for point in points if (point.time_ms, point.time_end_ms) == period]
        field, _ = model.embed_array(chip, [period])
        mean = torch.from_numpy(np.moveaxis(field, 1, -1))  # (1, H, W, D)
        pixel = torch.tensor([[int(i) for i in grid_position(chip.transform, p.x, p.y)] for p in own])
        radius = torch.tensor([point.uncertainty_m / PIXEL_M for point in own])
        place = disc_mean(mean, torch.zeros(len(own), dtype=torch.int64), pixel, radius)
        periods = torch.tensor([period] * len(own), device=model.device)
        found = torch.from_numpy(np.stack([known for p in own if (known := vectors(p.text)) is not None]))
        with torch.inference_mode():
            text, _ = head(found.to(model.device), periods, model.model.compute_dtype)
        yield from zip(own, text.float().cpu().numpy(), place.numpy())
