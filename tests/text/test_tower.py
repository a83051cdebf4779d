"""The frozen tower and its cache; nothing here touches a network."""

import pickle
import socket
import time

import numpy as np
import pytest
import torch

from aef.text import cache as cache_module
from aef.text.cache import FOLDER, VectorCache, encode_missing, find_vectors
from aef.text.tower import (
    DEFAULT_WEIGHTS,
    TextTower,
    TowerError,
    TowerIdentity,
    _architecture,
    _build,
    _hash,
    _text_state,
    import_open_clip,
)

TEXTS = ["a wheat field in summer", "a forest on a steep slope", "maize, harvested in autumn"]


@pytest.fixture(scope="module")
def tiny():
    return TextTower("tiny")


@pytest.fixture
def offline(monkeypatch):
    """As on a machine that reaches nothing: connections fail, nothing was downloaded before."""

    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def test_vectors_are_unit_repeatable_and_differ(tiny):
    vectors = tiny.encode(TEXTS)
    assert vectors.shape == (3, tiny.dim) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors, TextTower("tiny").encode(TEXTS), atol=1e-6)
    assert TextTower("tiny").identity == tiny.identity
    cosines = vectors @ vectors.T
    assert cosines[np.triu_indices(3, 1)].max() < 0.95


def test_a_text_does_not_depend_on_its_companions(tiny):
    assert np.allclose(tiny.encode(TEXTS)[1], tiny.encode(TEXTS[1:2])[0], atol=1e-6)


def test_long_texts_are_split_between_words_and_averaged_by_length(tiny):
    long = " ".join(f"the {word} antidisestablishmentarianism field" for word in ("green", "brown", "grey") * 12)
    pieces = tiny.split(long)
    assert len(pieces) > 2 and max(map(len, pieces)) <= 75
    assert [token for piece in pieces for token in piece] == tiny._tokenizer.encode(long)
    assert all(tiny._tokenizer.decoder[piece[-1]].endswith("</w>") for piece in pieces)
    each = np.array([tiny._encode([piece])[0] * len(piece) for piece in pieces]).sum(0)
    assert np.allclose(tiny.encode([long])[0], each / np.linalg.norm(each), atol=1e-6)
    assert tiny.split("") == [[]] and np.isfinite(tiny.encode([""])).all()


def test_the_full_tower_has_clips_shape_and_takes_the_text_part_of_a_whole_model(tmp_path):
    from safetensors.torch import save_file

    open_clip = import_open_clip()
    dim, config, quick_gelu = _architecture(open_clip, "ViT-B-32")
    model = _build(open_clip, dim, config, quick_gelu)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 63.4
    state = {name: value.half() for name, value in model.state_dict().items()}
    save_file(
        {**state, "visual.conv1.weight": torch.zeros(2), "logit_scale": torch.zeros(1)}, tmp_path / "clip.safetensors"
    )
    tower = TextTower("ViT-B-32", str(tmp_path / "clip.safetensors"))
    assert tower.identity.weights == "clip.safetensors" and tower.encode(TEXTS[:1]).shape == (1, 512)


def test_both_kinds_of_state_dicts_give_the_same_weights(tmp_path, tiny):
    state = tiny._model.state_dict()
    extras = {"visual.conv1.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    torch.save({**state, **extras}, tmp_path / "clip.pt")
    torch.save({"state_dict": {f"module.text.{k}": v for k, v in state.items()} | extras}, tmp_path / "custom.pt")
    for name in ("clip.pt", "custom.pt"):
        assert _hash(_text_state(tmp_path / name)) == tiny.identity.weights_hash


def test_weights_read_with_another_activation_are_another_tower(tmp_path, monkeypatch):
    """OpenAI's weights ask for the approximate GELU; their file does not say so, the tower's name does."""
    open_clip = import_open_clip()
    config = {"embed_dim": 16, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1}}
    config["text_cfg"]["layers"] = 1
    known = {"ViT-B-32": config, "ViT-B-32-quickgelu": {**config, "quick_gelu": True}}
    monkeypatch.setattr(open_clip, "get_model_config", known.get)
    path = tmp_path / "openai.pt"
    torch.save(_build(open_clip, *_architecture(open_clip, "ViT-B-32")).state_dict(), path)
    monkeypatch.setattr("aef.text.tower._cached", lambda entry: path)
    tag, named = TextTower("ViT-B-32", "openai"), TextTower("ViT-B-32-quickgelu", str(path))
    plain = TextTower("ViT-B-32", str(path))
    assert tag.identity.key == named.identity.key != plain.identity.key
    assert np.array_equal(tag.encode(TEXTS), named.encode(TEXTS))
    assert not np.allclose(tag.encode(TEXTS), plain.encode(TEXTS), atol=1e-4)
    assert TextTower("ViT-B-32", DEFAULT_WEIGHTS).identity.key == plain.identity.key


def test_no_weights_and_no_network_is_one_sentence_at_once(offline):
    started = time.monotonic()
    with pytest.raises(
        TowerError, match=r"weights 'laion2b_s34b_b79k' are not on this machine and huggingface.co cannot be reached"
    ) as error:
        TextTower("ViT-B-32", DEFAULT_WEIGHTS)
    assert "\n" not in str(error.value) and "name the file" in str(error.value)
    # No retries: the hub's own take 45 s.
    assert time.monotonic() - started < 20


def test_offline_mode_asks_no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(TowerError, match="cannot be reached"):
        TextTower("ViT-B-32")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ViT-Z-1", None, "unknown text tower 'ViT-Z-1'"),
        ("ViT-L-14", None, "name its weights: a file, or one of"),
        ("ViT-B-32", "nowhere.pt", "nowhere.pt: no such file of weights"),
        ("ViT-B-32", "nonsense", "unknown weights 'nonsense': expected a file, or one of"),
        ("roberta-ViT-B-32", "x.pt", "its text encoder is not CLIP's"),
        ("tiny", "x.pt", "tower tiny has fixed weights of its own"),
    ],
)
def test_what_cannot_be_had_is_named(name, weights, message):
    with pytest.raises(TowerError, match=message):
        TextTower(name, weights)


def test_weights_of_another_architecture_or_pickled_ones_are_refused(tmp_path):
    torch.save({"token_embedding.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(TowerError, match="weights of another architecture: Missing key"):
        TextTower("ViT-B-32", str(tmp_path / "other.pt"))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": pytest.raises}, protocol=2))
    with pytest.raises(TowerError, match=r"evil.pt: damaged, or not plain weights"):
        TextTower("ViT-B-32", str(tmp_path / "evil.pt"))


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_text_is_encoded_once_and_never_again(tmp_path, tiny, monkeypatch):
    cache = VectorCache.of(tmp_path, tiny.identity)
    assert encode_missing(cache, tiny, [*TEXTS, *TEXTS]) == 3
    vectors = tiny.encode(TEXTS)
    monkeypatch.setattr(TextTower, "encode", lambda *_: pytest.fail("ran the tower again"))
    again = VectorCache.of(tmp_path, tiny.identity)
    assert encode_missing(again, tiny, TEXTS) == 0
    for text, vector in zip(TEXTS, vectors):
        assert np.allclose(again(text), vector, atol=1e-6) and text in again
    assert again("never seen") is None and len(again) == 3


def test_texts_added_later_are_found_across_parts_and_processes(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(cache_module, "PART_TEXTS", 4)
    cache = VectorCache.of(tmp_path, tiny.identity)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(11, tiny.dim)).astype(np.float32)
    for first in (0, 3, 7):
        cache.add([f"t{i}" for i in range(11)[first : first + 4]], vectors[first : first + 4])
    other = pickle.loads(pickle.dumps(cache))
    for found in (cache, other):
        assert all(np.array_equal(found(f"t{i}"), vectors[i]) for i in range(11))


def test_an_interrupted_part_does_not_count(tmp_path, tiny):
    cache = VectorCache.of(tmp_path, tiny.identity)
    cache.add(["a"], np.ones((1, tiny.dim), np.float32))
    np.save(cache.folder / "vectors-000001.npy", np.ones((1, tiny.dim), np.float32))  # its texts were never written
    again = VectorCache(cache.folder)
    again.add(["b"], np.full((1, tiny.dim), 2, np.float32))
    assert again("b")[0] == 2 and again("a")[0] == 1 and VectorCache(cache.folder)("b")[0] == 2


def test_two_processes_that_encode_at_once_mix_no_vectors(tmp_path, tiny, monkeypatch):
    one, other = (VectorCache.of(tmp_path, tiny.identity) for _ in range(2))
    real = cache_module.writing

    def meanwhile(path):
        if path.name.startswith("texts"):  # the other writes its pair between the two files of this one
            monkeypatch.setattr(cache_module, "writing", real)
            monkeypatch.setattr(type(other.folder), "glob", lambda *_: [])
            other.add(["b"], np.full((1, tiny.dim), 2, np.float32))
            monkeypatch.undo()
        return real(path)

    monkeypatch.setattr(cache_module, "writing", meanwhile)
    one.add(["a"], np.ones((1, tiny.dim), np.float32))
    assert VectorCache(one.folder)("a")[0] == 1 and VectorCache(one.folder)("b")[0] == 2


def test_vectors_that_are_not_finite_are_never_kept(tmp_path, tiny, monkeypatch):
    cache = VectorCache.of(tmp_path, tiny.identity)
    monkeypatch.setattr(TextTower, "encode", lambda self, texts: np.full((len(texts), self.dim), np.nan, np.float32))
    with pytest.raises(ValueError, match="its weights are damaged"):
        encode_missing(cache, tiny, TEXTS)
    assert not list(cache.folder.glob("*.npy"))


def test_texts_are_taken_from_the_stream_a_part_at_a_time(tmp_path, tiny, monkeypatch):
    """Those of a large corpus do not fit into memory."""
    monkeypatch.setattr(cache_module, "PART_TEXTS", 2)
    taken, seen = [], []
    stream = (taken.append(text) or text for text in (*TEXTS, *TEXTS, "a lake"))
    cache = VectorCache.of(tmp_path, tiny.identity)
    assert encode_missing(cache, tiny, stream, on_texts=lambda n: seen.append((n, len(taken)))) == 4
    assert seen == [(2, 2), (2, 7)]


def test_each_part_is_opened_once_however_many_there_are(tmp_path, tiny, monkeypatch):
    """Opened after each part, they would take hours of a large corpus."""
    monkeypatch.setattr(cache_module, "PART_TEXTS", 1)
    monkeypatch.setattr(TextTower, "encode", lambda self, texts: np.ones((len(texts), self.dim), np.float32))
    cache, opened, load = VectorCache.of(tmp_path, tiny.identity), [], np.load
    monkeypatch.setattr(np, "load", lambda path, **options: opened.append(path) or load(path, **options))
    assert encode_missing(cache, tiny, [f"t{i}" for i in range(6)]) == 6
    assert len(opened) == len(set(opened)) == 12 and all(f"t{i}" in cache for i in range(6))


def test_a_damaged_cache_is_refused(tmp_path, tiny):
    cache = VectorCache.of(tmp_path, tiny.identity)
    cache.add(["a"], np.ones((1, tiny.dim), np.float32))
    next(cache.folder.glob("vectors-000000-*.npy")).write_bytes(b"\x93NUMPY broken")
    with pytest.raises(TowerError, match="damaged"):
        VectorCache(cache.folder)
    (cache.folder / "tower.json").write_text("{}")
    with pytest.raises(TowerError, match="not the description of a text tower"):
        VectorCache(cache.folder)


def test_vectors_of_another_tower_are_refused(tmp_path, tiny):
    other = TowerIdentity("ViT-B-32", "x.pt", "ab" * 32, 512, 77)
    cache = VectorCache.of(tmp_path / FOLDER, other)
    with pytest.raises(TowerError, match=r"expected text vectors of tower ViT-B-32 with weights x.pt .* found tiny"):
        encode_missing(cache, tiny, TEXTS)
    assert find_vectors(tmp_path).identity == other
    with pytest.raises(TowerError, match="holds no text vectors of tiny"):
        find_vectors(tmp_path, tiny.identity)
    VectorCache.of(tmp_path / FOLDER, tiny.identity)
    assert find_vectors(tmp_path, tiny.identity).identity == tiny.identity
    with pytest.raises(TowerError, match="of several towers"):
        find_vectors(tmp_path)
    assert find_vectors(tmp_path / "elsewhere") is None
