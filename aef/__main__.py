"""The `aef` command: `aef NAME …` runs `launcher/NAME.py`, with `_` for `-`."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path

LAUNCHER = Path(__file__).parent / "launcher"
NOT_COMMANDS = ("__init__", "command")


def commands() -> dict[str, str]:
    """Every command as it is typed and its summary, read from the launcher's files without importing them."""
    files = sorted(path for path in LAUNCHER.glob("*.py") if path.stem not in NOT_COMMANDS)
    return {path.stem.replace("_", "-"): _summary(path) for path in files}


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
    from aef.launcher.command import replace_unknown_letters, run, without_reader

    replace_unknown_letters()
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        try:
            print(_usage(), flush=True)
        except BrokenPipeError:
            return without_reader()
        return 0
    if words[0] == "--version":
        from aef import __version__

        print(f"aef {__version__}")
        return 0
    name, known = words[0].replace("_", "-"), commands()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`aef --help` lists them"
        print(f"aef: error: unknown command {words[0]!r}: {hint}", file=sys.stderr)
        return 2
    return run(importlib.import_module(f"aef.launcher.{name.replace('-', '_')}").main, words[1:])


if __name__ == "__main__":
    raise SystemExit(main())
