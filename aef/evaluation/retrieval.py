"""Do words and places find each other? Retrieval of texts by embeddings, on places that training never read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aef.data.chips import PIXEL_M, Chip, TextPoint
from aef.data.contract import grid_position
from aef.mapping.errors import EmbeddingError
from aef.mapping.trained_model import TrainedModel
from aef.objective.contrastive import disc_mean
from aef.timecode import Period


class RetrievalError(ValueError):
    """There is nothing to retrieve; one line."""


@dataclass(frozen=True)
class Retrieval:
    """How well places find their own text among the distinct texts of the same dates.

    Dates are part of the question (the text head reads the valid period) and a place shows the year in which it was
    embedded, so that texts of other dates would be told apart without a word.

    Attributes:
        points: text points asked about.
        texts: distinct texts among them.
        places: chips that they come from.
        top1, top5: share of points whose own text is first, or among the first five.
        chance1, chance5: what the same answers, dealt out at random over the points, would hit: at least one in `texts`,
            and more where frequent texts are answered more often.
        percentile: mean share of the other texts that come after the own one.
        chance_percentile: the same of answers that are dealt out at random.
    """

    points: int
    texts: int
    places: int
    top1: float
    top5: float
    chance1: float
    chance5: float
    percentile: float
    chance_percentile: float

    @property
    def interval(self) -> tuple[float, float]:
        """Shares of first answers between which 95 % of random dealings lie (normal approximation of the binomial)."""
        half = 1.96 * (self.chance1 * (1 - self.chance1) / self.points) ** 0.5
        return max(self.chance1 - half, 0.0), self.chance1 + half


def rank_texts(text: np.ndarray, place: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How many of D texts come before each text, as seen from each of K places: (K, D).

    Args:
        text: (D, dim) unit vectors of distinct texts.
        place: (K, dim) unit vectors.
        own: (K,) each place's text; of equal scores it comes last, so that a constant answer wins nothing.
    """
    score = place @ text.T
    order = np.lexsort((np.arange(len(text))[None] == own[:, None], -score), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(text))[None].repeat(len(place), 0), axis=1)
    return ranks


def summarise(groups: Sequence[tuple[np.ndarray, np.ndarray]], places: int) -> Retrieval:
    """Shares beside chance of `rank_texts` and ``own``, one pair per dates; dates of a single text do not count.

    Raises RetrievalError where there are no others.
    """
    groups = [(ranks, own) for ranks, own in groups if ranks.shape[1] > 1]
    if not groups:
        raise RetrievalError("retrieval needs at least two different texts of the same dates")
    points = sum(len(own) for _, own in groups)

    def share(of_ranks: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """Mean over points of a function of the own text's rank, and over all ways to deal the answers out."""
        hit = dealt = 0.0
        for ranks, own in groups:
            value = of_ranks(ranks)
            hit += float(np.take_along_axis(value, own[:, None], axis=1).sum())
            bearing = np.bincount(own, minlength=ranks.shape[1])
            dealt += float(value.mean(axis=0) @ bearing)
        return hit / points, dealt / points

    top1, chance1 = share(lambda ranks: (ranks < 1).astype(float))
    top5, chance5 = share(lambda ranks: (ranks < 5).astype(float))
    percentile, chance_percentile = share(lambda ranks: 1 - ranks / (ranks.shape[1] - 1))
    return Retrieval(
        points=points,
        texts=sum(ranks.shape[1] for ranks, _ in groups),
        places=places,
        top1=top1,
        top5=top5,
        chance1=chance1,
        chance5=chance5,
        percentile=percentile,
        chance_percentile=chance_percentile,
    )


def text_retrieval(
    model: TrainedModel,
    chips: Iterable[Chip],
    vectors: Callable[[str], np.ndarray | None],
    *,
    keep: Callable[[Chip, TextPoint], bool] = lambda chip, point: True,
) -> Retrieval:
    """Ask the place of every text point, embedded over the dates of its text, which of their texts is its own.

    Texts whose dates lie too far from their chip's observations to be embedded are left out.

    Args:
        model: with a text head.
        chips: places that training never read.
        vectors: a text's vector by the tower that the run learnt from (`aef.text.cache.VectorCache`).
        keep: which text points.

    Raises:
        RetrievalError: the model learnt from no text, or no two different texts have the same dates.
    """
    if model.network.text_head is None:
        raise RetrievalError("this model has no text head: it learnt from no text")
    by_dates: dict[Period, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    count = 0
    for chip in chips:
        points = [point for point in chip.texts if vectors(point.text) is not None and keep(chip, point)]
        aligned = list(_aligned(model, chip, points, vectors))
        for point, text, place in aligned:
            by_dates.setdefault(Period(point.time_ms, point.time_end_ms), []).append((point.text, text, place))
        count += bool(aligned)
    if not by_dates:
        raise RetrievalError("there is no text with a vector, of dates that its chip observed: attach and encode some")
    groups = []
    for rows in by_dates.values():
        names, text, place = zip(*rows)
        _, first, own = np.unique(names, return_index=True, return_inverse=True)
        groups.append((rank_texts(np.stack(text)[first], np.stack(place), own), own))
    return summarise(groups, count)


def _aligned(
    model: TrainedModel, chip: Chip, points: list[TextPoint], vectors: Callable[[str], np.ndarray | None]
) -> Iterator[tuple[TextPoint, np.ndarray, np.ndarray]]:
    """Each text point with the direction of its text and that of its place, over the dates of the text."""
    head = model.network.text_head
    assert head is not None
    for period in dict.fromkeys(Period(point.time_ms, point.time_end_ms) for point in points):
        dated = [point for point in points if (point.time_ms, point.time_end_ms) == period]
        try:
            field = model.embed_array(chip, [period])
        except EmbeddingError:
            continue
        mean = torch.from_numpy(np.moveaxis(field, 1, -1))  # (1, H, W, D)
        pixel = torch.tensor([[int(i) for i in grid_position(chip.transform, p.x, p.y)] for p in dated])
        radius = torch.tensor([point.uncertainty_m / PIXEL_M for point in dated])
        place = disc_mean(mean, torch.zeros(len(dated), dtype=torch.int64), pixel, radius)
        periods = torch.tensor([period] * len(dated), device=model.device)
        known = torch.from_numpy(np.stack([vector for p in dated if (vector := vectors(p.text)) is not None]))
        with torch.inference_mode():
            text, _ = head(known.to(model.device), periods, model.network.compute_dtype)
        yield from zip(dated, text.float().cpu().numpy(), place.numpy())
