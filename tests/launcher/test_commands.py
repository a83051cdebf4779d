"""Every command answers, installed from a wheel too, and no file of a scripts' folder hides a standard module."""

import argparse
import ast
import importlib
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from aef.__main__ import commands, main
from aef.launcher import command, doctor
from aef.launcher.command import add_compression, run

ROOT = Path(__file__).parents[2]


def module_of(name):
    return importlib.import_module(f"aef.launcher.{name.replace('-', '_')}")


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_answers_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        module_of(name).main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: aef {name}" in text and len(text.splitlines()) > 4


@pytest.mark.parametrize("words", [["--data", ""], ["--data="]])
def test_an_empty_word_is_refused_as_it_would_be_the_current_folder(words, capsys):
    assert main(["train", *words, "--out", "run"]) == 1
    assert "error: expected a value after --data, found an empty word" in capsys.readouterr().err


def test_a_default_of_several_words_is_shown_as_it_would_be_typed(capsys):
    for name in sorted(commands()):
        with pytest.raises(SystemExit):
            module_of(name).main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "(default: [" not in text and "(default: False)" not in text, name


def test_a_default_of_0_is_shown_as_any_other():
    options = command.parser(__file__, "Words.")
    options.add_argument("--seed", type=int, default=0, help="of the draw")
    options.add_argument("--quiet", action="store_true", help="no progress")
    text = " ".join(options.format_help().split())
    assert "of the draw (default: 0)" in text and text.endswith("no progress")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError, "--out given: no such file or folder"),
        (FileExistsError, "--out given: expected a folder, found a file"),
        (IsADirectoryError, "--out given: expected a file, found a folder"),
    ],
)
def test_an_error_of_the_system_names_the_option_and_what_was_expected(capsys, error, words):
    def main(argv):
        raise error(1, "in the system's words", "given")

    main.__module__ = doctor.__name__
    for argv in (["--seed", "1", "--out", "given"], ["--out=given"], ["--set", "x", "--out", "other", "given"]):
        assert run(main, argv) == 1
        assert capsys.readouterr().err == f"aef doctor: error: {words}\n"


def test_the_overview_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in ("train", "doctor", "throughput", "ingest", "embed"))
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_a_command_of_two_words_is_typed_with_a_hyphen_and_understood_with_an_underscore(capsys):
    for typed in ("leave-out", "leave_out"):
        with pytest.raises(SystemExit) as ended:
            main([typed, "--help"])
        assert ended.value.code == 0 and "usage: aef leave-out" in capsys.readouterr().out
    main([])
    assert "  leave-out " in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["train", "--help"], ["sources"]], ids=["overview", "help", "table"])
def test_letters_that_the_terminal_lacks_become_question_marks(words):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-m", "aef", *words], env=env, capture_output=True, timeout=120)
    assert done.returncode == 0 and not done.stderr and b"?" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["sources"]], ids=["overview", "table"])
def test_a_reader_who_goes_away_is_no_traceback(words):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "aef", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("folder", ["launcher", "benchmarks"])
def test_no_file_bears_the_name_of_a_standard_module(folder):
    # `python launcher/x.py` puts that folder first on the path; a profile.py there would break torch.compile.
    names = {path.stem for path in (ROOT / folder).glob("*.py")}
    assert len(names) > 2 and not names & sys.stdlib_module_names


def test_doctor_reports_and_never_fails(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert "torch 2." in text and "time_attention on cpu: PyTorch" in text and "aef train: ready" in text


def test_doctor_says_every_choice_whatever_this_process_has_run_before():
    first, problem = doctor.kernels()
    assert problem is None and any(line.startswith("time_attention on cpu: PyTorch") for line in first)
    assert doctor.kernels() == (first, None)


def test_doctor_says_which_extra_brings_what_is_missing(capsys, monkeypatch):
    gone = {"deepspeed", "matplotlib", "ee"}
    monkeypatch.setattr(doctor, "is_installed", lambda module: module not in gone)
    assert list(doctor.software()).count("deepspeed: not installed (pip install 'aef-engine[deepspeed]')") == 1
    lines = list(doctor.missing())
    assert (
        "aef train: needs deepspeed; without matplotlib no figures (pip install 'aef-engine[deepspeed,eval]')" in lines
    )
    assert "aef download: without earthengine-api no Earth Engine (pip install 'aef-engine[ee]')" in lines


def test_doctor_names_every_package_that_is_imported_and_an_extra_that_brings_it(monkeypatch):
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **settings: given.update(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    for module, (distribution, extra) in doctor.PACKAGES.items():
        needs = given["extras_require"][extra] if extra else given["install_requires"]
        assert distribution in {re.match(r"[\w-]+", need)[0] for need in needs}, module
    imported = set()
    for path in (*(ROOT / "aef").rglob("*.py"), *(ROOT / "launcher").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - sys.stdlib_module_names - {"aef"}
    along = {"scipy", "affine", "pystac", "requests", "httplib2", "google", "huggingface_hub"}  # with one of them
    by_hand = {"planetary_computer"}  # docs/download.md
    assert others <= {module.partition(".")[0] for module in doctor.PACKAGES} | along | by_hand


def test_doctor_asks_of_a_download_and_of_fields_what_they_import(monkeypatch):
    # What `pip install 'aef-engine[stac]'` leaves out, and what [text] alone does.
    gone = {"ee", "netCDF4", "rioxarray", "pyarrow"}
    monkeypatch.setattr(doctor, "is_installed", lambda module: module not in gone)
    lines = list(doctor.missing())
    assert (
        "aef download: without earthengine-api no Earth Engine; without pyarrow no Parquet (pip install 'aef-engine[ee,geo]')"
        in lines
    )
    for name in ("embed", "classify", "search"):
        assert f"aef {name}: needs rioxarray, netCDF4 (pip install 'aef-engine[geo]')" in lines
    monkeypatch.setattr(doctor, "is_installed", lambda module: module != "rasterio")
    lines = list(doctor.missing())
    assert "aef text: needs rasterio (pip install 'aef-engine[geo]')" in lines
    assert "aef demo: without rasterio no synthetic Earth (pip install 'aef-engine[geo]')" in lines


def test_doctor_survives_a_broken_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert any("torch cannot be imported" in line for line in doctor.device())
    assert "the model cannot run" in doctor.kernels()[1]


def test_doctor_is_not_ready_where_the_model_cannot_run(capsys, monkeypatch):
    monkeypatch.setenv("AEF_KERNELS", "nonsense")
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "the model cannot run: ValueError: AEF_KERNELS: expected one of auto, torch, triton, flash" in text
    assert "aef train: not ready: the model cannot run, see kernels" in text and "aef stats: ready" in text
    monkeypatch.setenv("AEF_KERNELS", "")  # set but empty: the default
    assert doctor.kernels()[1] is None


def test_doctor_says_every_choice_once(monkeypatch):
    log = logging.getLogger("aef.kernels")
    monkeypatch.setattr(
        doctor, "_small_step", lambda device: [log.info("exchange_down on cpu: PyTorch") for _ in "abc"]
    )
    assert doctor.kernels()[0][0] == "exchange_down on cpu: PyTorch (3 cases)"


def test_a_missing_package_is_one_line_with_its_extra(capsys):
    def main(argv):
        raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")

    main.__module__ = doctor.__name__
    assert run(main, []) == 1
    assert (
        capsys.readouterr().err
        == "aef doctor: error: the package deepspeed is not installed: `aef doctor` names the extra that brings it\n"
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and installed into a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    quiet = {"check": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 300}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)], **quiet)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], **quiet)
    return folder / "site"


def call(installed, *arguments):
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    # Outside the checkout and without its folder on the path; PYTHONPATH comes before an editable install.
    command = [sys.executable, "-P", "-m", "aef", *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=installed.parent, capture_output=True, text=True, timeout=300)


def test_the_wheel_knows_its_device(installed):
    done = call(installed, "doctor")
    assert done.returncode == 0 and "aef train: ready" in done.stdout, done.stderr


def test_the_wheel_plans_a_run_with_a_shipped_deepspeed_configuration(installed):
    done = call(installed, "train", "--config", "large", "--dry-run", "--deepspeed-config", "zero1")
    assert done.returncode == 0, done.stderr
    (count,) = [line for line in done.stdout.splitlines() if line.startswith("parameters: ")]
    assert 430e6 <= int(count.removeprefix("parameters: ")) <= 500e6


def test_the_wheel_finds_a_recipe_by_name(installed, tmp_path):
    done = call(installed, "ingest", "--recipe", "worldcereal_patches", "--input", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    # The recipe was found: what is missing is its input.
    assert line.startswith("aef ingest: error: ") and str(tmp_path) in line and "unknown recipe" not in line


@pytest.mark.parametrize(("name", "compressed"), [("ingest", True), ("download", True), ("synthesize", False)])
def test_compression_has_the_same_two_words_wherever_chips_are_written(name, compressed, capsys):
    of = module_of(name)
    with pytest.raises(SystemExit):
        of.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    smaller, larger = "smaller files that write and load more slowly", "larger files that write and load faster"
    assert f"--compress {smaller}" in text and f"--uncompressed {larger}" in text
    assert f"{smaller if compressed else larger}: the default" in text and text.count(": the default") == 1


def test_compression_is_what_was_said_last_or_the_default():
    for default in (True, False):
        p = argparse.ArgumentParser()
        add_compression(p, default=default)
        said = [p.parse_args(words).compress for words in ([], ["--compress"], ["--uncompressed"])]
        assert said == [default, True, False]


MEANINGS = {
    "--places": "N",
    "--most-places": "N",
    "--unseen": "N",
    "--only": "PLACE",
    "--held-out": "PLACE",
    "--sources": "NAME",
    "--sources-file": "YAML",
    "--period": "START/END",
    "--periods": "START/END",
    "--support": "START/END",
    "--part": "K/N",
    "--labels": "FILE",
}


def test_a_word_that_says_which_data_has_one_meaning_in_all_commands(capsys):
    found = set()
    for name in sorted(commands()):
        with pytest.raises(SystemExit):
            module_of(name).main(["--help"])
        usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
        found |= {
            (word, value) for word, value in re.findall(r"(--[\w-]+) \[?([^\s\[\]|]+)", usage) if word in MEANINGS
        }
    assert found == set(MEANINGS.items())


def test_words_of_recorded_commands_are_still_understood(capsys):
    for name, words in (("evaluate", ["--periods", "abc"]), ("prove", ["--labels", "crop", "land_cover"])):
        assert run(module_of(name).main, [*words, "--checkpoint", "nowhere", "--data", "nowhere"]) == 1
        assert ("--period-days: expected days" if name == "evaluate" else "nowhere") in capsys.readouterr().err
