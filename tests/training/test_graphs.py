"""`model.cuda_graphs`: refused, with what to set, wherever a recorded graph could not serve the next step."""

import dataclasses

import pytest

from aef.config import PRESETS, ConfigError
from aef.training.deepspeed_config import resolve, stage_of


def resolved(choice=None, on_gpu=True, **changes):
    large = PRESETS["large"]
    settings = {"frame_bucket": 32, "global_batch": 4, "micro_batch": 4, "checkpointing": "none"} | changes
    config = dataclasses.replace(
        large,
        model=dataclasses.replace(large.model, cuda_graphs=True, checkpointing=settings["checkpointing"]),
        data=dataclasses.replace(large.data, frame_bucket=settings["frame_bucket"]),
        train=dataclasses.replace(
            large.train, global_batch=settings["global_batch"], micro_batch=settings["micro_batch"]
        ),
    )
    return resolve(choice, config, ranks=1, on_gpu=on_gpu, parameters=1)


@pytest.mark.parametrize("checkpointing", ["none", "selective"])
@pytest.mark.parametrize("choice", ["single", "zero1", "zero2"])
def test_stages_0_to_2_replay_graphs_of_padded_lengths_on_a_gpu(choice, checkpointing):
    assert stage_of(resolved(choice, checkpointing=checkpointing)) == {"single": 0, "zero1": 1, "zero2": 2}[choice]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"on_gpu": False}, "none is here: set model.cuda_graphs=false"),
        ({"choice": "zero3"}, "ZeRO-3 gathers weights at new addresses.*take --deepspeed-config zero2"),
        ({"frame_bucket": 0}, "set data.frame_bucket, for example to 8"),
        ({"checkpointing": "full"}, "set model.checkpointing=selective"),
        ({"micro_batch": 3}, "set train.micro_batch=4 or model.cuda_graphs=false"),
    ],
)
def test_elsewhere_they_are_refused_with_what_to_set(where, words):
    with pytest.raises(ConfigError, match=f"model.cuda_graphs: .*{words}"):
        resolved(**where)
