"""One rank, several gloo ranks, and passes of an accumulated step on either give the same losses and gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SPLITS = {
    "even": "0,1|2,3",
    "uneven, out of order": "2|3,0,1",
    "three": "1|0,3|2",
    "passes of one rank": "0,1;2,3",
    "passes of one sample": "2;0;3;1",
    "passes out of order on two ranks": "3;1|0;2",
}
CASES = ("everything", "unequal texts", "one text", "one place", "pairs of chips", "channels")


def run_ranks(split, folder):
    """Results of every rank, each in a process of its own."""
    folder.mkdir()
    count = len(split.split("|"))
    command = [sys.executable, str(Path(__file__).with_name("ranks.py"))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), split, str(folder / "store"), str(folder / f"{rank}.pt")], stderr=subprocess.PIPE
        )
        for rank in range(count)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return run_ranks("0,1,2,3", tmp_path_factory.mktemp("one") / "run")[0]


@pytest.fixture(scope="module", params=SPLITS)
def ranks(request, tmp_path_factory):
    return run_ranks(SPLITS[request.param], tmp_path_factory.mktemp("several") / "run")


def flat(record):
    return {**{k: v for k, v in record.items() if k != "per_source"}, **record["per_source"]}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_one_rank_and_the_same_on_every_rank(case, one_rank, ranks):
    for result in ranks:
        assert flat(result[case]["losses"]) == pytest.approx(flat(one_rank[case]["losses"]), abs=1e-10)
    mean_total = sum(result[case]["total"] for result in ranks) / len(ranks)
    assert mean_total == pytest.approx(one_rank[case]["total"], abs=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_gradients_averaged_over_ranks_are_those_of_one_rank(case, one_rank, ranks):
    averaged: dict[str, torch.Tensor] = {}
    for result in ranks:
        for name, gradient in result[case]["gradients"].items():
            averaged[name] = averaged.get(name, 0) + gradient / len(ranks)
    expected = one_rank[case]["gradients"]
    assert averaged.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(averaged[name], gradient, atol=1e-10, rtol=1e-8, msg=name)


def test_the_cases_are_what_they_say(one_rank):
    nulls = {case: [k for k, v in flat(one_rank[case]["losses"]).items() if v is None] for case in CASES}
    assert nulls == {
        "everything": [],
        "unequal texts": [],
        "one text": ["text"],
        "one place": ["uniformity", "text"],
        "pairs of chips": [],
        "channels": [],
    }
