"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess

import pytest

from aef import atomic


def test_a_file_appears_when_its_block_has_ended(tmp_path):
    path = tmp_path / "a.txt"
    with atomic.writing(path, "w") as stream:
        stream.write("grün")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "grün"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_file_and_leaves_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.writing(path) as stream:
        stream.write(b"new")
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_known_before_the_work(tmp_path):
    atomic.require_writable(tmp_path / "new" / "a.txt")
    assert (tmp_path / "new").is_dir() and not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    for path, why in (("file/a.txt", "a file stands where its folder should be"), ("new", "found a folder")):
        with pytest.raises(ValueError, match=f"--out .*{path}: .*{why}"):
            atomic.require_writable(tmp_path / path, "--out")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"none/a\.txt"), atomic.writing(tmp_path / "none" / "a.txt"):
        pass


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    half, live, other = (
        tmp_path / f".{name}.{pid}.tmp"
        for name, pid in (("a.npz", gone.pid), ("a.npz", os.getpid()), ("b.npz", gone.pid))
    )
    for path in (half, live, other):
        path.touch()
    atomic.remove_unfinished(tmp_path, {"a.npz"})
    assert sorted(tmp_path.iterdir()) == sorted([live, other])
