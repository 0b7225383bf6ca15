"""Dense causal attention: the CPU rows against the reference, and why the others are not here."""

import sys
from types import ModuleType

import pytest
import torch

from dmabench.kernels import Problem, Unsupported, dense, dynamic_mask_attention, flex, registry

ON_CPU = ("sdpa-flash", "sdpa-math")


def _problem(**changes) -> Problem:
    given = dict(device="cuda", dtype=torch.bfloat16, batch=1, heads=4, kv_heads=2, query_len=64, key_len=64)
    return Problem(**{**given, "head_dim": 64, "window": None, "backward": False, **changes})


def _expected(q, k, v, scale):
    """The definition with nothing to rank and everything in reach."""
    zero = torch.zeros(k.shape[:3])
    return dynamic_mask_attention(q, k, v, zero, k.shape[2], scale=scale, backend="reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize(("H", "G", "T", "D"), [(4, 2, 100, 32), (2, 2, 1, 16), (3, 1, 65, 17)])
def test_sdpa_forward_and_backward(inputs, grads, close, name, H, G, T, D, dtype):
    leaves = inputs(2, H, G, T, T, D, dtype, grad=True)[:3]
    out = registry.get(f"dense/{name}").attend(*leaves, scale=0.2)
    assert out.dtype == dtype
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = _expected(*exact, 0.2)
    close(out, expected)
    for found, right in zip(grads(out, leaves), grads(expected, exact), strict=True):
        close(found, right)


def test_flex_forward(compiler, inputs, close):
    q, k, v, _ = inputs(2, 4, 2, 300, 300, 32)
    close(registry.get("dense/flex").attend(q, k, v, scale=0.2), _expected(q, k, v, 0.2))


def test_flex_backward_is_exact(eager_flex, inputs, grads, close):
    leaves = inputs(1, 4, 2, 200, 200, 16, torch.float64, grad=True)[:3]
    out, expected = registry.get("dense/flex").attend(*leaves, scale=0.2), _expected(*leaves, 0.2)
    close(out, expected)
    for found, right in zip(grads(out, leaves), grads(expected, leaves), strict=True):
        close(found, right)


@pytest.mark.parametrize("name", ["dense/flex", "swa/flex"])
@pytest.mark.parametrize("needs", range(3))
def test_lists_by_tile_are_there_whichever_input_needs_a_gradient(monkeypatch, inputs, name, needs):
    """A frozen query projection is enough to leave only k and v with gradients."""
    seen = []
    monkeypatch.setattr(flex, "attend", lambda *args: (seen.append(args[6]), (args[0], None))[1])
    tensors = inputs(1, 4, 2, 200, 200, 16)[:3]
    tensors[needs].requires_grad_()
    options = {"window": 30} if name == "swa/flex" else {}
    registry.get(name).attend(*tensors, scale=0.25, **options)
    assert seen[0].q_count is not None and seen[0].full_q_index is not None


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-math", "flex"])
def test_fewer_queries_than_keys_are_refused_or_right(inputs, close, name):
    """The queries are the last positions: taken for the first ones it would silently be another function."""
    backend = registry.get(f"dense/{name}")
    problem = _problem(device="cpu", dtype=torch.float32, query_len=200, key_len=300, head_dim=32)
    if backend.refusal(problem) is None:
        q, k, v, _ = inputs(1, 4, 2, 200, 300, 32)
        close(backend.attend(q, k, v, scale=0.2), _expected(q, k, v, 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize(("H", "G", "T"), [(4, 2, 100), (2, 2, 1), (8, 1, 333)])
def test_decoding_one_query_sees_every_key(inputs, close, name, H, G, T, dtype):
    backend = registry.get(f"dense/{name}")
    problem = _problem(device="cpu", dtype=dtype, heads=H, kv_heads=G, query_len=1, key_len=T, head_dim=32)
    assert "decode" in backend.passes and backend.refusal(problem) is None
    q, k, v, _ = inputs(2, H, G, 1, T, 32, dtype)
    close(backend.attend(q, k, v, scale=0.2), _expected(*(x.double() for x in (q, k, v)), 0.2))


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn", "sdpa-math", "fa3", "fa4"])
def test_fewer_queries_than_keys_are_refused_on_cuda(name):
    assert registry.get(f"dense/{name}").refuses(_problem(query_len=32)) is not None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sdpa-flash", {"dtype": torch.float32}, "FlashAttention takes fp16 and bf16, not float32"),
        (
            "sdpa-flash",
            {"query_len": 32},
            "SDPA aligns its causal mask to the first key: it needs as many queries as keys",
        ),
        ("sdpa-cudnn", {"device": "cpu"}, "cuDNN attention needs a CUDA device"),
        ("sdpa-cudnn", {"dtype": torch.float32}, "cuDNN attention takes fp16 and bf16, not float32"),
        ("sdpa-math", {"query_len": 32}, "it needs as many queries as keys"),
        ("flex", {"dtype": torch.float64}, "FlexAttention has no float64"),
        ("flex", {"device": "cpu", "backward": True}, "FlexAttention has no backward on a CPU"),
        ("fa3", {"device": "cpu"}, "FlashAttention-3 needs a CUDA device"),
        ("fa4", {"device": "cpu"}, "FlashAttention-4 needs a CUDA device"),
    ],
)
def test_refusals_say_why(name, changes, message):
    assert message in (registry.get(f"dense/{name}").refusal(_problem(**changes)) or "")


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("fa3", "flash_attn_interface", "FlashAttention-3 is not installed (module flash_attn_interface)"),
        ("fa4", "flash_attn.cute", "FlashAttention-4 is not installed (module flash_attn.cute)"),
    ],
)
def test_packages_that_are_missing_and_that_are_there(monkeypatch, name, module, message):
    backend = registry.get(f"dense/{name}")

    def parent_missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'flash_attn'")

    for nothing in (lambda _: None, parent_missing):
        monkeypatch.setattr(dense, "find_spec", nothing)
        assert backend.unavailable("cuda") == message
    monkeypatch.setattr(dense, "find_spec", lambda wanted: object() if wanted == module else None)
    assert backend.unavailable("cuda") is None
    assert backend.refusal(_problem()) is None
    assert "fp16 and bf16" in (backend.refusal(_problem(dtype=torch.float32)) or "")


@pytest.mark.parametrize("as_pair", [False, True])
@pytest.mark.parametrize(("name", "module"), [("fa3", "flash_attn_interface"), ("fa4", "flash_attn.cute")])
def test_packages_are_called_in_their_layout(monkeypatch, inputs, close, name, module, as_pair):
    """A stand-in with the signature of both packages: [B, T, H, D] in and out, some versions with lse beside it."""

    def flash_attn_func(q, k, v, *, softmax_scale, causal):
        assert causal
        out = _expected(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale).transpose(1, 2)
        return (out, None) if as_pair else out

    monkeypatch.setitem(sys.modules, module.split(".")[0], ModuleType(module.split(".")[0]))
    package = ModuleType(module)
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, module, package)
    q, k, v, _ = inputs(2, 4, 2, 20, 20, 16)
    close(registry.get(f"dense/{name}").attend(q, k, v, scale=0.2), _expected(q, k, v, 0.2))


def test_a_kernel_that_torch_lacks_is_unsupported(monkeypatch, inputs):
    """torch's words on CUDA, which must not look like a crash of the backend (test_gpu.py meets them for real)."""

    def none_available(*_, **__):
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", none_available)
    q, k, v, _ = inputs(1, 4, 2, 20, 20, 16)
    with pytest.raises(
        Unsupported, match=r"has no FLASH_ATTENTION kernel for torch.float32, head dim 16, 4/2 heads here"
    ):
        registry.get("dense/sdpa-flash").attend(q, k, v, scale=0.2)


def test_other_errors_of_sdpa_are_not_swallowed(inputs):
    q, k, v, _ = inputs(1, 4, 2, 20, 20, 16)
    with pytest.raises(RuntimeError) as caught:
        registry.get("dense/sdpa-math").attend(q, k[..., :7], v, scale=0.2)
    assert "No available kernel" not in str(caught.value)


def test_only_math_needs_room_for_all_scores():
    problem = _problem(dtype=torch.bfloat16, batch=2, query_len=100, key_len=100)
    work = {b.name: b.workspace(problem) for b in registry.backends() if b.function == "dense"}
    assert work.pop("sdpa-math") >= 2 * 4 * 100 * 100 * 4  # at least one matrix of float32 scores
    assert set(work.values()) == {0}
