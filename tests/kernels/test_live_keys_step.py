"""The Triton kernels of a decoding step against tensor operations: interpreted here, on a card where there is one.

What a step must do is test_live_keys.py's business. The interpreter is chosen when a kernel is decorated and reaches
into triton.language, so it gets a process of its own.
"""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import triton

from dmabench.kernels import LiveKeys, decode_step, dynamic_mask_attention, make_plan
from dmabench.kernels.live_keys import operations, step

COMPARE = """
import math
import torch
from dmabench.kernels.live_keys import operations, step

VALUES = torch.tensor([0.0, -0.0, 1.0, 2.0, -1.5, math.nan, -math.inf, 1.25, -7.0])

def buffers(B, G, w, D, dtype):
    integers = [torch.zeros(shape, dtype=torch.int32) for shape in ((B, G, w), (B, G), (B, G))]
    return torch.zeros(B, G, w, D, dtype=dtype), torch.zeros(B, G, w, D, dtype=dtype), torch.zeros(B, G, w), *integers

def tokens(B, H, G, D, dtype, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    # A row of one projection, as a model has them: no dimension but the last is contiguous.
    rows = torch.randn(B, 1, H + 2 * G, D, generator=generator).to(dtype)
    q, k, v = rows.transpose(1, 2).split([H, G, G], 1)
    drawn = VALUES[torch.randint(len(VALUES), (B, 1, G), generator=generator)]
    drawn = torch.where(torch.rand(drawn.shape, generator=generator) < 0.3, torch.randn(drawn.shape), drawn)
    return q, k, v, drawn.transpose(1, 2), torch.rand(B, 1, generator=generator) < 0.8 if masked else None

def compare(B, H, G, D, w, before, steps, dtype, masked, parts, tolerance, script=None):
    step.splits = lambda *_: parts
    theirs = buffers(B, G, w, D, dtype)
    for t in range(before + steps):
        if t == before:
            mine = [x.clone() for x in theirs]
        q, k, v, delta, mask = tokens(B, H, G, D, dtype, masked, t)
        if script:
            delta = torch.full_like(delta, script[t])
        operations.insert(*theirs, k, v, delta, mask)
        if t < before:
            continue
        right = operations.attend(q, *theirs[:3], theirs[4], 0.3).double()
        found = step.step(q, k, v, delta, mask, *mine, 0.3)
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other), (t, parts)
        again = step.attend(q, *mine[:3], mine[4], 0.3)
        for out in (found, again):
            assert out.dtype == dtype and (out.double() - right).abs().max() <= tolerance * right.abs().max(), t

HALF, FULL = (torch.float16, 2e-3), (torch.float32, 1e-5)
"""

CASES = """
compare(1, 2, 1, 16, 1, 0, 3, FULL[0], False, 1, FULL[1])
# NaN into a free slot; the zeros are equal, so that the earlier of them goes; NaN and less into a full cache.
script = [math.nan, 0.0, -0.0, 3.0, -0.0, 0.0, math.nan, -1.0, -math.inf]
compare(1, 1, 1, 16, 3, 0, len(script), FULL[0], False, 1, FULL[1], script)
compare(2, 4, 2, 24, 70, 67, 5, HALF[0], True, 2, HALF[1])
step.SEARCHED = 16  # several looks for the key that goes
compare(1, 3, 1, 64, 37, 60, 5, FULL[0], True, 1, FULL[1])
compare(1, 20, 1, 16, 130, 163, 4, HALF[0], False, 3, HALF[1])
print("compared")
"""


def test_interpreted_kernels_do_what_tensor_operations_do():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", COMPARE + CASES], env=environment, capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0 and "compared" in ran.stdout, ran.stderr[-3000:]


def _compiled(kernel: str, arch: int, dtype: str, head_dim: int, groups: int, parts: int, update: bool = True):
    """As step._launch does for a window of 1024, ahead of time."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    block_n, stages = step.blocks(head_dim, 4 if dtype == "fp32" else 2)
    constants = {"UPDATE": update, "HAS_MASK": update, "SPLITS": parts, "GROUPS": groups, "HEAD_DIM": head_dim}
    constants |= {"BLOCK_H": max(16, triton.next_power_of_2(groups)), "BLOCK_D": triton.next_power_of_2(head_dim)}
    constants |= {"BLOCK_N": block_n, "SEARCHED": 1024, "BLOCK_S": triton.next_power_of_2(parts)}
    types = dict.fromkeys(("q", "new_k", "new_v", "k", "v", "out"), f"*{dtype}") | {"new_mask": "*i1"}
    types |= dict.fromkeys(("new_delta", "delta", "part_out", "part_top", "part_total"), "*fp32")
    types |= dict.fromkeys(("position", "count", "seen", "found_slot"), "*i32") | {"scale_log2": "fp32"}
    function = getattr(step, kernel)
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    chosen = {(names.index(name),): value for name, value in constants.items() if name in names}
    options = {"num_warps": 4, "num_stages": stages if kernel == "split_kernel" else 3}
    source = ASTSource(function, signature, chosen, aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@pytest.mark.parametrize(
    ("arch", "dtype", "head_dim", "groups", "parts"),
    [
        (80, "fp16", 64, 1, 16),
        (90, "bf16", 128, 2, 16),
        (90, "bf16", 128, 2, 1),
        (90, "bf16", 256, 20, 8),
        (90, "fp32", 256, 4, 4),
        (100, "bf16", 96, 4, 3),
    ],
)
def test_kernels_compile_for_a_card(arch, dtype, head_dim, groups, parts):
    split = _compiled("split_kernel", arch, dtype, head_dim, groups, parts)
    assert split.metadata.shared <= 99 << 10  # what a consumer card has for a block
    if dtype != "fp32":
        assert "mma.sync" in split.asm["ptx"]
    # Keys and values go to shared memory ahead of use, 16 bytes at a time.
    assert "cp.async.cg.shared.global" in split.asm["ptx"]
    if parts > 1:
        assert _compiled("combine_kernel", arch, dtype, head_dim, groups, parts).asm["cubin"]


def test_attention_without_a_new_key_compiles():
    for kernel in ("split_kernel", "combine_kernel"):
        assert _compiled(kernel, 90, "bf16", 128, 2, 16, update=False).asm["cubin"]


def test_splits_fill_a_card_and_no_more():
    assert step.splits(heads=8, window=1024, block_n=64, multiprocessors=132) == 16  # one block of keys each
    assert step.splits(heads=512, window=1024, block_n=64, multiprocessors=132) == 1
    # 16 blocks among 7 programs would be 3 each for 5 of them and 1 for another: 6 do it as soon.
    assert step.splits(heads=64, window=1024, block_n=64, multiprocessors=132) == 6
    assert step.splits(heads=1, window=1 << 20, block_n=64, multiprocessors=132) == step.MAX_SPLITS
    assert step.splits(heads=8, window=3, block_n=64, multiprocessors=132) == 1


def test_torch_compile_sees_what_a_step_writes():
    schema = torch.ops.dmabench.live_keys_step.default._schema
    written = [x.name for x in schema.arguments if x.alias_info is not None and x.alias_info.is_write]
    assert written == ["k", "v", "delta", "position", "count", "seen"]
    attend = torch.ops.dmabench.live_keys_attend.default._schema
    assert not any(x.alias_info for x in attend.arguments)
    q = torch.empty(2, 1, 4, 16, device="meta", dtype=torch.float16).transpose(1, 2)
    rows, numbers = torch.empty(2, 2, 9, 16, device="meta"), torch.empty(2, 2, device="meta")
    out = torch.ops.dmabench.live_keys_attend(q, rows, rows, rows[..., 0], numbers, 1.0)
    assert (out.shape, out.dtype, out.is_contiguous()) == (q.shape, q.dtype, True)


CUDA = [
    # B, H, G, D, window, dtype
    (1, 16, 8, 128, 1024, torch.bfloat16),
    (64, 16, 8, 128, 1024, torch.bfloat16),
    (3, 6, 2, 64, 100, torch.float16),
    (2, 20, 1, 96, 300, torch.bfloat16),
    (1, 4, 2, 256, 4100, torch.bfloat16),
    (2, 4, 4, 128, 70, torch.float32),
    (1, 2, 1, 256, 1, torch.float32),
]


def _token(B, H, G, D, dtype, masked=False):
    q, k, v = torch.randn(B, 1, H + 2 * G, D, device="cuda").to(dtype).transpose(1, 2).split([H, G, G], 1)
    delta = torch.randn(B, G, 1, device="cuda").mul(4).round().div(4)
    return q, k, v, delta, torch.rand(B, 1, device="cuda") < 0.9 if masked else None


def _filled(B, G, D, window, dtype, tokens) -> LiveKeys:
    cache = LiveKeys(window)
    k, v = torch.randn(2, B, G, tokens, D, device="cuda").to(dtype)
    cache.prefill(k, v, torch.randn(B, G, tokens, device="cuda").mul(4).round().div(4))
    return cache


@pytest.mark.gpu
@pytest.mark.parametrize(("B", "H", "G", "D", "window", "dtype"), CUDA)
def test_steps_on_a_card_equal_tensor_operations(close, B, H, G, D, window, dtype):
    torch.manual_seed(window)
    cache = _filled(B, G, D, window, dtype, max(1, window - 4))  # four slots are free
    copies = [x.clone() for x in cache._buffers()]
    for t in range(24):
        q, k, v, delta, mask = _token(B, H, G, D, dtype, masked=t % 2 == 1)
        if t % 5 == 4:
            delta[:, ::2] = math.nan
        out = decode_step(cache, q, k, v, delta, key_mask=mask)
        operations.insert(*copies, k, v, delta, mask)
        for mine, right in zip(cache._buffers(), copies, strict=True):
            assert torch.equal(mine, right), t
        exact = operations.attend(q.double(), *(x.double() for x in copies[:3]), copies[4], D**-0.5)
        close(out, exact)
        close(cache.attend(q), exact, what="attend")


@pytest.mark.gpu
def test_a_prompt_on_a_card_keeps_what_it_keeps_elsewhere():
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, math.nan, -math.inf])
    delta = values[torch.randint(6, (2, 3, 500), generator=torch.Generator().manual_seed(0))]
    key_mask = torch.arange(500) >= torch.tensor([[0], [123]])
    keys = torch.zeros(2, 3, 500, 16)
    for window in (1, 40, 200, 499, 500, 900):
        for mask in (None, key_mask):
            plan = make_plan(delta.cuda(), window, key_mask=None if mask is None else mask.cuda())
            here, there, by_plan = LiveKeys(window), LiveKeys(window), LiveKeys(window)
            here.prefill(keys, keys, delta, mask)
            there.prefill(keys.cuda(), keys.cuda(), delta.cuda(), None if mask is None else mask.cuda())
            by_plan.prefill(keys.cuda(), keys.cuda(), delta.cuda(), plan=plan)
            for cache in (there, by_plan):
                assert torch.equal(cache.count_BG.cpu(), here.count_BG)
                held = torch.arange(window) < here.count_BG[..., None]
                assert torch.equal(cache.position_BGW.cpu()[held], here.position_BGW[held])


@pytest.mark.gpu
@pytest.mark.parametrize("B", [1, 40])
def test_a_captured_step_replays(B):
    torch.manual_seed(B)
    H, G, D, window = 8, 4, 64, 128
    plain = _filled(B, G, D, window, torch.bfloat16, 100)
    cache = LiveKeys(window)
    cache._set(*(x.clone() for x in plain._buffers()))
    token = _token(B, H, G, D, torch.bfloat16)[:4]
    warm = _filled(B, G, D, window, torch.bfloat16, 100)
    decode_step(warm, *token)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_step(cache, *token)
    for t in range(200):
        for place, new in zip(token, _token(B, H, G, D, torch.bfloat16)[:4], strict=True):
            place.copy_(new)
        graph.replay()
        assert torch.equal(out, decode_step(plain, *token)), t
        for mine, right in zip(cache._buffers(), plain._buffers(), strict=True):
            assert torch.equal(mine, right), t
    assert cache.seen_BG.unique().tolist() == [300]


@pytest.mark.gpu
def test_a_long_conversation_on_a_card_equals_one_pass(close):
    torch.manual_seed(0)
    B, H, G, T, D, window = 2, 8, 4, 700, 64, 128
    q = torch.randn(B, H, T, D, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, B, G, T, D, device="cuda", dtype=torch.bfloat16)
    delta = torch.randn(B, G, T, device="cuda").mul(4).round().div(4)
    key_mask = torch.arange(T, device="cuda") >= torch.tensor([[0], [77]], device="cuda")
    right = dynamic_mask_attention(
        *(x.double() for x in (q, k, v)), delta, window, key_mask=key_mask, backend="reference"
    )
    cache, found = LiveKeys(window), []
    for turn in torch.arange(T, device="cuda").split([300, *[1] * 40, 200, 1, 59, *[1] * 100]):
        found.append(cache.extend(*(x[:, :, turn] for x in (q, k, v, delta)), key_mask[:, turn]))
    close(torch.cat(found, 2), right)


@pytest.mark.gpu
def test_operators_are_what_they_say():
    cache, token = _filled(2, 2, 16, 9, torch.float16, 5), _token(2, 4, 2, 16, torch.float16, masked=True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dmabench.live_keys_step, (*token, *cache._buffers(), 0.3), test_utils=checks)
    held = (cache.k_BGWD, cache.v_BGWD, cache.delta_BGW, cache.count_BG)
    torch.library.opcheck(torch.ops.dmabench.live_keys_attend, (token[0], *held, 0.3), test_utils=checks)


@pytest.mark.gpu
def test_a_compiled_step_on_a_card():
    torch.manual_seed(0)
    shape = SimpleNamespace(B=2, H=4, G=2, D=64, dtype=torch.bfloat16)
    plain = _filled(shape.B, shape.G, shape.D, 40, shape.dtype, 60)
    traced = LiveKeys(40)
    traced._set(*(x.clone() for x in plain._buffers()))
    compiled = torch.compile(decode_step, fullgraph=True)
    with torch.no_grad():
        for _ in range(5):
            token = _token(*vars(shape).values())[:4]
            assert torch.equal(compiled(traced, *token), decode_step(plain, *token))
    for mine, right in zip(traced._buffers(), plain._buffers(), strict=True):
        assert torch.equal(mine, right)
