"""Chips of every folder train together in one run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aef.settings_file import write_sources

CHECKOUT = Path(__file__).parents[3]
ONE_PLACE_EACH = {
    "worldcereal_patches": "2021_TZA_COPERNICUS-GEOGLAM_POLY_1101950",
    "worldcereal_monthly": "picardy",
    "snowgalileo_8day": "rockies_20250406",
    "gee_monthly_stacks": "togo",
    "terramesh_examples": "282D_485L_3_3",
    "openeo_s1s2": "kempen",
    "eolearn_eopatch": "slovenia",
    "treesatai_ts": "Abies_alba_1_1005_WEFL_NLF",
    "bigearthnet_pairs": "4_55",
}


def test_every_folder_trains_twenty_steps_in_one_run(converted, tmp_path):
    pytest.importorskip("deepspeed")
    chips = tmp_path / "chips"
    chips.mkdir()
    sources = {}
    for name, place in ONE_PLACE_EACH.items():
        folder = converted(name)
        folder[place]
        shutil.copy(folder.out / folder.reports[place].file, chips)
        sources |= {source.name: source for source in folder.recipe.sources}
    write_sources(chips / "sources.yaml", sources.values())
    command = [
        sys.executable,
        "launcher/train.py",
        "--config",
        "tiny",
        "--data",
        str(chips),
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["train.steps=20", "train.global_batch=3", "train.micro_batch=3", "data.frame_budget=0.05"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "step" in step and "loss" in step]
    assert len(losses) == 20 and np.isfinite(losses).all()
    seen = set().union(*(step["per_source"] for step in steps if step.get("per_source")))
    assert {
        "sentinel2",
        "sentinel2_l2a",
        "sentinel1",
        "landsat",
        "agera5_daily",
        "modis_mod09ga",
        "glo30",
        "dem",
    } <= seen
