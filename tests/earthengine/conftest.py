"""Fixtures of the Earth Engine room: the client library without a network, and the stand-in of its service."""

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ee = pytest.importorskip("ee", reason="earthengine-api is not installed (extra [ee])")
sys.path.insert(0, str(Path(__file__).parent))

from standin.server import Faults, Standin, key_file  # noqa: E402
from standin.world import World  # noqa: E402

from aef.earthengine import recipes  # noqa: E402
from aef.earthengine.fetch import ItemFetch  # noqa: E402
from aef.earthengine.grid import ChipGrid  # noqa: E402
from aef.earthengine.patience import Patience  # noqa: E402
from aef.earthengine.service import Service  # noqa: E402
from aef.sources import BUILT_IN, VERSION_2_1  # noqa: E402
from aef.timecode import parse_period  # noqa: E402

IOWA = (-93.57, 42.03)
YEAR = parse_period("2019-03-01/2020-02-29")
# Quick to try again, never quick to give up: on a starved machine an answer that is given up is still being made.
QUICK = Patience(tries=5, first_s=0.01, longest_s=0.02, quota_pause_s=0.05, quota_pauses=2, connect_s=300, answer_s=300)
SOURCES = BUILT_IN.extended(VERSION_2_1.values())


@pytest.fixture(scope="session")
def credentials(tmp_path_factory):
    """A service account key, made once; its token address is set for each stand-in."""
    return key_file(tmp_path_factory.mktemp("key"), "http://127.0.0.1:1")


@pytest.fixture
def standin(credentials):
    """Start stand-ins: ``standin(world=…, faults=…)`` → the running server, whose ``key`` is a valid key file."""
    with contextlib.ExitStack() as stack:

        def start(world: World | None = None, faults: Faults | None = None, **options) -> Standin:
            server = stack.enter_context(Standin(world, faults, **options))
            server.key = credentials.with_name(f"key-{server.server_address[1]}.json")
            server.key.write_text(credentials.read_text().replace("http://127.0.0.1:1/", f"{server.url}/"))
            return server

        yield start


@pytest.fixture
def connect():
    """Connect to a stand-in: ``connect(server, in_flight=8)`` → Service, closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def open_service(server: Standin, *, in_flight: int = 8, patience: Patience = QUICK, **options) -> Service:
            service = Service(
                "demo-project",
                endpoint=server.url,
                key_file=server.key,
                in_flight=in_flight,
                patience=patience,
                **options,
            )
            return stack.enter_context(service)

        yield open_service


@pytest.fixture
def offline(monkeypatch):
    """The client library initialised from its own list of algorithms: graphs can be built, nothing can be sent."""
    from ee import apitestcase

    for name in (
        "getAlgorithms",
        "computeValue",
        "getMapId",
        "getDownloadId",
        "getTableDownloadId",
        "_install_cloud_api_resource",
    ):
        monkeypatch.setattr(ee.data, name, getattr(ee.data, name))
    monkeypatch.setattr(ee.deprecation, "_FetchDataCatalogStac", ee.deprecation._FetchDataCatalogStac)
    apitestcase.ApiTestCase().InitializeApi()
    yield
    ee.Reset()


@pytest.fixture
def fetch(connect):
    """Fetch one item: ``fetch(server, "sentinel2", px=32)`` → Fetched."""

    def run(server, name: str, *, px: int = 32, where=IOWA, period=YEAR, successors: bool = False, **options):
        source = recipes.in_use(SOURCES[name], successors=successors)
        service = connect(server, **options)
        with ThreadPoolExecutor(8) as pool:
            grid = ChipGrid.around(*where, px)
            item = ItemFetch(
                service,
                source,
                recipes.recipe_of(source),
                grid,
                where[0],
                period,
                pool,
                lambda size: None,
            )
            return item.run()

    return run
