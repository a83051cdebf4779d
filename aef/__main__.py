"""The `aef` command: `aef NAME …` runs `launcher/NAME.py`."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path

LAUNCHER = Path(__file__).parent / "launcher"
NOT_COMMANDS = ("__init__", "command")


def commands() -> dict[str, str]:
    """Every command and its summary, read from the launcher's files without importing them."""
    files = sorted(path for path in LAUNCHER.glob("*.py") if path.stem not in NOT_COMMANDS)
    return {path.stem: _summary(path) for path in files}


def _summary(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def _usage() -> str:
    known = commands()
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {summary}" for name, summary in known.items()]
    return "\n".join(["usage: aef COMMAND …   (aef COMMAND --help tells more)", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        from aef import __version__

        print(f"aef {__version__}")
        return 0
    name, *rest = arguments
    if name not in commands():
        close = difflib.get_close_matches(name, commands(), n=1)
        hint = f"did you mean {close[0]}?" if close else "`aef --help` lists them"
        print(f"aef: error: unknown command {name!r}: {hint}", file=sys.stderr)
        return 2
    from aef.launcher.command import run

    return run(importlib.import_module(f"aef.launcher.{name}").main, rest)


if __name__ == "__main__":
    raise SystemExit(main())
