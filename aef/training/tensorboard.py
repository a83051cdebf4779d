"""The numbers of ``log.jsonl`` and ``validation.jsonl`` as TensorBoard events, for those who watch runs there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class Scalars:
    """Events in ``RUN/tensorboard``, tagged ``train/loss``, ``train/per_source/sentinel2``, ``validation/norm`` and so on.

    The file appears with the first number. A resumed run writes a file of its own, which hides older events of its
    first step and later ones, as `StepLog.cut_back` drops their lines.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        # Named before the first step: a long run must not find out at its end.
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._folder = SummaryWriter, run / FOLDER
        self._writer: Any = None

    def add(self, group: str, record: Mapping[str, Any]) -> None:
        """Every number of a record, at its step."""
        step = record["step"]
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=step, flush_secs=30)
        for name, value in flatten(record):
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def flatten(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Names and numbers of a record, those of inner mappings with their path; the step and nulls are left out."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{before}{name}/")
        elif value is not None and name != "step":
            yield before + name, float(value)
