"""The registered operators: torch's own checks, fakes, compiled graphs; and the dispatcher's reasons."""

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from aef import kernels
from aef.kernels import dispatch, runtime, tuning
from aef.kernels.temporal_pooling.library import pool_padded
from aef.kernels.temporal_pooling.reference import temporal_pooling_reference
from aef.kernels.time_attention import library
from aef.kernels.time_attention.reference import time_attention_reference


def offsets(*lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def random(*shape):
    return torch.randn(*shape, requires_grad=True)


def calls():
    """Each operator with small arguments: (operator, public function, its arguments)."""
    torch.manual_seed(0)
    x, weight, bias = random(6, 16), random(16), random(16)
    attention = (random(7, 3, 3, 2, 16), random(7, 3, 2, 16), offsets(3, 0, 4), 8)
    pooling = (random(7, 3, 16), random(7, 16), random(3, 2, 16), random(11, 2))
    pooling = (*pooling, torch.tensor([2, 0, 2], dtype=torch.int32), offsets(3, 0, 4), 8)
    mean, counter = F.normalize(torch.randn(6, 16), dim=1).requires_grad_(), torch.arange(6)
    ops = torch.ops.aef
    return {
        "time_attention": (ops.time_attention, kernels.time_attention, attention),
        "temporal_pooling": (ops.temporal_pooling, kernels.temporal_pooling, pooling),
        "channel_norm": (ops.channel_norm, kernels.channel_norm, (x, weight, bias)),
        "residual_norm": (ops.residual_norm, kernels.residual_norm, (x, bias, random(6, 16), weight, random(16))),
        "bias_gelu": (ops.bias_gelu, kernels.bias_gelu, (x, bias)),
        "gelu_linear": (ops.gelu_linear, kernels.gelu_linear, (x, bias, random(5, 16))),
        "norm_linear": (ops.norm_linear, _norm_linear, (x, torch.randn(6, 16), *constants(2, 16), random(5, 16))),
        "bias_residual": (ops.bias_residual, kernels.bias_residual, (x, bias, random(6, 16))),
        "sample_vmf": (ops.sample_vmf, kernels.sample_vmf, (mean, 20.0, (7, 3), counter)),
    }


def constants(count, size):
    """Of a norm: its gradients are not the product's."""
    return (torch.randn(size) for _ in range(count))


def _norm_linear(normal, state, scale, shift, weight):
    return kernels.norm_linear(kernels.Normalized(normal, state, scale, shift), weight)


NAMES = list(calls())
EACH = pytest.mark.parametrize("name", NAMES)


def flat(name, arguments):
    """The operator's arguments: a key travels as two ints."""
    return (*arguments[:2], *arguments[2], *arguments[3:]) if name == "sample_vmf" else arguments


@EACH
def test_schema_fake_autograd_and_aot_dispatch_hold(name):
    operator, _, arguments = calls()[name]
    torch.library.opcheck(operator.default, flat(name, arguments))


@pytest.mark.interp
@EACH
def test_schema_fake_autograd_and_aot_dispatch_hold_for_the_kernels(name, monkeypatch):
    monkeypatch.setenv("AEF_KERNELS", "triton")
    operator, _, arguments = calls()[name]
    torch.library.opcheck(operator.default, flat(name, arguments))


@EACH
def test_operator_gives_what_the_public_function_gives(name):
    operator, function, arguments = calls()[name]
    leaves = [one for one in arguments if isinstance(one, torch.Tensor) and one.requires_grad]
    found, wanted = operator(*flat(name, arguments)), function(*arguments)
    torch.testing.assert_close(found, wanted)
    found, wanted = (one if isinstance(one, tuple) else (one,) for one in (found, wanted))
    cotangents = [torch.randn_like(one) for one in wanted]
    for one, other in zip(
        torch.autograd.grad(found, leaves, cotangents), torch.autograd.grad(wanted, leaves, cotangents)
    ):
        torch.testing.assert_close(one, other)


@EACH
def test_fake_has_the_shape_and_strides_of_the_result(name):
    operator, _, arguments = calls()[name]
    real = operator(*flat(name, arguments))
    meta = [one.to("meta") if isinstance(one, torch.Tensor) else one for one in flat(name, arguments)]
    fake = operator(*meta)
    real, fake = (one if isinstance(one, tuple) else (one,) for one in (real, fake))
    described = [[(one.shape, one.dtype, one.stride()) for one in outputs] for outputs in (fake, real)]
    assert described[0] == described[1]


@EACH
def test_fake_gradients_have_the_shape_and_strides_of_the_real_ones(name, assert_backward_has_its_fakes_layout):
    operator, _, arguments = calls()[name]
    found = assert_backward_has_its_fakes_layout(operator, flat(name, arguments))
    assert found or name == "bias_residual"  # whose gradients are its cotangent and a sum


@EACH
def test_compiles_into_one_graph_forward_and_backward(name):
    _, function, arguments = calls()[name]
    leaves = [one for one in arguments if isinstance(one, torch.Tensor) and one.requires_grad]
    torch.compiler.reset()

    def loss(*arguments):
        out = function(*arguments)
        return sum(one.square().sum() for one in (out if isinstance(out, tuple) else (out,)))

    found = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")(*arguments)
    wanted = loss(*arguments)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves)):
        torch.testing.assert_close(one, other)


# --- the libraries' paths, which a CPU can run with stand-ins --------------------------------------------------------


def test_padded_attention_agrees_with_the_reference():
    _assert_attends(library.attend_padded)


def test_variable_length_attention_gets_one_sequence_per_segment_and_pixel(monkeypatch):
    def attend(query, key, value, cu_query, cu_key, longest_query, longest_key):
        assert torch.equal(cu_query, cu_key)
        assert (cu_query.dtype, longest_query, longest_key) == (torch.int32, 8, 8)
        return attend_tokens(query, key, value, cu_query, longest_query)

    monkeypatch.setattr(library, "varlen_library", lambda channels: ("stand-in", attend))
    _assert_attends(library.attend_varlen)


def _assert_attends(function):
    arguments = (random(12, 3, 3, 2, 16), random(12, 3, 2, 16), offsets(5, 0, 1, 6), 8)
    found, wanted = function(*arguments), time_attention_reference(*arguments)
    _assert_equal_with_gradients(found, wanted, arguments[:2])


def attend_tokens(query, key, value, cu_frames, longest):
    """What these libraries compute, by the reference: every token a frame of one pixel."""
    qkv = torch.stack([query, key, value], dim=1)[:, None]
    return time_attention_reference(qkv, torch.zeros_like(qkv[:, 0]), cu_frames, longest)[:, 0]


@pytest.fixture
def installed(monkeypatch):
    """`installed(module, function)`: a stand-in for flash-attn (None: nothing of that name can be imported)."""
    monkeypatch.setattr(library, "_imported", {})
    for module in ("flash_attn_interface", "flash_attn"):
        monkeypatch.setitem(sys.modules, module, None)

    def install(module, function, attribute="flash_attn_varlen_func"):
        monkeypatch.setitem(sys.modules, module, function and SimpleNamespace(**{attribute: function}))

    return install


def test_flash_attn_2_is_asked_for_a_backward_that_repeats(installed):
    asked = []

    def flash(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, causal=False, deterministic=False):
        asked.append((dropout_p, causal, deterministic))
        return attend_tokens(q, k, v, cu_q, max_q)

    installed("flash_attn", flash)
    assert library.varlen_library(64)[0] == "flash_attn"
    _assert_attends(library.attend_varlen)
    assert asked == [(0.0, False, True)]


def test_flash_attn_3_of_before_and_after_mid_2025_gives_the_output(installed, on_an_h200):
    asked = []

    def older(q, k, v, cu_q, cu_k, max_q, max_k, causal=False, deterministic=False):
        asked.append((causal, deterministic))
        return attend_tokens(q, k, v, cu_q, max_q), q.sum(-1)

    installed("flash_attn", lambda *arguments: pytest.fail("flash-attn 3 is asked first"))
    installed("flash_attn_interface", older)
    assert library.varlen_library(64)[0] == "flash_attn_interface"
    _assert_attends(library.attend_varlen)
    assert asked == [(False, True)]
    library._imported.clear()
    installed("flash_attn_interface", lambda *arguments, deterministic=False: older(*arguments)[0])
    _assert_attends(library.attend_varlen)


def test_every_library_that_can_be_imported_is_known_and_the_first_that_takes_the_heads_runs(installed, on_an_h200):
    installed("flash_attn_interface", lambda *arguments, deterministic=False: arguments)
    installed("flash_attn", lambda *arguments, deterministic=False: arguments)
    assert list(library.varlen_libraries()) == ["flash_attn_interface", "flash_attn", "torch varlen_attn"]
    # Beyond 192 channels flash-attn 3 does not repeat bit by bit.
    assert [library.varlen_library(channels)[0] for channels in (192, 256)] == ["flash_attn_interface", "flash_attn"]
    assert decide("flash", channels=256).backend == "flash"
    refused = decide("flash", channels=264).reason
    assert "flash_attn_interface takes head widths that are multiples of 8 up to 192" in refused
    assert "flash_attn takes head widths that are multiples of 8 up to 256" in refused


def test_a_library_that_is_installed_and_broken_leaves_the_next_one_and_is_named(installed, monkeypatch, caplog):
    installed("flash_attn", lambda *arguments, deterministic=False: arguments)
    import_module = library.importlib.import_module

    def broken(name):
        if name == "flash_attn_interface":
            raise ImportError("undefined symbol")
        return import_module(name)

    monkeypatch.setattr(library.importlib, "import_module", broken)
    assert library.varlen_library(64)[0] == "flash_attn"
    assert "flash_attn_interface is installed and cannot be imported: ImportError: undefined symbol" in caplog.text


def test_without_any_library_dispatch_says_so(installed, on_an_h200):
    assert library.varlen_library(64)[0] == "torch varlen_attn"
    library._imported.clear()
    installed("torch.nn.attention.varlen", None)  # as PyTorch 2.9, which has no such module
    choice = decide("auto", max_frames=400)
    assert choice.backend == "triton"
    assert "not flash: no variable-length attention: flash-attn cannot be imported" in choice.reason
    with pytest.raises(NotImplementedError, match="no variable-length attention"):
        library.attend_varlen(torch.zeros(1, 1, 3, 1, 8), torch.zeros(1, 3, 1, 8), offsets(1), 8)


def test_a_library_is_traced_into_a_compiled_block(installed):
    def flash(q, k, v, cu_q, cu_k, max_q, max_k, deterministic=False):
        return F.scaled_dot_product_attention(q, k, v), None  # what is traced counts, not what is computed

    installed("flash_attn_interface", flash)
    torch.compiler.reset()
    arguments = (random(7, 3, 3, 2, 16), random(7, 3, 2, 16), offsets(3, 4), 8)
    compiled = torch.compile(library.attend_varlen, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), library.attend_varlen(*arguments))


def test_a_bound_that_would_cut_a_segment_shows_as_nan():
    """Nobody reads a GPU's offsets: plausible numbers would go unnoticed."""
    qkv, table, cu_frames = random(12, 3, 3, 2, 16), random(12, 3, 2, 16), offsets(5, 0, 7)
    pooling = (random(12, 3, 16), random(12, 16), random(2, 2, 16), None, torch.tensor([0, 2], dtype=torch.int32))
    for longest, cut in ((7, False), (6, True)):
        assert library.attend_padded(qkv, table, cu_frames, longest).isnan().all() == cut
        assert pool_padded(*pooling, cu_frames, longest).isnan().all() == cut


def test_variable_length_attention_shows_a_cut_segment_as_nan(installed):
    installed("flash_attn", lambda q, k, v, cu_q, cu_k, max_q, max_k: attend_tokens(q, k, v, cu_q, 12))
    arguments = (random(12, 3, 3, 2, 16), random(12, 3, 2, 16), offsets(5, 0, 7))
    for longest, cut in ((7, False), (6, True)):
        assert library.attend_varlen(*arguments, longest).isnan().all() == cut


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
def test_padded_pooling_agrees_with_the_reference(biased):
    leaves = (random(9, 3, 16), random(9, 16), random(4, 2, 16), random(15, 2) if biased else None)
    rest = (torch.tensor([2, 0, 1, 2], dtype=torch.int32), offsets(3, 0, 6), 8)
    found, wanted = pool_padded(*leaves, *rest), temporal_pooling_reference(*leaves, *rest)
    _assert_equal_with_gradients(found, wanted, [leaf for leaf in leaves if leaf is not None])


def _assert_equal_with_gradients(found, wanted, leaves):
    torch.testing.assert_close(found, wanted)
    cotangent = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent)
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- dispatch --------------------------------------------------------------------------------------------------------

SIZES = {"max_frames": 32, "pixels": 256, "heads": 8, "channels": 64, "many": 0}
H200 = torch.device("cuda", 0)


@pytest.fixture
def on_an_h200(monkeypatch):
    """What torch would say on a machine with one H200."""
    monkeypatch.setattr(runtime, "INTERPRET", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")


def decide(request, dtype=torch.bfloat16, device=H200, **sizes):
    return dispatch.decide(request, "time_attention", dispatch.Case(device, dtype, SIZES | sizes))


def test_a_gpu_gets_the_winner_of_its_table_with_the_basis(on_an_h200):
    choice = decide("auto")
    assert choice.backend == "triton"
    assert "predicted" in choice.reason
    assert choice.config["forward"]["rows"] == 64


def test_long_segments_go_to_a_library_and_fall_back_where_none_can_run(on_an_h200):
    assert decide("auto", max_frames=400).backend == "flash"
    choice = decide("auto", max_frames=400, many=1)
    assert choice.backend == "triton"
    assert "not flash: there are more than 65535 sequences" in choice.reason


@pytest.mark.parametrize(
    ("request_", "change", "words"),
    [
        ("triton", {"dtype": torch.float64}, "fp64 has no tensor-core path"),
        ("triton", {"channels": 72}, "heads of 72 channels exceed the kernel's tile of 64"),
        ("triton", {"max_frames": 10_000}, r"2\^31 elements or more"),
        ("triton", {"device": torch.device("cpu")}, "need an NVIDIA GPU"),
        ("flash", {"dtype": torch.float32}, "takes bf16 and fp16"),
        ("flash", {"channels": 20}, "multiples of 8 up to 256"),
        ("flash", {"device": torch.device("cpu")}, "needs a GPU"),
        ("auto", {"dtype": torch.float64}, "no table entry|fp64"),
    ],
)
def test_what_cannot_run_falls_back_to_pytorch_and_says_why(request_, change, words, on_an_h200):
    choice = decide(request_, **change)
    assert choice.backend == "torch"
    assert re.search(words, choice.reason)


def test_an_old_gpu_runs_pytorch(on_an_h200, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "compute capability 7.5" in decide("triton").reason


def test_without_triton_everything_still_runs(on_an_h200, monkeypatch):
    monkeypatch.setattr(runtime, "triton_problem", lambda: "Triton cannot be imported (no module)")
    assert decide("auto").reason.endswith("not triton: Triton cannot be imported (no module)")


@pytest.mark.parametrize(
    ("triton", "numpy", "interpreted", "words"),
    [
        ("3.6.0", "2.5.2", True, "interpreter of Triton 3.6.0 fails with NumPy 2.4"),
        ("3.6.0", "2.5.2", False, None),
        ("3.6.0", "2.3.5", True, None),
        ("3.7.1", "2.5.2", True, None),
        ("3.5.1", "2.3.5", False, "proven on 3.6 to 3.9"),
    ],
)
def test_versions_that_do_not_go_together_are_named(triton, numpy, interpreted, words, monkeypatch):
    monkeypatch.setattr(runtime.triton, "__version__", triton)
    monkeypatch.setattr(runtime.np, "__version__", numpy)
    monkeypatch.setattr(runtime, "INTERPRET", interpreted)
    problem = runtime.triton_problem()
    assert words in problem if words else problem is None


def test_flash_concerns_attention_only(on_an_h200):
    case = dispatch.Case(H200, torch.bfloat16, {"channels": 128})
    assert dispatch.decide("flash", "channel_norm", case) == dispatch.decide("auto", "channel_norm", case)


def test_interpreter_refuses_bf16(monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRET", True)
    monkeypatch.setattr(runtime.np, "__version__", "2.3.5")  # with which every Triton's interpreter runs
    assert "bf16 wrongly" in decide("triton", device=torch.device("cpu")).reason


def test_a_choice_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_choices", {})
    with caplog.at_level(logging.INFO, "aef.kernels"):
        for _ in range(3):
            kernels.bias_gelu(torch.zeros(2, 4), torch.zeros(4))
    assert [r.getMessage() for r in caplog.records] == [
        "bias_gelu on cpu: PyTorch: on a cpu device its tuned path is the fastest"
    ]


def test_batches_of_other_frames_segments_and_periods_are_decided_once(monkeypatch):
    monkeypatch.setattr(dispatch, "_choices", {})
    for samples in (1, 2, 3, 4):
        cu_frames = 5 * torch.arange(samples + 1, dtype=torch.int32)
        periods = torch.arange(samples, dtype=torch.int32)
        frames = int(cu_frames[-1])
        kernels.time_attention(torch.zeros(frames, 4, 3, 2, 8), torch.zeros(frames, 3, 2, 8), cu_frames, 8)
        kernels.space_attention(torch.zeros(frames, 4, 3, 2, 8))
        query = torch.zeros(samples, 2, 8)
        kernels.temporal_pooling(torch.zeros(frames, 4, 8), torch.zeros(frames, 8), query, None, periods, cu_frames, 8)
    assert [operator for _, operator, *_ in dispatch.asked()] == [
        "time_attention",
        "space_attention",
        "temporal_pooling",
    ]


def test_an_unknown_request_is_refused(monkeypatch):
    monkeypatch.setenv("AEF_KERNELS", "cuda")
    with pytest.raises(ValueError, match="AEF_KERNELS: expected one of auto, torch, triton, flash, found 'cuda'"):
        kernels.bias_gelu(torch.zeros(2, 4), torch.zeros(4))


# --- tables ----------------------------------------------------------------------------------------------------------


def test_every_shipped_entry_says_measured_or_predicted_and_names_an_operator():
    entries = [entry for path in tuning.FOLDER.glob("*.json") for entry in tuning.read(path)]
    assert entries
    for entry in entries:
        assert entry.why
        assert entry.backend in ("torch", *dispatch._refusals[entry.operator])
        if entry.basis == "measured":  # `python -m benchmarks.adopt` writes where
            results = Path(__file__).parents[2] / entry.why.split(":")[0]
            assert results.suffix == ".csv" and results.is_file(), entry.why


def test_a_gpu_reads_its_own_table_before_the_default():
    own, default = tuning.table("NVIDIA H100 80GB HBM3"), tuning.table("NVIDIA RTX A6000")
    assert own[-len(default) :] == default
    assert len(own) > len(default)


def test_a_table_is_not_that_of_a_gpu_whose_number_begins_alike(tmp_path, monkeypatch):
    entry = '{"entries": [{"operator": "x", "backend": "torch", "basis": "measured", "why": "%s"}]}'
    for name in ("nvidia-a10", "nvidia-a", "default"):
        (tmp_path / f"{name}.json").write_text(entry % name, encoding="utf-8")
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(tuning, "table", tuning.table.__wrapped__)  # nothing is remembered
    for gpu, names in (
        ("NVIDIA A10", ["nvidia-a10", "nvidia-a", "default"]),
        ("NVIDIA A10 24GB", ["nvidia-a10", "nvidia-a", "default"]),
        ("NVIDIA A10G", ["nvidia-a", "default"]),
        ("NVIDIA A100-SXM4-80GB", ["nvidia-a", "default"]),
        ("NVIDIA L4", ["default"]),
    ):
        assert [one.why for one in tuning.table(gpu)] == names


def test_a_table_with_another_basis_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"entries": [{"operator": "x", "backend": "torch", "basis": "guessed", "why": ""}]}')
    with pytest.raises(ValueError, match=r"mine\.json: x: expected a basis of"):
        tuning.read(path)
