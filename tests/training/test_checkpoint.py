"""Checkpoints are whole or do not exist: the folder's side of it, without a model."""

import json
import os

import pytest

from aef.training.checkpoint import (
    MANIFEST,
    STATE,
    WEIGHTS,
    CheckpointError,
    Checkpoints,
    RunPosition,
    State,
    damage,
    fingerprint,
)

STEPS = (3, 6, 9)


def write(checkpoints, step):
    partial = checkpoints.begin(step)
    State(RunPosition(step, 2 * step), 1, 0, "float32", 2, 0).write(partial / STATE)
    (partial / WEIGHTS).write_bytes(bytes(range(200)))
    (partial / "restart").mkdir()
    (partial / "restart" / "shard.pt").write_bytes(b"shard" * 40)
    files = [partial / STATE, partial / WEIGHTS, partial / "restart" / "shard.pt"]
    return checkpoints.commit(partial, step, {str(f.relative_to(partial)): fingerprint(f) for f in files})


@pytest.fixture
def checkpoints(tmp_path):
    found = Checkpoints(tmp_path, keep=3)
    for step in STEPS:
        write(found, step)
    return found


def test_the_newest_complete_one_is_chosen(checkpoints):
    path, refused = checkpoints.newest()
    assert path.name == "step-00000009" and refused == []
    assert State.read(path / STATE).position == RunPosition(9, 18)


def test_one_that_is_not_there_is_not_said_to_be_damaged(checkpoints):
    with pytest.raises(CheckpointError, match="no such checkpoint; the run holds step-00000009, step-00000006"):
        checkpoints.trusted(checkpoints.folder / "step-00000099")


def test_only_the_last_few_are_kept(checkpoints):
    write(checkpoints, 12)
    assert [path.name for path in checkpoints.all()] == ["step-00000012", "step-00000009", "step-00000006"]


@pytest.mark.parametrize("name", [STATE, WEIGHTS, "restart/shard.pt", MANIFEST])
@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "missing", "empty"])
def test_a_damaged_file_is_found_and_the_one_before_is_taken(checkpoints, name, kind):
    newest = checkpoints.all()[0]
    file = newest / name
    content = bytearray(file.read_bytes())
    if kind == "flipped bit":
        # In a manifest any flipped bit of a hash counts, in the other files any bit at all.
        at = content.index(b'"sha256": "') + 13 if name == MANIFEST else len(content) // 2
        content[at] ^= 1
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped bit": content, "truncated": content[: len(content) // 2], "empty": b""}[kind])
    assert damage(newest) is not None
    path, refused = checkpoints.newest()
    assert path.name == "step-00000006"
    assert len(refused) == 1 and newest.name in refused[0]
    with pytest.raises(CheckpointError, match="it is not loaded"):
        checkpoints.trusted(newest)


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    found = Checkpoints(tmp_path, keep=1, every=4)
    for step in range(1, 11):
        write(found, step)
    assert [path.name for path in found.all()] == ["step-00000010", "step-00000008", "step-00000004"]


def test_a_writer_that_died_leaves_nothing_that_is_taken_for_a_checkpoint(checkpoints):
    partial = checkpoints.begin(12)
    (partial / WEIGHTS).write_bytes(b"half")
    assert checkpoints.newest()[0].name == "step-00000009"
    assert not Checkpoints(checkpoints.folder.parent, keep=3).begin(15).parent.joinpath(partial.name).exists()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_again_in_silence(checkpoints):
    for path in checkpoints.all():
        (path / WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of the run can be trusted.*step-00000009"):
        checkpoints.newest()


def test_a_run_without_checkpoints_has_no_newest_one(tmp_path):
    assert Checkpoints(tmp_path, keep=2).newest() == (None, [])


def test_a_newer_format_is_refused(checkpoints):
    newest = checkpoints.all()[0]
    entries = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps({**entries, "format_version": 99}))
    assert "format_version" in damage(newest)


def test_restart_files_that_order_the_weights_otherwise_are_not_read(checkpoints):
    state = checkpoints.all()[0] / STATE
    entries = json.loads(state.read_text())
    assert State.read(state).position.step == entries["position"]["step"]
    state.write_text(json.dumps({**entries, "format_version": 1}))
    with pytest.raises(CheckpointError, match=r"in the order of an earlier version.*--init-from .*model\.safetensors"):
        State.read(state)


def test_writing_the_same_step_again_replaces_it(checkpoints):
    before = os.stat(checkpoints.all()[0]).st_ino
    write(checkpoints, 9)
    assert len(checkpoints.all()) == 3 and os.stat(checkpoints.all()[0]).st_ino != before
