"""The frozen text tower: a CLIP text encoder of open_clip, with weights from a local file or a hub.

The paper uses a Gemini language model, which is not public (section 4.5); this is our stand-in (docs/fidelity.md).
Weights are read with ``weights_only=True`` or as safetensors, never unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_TOWER, DEFAULT_WEIGHTS = "ViT-B-32", "laion2b_s34b_b79k"

TINY = "tiny"
"""A tower of 3.3 M fixed random weights and the real tokenizer: for tests and demonstrations without a download."""

TINY_DIM = 64
_TINY_CONFIG = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_TINY_SEED = 20240421

BATCH = 64
PROBE_S = 3.0
"""How long to look for the network before saying that there is none: the hub's own retries take 45 s."""

QUICK_GELU = "-quickgelu"
"""How open_clip's names end where OpenAI's approximate GELU is meant."""

WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")


class TowerError(ValueError):
    """A tower or its weights cannot be had, or are not those that a cache or checkpoint was made with; one line."""


@dataclass(frozen=True)
class TowerIdentity:
    """Which vectors these are: the architecture, and a hash of its weights whatever file they came from."""

    name: str
    weights: str
    weights_hash: str
    dim: int
    context_length: int

    @property
    def key(self) -> str:
        """A folder name."""
        return f"{self.name}-{self.weights_hash[:16]}"

    def agrees_with(self, other: TowerIdentity) -> bool:
        """Whether both give the same vectors."""
        return (self.name, self.weights_hash) == (other.name, other.weights_hash)

    def require(self, other: TowerIdentity, what: str) -> None:
        """Raises TowerError unless both give the same vectors. ``what`` names the owner of ``other``."""
        if not self.agrees_with(other):
            raise TowerError(
                f"{what}: expected text vectors of tower {other.name} with weights {other.weights} "
                f"({other.weights_hash[:16]}), found {self.name} with {self.weights} ({self.weights_hash[:16]})"
            )

    def to_json(self) -> str:
        """What `read` reads."""
        return json.dumps({"format_version": 1, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: str | os.PathLike) -> TowerIdentity:
        """Raises TowerError for a damaged, foreign or newer file."""
        try:
            entries: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            version = entries.pop("format_version")
            if version > 1:
                raise TowerError(f"{path}: expected format_version 1, found {version}: update the software")
            return cls(**entries)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TowerError(f"{path}: not the description of a text tower ({type(error).__name__})") from error


class TextTower:
    """A frozen text encoder.

    Args:
        name: an open_clip architecture with CLIP's tokenizer (``ViT-B-32``, …), or ``tiny``.
        weights: a local file (.pt, .bin, .safetensors; of the whole model or of its text tower) or a tag that
            open_clip knows, which is downloaded once. A tag that was trained with OpenAI's approximate GELU makes of
            ``ViT-B-32`` the tower ``ViT-B-32-quickgelu``; for a file the name has to say so. None: `DEFAULT_WEIGHTS` of
            `DEFAULT_TOWER`; ``tiny`` has its own.
        device: where it runs.

    Raises:
        TowerError: unknown architecture or tag, no such file, weights of another architecture, or no network.
        ImportError: open_clip is not installed.
    """

    def __init__(self, name: str = DEFAULT_TOWER, weights: str | None = None, *, device: str | torch.device = "cpu"):
        open_clip = import_open_clip()
        if name == TINY:
            if weights is not None:
                raise TowerError(
                    f"tower {TINY} has fixed weights of its own, found weights {weights!r}: leave them out"
                )
            architecture, label = _Architecture(TINY_DIM, _TINY_CONFIG), "fixed random"
            self._model = _build(open_clip, *architecture)
        else:
            if weights is None and name == DEFAULT_TOWER:
                weights = DEFAULT_WEIGHTS
            name = _with_activation(open_clip, name, weights)
            architecture = _architecture(open_clip, name)
            if weights is None:
                raise TowerError(f"tower {name}: name its weights: a file, or one of {_tags(open_clip, name)}")
            label = Path(weights).name if is_file(weights) else weights
            self._model = _trained(open_clip, name, weights, architecture)
        self.device = torch.device(device)
        self._model.eval().requires_grad_(False).to(self.device)
        self._tokenizer = open_clip.get_tokenizer(DEFAULT_TOWER if name == TINY else name)
        if not isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            raise TowerError(f"tower {name}: expected CLIP's own tokenizer, found {type(self._tokenizer).__name__}")
        dim, length = architecture.dim, int(architecture.config["context_length"])
        self.identity = TowerIdentity(name, label, _hash(self._model.state_dict()), dim, length)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.identity.dim

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, dim) float32 of texts of any length, each independent of the others.

        Long texts are split and their vectors averaged, weighted by their tokens.
        """
        split = [self.split(text) for text in texts]
        pieces = [piece for found in split for piece in found]
        owner = np.repeat(np.arange(len(texts)), [len(found) for found in split])
        total = np.zeros((len(texts), self.dim), np.float64)
        for first in range(0, len(pieces), BATCH):
            group = pieces[first : first + BATCH]
            weight = np.array([[max(len(piece), 1)] for piece in group])
            np.add.at(total, owner[first : first + BATCH], self._encode(group) * weight)
        return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)

    def split(self, text: str) -> list[list[int]]:
        """Token ids of the pieces of a text, each short enough for the tower, cut between words where there are any."""
        ids, room = self._tokenizer.encode(text), self.identity.context_length - 2
        return list(_cut(ids, room, lambda token: self._tokenizer.decoder[token].endswith("</w>"))) or [[]]

    @torch.inference_mode()
    def _encode(self, pieces: Sequence[Sequence[int]]) -> np.ndarray:
        tokens = torch.zeros(len(pieces), self.identity.context_length, dtype=torch.int64)
        for row, piece in zip(tokens, pieces):
            framed = [self._tokenizer.sot_token_id, *piece, self._tokenizer.eot_token_id]
            row[: len(framed)] = torch.tensor(framed)
        vectors = self._model(tokens.to(self.device)).float()
        return F.normalize(vectors, dim=-1).cpu().numpy().astype(np.float64)


def _cut(ids: Sequence[int], room: int, ends_word: Callable[[int], bool]) -> Iterator[list[int]]:
    start = 0
    while start < len(ids):
        stop = min(start + room, len(ids))
        if stop < len(ids):
            words = [i for i in range(start + 1, stop + 1) if ends_word(ids[i - 1])]
            stop = words[-1] if words else stop
        yield list(ids[start:stop])
        start = stop


# --- open_clip -------------------------------------------------------------------------------------------------------

_torchvision_ops: torch.library.Library | None = None


def import_open_clip():
    """open_clip, imported when it is needed. Raises ImportError naming the extra that brings it."""
    _declare_missing_torchvision_ops()
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the text tower needs open_clip ({error.name} is missing): pip install 'aef-engine[text]'"
        ) from error
    return open_clip


def _declare_missing_torchvision_ops() -> None:
    """A CUDA build of torchvision beside a CPU build of torch cannot load its operators, and then not be imported.

    Nothing here uses them; declaring two of them lets the import pass.
    """
    global _torchvision_ops
    spec = importlib.util.find_spec("torchvision")
    if _torchvision_ops is not None or spec is None or spec.origin is None or torch.version.cuda:
        return
    if "+cu" not in (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_ops = library


class _Architecture(NamedTuple):
    dim: int
    config: Mapping[str, Any]
    quick_gelu: bool = False


def _architecture(open_clip, name: str) -> _Architecture:
    """What open_clip knows under a name. Raises TowerError where it knows none, or its text encoder is not CLIP's."""
    config = open_clip.get_model_config(name)
    if config is None:
        raise TowerError(
            f"unknown text tower {name!r}: expected an open_clip architecture such as {DEFAULT_TOWER}, or {TINY}"
        )
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise TowerError(
            f"tower {name}: its text encoder is not CLIP's: choose one such as {DEFAULT_TOWER} or ViT-L-14"
        )
    return _Architecture(config["embed_dim"], config["text_cfg"], config.get("quick_gelu", False))


def _with_activation(open_clip, name: str, weights: str | None) -> str:
    """The architecture that says with which activation a tag was trained: ``openai`` of ViT-B-32 is ViT-B-32-quickgelu.

    The weights do not tell, and a file of them read with the other activation gives other vectors.
    """
    told = f"{name}{QUICK_GELU}"
    if weights is None or is_file(weights) or open_clip.get_model_config(told) is None:
        return name
    return told if _tag(open_clip, name, weights).get("quick_gelu", False) else name


def _build(open_clip, dim: int, config: Mapping[str, Any], quick_gelu: bool):
    from open_clip.model import _build_text_tower

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_TINY_SEED)
        return _build_text_tower(dim, dict(config), quick_gelu)


def _hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- weights ---------------------------------------------------------------------------------------------------------


def is_file(weights: str) -> bool:
    """Whether weights name a file rather than a tag."""
    return Path(weights).suffix in WEIGHT_FILES or os.sep in weights


def _tags(open_clip, name: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"


def _tag(open_clip, name: str, tag: str) -> dict[str, Any]:
    found = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        raise TowerError(f"tower {name}: unknown weights {tag!r}: expected a file, or one of {_tags(open_clip, name)}")
    return found


def find_weights(name: str, weights: str) -> Path:
    """The local file of weights: the one that is named, the hub's cached one, or one downloaded now.

    Raises:
        TowerError: no such file or tag; or it is not here and there is no network, said at once.
    """
    open_clip = import_open_clip()
    if is_file(weights):
        if not Path(weights).is_file():
            raise TowerError(f"tower {name}: {weights}: no such file of weights")
        return Path(weights)
    entry = _tag(open_clip, name, weights)
    cached = _cached(entry)
    if cached:
        return cached
    host = "huggingface.co" if entry.get("hf_hub") else urlsplit(entry["url"]).hostname or ""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline or not _reachable(host):
        raise TowerError(
            f"tower {name}: weights {weights!r} are not on this machine and {host} cannot be reached: "
            f"get them elsewhere ({entry.get('hf_hub') or entry['url']}) and name the file"
        )
    try:
        return Path(open_clip.download_pretrained(entry))
    except Exception as error:  # the hub's client raises many kinds
        raise TowerError(f"tower {name}: weights {weights!r} could not be downloaded from {host}: {error}") from error


def _cached(entry: Mapping[str, Any]) -> Path | None:
    """The file that an earlier download left behind."""
    from huggingface_hub import try_to_load_from_cache

    if entry.get("hf_hub"):
        repository, filename = os.path.split(entry["hf_hub"])
        names = [filename] if filename else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        found = (try_to_load_from_cache(repository, one) for one in names)
        return next((Path(path) for path in found if isinstance(path, str)), None)
    path = Path("~/.cache/clip").expanduser() / Path(urlsplit(entry["url"]).path).name
    return path if path.is_file() else None


def _reachable(host: str) -> bool:
    """Whether a connection opens within PROBE_S, through a proxy where one is set."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    target = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else urlsplit(f"//{host}:443")
    try:
        with socket.create_connection((target.hostname or host, target.port or 443), timeout=PROBE_S):
            return True
    except OSError:
        return False


def _text_state(path: Path) -> dict[str, Tensor]:
    """The text tower's part of a file of weights. Raises TowerError for a damaged or pickled file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {key.removeprefix("module."): value for key, value in state.items()}
    except Exception as error:  # each format has its own
        raise TowerError(
            f"{path}: damaged, or not plain weights ({type(error).__name__}): expected a state dict or safetensors"
        ) from error
    if any(key.startswith("text.") for key in state):
        return {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    return {k: v for k, v in state.items() if not k.startswith("visual.") and k not in ("logit_scale", "logit_bias")}


def _trained(open_clip, name: str, weights: str, architecture: _Architecture):
    """A tower with its weights."""
    state = _text_state(find_weights(name, weights))
    model = _build(open_clip, *architecture)
    _load(model, state, f"tower {name}: {weights}")
    return model


def _load(model: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise TowerError(f"{what}: weights of another architecture: {reason[:160]}") from error
