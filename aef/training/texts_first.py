"""Accumulated passes that no partner joins, but texts do: align the texts first, then give each pass its gradients.

The contrastive term needs the embeddings of all texts of the global batch, and nothing else of their samples: the teachers
of the samples that have a text run forward once without gradients, with a summary of each text's period and no target
(`aef.data.text_batch`). The term's gradients with respect to those embeddings are then part of the loss of the pass that
makes them again. The result equals one large batch up to rounding, as by cache and replay (`aef.training.accumulation`), whose
first forward pass is of every sample, view, summary and target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from aef.data.batch import Batch
from aef.data.text_batch import text_batches
from aef.objective.contrastive import TextGradients
from aef.objective.coupling import Coupling, Passes, text_rows
from aef.objective.objective import text_pairs

from .deepspeed_engine import Engine
from .phases import phase


def align_texts(engine: Engine, batches: Sequence[Batch], passes: Passes) -> list[Coupling]:
    """The couplings of ``passes``, with the gradients of the contrastive term where there is one. Collective."""
    if passes.texts is None:
        return passes.couplings
    micro, _ = engine.micro_batches
    parts = text_batches(batches, math.ceil(passes.text_samples / micro), frame_bucket=engine.config.data.frame_bucket)
    rows = [text_rows(part) for part in parts]  # before anything is queued that they would wait for
    texts, places = [], []
    for part, own in zip(parts, rows, strict=True):
        with torch.no_grad():
            output = engine(part)
            text, place = text_pairs(output, part, own)
        texts.append(text)
        places.append(place)
    with phase("objective"):
        leaves = [
            tensor.detach().requires_grad_() for tensor in (torch.cat(texts), torch.cat(places), output.logit_scale)
        ]
        term = passes.texts.term(*leaves)
        of_text, of_place, of_scale = torch.autograd.grad(term, leaves)
    sizes = [len(coupling.text_rows) for coupling in passes.couplings]
    kept = [
        TextGradients(term.detach() / len(sizes), text, place, of_scale / len(sizes))
        for text, place in zip(of_text.split(sizes), of_place.split(sizes), strict=True)
    ]
    return [replace(coupling, texts=one) for coupling, one in zip(passes.couplings, kept, strict=True)]
