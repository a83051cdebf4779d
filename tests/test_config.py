"""Settings: typed, documented, read from YAML and the command line, refused in one line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aef.config import PRESETS, Config, ConfigError, DataConfig, ModelConfig
from aef.settings_file import dump_config, load_config, read_resolved

SECTIONS = ("model", "data", "objective", "train")
ITEMS = [(section, item) for section in SECTIONS for item in dataclasses.fields(getattr(Config(), section))]


def refused(action, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_lawful_and_survives_yaml(tmp_path, name):
    PRESETS[name].validate()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(PRESETS[name]))
    assert load_config(str(path)) == read_resolved(path) == PRESETS[name] == load_config(name)


def test_settings_made_in_python_survive_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    config = Config(train=dataclasses.replace(PRESETS["tiny"].train, steps=9))
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config
    refused(dataclasses.replace(config, preset="mine").validate, "preset", "custom, tiny, small", "'mine'")


def test_a_run_from_before_a_setting_existed_does_what_it_did(tmp_path):
    path = tmp_path / "config.yaml"
    lines = dump_config(PRESETS["base"]).splitlines()
    at = lines.index("  unscored_bands:")
    del lines[at : at + 3], lines[next(i for i, line in enumerate(lines) if "partner_chips" in line)]
    path.write_text("\n".join(lines))
    assert load_config(str(path)) == PRESETS["base"]  # settings of one's own stand over a preset
    before = dataclasses.replace(PRESETS["base"].objective, unscored_bands=(), partner_chips=0)
    assert read_resolved(path) == dataclasses.replace(PRESETS["base"], objective=before)


def test_large_is_the_paper():
    c = PRESETS["large"]
    m, d, o, t = c.model, c.data, c.objective, c.train
    assert (m.blocks, m.precision_width, m.time_width, m.space_width) == (15, 128, 512, 1024)
    assert (m.embedding_dim, m.kappa, m.decoder_width, m.period_bias, m.head_width) == (64, 8000, 512, False, 64)
    assert (d.chip_px, d.frame_budget, d.targets_per_source, d.periods_per_sample) == (128, 1, 1, 0)
    assert (d.period_min_days, d.support_days) == (4, 365)
    assert (o.reconstruction_weight, o.uniformity_weight, o.consistency_weight, o.text_weight) == (1, 0.05, 0.02, 0.001)
    assert (o.uniformity, o.partner_chips, o.clip_sigma) == ("pairs", 0, 6)
    assert (t.steps, t.global_batch, t.peak_lr, t.warmup_steps, t.weight_decay) == (100_000, 256, 1e-4, 1000, 0)
    assert (tuple(t.betas), t.eps, t.clip_norm) == ((0.9, 0.999), 1e-8, 1.0)
    assert not (d.teacher_frame_drop or d.regrid_offset)


def test_the_readings_of_the_sample_data_are_the_defaults():
    d = DataConfig()
    assert (d.statistics, d.target_by_clear_weight, d.twin_minutes) == ("clear", True, 60)
    assert (d.period_uniform, d.period_log_uniform) == (0.5, 0.25)
    assert d.student_strategies == (1, 1, 1)


def test_warm_up_is_a_tenth_of_a_short_run():
    assert PRESETS["large"].warmup_steps == 1000
    assert load_config("large", ["train.steps=500"]).warmup_steps == 50
    assert load_config("tiny", ["train.steps=1"]).warmup_steps == 1


@pytest.mark.parametrize(("section", "item"), ITEMS, ids=lambda x: getattr(x, "name", x))
def test_every_setting_documents_itself_and_is_read_somewhere(section, item):
    assert item.metadata["description"]
    root = Path(__file__).parents[1]
    used = re.compile(rf"\.{item.name}\b")
    files = [f for room in ("aef", "launcher") for f in (root / room).rglob("*.py")]
    assert any(used.search(f.read_text()) for f in files), f"{section}.{item.name} is read by nobody"


def test_settings_load_neither_torch_nor_yaml():
    code = "import sys, aef.config; print({'torch', 'yaml', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# --- files and overrides ---------------------------------------------------------------------------------------------


def test_overrides_are_typed():
    config = load_config(
        "small",
        ["train.peak_lr=1e-4", "data.chip_px=32", "model.inputs=[sentinel2]", "data.withheld=null", "train.steps=7"],
    )
    assert config.train.peak_lr == 1e-4 and config.data.chip_px == 32
    assert config.model.inputs == ("sentinel2",) and config.data.withheld is None
    assert isinstance(load_config("small", ["train.peak_lr=1"]).train.peak_lr, float)
    assert load_config("small", ["model.inputs=sentinel2"]).model.inputs == ("sentinel2",)
    assert load_config("small", ["objective.source_weights=nlcd=0.25"]).objective.weights_by_source() == {"nlcd": 0.25}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=3", ("unknown setting train.stepz", "did you mean train.steps?")),
        ("trian.steps=3", ("unknown section trian", "did you mean train?")),
        ("steps=3", ("section.key=value",)),
        ("train.steps", ("section.key=value",)),
        ("train.steps=many", ("train.steps", "expected int", "'many'")),
        ("train.steps=1.5", ("train.steps", "expected int")),
        ("train.steps=true", ("train.steps",)),
        ("train.steps=0", ("train.steps", "at least 1")),
        ("model.embedding_dim=2", ("model.embedding_dim", "at least 3")),
        ("train.steps=-5", ("train.steps",)),
        ("train.peak_lr=.nan", ("train.peak_lr", "finite")),
        ("train.peak_lr=0", ("train.peak_lr",)),
        ("data.chip_px=18", ("data.chip_px", "multiple of 4", "18")),
        ("data.chip_px=-16", ("data.chip_px",)),
        ("data.period_beyond_days=200", ("data.period_beyond_days", "0 to 183")),
        ("data.period_min_days=400", ("data.period_min_days",)),
        ("data.period_uniform=0.9", ("data.period_uniform", "at most 1")),
        ("data.student_strategies=[1,1]", ("data.student_strategies", "three odds")),
        ("data.student_strategies=[0,0,0]", ("data.student_strategies",)),
        ("data.frame_budget=0", ("data.frame_budget", "positive")),
        ("data.statistics=cloudy", ("data.statistics", "clear, valid")),
        ("model.head_width=0", ("model.head_width",)),
        ("model.time_width=100", ("model.time_width", "multiple of head_width")),
        ("model.summary_heads=7", ("model.summary_width", "multiple of summary_heads")),
        ("model.compute_dtype=float16", ("model.compute_dtype",)),
        ("train.betas=[0.9, 1.0]", ("train.betas",)),
        ("train.eps=0", ("train.eps", "positive")),
        ("train.seed=4294967296", ("train.seed", "2³²")),
        ("model.pyramid_kernel=2.0", ("model.pyramid_kernel", "2, 3, 4", "2.0")),
        ("model.inputs=[sentinel2, sentinel1, sentinel2]", ("model.inputs", "each source once")),
        ("model.targets=[sentinel2, sentinel2]", ("model.targets", "each source once")),
        ("objective.source_weights=[nlcd]", ("objective.source_weights", "SOURCE=WEIGHT", "'nlcd'")),
        ("objective.source_weights=[nlcd=-1]", ("objective.source_weights", "at least 0", "'nlcd=-1'")),
        ("objective.source_weights=[nlcd=1, nlcd=2]", ("objective.source_weights", "each source once", "'nlcd=2'")),
        ("train.steps={a: 1", ("train.steps", "cannot read")),
        ("data.time_jitter_days=1e9", ("data.time_jitter_days", "at most 3,660")),
        ("data.periods_per_sample=1000000000", ("data.periods_per_sample", "at most 1,000")),
        ("data.period_min_days=1e-9", ("data.period_min_days", "0.001")),
        ("data.chip_px=1000000", ("data.chip_px", "at most 8,192")),
        ("data.workers=100000", ("data.workers", "at most 1,000")),
        ("model.space_width=1000000000", ("model.space_width", "at most 65,536")),
        ("objective.clip_sigma=0", ("objective.clip_sigma", "positive")),
        ("objective.clip_sigma=1e300", ("objective.clip_sigma", "at most 1,000,000")),
        ("train.timeout_s=0", ("train.timeout_s", "at least 1")),
        ("train.timeout_s=1e12", ("train.timeout_s", "at most 2,592,000")),
        ("train.betas=0.9,0.99", ("train.betas: expected a list like [0.5, 1], found '0.9,0.99'",)),
        ("data.held_out_places=[0123]", ("data.held_out_places: expected str, found 83", 'in quotes, like ["0123"]')),
        ("data.held_out_places=[2019-01-01]", ("data.held_out_places: expected str, found datetime.date", "in quotes")),
        ("data.withheld=no", ("data.withheld: expected str, found False", "in quotes")),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override, words):
    refused(lambda: load_config("small", [override]), *words)


@pytest.mark.parametrize(
    ("section", "settings", "words"),
    [
        ("train", {"steps": "10"}, ("train.steps: expected int, found '10'",)),
        ("train", {"steps": 1.0}, ("train.steps: expected int, found 1.0",)),
        ("train", {"steps": None}, ("train.steps: expected int, found None",)),
        ("train", {"steps": np.int64(3)}, ("train.steps: expected int, found np.int64(3)",)),
        ("train", {"betas": [0.9, 0.99]}, ("train.betas: expected a tuple, found [0.9, 0.99]",)),
        ("data", {"held_out_places": "place0"}, ("data.held_out_places: expected a tuple",)),
        ("data", {"withheld": Path("dates.csv")}, ("data.withheld: expected str",)),
        ("data", {"crop_jitter": "no"}, ("data.crop_jitter: expected bool, found 'no'",)),
        ("model", {"compute_dtype": "float16"}, ("model.compute_dtype: expected one of float32, bfloat16",)),
    ],
)
def test_a_setting_of_another_type_made_in_python_is_refused_as_from_yaml(section, settings, words):
    config = PRESETS["tiny"]
    own = dataclasses.replace(getattr(config, section), **settings)
    refused(dataclasses.replace(config, **{section: own}).validate, *words)
    refused(dataclasses.replace(config, **{section: settings}).validate, section, "Config, found {")


def test_whole_numbers_pass_for_numbers():
    config = PRESETS["tiny"]
    dataclasses.replace(config, train=dataclasses.replace(config.train, peak_lr=1)).validate()


@pytest.mark.parametrize("arguments", [(None,), (3,), ("tiny", "train.steps=3"), ("tiny", {"train.steps": 3})])
def test_settings_that_are_not_asked_for_as_expected_are_one_line(arguments):
    refused(lambda: load_config(*arguments), "expected", "found")


def test_a_file_of_settings_may_be_a_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: tiny")
    assert load_config(tmp_path / "mine.yaml") == PRESETS["tiny"]


def test_a_file_builds_on_its_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: tiny\ntrain: {steps: 9}\n")
    config = load_config(str(path), ["train.seed=4"])
    assert config == dataclasses.replace(
        PRESETS["tiny"], train=dataclasses.replace(PRESETS["tiny"].train, steps=9, seed=4)
    )


@pytest.mark.parametrize(
    "text",
    [
        "- 1",
        "3",
        "preset: huge",
        "preset: [small]",
        "train: 5",
        "train: {steps: [1]}",
        "{",
        "nothing: {}",
        "a: !!python/none 1",
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refused(lambda: load_config(str(path)), str(path))


def test_an_unknown_name_is_refused_with_the_presets():
    refused(lambda: load_config("medium"), "tiny, small, base, large, xlarge")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such file"):
        load_config("none.yaml")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item=st.sampled_from(ITEMS), junk=JUNK)
def test_any_value_of_any_setting_is_lawful_or_one_line_that_names_it(tmp_path, item, junk):
    section, field = item
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"preset": "small", section: {field.name: junk}}))
    try:
        config = load_config(str(path))
    except ConfigError as error:
        assert "\n" not in str(error)
        # Some settings are refused for what another one makes of them.
        assert f"{section}." in str(error)
    else:
        hint = typing.get_type_hints(type(getattr(config, section)))[field.name]
        value = getattr(getattr(config, section), field.name)
        assert typing.get_origin(hint) or isinstance(value, hint)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(max_size=60) | JUNK.map(yaml.safe_dump))
def test_any_settings_file_is_lawful_or_one_line(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    try:
        load_config(str(path))
    except ConfigError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().blocks = 3  # type: ignore[misc]


def test_a_list_of_names_may_lie_in_a_file(tmp_path):
    path = tmp_path / "places.txt"
    path.write_text("".join(f"site-{number}\n" for number in range(3)) + "\n")
    config = load_config("small", [f"data.held_out_places=[first,'@{path}']"])
    assert config.data.held_out_places == ("first", "site-0", "site-1", "site-2")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert load_config("small", [f"data.held_out_places=@{path}"]).data.held_out_places[0] == "site-0"
    path.write_text("\n")
    for listed, words in ((path, "holds no name"), (tmp_path / "absent", "cannot be read")):
        with pytest.raises(ConfigError, match=f"data.held_out_places: {listed}: {words}"):
            load_config("small", [f"data.held_out_places='@{listed}'"])
