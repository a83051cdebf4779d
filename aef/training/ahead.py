"""Accumulated passes whose samples meet in the objective: what they need of each other is embedded ahead of all of them.

Uniformity pairs a sample's field with another sample's, and every text is a negative of the others; adding up losses of passes
would leave out whom they meet in another pass. Both terms read embeddings of teachers only. So, before the first pass,

1. the teachers of the samples that meet others run forward without gradients, with the two summaries that are read and no
   target (`aef.data.teacher_batch`);
2. the objective takes the terms in which samples of two passes meet, and keeps their gradients with respect to those
   embeddings;
3. each pass adds its kept gradients, contracted with the embeddings that it makes again, to its own loss.

The result equals one large batch up to rounding. The price is the first step: a teacher is two thirds of a sample's forward
pass, and only samples at the ends of the rows that a pass holds, and those with a text, run. The idea of gradients kept for a
second forward pass is that of Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from aef.data.batch import Batch
from aef.data.teacher_batch import teacher_batches
from aef.objective.coupling import Coupling, Passes, text_rows
from aef.objective.objective import Objective, Share, text_pairs

from .deepspeed_engine import Engine
from .phases import phase


def take_ahead(
    engine: Engine, objective: Objective, batches: Sequence[Batch], passes: Passes
) -> tuple[list[Share], list[Coupling]]:
    """Shares of terms that passes cannot take by themselves, if any, and the couplings that remain for these. Collective."""
    if passes.ahead is None:
        return [], passes.couplings
    micro, _ = engine.micro_batches
    fields, texts, places = [], [], []
    for part in teacher_batches(batches, passes.chosen, math.ceil(passes.most / micro), engine.device):
        # Of texts that meet nobody nothing is read.
        own = text_rows(part)[: None if passes.ahead.texts else 0]
        with torch.no_grad():
            output = engine(part)
            text, place = text_pairs(output, part, own)
        fields.append(output.mean[: part.samples])
        texts.append(text)
        places.append(place)
    with phase("objective"):
        # A rank with fewer samples than others ran along with one more.
        own_fields = torch.cat(fields)[: sum(map(len, passes.chosen))]
        share, couplings = objective.share_ahead(
            passes, own_fields, torch.cat(texts), torch.cat(places), output.logit_scale
        )
    return [share], couplings
