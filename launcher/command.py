"""What every command shares: its parser, options that several have, and errors in one line."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aef.one_line import one_line

FAILED, INTERRUPTED = 1, 130
"""Exit codes; that of a run which a signal stopped is `aef.training.signals.STOPPED`."""

TRACEBACK = "AEF_TRACEBACK"
"""Environment variable that lets an expected error through with its traceback."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps a docstring's lines and shows each option's default, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in (argparse.SUPPRESS, []):
            return action.help  # `is`, as 0 is equal to False, and a default to be shown
        if isinstance(action.default, list | tuple):
            # As they would be typed, not as Python prints them.
            words = " ".join(map(str, action.default)).replace("%", "%%")
            return f"{action.help} (default: {words})"
        return super()._get_help_string(action)


def name_of(module: str) -> str:
    """The name of a command as it is typed, from its file."""
    return Path(module).stem.replace("_", "-")


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of one command: ``parser(__file__, __doc__)`` has the name and docstring of its file."""
    # Words are not shortened: `--sources NAME` must not pass for the --sources-file of a command that has no --sources.
    name = f"aef {name_of(module)}"
    return argparse.ArgumentParser(prog=name, description=doc, formatter_class=_Formatter, allow_abbrev=False)


def as_typed(module: str, argv: list[str] | None) -> str:
    """A command with its options, for the record: ``as_typed(__file__, argv)``; or those of the process."""
    return shlex.join(["aef", name_of(module), *(sys.argv[1:] if argv is None else argv)])


def require_number(option: str, value: float, least: float, most: float | None = None) -> None:
    """Raises ValueError where an option's number lies outside what makes sense."""
    if not value >= least or (most is not None and value > most):  # NaN is neither
        limits = f"{least:g} or more" if most is None else f"{least:g} to {most:g}"
        raise ValueError(f"{option}: expected {limits}, found {value:g}")


def numbers(text: str, count: int, form: str) -> list[float]:
    """Numbers with commas between them. Raises ValueError, with their ``form`` in words, where there are not so many."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise ValueError(f"expected {form}, found {text!r}")
    return found


def require_folder_of(option: str, file: Path) -> None:
    """Raises ValueError where a file could not be written, before hours are spent on what it is to hold."""
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {file}: expected a folder that is there and may be written, found {file.parent}")


def add_device(options: argparse.ArgumentParser, what: str = "where the model runs") -> None:
    """The option that says where a trained model (`load_model`) or ``what`` else runs."""
    words = f"{what}: auto (a GPU where there is one), cpu, cuda or cuda:N"
    options.add_argument("--device", default="auto", metavar="DEVICE", help=words)


def device_of_rank() -> str:
    """For `--device auto` under torchrun: each rank of a machine has a GPU of its own, where there are GPUs."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load_model(module: str, path: str, device: str):
    """The trained model of a run on a device, which is said where there is a choice. Raises RunError."""
    import torch

    import aef

    model = aef.load(path, device=device)
    if torch.cuda.is_available():
        print(f"{name_of(module)}: {model.version} on {model.device}", file=sys.stderr)
    return model


def with_western_longitudes(argv: list[str] | None, *options: str) -> list[str]:
    """``--place -93.5,42`` as ``--place=-93.5,42``: argparse takes a list that starts with a minus for an option."""
    words: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if words and words[-1] in options and word[:1] == "-" and word[1:2] in tuple("0123456789."):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Call a command's ``main`` and return its exit code: 0 only when the work is done.

    Errors that bad input causes (ValueError and its kin, OSError, a missing optional package) become one line on
    standard error and exit code 1; with AEF_TRACEBACK=1 they keep their traceback. Anything else is a defect and is not
    hidden. Warnings of `aef` become one line each, said once.
    """
    name = name_of(sys.modules[main.__module__].__file__ or main.__module__)
    given = sys.argv[1:] if argv is None else argv
    replace_unknown_letters()
    try:
        _refuse_empty(given)
        with warnings.catch_warnings():
            warnings.showwarning = _warnings_as_lines(name, warnings.showwarning)
            code = main(argv) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"aef {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return without_reader()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"aef {name}: error: {_describe(error, given)}", file=sys.stderr)
        return FAILED


def _refuse_empty(given: Sequence[str]) -> None:
    """Refuse an empty word, as an unset variable of the shell leaves it: as a path it would be the current folder."""
    for before, word in zip(["", *given], given):
        if not word or (word.startswith("--") and word.endswith("=")):
            option = word[:-1] or before
            where = f"after {option}" if option.startswith("--") else "on the command line"
            raise ValueError(f"expected a value {where}, found an empty word: is a variable of the shell unset?")


def replace_unknown_letters() -> None:
    """Let standard output and error say `?` for a letter that their encoding lacks, where Python would stop."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def without_reader() -> int:
    """The exit code once the reader of standard output went away, of which Python would complain again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _warnings_as_lines(name: str, others: Callable[..., None]) -> Callable[..., None]:
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if not category.__module__.startswith("aef."):
            others(message, category, *place)
        elif str(message) not in said:
            said.add(str(message))
            print(f"aef {name}: warning: {message}", file=sys.stderr)

    return show


_EXPECTED: dict[type[OSError], str] = {
    FileNotFoundError: "no such file or folder",
    FileExistsError: "expected a folder, found a file",
    NotADirectoryError: "expected a folder, found a file",
    IsADirectoryError: "expected a file, found a folder",
    PermissionError: "may not be read or written by this user",
}
"""The system's errors in words that say what was expected."""


def _describe(error: Exception, given: Sequence[str] = ()) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed: `aef doctor` names the extra that brings it"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        why = _EXPECTED.get(type(error), error.strerror)
        return f"{_option(str(error.filename), given)}{error.filename}: {why}"
    return one_line(error, most=None)


def _option(path: str, given: Sequence[str]) -> str:
    """The option whose value a path is, with a space after it; empty where none is."""
    option = ""
    for word in given:
        if word.startswith("--"):
            option, _, word = word.partition("=")
        if option and word == path:
            return f"{option} "
    return ""


def add_compression(options: argparse._ActionsContainer, *, default: bool) -> None:
    """`--compress` and `--uncompressed`, the same two words wherever chips are written; the help names the default."""
    words = {
        "--compress": (True, "smaller files that write and load more slowly"),
        "--uncompressed": (False, "larger files that write and load faster"),
    }
    options.set_defaults(compress=default)
    either = options.add_mutually_exclusive_group()
    for option, (value, meaning) in words.items():
        usual = ": the default" if value == default else ""
        either.add_argument(
            option,
            dest="compress",
            action="store_const",
            const=value,
            default=argparse.SUPPRESS,
            help=f"{meaning}{usual}",
        )
