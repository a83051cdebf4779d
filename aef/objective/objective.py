"""The objective, Eq. 3: l = a/|M| Σ_i w_i f_i + b Σ |u · u'| + c (1 − μ · μ_s)/2 + d f_CLIP(μ, μ_t).

Every term is a per-sample value averaged over the global batch, so results depend neither on the number of ranks nor on
how samples are spread over them. Rotation (uniformity) and negatives (text) reach over all ranks and, when gradients
are accumulated, over all micro-batches of the step: what these need of each other is embedded ahead of them
(`Objective.couple_passes`, `aef.training.ahead`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from aef.config import ConfigError, DataConfig, ObjectiveConfig
from aef.data.batch import Batch, TargetBlock
from aef.data.standardizer import Standardizer
from aef.data.statistics import Statistics
from aef.kernels.vmf.philox import WORD, philox4x32
from aef.objective.consistency import consistency
from aef.objective.contrastive import disc_mean
from aef.objective.coupling import Coupling, Kept, Passes
from aef.objective.grid import expand_cells
from aef.objective.reconstruction import cell_px, radius_px, reconstruction_error
from aef.objective.uniformity import uniformity_channels, uniformity_pairs
from aef.objective.world import World
from aef.sources import Registry, Source

GRID_STREAM = 0x47524944
"""Fourth Philox word of the re-gridding offsets: keeps them apart from the bottleneck's draws."""

TERMS = ("reconstruction", "consistency", "uniformity", "text")


class Predictions(Protocol):
    """What the objective reads of a model's output (`aef.model.Output`); ``logit_scale`` is the logarithm of 1 / τ."""

    mean: Tensor
    reconstructions: dict[str, Tensor]
    text: Tensor
    logit_scale: Tensor


@dataclass
class Losses:
    """One step's losses.

    Attributes:
        total: scalar with gradient, this rank's share: its mean over the ranks is ``loss``, so averaging gradients over
            ranks gives the gradient of the global batch.
        loss: the weighted sum over the global batch, detached; the same on every rank, as are all that follow.
        reconstruction, consistency: terms before their weights a and c.
        uniformity: None where the global batch holds one place only.
        text: None where it holds fewer than two different texts.
        per_source: f_i averaged over the rows that have the source; NaN where none has.
    """

    total: Tensor
    loss: Tensor
    reconstruction: Tensor
    uniformity: Tensor | None
    consistency: Tensor
    text: Tensor | None
    per_source: dict[str, Tensor]

    def record(self) -> dict[str, float | dict[str, float | None] | None]:
        """Plain numbers for the log, None for what does not exist. Waits for the device."""

        def plain(value: Tensor | None) -> float | None:
            number = math.nan if value is None else float(value)
            return None if math.isnan(number) and value is not self.loss else number

        terms = ("loss", "reconstruction", "uniformity", "consistency", "text")
        return {
            **{name: plain(getattr(self, name)) for name in terms},
            "per_source": {name: plain(value) for name, value in self.per_source.items()},
        }


@dataclass
class Share:
    """What one pass of this rank adds to the losses.

    total: scalar with gradient, as of `Losses`. numbers: float64, total, terms, and errors and rows of each source, to
    be added up. terms: which of them there are.
    """

    total: Tensor
    numbers: Tensor
    terms: frozenset[str]


class Objective:
    """Eq. 3 over packed batches; holds no parameters.

    Args:
        config: weights a, b, c, d and readings.
        registry, statistics: of the decoded sources.
        targets: names of the decoded sources, in the model's order.
        data: ``regrid_offset`` switches the random grid offset of v2.1 on.

    Raises:
        ValueError: no source is decoded.
        SourceError: a source is unknown, or its shift or re-gridding distance is no multiple of 10 m.
        ConfigError: no band of a source is to be scored.
        StatisticsError: statistics lack a decoded source.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        registry: Registry,
        statistics: Statistics,
        targets: Sequence[str],
        *,
        data: DataConfig,
    ) -> None:
        self.config, self.random_offset = config, data.regrid_offset
        self.ring = config.ring(data)
        self.sources = {name: registry[name] for name in targets}
        if not self.sources:
            raise ValueError("the objective needs at least one decoded source, found none")
        for source in self.sources.values():
            radius_px(source, 0), cell_px(source)
        stated = config.weights_by_source()
        self.weights = {name: stated.get(name, source.weight) for name, source in self.sources.items()}
        self.scored = {name: source.scored(config.unscored_bands) for name, source in self.sources.items()}
        for name, scored in self.scored.items():
            if not any(scored):
                raise ConfigError(
                    f"objective.unscored_bands: leaves no band of {name} to be scored; take it out of model.targets"
                )
        self.standardizers = {
            name: Standardizer(source, statistics, config.clip_sigma)
            for name, source in self.sources.items()
            if not source.classes
        }

    def __call__(
        self, output: Predictions, batch: Batch, *, world: World | None = None, coupling: Coupling | None = None
    ) -> Losses:
        """Losses of one packed batch.

        Args:
            output: the model's output for this batch.
            batch: this rank's samples, at least one.
            world: the ranks that share the global batch; None: the running process group.
            coupling: what `couple` said of this batch before the forward pass, so that nothing here waits for the
                device; None: settle it now.

        Raises:
            ValueError: a reconstruction is missing or not of the source's shape.
        """
        coupling = coupling or self.couple(batch, world)
        return self.report([self.share(output, batch, coupling)], coupling.world)

    def couple(self, batch: Batch, world: World | None = None) -> Coupling:
        """What couples the samples of a global batch, settled before the forward pass; collective."""
        return Coupling.of(batch, world, ring=self.ring)

    def couple_passes(
        self, batches: Sequence[Batch], world: World | None = None, *, device: torch.device | str = "cpu"
    ) -> Passes:
        """Couplings of the passes of an accumulated step, each for `share`, and what must be embedded ahead of them, for
        `share_ahead`: partners and texts of two passes; of R2, a mean over all samples, everything. Collective.

        Args:
            batches: on the host.
            device: where the passes will run.
        """
        return Passes.of(batches, world, device=device, ring=self.ring, whole=self.config.uniformity == "channels")

    def share_ahead(
        self, passes: Passes, fields: Tensor, text: Tensor, place: Tensor, logit_scale: Tensor
    ) -> tuple[Share, list[Coupling]]:
        """Terms in which samples of two passes meet: what they add to the losses, and the couplings of the passes with
        the gradients that they keep of it. Collective.

        Args:
            fields: (K, H, W, D), the teachers' of the chosen samples, in order.
            text, place: (K', D), of their texts.
        """
        assert passes.ahead is not None
        leaves = [made.detach().requires_grad_() for made in (fields, text, place, logit_scale)]
        terms = {
            "uniformity": self._uniformity(leaves[0], passes.ahead),
            "text": None if passes.ahead.texts is None else passes.ahead.texts.term(*leaves[1:]),
        }
        absent = fields.new_zeros(1, len(self.sources))
        share = self._sum(terms, absent, absent, start=fields.new_zeros(()))
        of_fields, of_text, of_place, of_scale = torch.autograd.grad(
            share.total, leaves, allow_unused=True, materialize_grads=True
        )
        texts = [len(coupling.text_rows) for coupling in passes.couplings]
        fields_of = of_fields.split([len(rows) for rows in passes.chosen])
        texts_of, places_of = of_text.split(texts), of_place.split(texts)
        device = fields.device
        couplings = []
        for k, (coupling, rows) in enumerate(zip(passes.couplings, passes.chosen, strict=True)):
            chosen = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
            kept = Kept(chosen, fields_of[k], texts_of[k], places_of[k], of_scale / len(texts))
            couplings.append(replace(coupling, kept=kept))
        return replace(share, total=share.total.detach()), couplings

    def share(self, output: Predictions, batch: Batch, coupling: Coupling) -> Share:
        """What this batch adds to the losses. Raises ValueError as a call does."""
        world = coupling.world
        # Sums over the global batch become means, and the later mean over ranks is undone.
        scale = world.size / coupling.samples

        errors, present = self._source_errors(output.reconstructions, batch)
        per_row = self._weigh_sources(errors, present)
        teacher = output.mean.index_select(0, batch.teacher_row)
        student = output.mean.index_select(0, batch.student_row)
        agreement = consistency(teacher, student) * batch.consistency_weight
        aligned, start = None, _idle(output)
        if coupling.texts or coupling.kept:
            pairs = (*text_pairs(output, batch, coupling.text_rows), output.logit_scale)
            aligned = coupling.texts.term(*pairs) if coupling.texts else None
            start = start + coupling.kept.term(teacher, *pairs) if coupling.kept else start
        terms = {
            "reconstruction": per_row.sum() * scale,
            "consistency": agreement.sum() * scale,
            "uniformity": self._uniformity(teacher, coupling),
            "text": aligned,
        }
        return self._sum(terms, errors, present, start)

    def _sum(self, terms: Mapping[str, Tensor | None], errors: Tensor, present: Tensor, start: Tensor) -> Share:
        """Terms, those that there are, by their weights, and their numbers."""
        c = self.config
        weights = (c.reconstruction_weight, c.consistency_weight, c.uniformity_weight, c.text_weight)
        weight = dict(zip(TERMS, weights, strict=True))
        there = {name: value for name, value in terms.items() if value is not None}
        total = sum((weight[name] * value for name, value in there.items()), start=start)
        zero = total.detach().new_zeros(())
        means = [total, *(there.get(name, zero) for name in TERMS)]
        numbers = (
            torch.stack([mean.detach().double() for mean in means]),
            errors.detach().double().sum(0),
            present.double().sum(0),
        )
        return Share(total, torch.cat(numbers), frozenset(there))

    def report(self, shares: Sequence[Share], world: World) -> Losses:
        """Every rank's shares brought together, in one small exchange."""
        everyone = world.sum(torch.stack([share.numbers for share in shares]).sum(0))
        loss, *means = (everyone[: 1 + len(TERMS)] / world.size).unbind()
        found = dict(zip(TERMS, means, strict=True))
        there = frozenset().union(*(share.terms for share in shares))
        sums, rows = everyone[1 + len(TERMS) :].chunk(2)
        return Losses(
            total=torch.stack([share.total for share in shares]).sum(),
            loss=loss,
            reconstruction=found["reconstruction"],
            uniformity=found["uniformity"] if "uniformity" in there else None,
            consistency=found["consistency"],
            text=found["text"] if "text" in there else None,
            per_source=dict(zip(self.sources, (sums / rows).unbind())),
        )

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def _source_errors(self, reconstructions: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """f_i of every sample and source, averaged over the sample's targets of the source, and where one exists.

        Returns (B, sources) errors, 0 where absent, and (B, sources) bool.
        """
        errors, present = [], []
        rows = torch.arange(batch.samples, device=batch.teacher_row.device)
        for name, source in self.sources.items():
            block = batch.targets[name]
            prediction = self._prediction(reconstructions, source, block, batch.side_px)
            values, found = self._item_errors(source, prediction, block, batch)
            weight = block.item_weight.to(values.dtype)
            member = (block.sample == rows[:, None]) & found & (weight > 0)  # (B, N)
            count = member.sum(1)
            # A sum over a membership matrix rather than index_add, whose order on a GPU is not fixed.
            errors.append((member * (weight * values)).sum(1) / count.clamp(min=1))
            present.append(count > 0)
        return torch.stack(errors, 1), torch.stack(present, 1)

    def _prediction(
        self, reconstructions: Mapping[str, Tensor], source: Source, block: TargetBlock, side_px: int
    ) -> Tensor:
        expected = (len(block.sample), side_px, side_px, source.decoded_channels)
        found = reconstructions.get(source.name)
        if found is None or found.shape != expected:
            shape = "nothing" if found is None else tuple(found.shape)
            raise ValueError(f"source {source.name}: expected reconstructions {expected}, found {shape}")
        return found

    def _item_errors(
        self, source: Source, prediction: Tensor, block: TargetBlock, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        weight = block.weight.to(prediction.dtype) / 255
        if source.classes:
            target = (block.values.long() == _codes(source, prediction.device)).to(prediction.dtype)
            # Codes outside the legend are no observation.
            weight = weight * (block.valid & target.any(-1, keepdim=True))
        else:
            target = self.standardizers[source.name](block.values, block.valid).to(prediction.dtype)
            weight = weight * block.valid
            if not all(self.scored[source.name]):
                weight = weight * _flags(self.scored[source.name], weight.device)
        side = batch.side_px
        return reconstruction_error(
            source,
            prediction,
            expand_cells(target, side),
            expand_cells(weight, side),
            self._offset(source, block, batch),
        )

    def _offset(self, source: Source, block: TargetBlock, batch: Batch) -> Tensor | None:
        """v2.1: where the first re-gridding cell starts, keyed by (seed, epoch, sample, target): (N, 2) int64."""
        cell = cell_px(source)
        if not self.random_offset or not cell:
            return None
        sample = batch.sample_hash[block.sample]
        key = (batch.key[0] & WORD, batch.key[1] & WORD)
        words = philox4x32(key, sample & WORD, sample >> 32, block.slot, torch.full_like(sample, GRID_STREAM))
        return torch.stack(words[:2], 1) % cell

    def _weigh_sources(self, errors: Tensor, present: Tensor) -> Tensor:
        """(1/|M|) Σ_i w_i f_i of every sample: (B, sources) → (B,). |M| counts the sources present in the row."""
        total = torch.zeros_like(errors[:, 0])
        for weight, error in zip(self.weights.values(), errors.unbind(1), strict=True):
            total = total + weight * error
        return total / (present.sum(1).clamp(min=1) if self.config.normalize_by_present else len(self.sources))

    # --- the other terms ---------------------------------------------------------------------------------------------

    def _uniformity(self, teacher: Tensor, coupling: Coupling) -> Tensor | None:
        """This rank's part of the uniformity of the global batch, so that the mean over the ranks is its value."""
        if coupling.partners is None:
            return None
        world, samples = coupling.world, coupling.samples
        own, partner = coupling.partners.fields(teacher, world)
        if self.config.uniformity == "channels":
            return uniformity_channels(own, partner, world, samples) * world.size
        return uniformity_pairs(own, partner).sum() * world.size / samples


def text_pairs(output: Predictions, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(K, D) unit vectors of the texts in ``rows`` and of their places: what the contrastive term aligns."""
    block = batch.text
    place = disc_mean(output.mean, block.period_row[rows], block.pixel[rows], block.radius_px[rows])
    return output.text[rows], place


# Tables built on the device at every step would stall it.
@lru_cache(maxsize=256)
def _codes(source: Source, device: torch.device) -> Tensor:
    return torch.tensor(source.classes, device=device)


@lru_cache(maxsize=256)
def _flags(values: tuple[bool, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


def _idle(output: Predictions) -> Tensor:
    """0 with a gradient of 0 to the text head, which runs every step whatever the batch holds (ZeRO needs it)."""
    return 0 * (output.text.sum() + output.logit_scale.sum())
