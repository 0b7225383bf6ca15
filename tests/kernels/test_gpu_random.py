"""A thousand random problems: every fused backend's output, lse and gradients against float64, the mask by a heap.

Problems come in batches, one test each: a batch has one head dimension, dtype, grouping and memory layout, and one
shape for FlexAttention, since kernels are compiled for each. `pytest -n 4 tests/kernels/test_gpu_random.py` spreads
batches over processes on one card. A failure names its batch and number: `_problem(batch, number)` is that problem.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from dmabench.kernels import Problem, dynamic_mask_attention, registry

BATCHES, EACH = 20, 50
BACKENDS = ("flex", "triton", "cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WIDTHS = (
    *((64, BF16), (128, BF16), (64, FP16), (128, FP16), (64, FP32)),
    *((17, BF16), (96, FP16), (256, BF16), (192, FP16), (32, FP32)),
)
"""Head dimension and dtype, batch after batch."""
GROUPINGS = ((1, 1), (2, 1), (1, 4), (2, 2), (1, 8), (3, 2))
"""Key/value heads, and query heads for each."""
LONGEST = 3000
MOST = 1 << 21
"""Elements of q: what keeps a problem under a tenth of a second, references included."""
WINDOWS: tuple[Callable[[random.Random, int], int], ...] = (
    lambda rng, T: rng.choice((1, 2, 3)),
    lambda rng, T: rng.choice((T, T + 5, 10 * T)),
    lambda rng, T: rng.randint(1, T),
    lambda rng, T: rng.randint(1, max(1, T // 8)),
    lambda rng, T: rng.choice((64, 128, 129)),
)
DELTAS = ("iid", "ties", "constant", "rising", "falling", "nan")
MASKS = (None, None, "left", "right", "holes", "row", "all")
LAYOUTS = ("contiguous", "bthd", "sliced", "offset", "columns", "expanded", "packed")


@dataclass(frozen=True)
class Drawn:
    """One random problem."""

    batch: int
    number: int
    B: int
    G: int
    groups: int
    Tq: int
    T: int
    D: int
    dtype: torch.dtype
    window: int
    delta: str
    mask: str | None
    garbage: bool
    """NaN and infinite deltas in the padding."""
    layout: str

    def problem(self, device: str) -> Problem:
        sizes = (self.B, self.G * self.groups, self.G, self.Tq, self.T, self.D, self.window)
        return Problem(device, self.dtype, *sizes, backward=True)


def _length(rng: random.Random, longest: int, aligned: bool, edges: bool) -> int:
    """Up to `longest`, often beside a multiple of a tile; a multiple of 16 if `aligned`, else none (see the top)."""
    if edges and rng.random() < 0.15:
        return 1
    T = rng.randint(2, max(2, longest if rng.random() < 0.7 else longest // 10))
    if rng.random() < 0.3:
        T = max(2, T // 64 * 64 + rng.choice((-1, 1)))
    if aligned:
        return min(longest // 16 * 16, -(-T // 16) * 16)
    return min(longest - 1, T) if T % 16 else T - 1


def _problem(batch: int, number: int, longest: int = LONGEST) -> Drawn:
    """Always the same one."""
    rng = random.Random(f"batch {batch}")
    D, dtype = WIDTHS[batch % len(WIDTHS)]
    G, groups = rng.choice(GROUPINGS)
    layout = LAYOUTS[batch % len(LAYOUTS)]
    aligned, edges = rng.random() < 0.3, batch % 5 == 0
    rng = random.Random(f"batch {batch}, number {number}")
    B = rng.choice((1, 1, 2, 3))
    T = _length(rng, min(longest, MOST // (B * G * groups * D)), aligned, edges)
    Tq = T if rng.random() < 0.5 else _length(rng, T, aligned, edges) if T > 16 else T
    window = rng.choice(WINDOWS)(rng, T)
    delta, mask, garbage = rng.choice(DELTAS), rng.choice(MASKS), rng.random() < 0.5
    return Drawn(batch, number, B, G, groups, min(Tq, T), T, D, dtype, window, delta, mask, garbage, layout)


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "bthd":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return torch.cat([x, x[..., :8]], -1)[..., : x.shape[-1]]
    if layout == "offset":  # not even aligned
        return torch.cat([x[..., :1], x], -1)[..., 1:]
    if layout == "columns":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x


def _tensors(drawn: Drawn, device: str) -> tuple[list[Tensor], Tensor | None]:
    """q, k, v, delta and the key mask."""
    generator = torch.Generator(device).manual_seed(1000 * drawn.batch + drawn.number)

    def normal(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=FP32).to(dtype)

    B, G, T, D, H = drawn.B, drawn.G, drawn.T, drawn.D, drawn.G * drawn.groups
    if drawn.layout == "packed" and drawn.Tq == T:  # one projection's output
        q, k, v = normal(B, T, H + 2 * G, D, dtype=drawn.dtype).transpose(1, 2).split([H, G, G], 1)
    else:
        q, k, v = (normal(B, *size, D, dtype=drawn.dtype) for size in ((H, drawn.Tq), (G, T), (G, T)))
        q, k, v = (_laid_out(x, drawn.layout) for x in (q, k, v))
    delta = normal(B, T, G).transpose(1, 2) if drawn.layout == "bthd" else normal(B, G, T)
    if drawn.delta == "ties":
        delta = (2 * delta).round() / 2  # zeros of both signs among them
    elif drawn.delta == "constant":
        delta = torch.full_like(delta, 0.5)
    elif drawn.delta in ("rising", "falling"):
        delta = delta + torch.linspace(0, 4 if drawn.delta == "rising" else -4, T, device=device)
    elif drawn.delta == "nan":
        delta = delta.masked_fill(normal(B, G, T) > 1, torch.nan)
    position = torch.arange(T, device=device)
    key_mask = torch.ones(B, T, dtype=torch.bool, device=device)
    if drawn.mask == "left":
        key_mask[:] = position >= T // 3
    elif drawn.mask == "right":
        key_mask[:] = position < T - T // 3
    elif drawn.mask == "holes":
        key_mask = normal(B, T) > -0.5
    elif drawn.mask == "row":
        key_mask[-1] = False
    elif drawn.mask == "all":
        key_mask[:] = False
    if drawn.garbage:
        trash = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)[position % 3]
        delta = torch.where(key_mask[:, None], delta, trash)
    return [q, k, v, delta], None if drawn.mask is None else key_mask


def _check(drawn: Drawn, backend: str, device: str, budget) -> None:
    tensors, key_mask = _tensors(drawn, device)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = dynamic_mask_attention(*leaves, drawn.window, key_mask=key_mask, backend=backend, return_lse=True)
    assert out.dtype == drawn.dtype
    evict = budget.by_heap(leaves[3], drawn.window, key_mask)
    checked = budget.check(leaves, evict, drawn.D**-0.5, out)
    torch.testing.assert_close(lse.double(), checked.lse, rtol=1e-3, atol=1e-3)
    offset = drawn.T - drawn.Tq
    dead = evict <= torch.arange(drawn.T, device=device).clamp(min=offset)
    for name in ("dk", "dv", "ddelta"):
        assert not checked.found[name][dead].any(), f"{name} of keys that nobody attends to"
    empty = checked.lse == -torch.inf
    assert not out[empty].any() and not checked.found["dq"][empty].any(), "rows without a live key"


def _drawn_for(batch: int, backends: tuple[str, ...], device: str) -> list[tuple[Drawn, str]]:
    """The batch's problems, each with the backend whose turn it is among those that take them."""
    asked = _problem(batch, 0).problem(device)
    able = [name for name in backends if registry.get(f"dma/{name}").refusal(asked) is None]
    problems = [_problem(batch, number) for number in range(EACH)]
    one = next(drawn for drawn in problems if drawn.T > 200)  # FlexAttention's shape
    turns = []
    for drawn in problems:
        backend = able[drawn.number % len(able)]
        turns.append((replace(drawn, B=one.B, T=one.T, Tq=one.Tq) if backend == "flex" else drawn, backend))
    return turns


def test_the_problems_are_many_and_varied():
    drawn = [_problem(batch, number) for batch in range(BATCHES) for number in range(EACH)]
    assert len(drawn) == 1000 and len(set(drawn)) == 1000
    assert drawn[7] == _problem(0, 7)
    assert all(1 <= d.Tq <= d.T <= LONGEST and d.window >= 1 for d in drawn)
    assert {d.layout for d in drawn} == set(LAYOUTS) and {d.D for d in drawn} == {D for D, _ in WIDTHS}
    assert {d.groups for d in drawn} == {1, 2, 4, 8} and {d.B for d in drawn} == {1, 2, 3}
    assert {d.delta for d in drawn} == set(DELTAS) and {d.mask for d in drawn} == set(MASKS)
    for what in (
        lambda d: d.T == 1,
        lambda d: d.Tq == 1 and d.T > 1,
        lambda d: d.T > 2000,
        lambda d: d.T % 64 in (1, 63),
        lambda d: d.window > d.T,
        lambda d: d.window == 1,
        lambda d: 8 * d.window < d.T,
        lambda d: d.T > 1 and d.T % 16 == 0,
        lambda d: d.garbage and d.mask is not None and d.delta == "nan",
    ):
        assert sum(map(what, drawn)) >= 10


@pytest.fixture
def reference(monkeypatch) -> registry.Backend:
    """dma/reference, without its refusal of a NaN in delta; whatever backend is asked for."""
    attend = registry.get("dma/reference").attend

    def without_refusal(q, k, v, *, delta, plan, scale):
        return attend(q, k, v, delta=delta, plan=replace(plan, finite_parts=torch.tensor(True)), scale=scale)

    backend = registry.Backend("dma", "reference", without_refusal)
    monkeypatch.setattr(registry, "get", lambda name: backend)
    return backend


@pytest.mark.parametrize("batch", range(len(LAYOUTS)))
def test_the_reference_goes_the_same_way_on_a_cpu(reference, budget, batch):
    """Every layout, mask and kind of delta, at lengths that a CPU computes in no time."""
    for number in range(6):
        _check(_problem(batch, number, longest=70), "reference", "cpu", budget)


def test_turns_go_to_the_backends_that_take_the_problems(monkeypatch):
    def get(name: str) -> registry.Backend:
        narrow = name == "dma/cuda"
        return registry.Backend("dma", "x", print, refuses=lambda p: "too wide" if narrow and p.head_dim > 64 else None)

    monkeypatch.setattr(registry, "get", get)
    turns = _drawn_for(0, BACKENDS, "cuda")
    assert [backend for _, backend in turns[:4]] == ["flex", "triton", "cuda", "flex"] and len(turns) == EACH
    assert len({(d.B, d.T, d.Tq) for d, backend in turns if backend == "flex"}) == 1
    assert len({(d.B, d.T, d.Tq) for d, backend in turns if backend == "triton"}) > 10
    assert [backend for _, backend in _drawn_for(1, BACKENDS, "cuda")[:3]] == ["flex", "triton", "flex"]


def test_a_wrong_backend_is_noticed(reference, budget, monkeypatch):
    def future(q, k, v, **options):
        return reference.attend(q, k.roll(-1, 2), v, **options)

    wrong = registry.Backend("dma", "wrong", future)
    monkeypatch.setattr(registry, "get", lambda name: wrong)
    drawn = replace(_problem(0, 1, longest=70), T=50, Tq=50, window=20, mask=None, delta="iid")
    with pytest.raises(AssertionError, match=r"out: .* > "):
        _check(drawn, "wrong", "cpu", budget)


@pytest.mark.gpu
@pytest.mark.timeout(300)  # four processes on one card slow one another down
@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_backend_on_fifty_random_problems(batch, budget):
    turns = _drawn_for(batch, BACKENDS, "cuda")
    taken = {backend for _, backend in turns}
    D, dtype = WIDTHS[batch % len(WIDTHS)]
    assert taken == ({"flex", "triton", "cuda"} if D in (64, 128) and dtype != FP32 else {"flex", "triton"})
    wrong = []
    for drawn, backend in turns:
        try:
            _check(drawn, backend, "cuda", budget)
        except AssertionError as error:
            wrong.append(f"{backend}: {drawn}: {error}")
        except Exception as error:
            error.add_note(f"{backend}: {drawn}")
            raise
    torch.cuda.empty_cache()
    assert not wrong, "\n".join(wrong)
