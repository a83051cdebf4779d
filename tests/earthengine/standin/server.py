"""The HTTP side: discovery, algorithms, value:compute, image:computePixels, tokens; and every way to misbehave."""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import threading
import time
import zlib
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ee
import numpy as np

from . import graph
from .rasters import Grid
from .world import World

_SHIPPED = Path(ee.__file__).parent / "tests"
TOKEN_PREFIX = "ya29.standin-"
KINDS = ("busy", "error", "reset", "slow", "truncated", "garbled")


@dataclass
class Faults:
    """What goes wrong. ``rate`` of the requests fail on their first tries, in one of the ``kinds``; the rest is switches.

    ``max_bands`` answers "memory limit" above so many bands; ``expire_every`` makes every n-th request find its token
    expired; ``refuse_refresh`` refuses new tokens; ``quota_after`` answers "EECU spent" from that request on,
    ``quota_for`` times; ``denied`` refuses collections whose id contains the text; ``down`` drops every connection,
    answers under way included.
    """

    rate: float = 0.0
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    tries: int = 1
    max_bands: int = 0
    expire_every: int = 0
    refuse_refresh: bool = False
    quota_after: int = -1
    quota_for: int = 1
    denied: str = ""
    project_denied: bool = False
    down: bool = False
    latency_s: float = 0.0


@dataclass
class Counters:
    requests: int = 0
    answered: int = 0
    inside: int = 0
    peak: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)
    first_s: float = 0.0
    last_s: float = 0.0


class Standin(ThreadingHTTPServer):
    """The service on a free loopback port. ``canned`` answers pixels with noise instead of interpreting the graph."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, world: World | None = None, faults: Faults | None = None, *, canned: bool = False, port: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.world, self.faults, self.canned = world or World(), faults or Faults(), canned
        self.counters, self.lock = Counters(), threading.Lock()
        self.tokens = 0
        self.seen: dict[int, int] = {}
        self.expired: set[str] = set()
        self.released = threading.Event()
        self._canned: dict[tuple, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Standin:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Clients that are killed or that give up are part of the tests."""

    def fault_of(self, body: bytes) -> str | None:
        """The fault of this request: decided by its content, so that it does not depend on the order of threads."""
        key = zlib.crc32(body)
        with self.lock:
            attempt = self.seen.get(key, 0)
            self.seen[key] = attempt + 1
        chance = random.Random(f"{self.faults.seed}/{key}")
        if chance.random() >= self.faults.rate or attempt >= self.faults.tries:
            return None
        return chance.choice(self.faults.kinds)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Standin
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    inside = False

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/$discovery"):
            self._answer(200, (_SHIPPED / "cloud_api_discovery_document.json").read_bytes())
        elif "/algorithms" in self.path:
            if "/projects/517222506229/" in self.path:  # the client library's own project: no project was given
                self._error(
                    403, "PERMISSION_DENIED", "Caller does not have required permission to use project 517222506229."
                )
                return
            if self.server.faults.project_denied:
                self._error(
                    403,
                    "PERMISSION_DENIED",
                    "Earth Engine API has not been used in project 123 before or it is disabled.",
                )
                return
            self._answer(200, (_SHIPPED / "algorithms.json").read_bytes())
        elif self.path == "/_counters":
            self._answer(200, json.dumps(asdict(self.server.counters)).encode())
        else:
            self._error(404, "NOT_FOUND", f"no such method: {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/token":
            self._token()
        elif self.path == "/_faults":
            self.server.faults = Faults(**{k: tuple(v) if k == "kinds" else v for k, v in json.loads(body).items()})
            self._answer(200, b"{}")
        elif ":compute" in self.path:
            self._enter()
            try:
                self._compute(body)
            finally:
                self._leave()
        else:
            self._error(404, "NOT_FOUND", f"no such method: {self.path}")

    # --- computing ---------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        server = self.server
        self.inside = True
        with server.lock:
            c = server.counters
            c.requests += 1
            c.inside += 1
            c.peak = max(c.peak, c.inside)
            c.last_s = time.monotonic()
            c.first_s = c.first_s or c.last_s
            self.number = c.requests

    def _leave(self) -> None:
        """The request is over, once. Said before the first byte of its answer: with the last one the client may already
        have sent another."""
        if self.inside:
            self.inside = False
            with self.server.lock:
                self.server.counters.inside -= 1
                self.server.counters.last_s = time.monotonic()

    def _compute(self, body: bytes) -> None:
        server, faults = self.server, self.server.faults
        if faults.down:
            return self._reset()
        token = self.headers.get("Authorization", "")
        if not token.startswith(f"Bearer {TOKEN_PREFIX}") or self._expired(token):
            return self._error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if 0 <= faults.quota_after < self.number <= faults.quota_after + faults.quota_for:
            return self._error(
                429,
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for quota metric 'Earth Engine compute time (EECU-seconds)' per month.",
            )
        fault = server.fault_of(body)
        if fault:
            with server.lock:
                server.counters.faults[fault] = server.counters.faults.get(fault, 0) + 1
        if fault == "busy":
            return self._error(429, "RESOURCE_EXHAUSTED", "Too many concurrent aggregations.", {"Retry-After": "0"})
        if fault == "error":
            return self._error(503, "UNAVAILABLE", "The service is currently unavailable.")
        if fault == "reset":
            return self._reset()
        if faults.latency_s:
            server.released.wait(faults.latency_s)
        if fault == "slow":
            server.released.wait(0.25)
        kind, answer = self._result(body)
        if kind == "error":
            return self._error(400, "INVALID_ARGUMENT", answer.decode())
        if server.faults.down:  # cut while it was being computed
            return self._reset()
        if fault in ("truncated", "garbled"):
            return self._damaged(kind, answer, fault)
        with server.lock:
            server.counters.answered += 1
            if "value:compute" not in self.path:
                key = f"{zlib.crc32(body):08x}"
                server.counters.pixels[key] = server.counters.pixels.get(key, 0) + 1
        self._answer(200, answer, kind)

    def _result(self, body: bytes) -> tuple[str, bytes]:
        server, request = self.server, json.loads(body)
        try:
            if server.faults.denied and server.faults.denied in body.decode():
                raise graph.GraphError(f"'{server.faults.denied}': permission denied")
            if "value:compute" in self.path:
                value = graph.Interpreter(server.world, request["expression"]).value()
                if isinstance(value, graph.Collection):
                    value = graph.feature_collection(value)
                return "application/json", json.dumps({"result": value}).encode()
            grid = Grid.of_request(request["grid"])
            if server.canned:
                return "application/octet-stream", self._noise(request, grid)
            image = graph.Interpreter(server.world, request["expression"]).value()
            if 0 < server.faults.max_bands < len(image.bands):
                raise graph.GraphError("User memory limit exceeded.")
            return "application/octet-stream", _npy(graph.pixels(image, grid))
        except graph.GraphError as error:
            return "error", str(error).encode()

    def _noise(self, request: dict, grid: Grid) -> bytes:
        """Bytes of the right shape at no cost, for speed measurements: the names are read off the outermost rename."""
        nodes = request["expression"]["values"]
        node = nodes[request["expression"]["result"]]["functionInvocationValue"]["arguments"]["names"]
        names = tuple(
            node["constantValue"] if "constantValue" in node else nodes[node["valueReference"]]["constantValue"]
        )
        key = (names, grid.height, grid.width)
        if key not in self.server._canned:
            types = [(name, "u1" if name.endswith("_weight") else "<u2") for name in names]
            answer = np.zeros((grid.height, grid.width), types)
            generator = np.random.default_rng(0)
            for name, kind in types:
                answer[name] = 1 if kind == "u1" else generator.integers(200, 4000, answer.shape)
            self.server._canned[key] = _npy(answer)
        return self.server._canned[key]

    # --- answering ---------------------------------------------------------------------------------------------------

    def _expired(self, token: str) -> bool:
        every = self.server.faults.expire_every
        with self.server.lock:
            if every and self.number % every == 0:
                self.server.expired.add(token)
            return token in self.server.expired

    def _token(self) -> None:
        if self.server.faults.refuse_refresh:
            self._answer(
                400,
                json.dumps(
                    {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
                ).encode(),
            )
            return
        with self.server.lock:
            self.server.tokens += 1
            token = f"{TOKEN_PREFIX}{self.server.tokens}"
        self._answer(200, json.dumps({"access_token": token, "expires_in": 3600, "token_type": "Bearer"}).encode())

    def _answer(self, status: int, body: bytes, kind: str = "application/json", headers: dict | None = None) -> None:
        self._leave()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _error(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        body = {"error": {"code": status, "message": message, "status": code}}
        self._answer(status, json.dumps(body).encode(), headers=headers)

    def _damaged(self, kind: str, body: bytes, fault: str) -> None:
        """Half of the body: under the full length (the connection ends early), or as if it were all."""
        self._leave()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if fault == "truncated" else len(body) // 2))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if fault == "truncated":
            self._reset()

    def _reset(self) -> None:
        self._leave()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.rfile.close()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def key_file(folder: Path, url: str) -> Path:
    """A service account key whose tokens come from the stand-in."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path = folder / "key.json"
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "demo-project",
                "private_key_id": "1",
                "private_key": pem,
                "client_email": "standin@demo-project.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": f"{url}/token",
            }
        )
    )
    return path
