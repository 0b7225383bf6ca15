"""The operator on a CPU: what the function is, for every shape, dtype and layout, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dmabench.kernels import Problem, Unsupported, dma, dynamic_mask_attention, make_plan, registry

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# dma/flex is compiled for each shape: it has its own tests, on a few.
BACKENDS = ("reference", "sdpa-masked")


@settings(max_examples=100)
@given(
    B=st.integers(1, 2),
    G=st.integers(1, 3),
    groups=st.integers(1, 3),
    T=st.integers(1, 45),
    rows=st.floats(0, 1),
    D=st.integers(1, 24),
    w=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    padded=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_is_the_definition(definition, inputs, close, B, G, groups, T, rows, D, w, dtype, padded, seed):
    Tq = max(1, round(rows * T))
    q, k, v, delta = inputs(B, G * groups, G, Tq, T, D, dtype, seed)
    key_mask = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.6 if padded else None
    out, lse = dynamic_mask_attention(q, k, v, delta, w, key_mask=key_mask, return_lse=True)
    expected, expected_lse = definition.attention(q, k, v, delta, definition.live_keys(delta, w, key_mask, Tq))
    assert out.dtype == dtype
    close(out, expected)
    close(lse, expected_lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [16, 17, 96, 128, 256])
def test_head_dims_and_dtypes_forward_and_backward(definition, inputs, grads, close, D, dtype):
    leaves = inputs(2, 4, 2, 41, 50, D, dtype, grad=True)
    out = dynamic_mask_attention(*leaves, 13)
    expected, _ = definition.attention(*leaves, definition.live_keys(leaves[3], 13, None, 41))
    close(out, expected)
    for x, found, right in zip(leaves, grads(out, leaves), grads(expected, leaves), strict=True):
        assert found.dtype == x.dtype
        close(found, right, torch.float32 if dtype == torch.float64 and x is leaves[3] else dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50)
@given(T=st.integers(2, 60), w=st.integers(1, 65), at=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_the_future_moves_no_earlier_output(inputs, backend, T, w, at, seed):
    t = min(round(at * (T - 1)), T - 2)
    now = inputs(2, 4, 2, T, T, 8, seed=seed)
    other = inputs(2, 4, 2, T, T, 8, seed=seed + 1)
    # Later keys are made more important than all before: one top-w over the whole sequence would choose only them.
    other[3].add_(10.0)
    changed = [torch.cat([x[:, :, : t + 1], y[:, :, t + 1 :]], 2) for x, y in zip(now, other, strict=True)]
    before, before_lse = _with_lse(now, w, backend)
    after, after_lse = _with_lse(changed, w, backend)
    assert torch.equal(before[:, :, : t + 1], after[:, :, : t + 1])
    assert before_lse is None or torch.equal(before_lse[:, :, : t + 1], after_lse[:, :, : t + 1])
    assert not torch.equal(before[:, :, t + 1 :], after[:, :, t + 1 :])


def _with_lse(tensors, w, backend):
    if backend == "reference":
        return dynamic_mask_attention(*tensors, w, backend=backend, return_lse=True)
    return dynamic_mask_attention(*tensors, w, backend=backend), None


@pytest.mark.parametrize("backend", BACKENDS)
@given(T=st.integers(1, 60), w=st.integers(1, 65), value=st.sampled_from((0.0, -0.0, 1.0, -2.5)))
@settings(max_examples=15)
def test_constant_delta_is_a_sliding_window(inputs, close, backend, T, w, value):
    q, k, v, _ = inputs(2, 4, 2, T, T, 8)
    back = torch.arange(T)[:, None] - torch.arange(T)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back < w), enable_gqa=True)
    close(dynamic_mask_attention(q, k, v, torch.full((2, 2, T), value), w, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("w", [50, 51, 10**9])
def test_a_window_of_everything_is_causal_softmax_with_a_bias(inputs, grads, close, backend, w):
    leaves = inputs(2, 4, 2, 50, 50, 8, grad=True)
    q, k, v, delta = leaves
    causal = torch.ones(50, 50, dtype=torch.bool).tril()
    bias = delta.repeat_interleave(2, 1)[:, :, None].expand(2, 4, 50, 50).masked_fill(~causal, -torch.inf)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
    out = dynamic_mask_attention(*leaves, w, backend=backend)
    close(out, expected)
    for found, right in zip(grads(out, leaves), grads(expected, leaves), strict=True):
        close(found, right)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_as_if_it_were_not_there(inputs, grads, close, backend, side):
    lengths, T = (50, 31, 1), 50
    leaves = inputs(3, 4, 2, T, T, 8, grad=True)
    with torch.no_grad():
        leaves[3][1:] *= torch.linspace(1, 9, T)  # padding on the right would win every comparison
    real = [slice(T - n, T) if side == "left" else slice(0, n) for n in lengths]
    key_mask = torch.zeros(3, T, dtype=torch.bool)
    for b, rows in enumerate(real):
        key_mask[b, rows] = True
    out = dynamic_mask_attention(*leaves, 9, key_mask=key_mask, backend=backend)
    # Rows of padded queries carry no gradient in a model: here too, so that the lone sequences have the same.
    weights = torch.randn(3, 4, T, 8) * key_mask[:, None, :, None]
    found = torch.autograd.grad((out * weights).sum(), leaves)
    for b, rows in enumerate(real):
        alone = [x.detach()[b : b + 1, :, rows].requires_grad_() for x in leaves]
        expected = dynamic_mask_attention(*alone, 9)
        close(out[b : b + 1, :, rows], expected)
        right = torch.autograd.grad((expected * weights[b : b + 1, :, rows]).sum(), alone)
        for mine, theirs in zip(found, right, strict=True):
            close(mine[b : b + 1, :, rows], theirs)
    for x in found[1:]:
        assert not x.transpose(1, 2)[~key_mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_padded_row_gives_zero_output_and_gradient(inputs, grads, backend):
    leaves = inputs(2, 4, 2, 20, 20, 8, grad=True)
    key_mask = torch.ones(2, 20, dtype=torch.bool)
    key_mask[0, :7], key_mask[1] = False, False
    out = dynamic_mask_attention(*leaves, 5, key_mask=key_mask, backend=backend)
    empty = ~key_mask
    assert not out.transpose(1, 2)[empty].any()
    found = grads(out, leaves)
    assert all(bool(x.isfinite().all()) for x in found)
    for x in found:
        assert not x.transpose(1, 2)[empty].any()


def test_lse_of_a_padded_row_is_minus_infinity(inputs):
    key_mask = torch.arange(20)[None] >= 7
    _, lse = dynamic_mask_attention(*inputs(1, 4, 2, 20, 20, 8), 5, key_mask=key_mask, return_lse=True)
    assert lse.shape == (1, 4, 20)
    assert bool((lse[..., :7] == -torch.inf).all()) and bool(lse[..., 7:].isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
@given(T=st.integers(1, 60), rows=st.floats(0, 1), w=st.integers(1, 65), padded=st.booleans())
@settings(max_examples=20)
def test_fewer_queries_than_keys_are_the_last_rows(inputs, close, backend, T, rows, w, padded):
    Tq = max(1, round(rows * T))
    q, k, v, delta = inputs(2, 4, 2, T, T, 8, seed=T)
    key_mask = torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < 0.7 if padded else None
    whole = dynamic_mask_attention(q, k, v, delta, w, key_mask=key_mask, backend=backend)
    last = dynamic_mask_attention(q[:, :, T - Tq :], k, v, delta, w, key_mask=key_mask, backend=backend)
    close(last, whole[:, :, T - Tq :])


def test_gradients_with_fewer_queries_than_keys(definition, inputs, grads, close):
    leaves = inputs(2, 4, 2, 13, 50, 8, torch.float64, grad=True)
    out = dynamic_mask_attention(*leaves, 9)
    live = definition.live_keys(leaves[3], 9, None, 13)
    expected, _ = definition.attention(*leaves, live)
    found = grads(out, leaves)
    for x, mine, right in zip(leaves, found, grads(expected, leaves), strict=True):
        close(mine, right, torch.float32 if x is leaves[3] else None)
    never = ~live.any(2)
    assert never.any() and not any(x[never].any() for x in found[1:])


def _layouts(x):
    """The same values with other strides."""
    last = torch.randn(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    return {
        "time first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "head dim first": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "every second": last.copy_(x),
    }


LAYOUTS = ("time first", "head dim first", "batch last", "every second")


@pytest.mark.parametrize("which", ["q k v", "delta"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(inputs, grads, close, backend, layout, which):
    leaves = inputs(2, 4, 2, 30, 30, 8, grad=True)
    strided = [
        (_layouts(x.detach())[layout] if (x is leaves[3]) == (which == "delta") else x.detach()).requires_grad_()
        for x in leaves
    ]
    assert not any(x.is_contiguous() for x in (strided[3:] if which == "delta" else strided[:3]))
    out = dynamic_mask_attention(*leaves, 7, backend=backend)
    other = dynamic_mask_attention(*strided, 7, backend=backend)
    close(other, out)
    for mine, right in zip(grads(other, strided), grads(out, leaves), strict=True):
        close(mine, right)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(inputs, close, backend):
    q, k, v, delta = inputs(1, 1, 1, 30, 30, 8)
    expanded = (q.expand(2, 4, 30, 8), k.expand(2, 2, 30, 8), v.expand(2, 2, 30, 8), delta.expand(2, 2, 30))
    out = dynamic_mask_attention(*expanded, 7, backend=backend)
    close(out, dynamic_mask_attention(q, k, v, delta, 7, backend=backend).expand_as(out))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_keys_never_attended_are_exactly_zero(definition, inputs, grads, backend):
    leaves = inputs(2, 4, 2, 60, 60, 8, grad=True)
    with torch.no_grad():
        leaves[3].mul_(torch.linspace(3, 1, 60))  # early keys win: many later ones are never attended
    found = grads(dynamic_mask_attention(*leaves, 5, backend=backend), leaves)
    never = ~definition.live_keys(leaves[3], 5).any(2)
    assert 20 < int(never[0, 0].sum()) < 60
    for x in found[1:]:
        assert not x[never].any()
        assert bool(x[~never].any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_ddelta_is_the_sum_of_ds_over_queries_and_heads(definition, inputs, grads, close, backend):
    leaves = inputs(2, 6, 2, 40, 40, 8, torch.float32, grad=True)
    q, k, v, delta = (x.detach().double() for x in leaves)
    live = definition.live_keys(delta, 9).repeat_interleave(3, 1)
    scores = q @ k.repeat_interleave(3, 1).transpose(-1, -2) * 8**-0.5 + delta.repeat_interleave(3, 1)[:, :, None]
    scores.requires_grad_()
    out = scores.masked_fill(~live, -torch.inf).softmax(-1) @ v.repeat_interleave(3, 1)
    (ds,) = grads(out, (scores,))
    ddelta = grads(dynamic_mask_attention(*leaves, 9, backend=backend), leaves)[3]
    close(ddelta, ds.unflatten(1, (2, 3)).sum((2, 3)))


def test_gradients_flow_through_importance_to_gate_weight_and_values(inputs):
    from dmabench.kernels import importance

    q, k, v, _ = inputs(1, 4, 2, 30, 30, 8, grad=True)
    weight = torch.randn(16, 2, requires_grad=True)
    gate = torch.full((2,), 0.02, requires_grad=True)
    out = dynamic_mask_attention(q, k, v, importance(v, weight, gate), 7)
    found = torch.autograd.grad(out.square().sum(), (q, k, v, weight, gate))
    assert all(bool(x.isfinite().all()) and bool(x.any()) for x in found)


def test_scale_is_a_factor_of_the_scores(inputs, close):
    q, k, v, delta = inputs(1, 4, 2, 30, 30, 8)
    close(
        dynamic_mask_attention(q, k, v, delta, 7, scale=0.5), dynamic_mask_attention(q * 0.5 * 8**0.5, k, v, delta, 7)
    )
    uniform = dynamic_mask_attention(q, k, v, torch.zeros_like(delta), 30, scale=0.0)
    mean = v.cumsum(2) / torch.arange(1, 31)[:, None]
    close(uniform, mean.repeat_interleave(2, 1))


def test_a_plan_is_shared_by_calls_of_one_delta(inputs, grads):
    leaves = inputs(2, 4, 2, 20, 30, 8, grad=True)
    key_mask = torch.arange(30)[None] >= torch.tensor([[0], [4]])
    plan = make_plan(leaves[3], 7, key_mask=key_mask, query_len=20)
    out = dynamic_mask_attention(*leaves, 7, key_mask=key_mask)
    for backend in BACKENDS:
        alone = dynamic_mask_attention(*leaves, 7, key_mask=key_mask, backend=backend)
        again = dynamic_mask_attention(*leaves, 7, plan=plan, backend=backend)
        assert torch.equal(again, alone)
        torch.testing.assert_close(again, out)
        for mine, right in zip(grads(again, leaves), grads(alone, leaves), strict=True):
            assert torch.equal(mine, right)
    # Another layer: other q, k, v, other head count, the same delta.
    q, k, v, _ = inputs(2, 2, 2, 20, 30, 24, seed=5)
    other = dynamic_mask_attention(q, k, v, leaves[3], 7, plan=plan)
    torch.testing.assert_close(other, dynamic_mask_attention(q, k, v, leaves[3], 7, key_mask=key_mask))


def test_with_a_plan_no_other_is_made(inputs, monkeypatch):
    q, k, v, delta = inputs(1, 4, 2, 30, 30, 8)
    plan = make_plan(delta, 7)
    monkeypatch.setattr(dma, "make_plan", lambda *_, **__: pytest.fail("made a plan"))
    dynamic_mask_attention(q, k, v, delta, 7, plan=plan)


def test_refuses_a_plan_of_another_call(inputs):
    q, k, v, delta = inputs(1, 4, 2, 30, 30, 8)
    call = rf"the call has window 7, 30 queries and delta {(1, 2, 30)}".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=r"the plan is for window 8, 30 queries .*" + call):
        dynamic_mask_attention(q, k, v, delta, 7, plan=make_plan(delta, 8))
    with pytest.raises(ValueError, match=r"the plan is for window 7, 29 queries .*" + call):
        dynamic_mask_attention(q, k, v, delta, 7, plan=make_plan(delta, 7, query_len=29))
    with pytest.raises(ValueError, match=r"delta \(1, 2, 31\); " + call):
        dynamic_mask_attention(q, k, v, delta, 7, plan=make_plan(torch.zeros(1, 2, 31), 7, query_len=30))
    with pytest.raises(ValueError, match="key_mask belongs to the plan: give it to make_plan, or leave the plan out"):
        key_mask = torch.ones(1, 30, dtype=torch.bool)
        dynamic_mask_attention(q, k, v, delta, 7, plan=make_plan(delta, 7, key_mask=key_mask), key_mask=key_mask)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_check_finite_refuses_by_name(inputs, value):
    q, k, v, delta = inputs(1, 4, 2, 30, 30, 8)
    dynamic_mask_attention(q, k, v, delta, 7, check_finite=True, backend="sdpa-masked")
    delta[0, 1, 3] = value
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="delta has NaN or infinite values: check the gate"):
            dynamic_mask_attention(q, k, v, delta, 7, check_finite=True, backend=backend)
    with pytest.raises(ValueError, match="delta has NaN or infinite values"):
        dynamic_mask_attention(q, k, v, delta, 7)  # the reference always reads the flag


def test_without_the_check_nan_is_never_attended(inputs, grads, close):
    leaves = inputs(1, 2, 1, 30, 30, 8, grad=True)
    dead = torch.zeros(1, 30, dtype=torch.bool)
    dead[0, [0, 12, 29]] = True
    poisoned = leaves[3].detach().masked_fill(dead[:, None], torch.nan).requires_grad_()
    out = dynamic_mask_attention(*leaves[:3], poisoned, 7, backend="sdpa-masked")
    expected = dynamic_mask_attention(*leaves, 7, key_mask=~dead)
    close(out, expected)
    for mine, right in zip(grads(out, (*leaves[:3], poisoned)), grads(expected, leaves), strict=True):
        close(mine, right)


def test_padding_may_hold_anything_in_delta(inputs, close):
    q, k, v, delta = inputs(1, 4, 2, 30, 30, 8)
    key_mask = torch.arange(30)[None] >= 4
    right = dynamic_mask_attention(q, k, v, delta, 7, key_mask=key_mask)
    delta[0, 0, 0], delta[0, 0, 1], delta[0, 1, 2] = torch.nan, torch.inf, -torch.inf
    for backend in BACKENDS:
        close(dynamic_mask_attention(q, k, v, delta, 7, key_mask=key_mask, backend=backend, check_finite=True), right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (4, 30, 8)}, r"q must be \[B, H, Tq, D\] and k, v \[B, G, Tk, D\], got \(4, 30, 8\), \(1, 2, 30, 8\)"),
        ({"k": (1, 2, 29, 8)}, r"got \(1, 4, 30, 8\), \(1, 2, 29, 8\), \(1, 2, 30, 8\)"),
        ({"v": (1, 2, 30, 4)}, r"q must be .* got .*\(1, 2, 30, 4\)"),
        ({"q": (2, 4, 30, 8)}, r"q \(2, 4, 30, 8\) and k \(1, 2, 30, 8\) differ in batch or head dimension"),
        ({"q": (1, 4, 30, 16)}, r"q \(1, 4, 30, 16\) and k \(1, 2, 30, 8\) differ in batch or head dimension"),
        ({"q": (1, 3, 30, 8)}, r"3 query heads cannot share 2 key/value heads evenly: H must be a multiple of G"),
        ({"q": (1, 1, 30, 8)}, r"1 query heads cannot share 2 key/value heads evenly"),
        ({"k": (1, 0, 30, 8), "v": (1, 0, 30, 8)}, r"4 query heads cannot share 0 key/value heads"),
        ({"q": (1, 4, 31, 8)}, r"31 queries for 30 keys: the queries are the last of the keys' positions"),
        ({"q": (1, 4, 0, 8)}, r"query_len must be in 1..30"),
        ({"delta": (1, 4, 30)}, r"delta must be float32 \(1, 2, 30\), got torch.float32 \(1, 4, 30\)"),
        ({"delta": (1, 2, 29)}, r"delta must be float32 \(1, 2, 30\), got torch.float32 \(1, 2, 29\)"),
        ({"delta": (2, 30)}, r"delta must be float32 \(1, 2, 30\), got torch.float32 \(2, 30\)"),
        ({"key_mask": (1, 29)}, r"key_mask must be bool \(1, 30\), True for real keys"),
    ],
)
def test_refuses_shapes_that_do_not_fit(change, message):
    shapes = {"q": (1, 4, 30, 8), "k": (1, 2, 30, 8), "v": (1, 2, 30, 8), "delta": (1, 2, 30)} | change
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if "key_mask" in tensors:
        tensors["key_mask"] = tensors["key_mask"] == 0
    with pytest.raises(ValueError, match=message):
        dynamic_mask_attention(**tensors, window=4)


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ({"q": torch.int32, "k": torch.int32, "v": torch.int32}, r"q, k, v must share one of .* got torch.int32"),
        ({"k": torch.float16}, r"q, k, v must share one of .* got torch.float32, torch.float16, torch.float32"),
        ({"v": torch.bfloat16}, r"got torch.float32, torch.float32, torch.bfloat16"),
        ({"delta": torch.bfloat16}, r"delta must be float32 \(1, 2, 30\), got torch.bfloat16"),
        ({"delta": torch.float64}, r"delta must be float32 \(1, 2, 30\), got torch.float64"),
    ],
)
def test_refuses_dtypes_that_do_not_fit(inputs, dtypes, message):
    tensors = dict(zip(("q", "k", "v", "delta"), inputs(1, 4, 2, 30, 30, 8), strict=True))
    tensors |= {name: tensors[name].to(dtype) for name, dtype in dtypes.items()}
    with pytest.raises(ValueError, match=message):
        dynamic_mask_attention(**tensors, window=4)


def test_refuses_two_devices(inputs):
    q, k, v, delta = inputs(1, 4, 2, 30, 30, 8)
    with pytest.raises(ValueError, match="q, k, v and delta are on different devices: cpu, meta"):
        dynamic_mask_attention(q, k, v, delta.to("meta"), 4)


@pytest.mark.parametrize("window", [0, -3, True, 2.5])
def test_refuses_a_window_that_is_no_count(inputs, window):
    with pytest.raises(ValueError, match="window must be an int of at least 1"):
        dynamic_mask_attention(*inputs(), window)


def test_refuses_an_unknown_backend(inputs):
    with pytest.raises(ValueError, match=r"no backend 'dma/flux'; known are dma/reference, dma/flex"):
        dynamic_mask_attention(*inputs(), 4, backend="flux")
    with pytest.raises(ValueError, match="no backend 'dma/sdpa-flash'"):
        dynamic_mask_attention(*inputs(), 4, backend="sdpa-flash")  # another function


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("triton", {}, "dma/triton: Triton kernels need a CUDA device"),
        ("cuda", {}, r"dma/cuda: CUDA C\+\+ kernels need a CUDA device"),
        ("flex", {"grad": True}, "dma/flex: FlexAttention has no backward on a CPU; dma/reference has one"),
        ("flex", {"dtype": torch.float64}, "dma/flex: FlexAttention has no float64; dma/reference has it"),
        (
            "sdpa-masked",
            {"grad": True, "dtype": torch.bfloat16},
            "dma/sdpa-masked: SDPA rounds the gradient of its mask",
        ),
    ],
)
def test_says_why_a_backend_cannot(inputs, backend, options, message):
    with pytest.raises(Unsupported, match=message):
        dynamic_mask_attention(*inputs(**options), 4, backend=backend)


def test_lse_where_there_is_none(inputs):
    with pytest.raises(Unsupported, match="dma/sdpa-masked does not return lse on cpu; dma/reference does"):
        dynamic_mask_attention(*inputs(), 4, backend="sdpa-masked", return_lse=True)


def test_lse_is_not_differentiable(inputs):
    out, lse = dynamic_mask_attention(*inputs(grad=True), 4, return_lse=True)
    assert out.requires_grad and not lse.requires_grad


def test_a_backward_is_asked_for_only_where_gradients_are(inputs, monkeypatch):
    asked = []
    monkeypatch.setattr(registry.Backend, "refusal", lambda self, problem: asked.append(problem.backward))
    leaves = inputs(grad=True)
    plain = [x.detach() for x in leaves]
    dynamic_mask_attention(*plain, 4)
    with torch.no_grad():
        dynamic_mask_attention(*leaves, 4)
    for n in range(4):
        dynamic_mask_attention(
            *(leaf if i == n else x for i, (leaf, x) in enumerate(zip(leaves, plain, strict=True))), 4
        )
    assert asked == [False, False, True, True, True, True]


def test_the_problem_that_backends_are_asked_about(inputs, monkeypatch):
    asked = []
    monkeypatch.setattr(registry.Backend, "refusal", lambda self, problem: asked.append(problem))
    dynamic_mask_attention(*inputs(2, 6, 3, 20, 32, 8, torch.bfloat16), 4)
    assert asked == [Problem("cpu", torch.bfloat16, 2, 6, 3, 20, 32, 8, 4, False)]
    assert asked[0].groups == 2


def test_auto_takes_the_fastest_that_does_not_refuse():
    def chosen(device: str, dtype: torch.dtype, head_dim: int = 64, backward: bool = True) -> str:
        return dma._fastest(Problem(device, dtype, 1, 2, 1, 8, 8, head_dim, 4, backward))

    assert chosen("cpu", torch.float32) == chosen("cpu", torch.bfloat16) == "reference"
    assert chosen("cuda", torch.bfloat16) == chosen("cuda", torch.float32) == "triton"
    assert chosen("cuda", torch.float16, backward=False) == "cuda"
    assert chosen("cuda", torch.float16, 96, backward=False) == "triton"  # dma/cuda refuses that head dimension
    assert chosen("cuda", torch.bfloat16, 512) == "flex"
    assert chosen("cuda", torch.float64) == "reference"  # the only one that has it
