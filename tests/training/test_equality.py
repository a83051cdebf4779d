"""Any number of ranks, any ZeRO stage, checkpointing and accumulation train the same model (ranks.py has the cases)."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from aef.training.deepspeed_config import shipped_names

TOLERANCE = 1e-4
BF16_EPS = 2**-7
"""Between neighbours in bf16. Ranks round their own gradients to it before these meet, so that weights of one rank and
of two come to differ in their last bit, and what is a mean over all of them by no more than that."""
BF16 = "1+bf16"
SCRIPT = Path(__file__).with_name("ranks.py")
# Pairwise over stage, checkpointing, accumulation and how far ZeRO-3 shards; sharded without checkpointing too, where a
# merge takes the parameters of the norm that reads its state, and with operands made again, which need them in
# backward.
SELECTED = ("0+checkpoint", "1", "2+micro", "3+checkpoint+micro+sharded", "3+sharded", "3+remake+sharded")
MATRIX = [
    "+".join([stage, *(["checkpoint"] if checkpoint else []), *(["micro"] if micro else [])])
    for stage, checkpoint, micro in product("0123", (False, True), (False, True))
]


def run_ranks(size, cases, folder, timeout_s=500):
    """Each rank's results by case. Ranks meet through a file, so that no port is needed."""
    folder.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder / "store"), str(folder / f"{rank}"), *cases],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            text, _ = process.communicate(timeout=timeout_s)
            assert process.returncode == 0, text[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}").read_text()) for rank in range(size)]


def same(found, expected):
    """The same losses, norms and final weights, step by step."""
    assert len(found["losses"]) == len(expected["losses"]) == 10
    for ours, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert (ours["text"] is None) == (theirs["text"] is None)
        for name in ("loss", "reconstruction", "consistency", "uniformity", "text", "grad_norm"):
            assert theirs[name] is None or ours[name] == pytest.approx(theirs[name], rel=TOLERANCE), name
        assert ours["per_source"] == pytest.approx(theirs["per_source"], rel=TOLERANCE, nan_ok=True)
    if "weights" in found:
        assert found["weights"] == pytest.approx(expected["weights"], rel=1e-3, abs=1e-3)


# Micro-batches that hold their partners run forward once, after the teachers of the samples with texts; in those of one
# sample ("micro" alone) all partners and texts meet ahead.
APART = ("0+micro+pairs", "2+micro+pairs", "3+micro+pairs+sharded")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_ranks(1, ["0", BF16, "0+pairs", APART[0]], tmp_path_factory.mktemp("one") / "run")[0]


@pytest.fixture(scope="module")
def one_rank(alone):
    return alone["0"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_ranks(2, [*SELECTED, BF16, *APART], tmp_path_factory.mktemp("two") / "run")


@pytest.mark.parametrize("case", SELECTED)
def test_two_ranks_with_disjoint_sources_equal_one(case, one_rank, two_ranks):
    for result in two_ranks:
        same(result[case], one_rank)


@pytest.mark.parametrize("case", APART)
def test_passes_that_hold_their_partners_run_forward_once_after_the_texts_and_equal_one_pass(case, alone, two_ranks):
    for result in two_ranks:
        same(result[case], alone["0+pairs"])
        # Two passes, after four samples with texts of the first rank in two; the second runs along.
        assert result[case]["first_forwards"] == 2 + 2
        assert result["2+micro"]["first_forwards"] == 2 + 2


def test_one_rank_takes_four_such_passes(alone):
    same(alone[APART[0]], alone["0+pairs"])
    assert alone["0+pairs"]["losses"][0]["text"] > 0
    assert (alone[APART[0]]["first_forwards"], alone["0+pairs"]["first_forwards"]) == (4 + 2, 1)


@pytest.mark.parametrize("case", [*SELECTED, *APART])
def test_a_non_finite_step_is_skipped_on_all_ranks_and_leaves_everything_as_it_was(case, two_ranks):
    for result in two_ranks:
        assert result[case]["untouched"] is True
        assert result[case]["suspects"] == ["chip7" if case in APART else "chip3"]


def test_losses_of_the_reference_run_are_all_present(one_rank):
    first = one_rank["losses"][0]
    assert all(first[name] > 0 for name in ("reconstruction", "consistency", "uniformity", "text"))
    assert sum(value is not None for value in first["per_source"].values()) == 5


def test_zero_3_without_a_threshold_holds_half_of_the_parameters(two_ranks):
    assert all(result[SELECTED[3]]["held_share"] <= 0.55 for result in two_ranks)


def same_in_bf16(found, expected):
    """The same first losses from the same weights; from then on as far as bf16 tells apart; gradients met in fp32."""
    first, theirs = found["losses"][0], expected["losses"][0]
    for name in ("loss", "reconstruction", "consistency", "uniformity", "text"):
        assert first[name] == pytest.approx(theirs[name], rel=TOLERANCE), name
    assert first["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=BF16_EPS)
    losses = [[step["loss"] for step in run["losses"]] for run in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=BF16_EPS)
    assert found["untouched"] is True
    # The mean of two values in bf16 has more digits than bf16 has, about every third time.
    assert sum(found["finer_than_bf16"]) > 0.2 * 10 and not any(expected["finer_than_bf16"])


def test_two_ranks_in_bf16_equal_one_and_average_their_gradients_in_fp32(alone, two_ranks):
    for result in two_ranks:
        same_in_bf16(result[BF16], alone[BF16])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_so_do_the_sharded_stages(alone, tmp_path):
    cases = ["2+bf16", "2+micro+bf16", "3+bf16", "3+sharded+bf16"]
    for result in run_ranks(2, cases, tmp_path / "two", timeout_s=3000):
        for case in cases:
            same_in_bf16(result[case], alone[BF16])


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_number_of_ranks_stage_and_way_of_saving_memory_gives_the_same_losses(size, one_rank, tmp_path):
    for result in run_ranks(size, MATRIX, tmp_path / "run", timeout_s=3600):
        for case in MATRIX:
            same(result[case], one_rank)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_compiled_blocks_give_the_same_losses_at_every_stage(one_rank, tmp_path):
    cases = [f"{stage}+compile" for stage in "0123"]
    for result in run_ranks(2, cases, tmp_path / "run", timeout_s=3000):
        for case in cases:
            same(result[case], one_rank)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_one_step_of_large_on_two_sharded_ranks_equals_zero_1(tmp_path):
    sharded = run_ranks(2, ["3+sharded+large"], tmp_path / "three", timeout_s=3600)
    whole = run_ranks(2, ["1+large"], tmp_path / "one", timeout_s=3600)
    assert all(result["3+sharded+large"]["held_share"] <= 0.55 for result in sharded)
    found, expected = sharded[0]["3+sharded+large"], whole[0]["1+large"]
    assert found["losses"][0]["loss"] == pytest.approx(expected["losses"][0]["loss"], rel=TOLERANCE)
    assert found["losses"][0]["grad_norm"] == pytest.approx(expected["losses"][0]["grad_norm"], rel=TOLERANCE)
    for name, values in expected["some"].items():
        assert found["some"][name] == pytest.approx(values, rel=TOLERANCE, abs=1e-6), name


def test_configurations_are_shipped_for_every_stage():
    assert {"single", "zero1", "zero2", "zero3", "zero3_offload"} <= set(shipped_names())
