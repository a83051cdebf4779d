import pytest

from aef.config import LARGE
from aef.settings_file import load_config
from aef.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0), (500, 0.5e-4), (1000, 1e-4), (50_500, 0.5e-4), (75_250, 0.25e-4), (100_000, 0)]
)
def test_the_papers_learning_rate_is_piecewise_linear(step, expected):
    t = LARGE.train
    found = learning_rate(step, steps=t.steps, warmup=LARGE.warmup_steps, peak=t.peak_lr)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_warm_up_is_scaled_with_short_runs():
    assert load_config("large", ["train.steps=200"]).warmup_steps == 20
    assert load_config("large", ["train.steps=1"]).warmup_steps == 1


def test_every_update_but_the_last_has_a_positive_rate():
    rates = [learning_rate(step, steps=20, warmup=2, peak=1.0) for step in range(1, 21)]
    assert min(rates[:-1]) > 0 and rates[-1] == 0 and max(rates) == 1.0


def test_a_step_outside_the_run_is_refused():
    with pytest.raises(ValueError, match="step 21 lies outside the run of 20 steps"):
        learning_rate(21, steps=20, warmup=2, peak=1.0)
