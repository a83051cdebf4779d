"""Places of the synthetic Earth that several tests look at, rendered once."""

from __future__ import annotations

import pytest

from aef.data.synthetic import Earth
from aef.data.synthetic.earth import render_chip

PLACES = 12
IMAGES = ("sentinel2", "sentinel1", "landsat")


@pytest.fixture(scope="session")
def scenes():
    """The latent truth of twelve places."""
    earth = Earth(seed=0)
    return [earth.scene(place) for place in range(PLACES)]


@pytest.fixture(scope="session")
def chips(scenes):
    """The same places, as the three encoded sensors see them."""
    return [render_chip(scene, IMAGES) for scene in scenes]


@pytest.fixture(scope="session")
def many_scenes():
    """The test set of docs/synthetic.md: 128 places, scenes only, which are quick to draw."""
    earth = Earth(seed=1)
    return [earth.scene(place) for place in range(128)]
