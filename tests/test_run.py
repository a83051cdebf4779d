"""The weights of a run are known by what they are."""

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from aef.run import Run, RunError, digest, read_weights, write_weights


def some_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"b": torch.randn(3, 4, generator=generator), "a": torch.randn((), generator=generator)}


def test_weights_keep_their_hash_whatever_their_step_order_and_file(tmp_path):
    state = some_weights()
    first = read_weights(write_weights(tmp_path / "1", state, step=1))
    second = read_weights(write_weights(tmp_path / "2", dict(reversed(state.items())), step=2))
    assert first.sha256 == second.sha256 == digest(state) and (first.step, second.step) == (1, 2)


def test_other_values_names_or_shapes_are_other_weights():
    state = some_weights()
    others = [some_weights(1), {"a": state["a"], "c": state["b"]}, {**state, "b": state["b"].reshape(4, 3)}]
    assert len({digest(weights) for weights in (state, *others)}) == 4


def test_weights_of_before_the_hash_are_read_and_have_one(tmp_path):
    state = some_weights()
    save_file(state, tmp_path / "old", {"format_version": "1", "step": "7"})
    assert read_weights(tmp_path / "old")[1:] == (7, digest(state))


def test_a_run_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(RunError, match=r"expected a file of weights, like .*model\.safetensors, found a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.yaml", "preset: tiny\nmodel:\n  colour: 3\n", "unknown setting model.colour"),
        ("sources.yaml", "3\n", "expected a list of source entries"),
        ("stats.json", "{", "not a statistics file"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_in_one_error(tiny_run, tmp_path, name, text, words):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(
        RunError, match=rf"of another version of this software: {re.escape(str(run / name))}: .*{words}"
    ):
        Run.read(run)
