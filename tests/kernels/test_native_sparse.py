"""Native sparse attention against the paper's equations, one query at a time, and against fla-core's naive code."""

import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dmabench.kernels import Problem, Unsupported, native_sparse, registry
from dmabench.kernels.native_sparse import (
    PAPER,
    Settings,
    compress,
    decode,
    fused,
    native_sparse_attention,
    reference,
    selection,
    settings_for,
)

SMALL = Settings(compress_block=8, compress_stride=4, select_block=16, select_count=4, window=10)
UNIFORM = Settings(16, 16, 16, 4, 12)


def _problem(**changes) -> Problem:
    given = dict(device="cpu", dtype=torch.float64, batch=2, heads=4, kv_heads=2, query_len=100, key_len=100)
    return Problem(**{**given, "head_dim": 8, "window": 64, "backward": False, **changes})


def _inputs(grad: bool = False, seed: int = 0, **changes) -> tuple[torch.Tensor, ...]:
    tensors = native_sparse.example_inputs(_problem(**changes), torch.Generator().manual_seed(seed))
    return tuple(x.requires_grad_(grad) for x in tensors.values())


def _chosen(p_cmp: list[float], i: int, settings: Settings) -> set[int]:
    """Equations 9, 11 and 12 for one query and its group's summed probabilities; the paper counts from 1."""
    length, stride, block = settings.compress_block, settings.compress_stride, settings.select_block
    own, scores = i // block, {}
    for j in range(1, own + 2):
        indices = [block // stride * j - m - n for m in range(block // stride) for n in range(length // stride)]
        scores[j - 1] = sum(p_cmp[c - 1] for c in indices if 1 <= c <= len(p_cmp))
    always = {0, own, max(own - 1, 0)}
    others = sorted((j for j in scores if j not in always), key=lambda j: (-scores[j], j))
    return always | set(others[: settings.select_count - len(always)])


def _definition(q, k, v, gates, settings: Settings, scale: float | None = None):
    """The paper, word by word: for each query the compressed, the selected and the window's keys, each its softmax."""
    B, H, R, D = q.shape
    G, T = k.shape[1], k.shape[2]
    scale = D**-0.5 if scale is None else scale
    groups, out = H // G, {}

    def softmax_of(query, keys):
        return (torch.stack(keys) @ query).mul(scale).softmax(0)

    for b in range(B):
        for g in range(G):
            for r in range(R):
                i = T - R + r
                starts = range(0, i + 2 - settings.compress_block, settings.compress_stride)
                blocks = [slice(s, s + settings.compress_block) for s in starts]
                kc, vc = ([x[b, g, s].mean(0) for s in blocks] for x in (k, v))
                heads = range(g * groups, (g + 1) * groups)
                p_cmp = {h: softmax_of(q[b, h, r], kc) if kc else torch.zeros(0) for h in heads}
                summed = [sum(float(p_cmp[h][c].detach()) for h in heads) for c in range(len(kc))]
                chosen = sorted(_chosen(summed, i, settings))
                size = settings.select_block
                selected = [j for c in chosen for j in range(c * size, (c + 1) * size) if j <= i]
                window = range(max(0, i + 1 - settings.window), i + 1)
                for h in heads:
                    total = sum((gates[b, h, r, 0] * p * x for p, x in zip(p_cmp[h], vc, strict=True)), 0 * v[b, g, 0])
                    for gate, keys in ((1, list(selected)), (2, list(window))):
                        p = softmax_of(q[b, h, r], [k[b, g, j] for j in keys])
                        total = total + gates[b, h, r, gate] * (p @ v[b, g, keys])
                    out[b, h, r] = total
    return torch.stack([out[b, h, r] for b in range(B) for h in range(H) for r in range(R)]).view(B, H, R, -1)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (SMALL, {"heads": 2, "kv_heads": 1}),
        (UNIFORM, {"batch": 1}),
        (Settings(4, 4, 16, 3, 1), {"batch": 1, "heads": 3, "kv_heads": 1}),
        (Settings(12, 4, 12, 5, 200), {"batch": 1, "heads": 2, "query_len": 50, "key_len": 50}),
        (SMALL, {"batch": 1, "query_len": 9}),
        (SMALL, {"batch": 1, "query_len": 5, "key_len": 5}),  # shorter than a compression block
        (SMALL, {"batch": 1, "query_len": 1, "key_len": 1}),
    ],
)
def test_forward_and_gradients_are_the_papers(settings, changes, grads):
    tensors = _inputs(grad=True, **changes)
    found, expected = native_sparse_attention(*tensors, settings), _definition(*tensors, settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(grads(found, tensors), grads(expected, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_blocks_of_queries_change_nothing(monkeypatch, grads):
    tensors = _inputs(grad=True)
    whole = native_sparse_attention(*tensors, SMALL, scale=0.3)
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 2 * 4 * 100 * 7)  # seven queries at a time: the last block has two
    blocked = native_sparse_attention(*tensors, SMALL, scale=0.3)
    torch.testing.assert_close(blocked, whole, rtol=0, atol=1e-14)
    for one, other in zip(grads(blocked, tensors), grads(whole, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_memory_is_a_block_of_queries_not_all_pairs():
    """The largest tensor that a forward and backward makes, at a length where T x T would be 1 Mi elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.size = max(self.size, x.untyped_storage().nbytes() // x.element_size())
            return out

    tensors = _inputs(grad=True, batch=1, heads=1, kv_heads=1, head_dim=4, query_len=1024, key_len=1024)
    tensors = [x.detach().float().requires_grad_() for x in tensors]
    with Largest() as largest, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "BLOCK_ELEMENTS", 1 << 16)
        native_sparse_attention(*tensors, PAPER).sum().backward()
    assert 1 << 15 < largest.size <= 1 << 16


@pytest.mark.parametrize("settings", [SMALL, UNIFORM])
@pytest.mark.parametrize("token", [0, 15, 16, 47, 50, 99])
def test_a_future_token_moves_no_earlier_output(settings, token):
    q, k, v, gates = _inputs()
    before = native_sparse_attention(q, k, v, gates, settings)
    k[:, :, token] = k[:, :, token] * -9.0
    v[:, :, token] += 100.0
    after = native_sparse_attention(q, k, v, gates, settings)
    assert torch.equal(before[:, :, :token], after[:, :, :token])
    assert bool((before[:, :, token] != after[:, :, token]).any())


@pytest.mark.parametrize("settings", [SMALL, UNIFORM])
@pytest.mark.parametrize("T", [1, 7, 8, 16, 17, 99, 100])
def test_decoding_is_the_last_row(settings, T):
    q, k, v, gates = (x[:, :, :T] for x in _inputs())
    expected = reference.attend(q, k, v, gates, settings, 0.3)[:, :, -1:]
    last = q[:, :, -1:], k, v, gates[:, :, -1:], settings
    for compressed in (None, (compress(k, settings), compress(v, settings))):
        found = native_sparse_attention(*last, scale=0.3, compressed=compressed)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", [reference, decode])
def test_rows_of_different_lengths(form):
    """Keys behind a row's own position may be anything: the end of another row, or a free place in a cache."""
    q, k, v, gates = _inputs(batch=3)
    lengths = [100, 61, 3]
    one_query = q[:, :, :1], k, v, gates[:, :, :1]
    positions = torch.tensor(lengths)[:, None] - 1
    found = form.attend(*one_query, SMALL, 0.3, positions=positions)
    for b, length in enumerate(lengths):
        row = q[b : b + 1, :, :1], k[b : b + 1, :, :length], v[b : b + 1, :, :length], gates[b : b + 1, :, :1]
        torch.testing.assert_close(found[b : b + 1], reference.attend(*row, SMALL, 0.3), rtol=0, atol=1e-13)


def test_decoding_reads_only_what_was_chosen():
    """NaN everywhere but in the window and in the selected blocks, with the summaries given."""
    q, k, v, gates = _inputs(batch=1, query_len=1)
    compressed = compress(k, SMALL), compress(v, SMALL)
    expected = decode.attend(q, k, v, gates, SMALL, 0.3)
    chosen = reference.select_blocks(q, compressed[0], 100, SMALL, 0.3)
    read = selection.as_mask(chosen, SMALL.selectable_len(100)).repeat_interleave(16, -1)[:, :, 0, :100]
    read[..., 100 - SMALL.window :] = True
    assert 40 < int(read.sum(-1).max()) < 80
    k, v = (x.masked_fill(~read[..., None], math.nan) for x in (k, v))
    found = decode.attend(q, k, v, gates, SMALL, 0.3, compressed=compressed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", [reference, decode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_with_the_same_blocks(form, dtype, close):
    """Which blocks are best may flip where scores are close; given the blocks, only rounding is left."""
    rows = slice(None) if form is reference else slice(99, 100)
    q, k, v, gates = (x.to(dtype) for x in _inputs())
    q, gates = q[:, :, rows], gates[:, :, rows]
    exact = [x.double() for x in (q, k, v, gates)]
    blocks = reference.select_blocks(exact[0], compress(exact[1], SMALL), 100, SMALL, 0.3)
    found = form.attend(q, k, v, gates, SMALL, 0.3, blocks=blocks)
    assert found.dtype == dtype
    close(found, reference.attend(*exact, SMALL, 0.3))


# The selection


def test_each_compressed_key_lends_to_the_blocks_it_overlaps():
    """l = 8, d = 4, l' = 16: key 3 covers [12, 20), so half of it lies in block 0 and half in block 1."""
    scores = selection.block_scores(torch.eye(6), SMALL, 2)  # one row a compressed key; 28 tokens have 6
    assert scores.tolist() == [[2, 0], [2, 0], [2, 0], [1, 1], [0, 2], [0, 2]]
    assert torch.equal(selection.block_scores(torch.eye(3), UNIFORM, 4), F.pad(torch.eye(3), (0, 1)))


@pytest.mark.parametrize("stable", [True, False])
def test_first_and_local_blocks_are_always_chosen(stable):
    scores = torch.tensor([0.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0])[None, None, None].expand(1, 1, 7, 7)
    chosen = selection.choose(scores, 16 * torch.arange(7) + 3, UNIFORM, stable)
    sets = [set(row.tolist()) - {-1} for row in chosen[0, 0]]
    assert sets == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 3, 4}, {0, 1, 4, 5}, {0, 1, 5, 6}]
    assert chosen.shape[-1] == 4


def test_of_equal_scores_the_earlier_block_wins():
    chosen = selection.choose(torch.zeros(1, 1, 1, 50), torch.tensor([799]), UNIFORM)
    assert sorted(chosen.flatten().tolist()) == [0, 1, 48, 49]


def test_a_group_shares_its_blocks_and_groups_do_not():
    q, k, _, _ = _inputs(batch=1)
    together = reference.select_blocks(q, compress(k, SMALL), 100, SMALL, 0.3)
    assert together.shape == (1, 2, 100, 4)
    alone = reference.select_blocks(q[:, 2:], compress(k[:, 1:], SMALL), 100, SMALL, 0.3)
    assert torch.equal(together[:, 1:], alone) and not torch.equal(together[:, 0], together[:, 1])


# Compression


def test_a_learned_compressor_gets_gradients_and_stays_causal():
    class Compressor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position = torch.nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
            self.mix = torch.nn.Linear(64, 8, dtype=torch.float64)

        def forward(self, blocks):
            return self.mix((blocks + self.position).flatten(-2))

    torch.manual_seed(0)
    pair = Compressor(), Compressor()
    q, k, v, gates = _inputs(batch=1)
    before = native_sparse_attention(q, k, v, gates, SMALL, compressors=pair)
    before.square().sum().backward()
    for module in pair:
        assert all(bool(p.grad.abs().sum() > 0) for p in module.parameters())
    assert not torch.allclose(before, native_sparse_attention(q, k, v, gates, SMALL))
    k[:, :, 70] += 5.0
    after = native_sparse_attention(q, k, v, gates, SMALL, compressors=pair)
    assert torch.equal(before[:, :, :70], after[:, :, :70]) and not torch.equal(before[:, :, 70:], after[:, :, 70:])


def test_compressed_keys_are_means_of_complete_blocks():
    x = torch.arange(30.0).view(1, 1, 30, 1)
    assert compress(x, SMALL).flatten().tolist() == [3.5 + 4 * c for c in range(6)]
    assert compress(x[:, :, :7], SMALL).shape == (1, 1, 0, 1) and SMALL.compressed_len(7) == 0
    assert [SMALL.compressed_len(T) for T in (8, 11, 12, 30)] == [1, 1, 2, 6]


# Settings


@examples(max_examples=200)
@given(window=st.integers(16, 1 << 17))
def test_settings_for_a_window_read_exactly_that_many_keys(window):
    settings = settings_for(window)
    assert settings.token_keys() == window and settings.uniform
    assert window / 3 <= settings.window < 0.7 * window + 1  # at least the third that it has in the paper
    count, block = settings.select_count, settings.select_block
    assert count & (count - 1) == 0 and block & (block - 1) == 0 and 4 <= count <= 32
    if window >= 128:
        assert block >= 16
    if window >= 512:
        problem = _problem(dtype=torch.bfloat16, window=window, key_len=1 << 17, query_len=1 << 17)
        assert fused.refuses(problem, settings) is None


def test_the_papers_settings():
    assert settings_for(None) == PAPER == Settings(32, 16, 64, 16, 512) and not PAPER.uniform
    assert settings_for(1536) == Settings(64, 64, 64, 16, 512)
    assert PAPER.token_keys() == 1536
    with pytest.raises(ValueError, match="window 15 is too small"):
        settings_for(15)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((32, 12, 64, 16, 512), r"stride \(12\) must divide the compression block \(32\)"),
        ((64, 16, 32, 16, 512), "must fit into a selection block"),
        ((32, 16, 64, 2, 512), "select_count must be at least 3, got 2"),
        ((32, 16, 64, 16, 0), "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Settings(*sizes)


# fla-core


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """fla.ops.nsa.naive of the installed package, without the 13 s (two CPU cores) that importing all of fla.ops takes,
    and with a mean that needs no GPU."""
    found = importlib.util.find_spec("fla")
    if found is None or not found.submodule_search_locations:
        pytest.skip("fla-core is not installed")
    pytest.importorskip("einops")

    def mean_pooling(x, block_size, cu_seqlens=None):
        assert cu_seqlens is None
        return torch.stack([block.mean(1) for block in x.split(block_size, 1)], 1)

    stubs = {name: ModuleType(name) for name in ("fla", "fla.ops", "fla.ops.utils", "fla.ops.utils.pooling")}
    for stub in stubs.values():
        stub.__spec__ = ModuleSpec(stub.__name__, None)
    stubs["fla.ops.utils"].prepare_chunk_offsets = None
    stubs["fla.ops.utils.pooling"].mean_pooling = mean_pooling
    path = Path(found.submodule_search_locations[0]) / "ops" / "nsa" / "naive.py"
    spec = importlib.util.spec_from_file_location("fla_naive", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("heads", "kv_heads", "T"), [(16, 1, 100), (32, 2, 40), (16, 1, 15)])
def test_equals_fla_where_both_compute_the_same(naive, heads, kv_heads, T):
    """l = d = l', no window; it computes in float32."""
    tensors = _inputs(batch=1, heads=heads, kv_heads=kv_heads, query_len=T, key_len=T, dtype=torch.float32)
    q, k, v, gates = tensors
    gates[..., 2] = 0.0
    q_BTHD, k_BTHD, v_BTHD, g = (x.transpose(1, 2) for x in tensors)
    expected, blocks = naive.naive_nsa(
        q_BTHD,
        k_BTHD,
        v_BTHD,
        g[..., 0],
        g[..., 1],
        block_counts=UNIFORM.select_count,
        block_size=16,
        scale=0.3,
        return_block_indices=True,
    )
    found = native_sparse_attention(q, k, v, gates, UNIFORM, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=2e-5)
    ours = reference.select_blocks(q, compress(k, UNIFORM), T, UNIFORM, 0.3)
    masks = [selection.as_mask(x, UNIFORM.selectable_len(T)) for x in (ours, blocks.transpose(1, 2))]
    assert torch.equal(*masks)


@pytest.fixture
def stand_in(naive, monkeypatch, eager_flex) -> None:
    """fla-core's kernels by its naive functions, with the names, layouts and returns of the kernels."""

    def parallel_nsa_compression(q, k, v, TK, block_size, scale):
        assert k.shape[1] == -(-TK // block_size)
        out, lse = naive.naive_nsa_compression(q, k, v, block_size, scale)
        return out.to(q.dtype), lse

    def parallel_nsa_topk(q, k, TK, lse, block_counts, block_size, scale):
        return naive.naive_nsa_topk(q, k, block_counts, block_size, scale).int()

    def apply(q, k, v, blocks, count, block_size, scale, cu_seqlens):
        assert blocks.dtype == torch.int32 and blocks.shape[-1] == count and q.shape[2] // k.shape[2] >= 16
        return naive.naive_nsa_selection(q, k, v, blocks.long(), block_size, scale)

    def varlen_attend(q, k, v, *, window, scale):
        only_window = torch.zeros(*q.shape[:3], 3, dtype=q.dtype)
        only_window[..., 2] = 1.0
        return reference.attend(q, k, v, only_window, Settings(1, 1, 1, 3, window), scale)

    parallel = SimpleNamespace(
        parallel_nsa_compression=parallel_nsa_compression,
        parallel_nsa_topk=parallel_nsa_topk,
        ParallelNSAFunction=SimpleNamespace(apply=apply),
    )
    monkeypatch.setattr(fused, "import_module", lambda name: {"fla.ops.nsa.parallel": parallel}[name])
    monkeypatch.setattr(fused, "varlen_attend", varlen_attend)


@pytest.mark.parametrize(
    ("settings", "heads", "kv_heads", "given_blocks"),
    [
        (UNIFORM, 4, 2, False),
        (UNIFORM, 17, 1, False),
        (UNIFORM, 4, 2, True),
        (Settings(16, 8, 16, 4, 12), 16, 1, False),
        (Settings(16, 16, 32, 4, 12), 4, 2, True),
    ],
)
def test_fused_is_the_reference(stand_in, settings, heads, kv_heads, given_blocks, grads):
    """Padded groups, layouts, the three branches and their gates."""
    T = 71
    shape = dict(batch=1, heads=heads, kv_heads=kv_heads, query_len=T, key_len=T, dtype=torch.float32)
    tensors = _inputs(grad=True, **shape)
    q, k, v, gates = tensors
    blocks = None
    if given_blocks:  # others than it would choose: for each query the first and its own
        own = torch.arange(T) // settings.select_block
        blocks = torch.stack([torch.zeros_like(own), own, torch.full_like(own, -1)], -1).expand(1, kv_heads, T, 3)
        blocks = torch.where((blocks[..., 1:2] == 0) & (torch.arange(3) == 1), -1, blocks)
    found = fused.attend(q, k, v, gates=gates, settings=settings, scale=0.3, blocks=blocks)
    expected = reference.attend(q, k, v, gates, settings, 0.3, blocks=blocks)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    for one, other in zip(grads(found, tensors), grads(expected, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"query_len": 1}, UNIFORM, "as many queries as keys; nsa/reference decodes"),
        ({"head_dim": 264}, UNIFORM, "head dims up to 256, not 264"),
        ({"dtype": torch.float32}, UNIFORM, "nsa/fla takes fp16 and bf16, not float32"),
        ({}, Settings(16, 16, 16, 6, 12), "it would select more than asked for"),
        ({}, Settings(8, 8, 8, 4, 12), "blocks of 16 tokens or more, not 8"),
        ({}, Settings(16, 16, 16, 16, 12), "16 are too many"),
        ({}, PAPER, None),
        ({}, UNIFORM, None),
    ],
)
def test_what_fla_cannot_do_is_refused_with_the_reason(changes, sizes, message):
    found = fused.refuses(_problem(**{"dtype": torch.bfloat16, "device": "cuda", **changes}), sizes)
    assert found is None if message is None else message in (found or "")


def test_settings_that_fla_cannot_do_are_refused_by_the_call_too():
    with pytest.raises(Unsupported, match="nsa/fla: fla-core multiplies blocks of 16"):
        fused.attend(*_inputs()[:3], gates=_inputs()[3], settings=Settings(8, 8, 8, 4, 12), scale=0.3)


def test_a_missing_package_is_named(monkeypatch):
    assert "needs a CUDA device" in (fused.missing("cpu") or "")
    for absent, name in (("fla", "fla-core"), ("einops", "einops")):
        monkeypatch.setattr(fused, "find_spec", lambda module, absent=absent: None if module == absent else object())
        assert (fused.missing("cuda") or "").startswith(f"{name} is not installed")
    monkeypatch.setattr(fused, "find_spec", lambda module: object())
    assert fused.missing("cuda") is None


# The operator and its backends


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, g: (q[:, :3], k, v, g[:, :3]), "3 query heads are not a multiple of 2 key/value heads"),
        (lambda q, k, v, g: (q, k[:, :, :99], v[:, :, :99], g), "100 queries but 99 keys"),
        (lambda q, k, v, g: (q, k, v, g[..., :2]), r"gates must be \(2, 4, 100, 3\)"),
        (lambda q, k, v, g: (q, k, v[:, :, :50], g), r"v must be \(2, 2, 100, 8\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        native_sparse_attention(*change(*_inputs()), SMALL)


def test_compressed_of_another_length_and_unknown_backends_are_refused():
    q, k, v, gates = _inputs()
    wrong = compress(k[:, :, :90], SMALL), compress(v, SMALL)
    with pytest.raises(ValueError, match=r"compressed keys must be \(2, 2, 24, 8\)"):
        native_sparse_attention(q, k, v, gates, SMALL, compressed=wrong)
    with pytest.raises(ValueError, match="backend must be 'auto', 'fla' or 'reference', got 'triton'"):
        native_sparse_attention(q, k, v, gates, SMALL, backend="triton")
    with pytest.raises(ValueError, match="makes its own means"):
        native_sparse_attention(q, k, v, gates, SMALL, backend="fla", positions=torch.arange(100))


def test_backends_refusals_cache_and_inputs():
    backend, fast = (registry.get(f"nsa/{name}") for name in ("reference", "fla"))
    assert backend.passes_on("cpu") == ("fwd", "bwd", "fwd+bwd", "decode")
    assert "63 tokens are less than one block of 64" in (backend.refusal(_problem(window=1024, key_len=63)) or "")
    assert "window 15 is too small" in (backend.refusal(_problem(window=15)) or "")
    assert backend.refusal(_problem(window=None)) is None
    for heads, kv_heads, width in ((16, 8, 16), (16, 1, None), (24, 1, 32), (64, 2, None)):
        assert fast.padded_heads(_problem(heads=heads, kv_heads=kv_heads)) == width
    assert backend.padded_heads(_problem()) is None
    tensors = native_sparse.example_inputs(_problem(), torch.Generator().manual_seed(0))
    assert list(tensors) == ["q", "k", "v", "gates"] and bool(((tensors["gates"] > 0) & (tensors["gates"] < 1)).all())
    found = backend.attend(**tensors, settings=SMALL, scale=0.3)
    torch.testing.assert_close(found, native_sparse_attention(*tensors.values(), SMALL, scale=0.3))
    # All keys and values stay, and with them a summary of each every 16 tokens.
    problem = _problem(batch=3, kv_heads=8, head_dim=128, key_len=1000, dtype=torch.bfloat16, window=None)
    assert native_sparse.cache_bytes(problem) == 2 * 3 * 8 * (1000 + 61) * 128 * 2
