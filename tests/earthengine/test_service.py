"""The service: what every failure means, retries, the gate, the quota guard; the real client over loopback."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import ee
import google.auth.exceptions
import numpy as np
import pytest
from conftest import QUICK
from hypothesis import given
from hypothesis import strategies as st
from standin.server import Faults

from aef.earthengine.errors import (
    AccessError,
    EarthEngineError,
    QuotaError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from aef.earthengine.failures import classify_failure
from aef.earthengine.npy import read_npy
from aef.earthengine.patience import Patience
from aef.earthengine.service import Service
from aef.earthengine.transport import Gate

# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (ee.EEException("User memory limit exceeded."), 400, TooLargeError),
        (ee.EEException("Computation timed out."), 400, TooLargeError),
        (ee.EEException("Total request size (50331650 bytes) must be less than"), 400, TooLargeError),
        (ee.EEException("Collection query aborted after accumulating over 5000 elements."), 400, TooLargeError),
        (ee.EEException("Image.load: Image asset 'X' not found."), 400, RequestError),
        (ee.EEException("Asset 'X' does not exist or doesn't allow this operation."), 404, RequestError),
        (ee.EEException("The caller cannot read asset X"), 403, RequestError),
        (ee.EEException("Earth Engine API has not been used in project 1 before"), 403, AccessError),
        (ee.EEException("Not signed up for Earth Engine or project is not registered."), 403, AccessError),
        (ee.EEException("Invalid credentials"), 401, AccessError),
        (google.auth.exceptions.RefreshError("invalid_grant"), None, AccessError),
        (ee.EEException("Quota exceeded for 'EECU-seconds per month'"), 429, QuotaError),
        (ee.EEException("Precondition failed"), 412, RequestError),
        # No answer of the service: the run ends, nothing counts as refused.
        (ee.EEException("Earth Engine client library not initialized"), None, EarthEngineError),
        (ee.EEException("cannot be serialized"), 200, EarthEngineError),
    ],
)
def test_final_failures_are_not_retried(failure, status, kind):
    assert type(classify_failure(failure, status)) is kind


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ee.EEException("Too many concurrent aggregations."), 429),
        (ee.EEException("Quota exceeded for 'read requests per minute'"), 429),
        (ee.EEException("Internal error"), 500),
        (ee.EEException("unavailable"), 503),
        (ee.EEException("Request timeout"), 408),
        (google.auth.exceptions.RefreshError("internal_failure", retryable=True), 503),
        (google.auth.exceptions.TransportError("reset while the token was renewed"), None),
        (ConnectionError("reset"), None),
        (TimeoutError("slow"), None),
        (ValueError("cannot reshape array: EOF"), 200),
        (EOFError("No data left in file"), 200),
        (TypeError("string indices must be integers"), 200),
    ],
)
def test_passing_failures_are_retried(failure, status):
    assert classify_failure(failure, status) is None


def test_credentials_never_reach_a_message():
    text = str(classify_failure(ee.EEException("refused: Bearer ya29.a0AfH6SMBx and 1//0abc-def"), 400))
    assert "ya29" not in text and "1//0" not in text and "refused" in text


@given(st.integers(0, 60), st.floats(0, 1), st.none() | st.floats(0, 100))
def test_waits_grow_are_bounded_and_respect_the_service(attempt, jitter, asked):
    patience = Patience()
    wait = patience.wait_s(attempt, asked, jitter)
    assert wait >= (asked or 0) and wait <= max(patience.longest_s * 1.5, asked or 0)
    assert wait >= min(patience.longest_s, patience.first_s * 2**attempt) * 0.5


# --- the gate --------------------------------------------------------------------------------------------------------


def test_the_gate_never_lets_more_in_than_its_width():
    gate, inside, most = Gate(3), 0, 0
    lock, meet = threading.Lock(), threading.Barrier(3, timeout=120)

    def enter():
        nonlocal inside, most
        with gate.entered():
            with lock:
                inside += 1
                most = max(most, inside)
            meet.wait()  # three must be inside together for anyone to go on
            with lock:
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert most == 3 == gate.peak and gate.inside == 0


def test_the_gate_narrows_when_told_and_widens_again():
    gate = Gate(8)
    gate.narrow()
    assert gate.width == 4
    for _ in range(4 + 5 + 6 + 7):
        gate.answered()
    assert gate.width == 8
    for _ in range(10):
        gate.narrow()
    assert gate.width == 1


# --- over loopback ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["busy", "error", "reset", "slow", "truncated", "garbled"])
def test_every_kind_of_fault_is_overcome(standin, fetch, kind):
    clean = fetch(standin(), "landsat", px=16)
    server = standin(faults=Faults(rate=1.0, kinds=(kind,), tries=2))
    faulty = fetch(server, "landsat", px=16)
    assert server.counters.faults[kind] >= 2
    assert (faulty.series.values == clean.series.values).all() and faulty.products == clean.products


def test_memory_limits_are_answered_by_asking_for_less(standin, fetch):
    clean = fetch(standin(), "sentinel2", px=16)
    server = standin(faults=Faults(max_bands=13))
    split = fetch(server, "sentinel2", px=16)
    assert split.requests > clean.requests
    assert (split.series.values == clean.series.values).all() and (split.series.weight == clean.series.weight).all()


def test_a_single_frame_too_large_is_split_by_rows_and_then_refused(standin, fetch):
    server = standin(faults=Faults(max_bands=1))
    with pytest.raises(TooLargeError):
        fetch(server, "sentinel2", px=32)
    assert server.counters.requests < 100


def test_a_400_fails_at_once(standin, fetch):
    server = standin(faults=Faults(denied="S1_GRD"))
    with pytest.raises(RequestError, match="permission denied"):
        fetch(server, "sentinel1", px=16)
    assert server.counters.requests == 1


def test_a_service_that_stays_away_is_given_up(standin, fetch):
    server = standin(faults=Faults(rate=1.0, kinds=("error",), tries=99))
    with pytest.raises(UnavailableError, match="after 5 tries"):
        fetch(server, "landsat", px=16)
    assert server.counters.requests == 5


def test_a_dead_network_ends_the_run_with_one_sentence(standin, fetch):
    server = standin(faults=Faults(down=True))
    with pytest.raises(AccessError, match=r"check the network.*not fetched twice"):
        fetch(server, "landsat", px=16)


def test_one_request_that_fails_while_others_are_answered_does_not_end_the_run(standin, connect):
    server = standin()

    class OthersAreAnswered(Patience):
        def wait_s(self, *_):
            server.faults = Faults()
            assert service.value(ee.Number(2)) is not None
            server.faults = Faults(down=True)
            return 0

    service = connect(server, patience=OthersAreAnswered(tries=3))
    server.faults = Faults(down=True)
    with pytest.raises(UnavailableError, match="no answer after 3 tries"):
        service.value(ee.Number(1))


def test_a_connection_that_another_replaced_says_so_and_closing_it_leaves_the_other(standin, connect):
    first = connect(standin())
    second = connect(standin())
    with pytest.raises(EarthEngineError, match="another was opened since"):
        first.value(ee.Number(1))
    first.__exit__()
    assert second.value(ee.Number(1)) is not None


def test_expired_tokens_are_renewed(standin, fetch):
    server = standin(faults=Faults(expire_every=2))
    assert fetch(server, "landsat", px=16).series is not None
    assert server.tokens >= 2


def test_a_refused_renewal_says_what_to_do(standin, connect):
    server = standin()
    service = connect(server)
    server.faults = Faults(expire_every=1, refuse_refresh=True)
    with pytest.raises(AccessError, match=r"expired or were revoked: run `earthengine authenticate`"):
        service.value(ee.Number(1))


def test_a_spent_quota_pauses_everyone_and_then_goes_on(standin, fetch):
    said = []
    server = standin(faults=Faults(quota_after=1, quota_for=1))
    assert fetch(server, "landsat", px=16, say=said.append).series is not None
    assert len(said) == 1 and "quota is spent" in said[0] and "1 of 2" in said[0]


def test_a_quota_that_stays_spent_ends_the_run(standin, fetch):
    server = standin(faults=Faults(quota_after=0, quota_for=10**9))
    with pytest.raises(QuotaError, match="quota exhausted"):
        fetch(server, "landsat", px=16)
    assert server.counters.requests == QUICK.quota_pauses + 1


def test_stopping_wakes_those_who_wait(standin, connect):
    server = standin(faults=Faults(rate=1.0, kinds=("error",), tries=99))
    service = connect(server, patience=Patience(tries=9, first_s=36000, longest_s=36000))
    thread = threading.Timer(0.2, service.stop)
    thread.start()
    with pytest.raises(UnavailableError, match="the run was stopped"):
        service.value(ee.Number(1))
    assert server.counters.requests <= 1


# --- connecting ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user without any credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)


def test_without_credentials_the_user_is_told_to_authenticate(nobody, standin):
    with pytest.raises(
        AccessError, match="no Earth Engine credentials on this machine: run `earthengine authenticate`"
    ):
        Service("demo-project", endpoint=standin().url)


def test_without_a_network_the_user_is_told_to_check_it(credentials):
    with pytest.raises(AccessError, match=r"Earth Engine cannot be reached .*: check the network"):
        Service("demo-project", endpoint="http://127.0.0.1:1", key_file=credentials, patience=QUICK)


def test_a_project_that_is_not_registered_is_named(standin):
    server = standin(faults=Faults(project_denied=True))
    with pytest.raises(AccessError, match=r"'demo-project' may not use Earth Engine .*register it"):
        Service("demo-project", endpoint=server.url, key_file=server.key, patience=QUICK)


def test_credentials_that_are_refused_must_be_renewed(standin):
    server = standin(faults=Faults(refuse_refresh=True))
    with pytest.raises(AccessError, match="no longer accepted"):
        Service("demo-project", endpoint=server.url, key_file=server.key, patience=QUICK)


def test_a_file_that_is_no_key_is_named(tmp_path):
    (tmp_path / "key.json").write_text('{"type": "service_account", "private_key": "hush"}')
    with pytest.raises(AccessError, match=r"key\.json: is not a service account key") as caught:
        Service("demo-project", key_file=tmp_path / "key.json")
    assert "hush" not in str(caught.value)
    with pytest.raises(AccessError, match="no such service account key"):
        Service("demo-project", key_file=tmp_path / "absent.json")


def test_more_workers_than_the_service_allows():
    with pytest.raises(EarthEngineError, match="1 to 40 requests at once, found 41"):
        Service("demo-project", in_flight=41)


def test_a_missing_project_is_asked_for(nobody, monkeypatch, tmp_path, standin):
    from google.oauth2 import credentials as user

    server = standin()
    monkeypatch.setattr(
        ee.data,
        "get_persistent_credentials",
        lambda: user.Credentials(
            "ya29.standin-0", refresh_token="r", token_uri=f"{server.url}/token", client_id=ee.oauth.CLIENT_ID
        ),
    )
    with pytest.raises(AccessError, match="no Cloud project was given: add --project"):
        Service(None, endpoint=server.url, patience=QUICK)


# --- NPY answers -----------------------------------------------------------------------------------------------------


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
@pytest.mark.parametrize("bands", [1, 3, 5000])
def test_answers_are_read_as_numpy_reads_them(bands):
    rng = np.random.default_rng(0)
    array = np.zeros((3, 4), [(f"f{n}_B2", "<u2" if n % 2 else "<f4") for n in range(bands)])
    for name in array.dtype.names:
        array[name] = rng.integers(0, 100, array.shape)
    for data in (npy(array), npy(array).replace(b"'fortran_order': False", b"'fortran_order':False ", 1)):
        assert (read_npy(data) == array).all() and read_npy(data).dtype == array.dtype


def test_damaged_answers_are_refused():
    data = npy(np.zeros((3, 4), [("a", "<u2"), ("b", "u1")]))
    for wrong in (b"", data[:5], data[:40], data[:-1], data + b"x", b"{}" + data[2:], npy(np.zeros((3, 4)))):
        with pytest.raises((ValueError, EOFError)):
            read_npy(wrong)


def test_many_threads_read_answers_at_once():
    """CPython 3.11 breaks when several threads parse NumPy headers its own way."""
    data = npy(np.ones((2, 2), [(f"f{n}_B2", "<u2") for n in range(300)]))
    with ThreadPoolExecutor(16) as pool:
        assert all(array["f7_B2"].all() for array in pool.map(read_npy, [data] * 500))
