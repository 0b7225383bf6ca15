"""The decoding cache of dynamic mask attention: it holds exactly the live keys, at most `window` for each head.

A key's rank among the keys so far only falls, so a key that is out of the `window` best never returns (lifetimes.py)
and can be forgotten: the cache is bounded and exact at any length. arXiv 2508.02124 keeps the whole cache instead.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from dmabench.kernels import live_keys_torch as operations
from dmabench.kernels.dma import DTYPES, dynamic_mask_attention
from dmabench.kernels.plan import Plan, make_plan
from dmabench.kernels.registry import Unsupported, wants_gradient


class LiveKeys:
    """The live keys of one attention layer: k and v of at most `window` keys a head, with delta and position.

    Start with `prefill` (after attention over a prompt) or with `extend`, then call, for each further turn, either

    - `extend(q, k, v, delta)`: n >= 1 new tokens; returns what the n queries attend to, each with its own live keys,
      exactly as if the tokens had come one by one. It is `append` and attention in one call, since the n queries see
      keys that are no longer live after the last of them. Or
    - `append(k, v, delta)`, any number of tokens, and `attend(q)` for one query at the last position.

    Keys come with rotary positions applied. delta is kept as it was when its key was new. Padded keys and those with a
    NaN delta are never live. Nothing here is differentiable.

    The first call allocates, for its batch, heads, dtypes and device; later calls write in place, without
    synchronisation, so that a decoding step can be captured in a CUDA graph. Each replay then counts on the device
    (`seen_BG`); the Python count `seen` is for the caller to advance.
    """

    def __init__(self, window: int) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(
                f"window must be an int of at least 1, got {window!r}: each query attends to a key or more"
            )
        self.window = window
        self.seen = 0
        """Tokens seen, padding included."""
        self.k_BGWD: Tensor
        self.v_BGWD: Tensor
        self.delta_BGW: Tensor
        self.position_BGW: Tensor
        """int32: when the key was new, counted from 0 with padding included."""
        self.count_BG: Tensor
        """int32: the first `count` slots of a head hold its live keys, in no particular order."""
        self.seen_BG: Tensor
        """int32: `seen`, on the device."""
        self._allocated = False

    def __len__(self) -> int:
        """Tokens seen: `seen`, not the number of keys held."""
        return self.seen

    def __bool__(self) -> bool:
        """A cache that has seen nothing is still a cache."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers; 0 before the first call. It never grows."""
        return sum(x.nbytes for x in self._buffers()) if self._allocated else 0

    @torch.no_grad()
    def prefill(
        self, k: Tensor, v: Tensor, delta: Tensor, key_mask: Tensor | None = None, plan: Plan | None = None
    ) -> None:
        """Forget everything, and keep those of T keys that are live after the last position.

        Args:
            k, v: [B, G, T, D]; delta: [B, G, T] float32 (float64 with float64 keys).
            key_mask: optional bool [B, T]; False marks padding.
            plan: the plan that attention over the same keys was made with, to spare a sort; it knows the key mask.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; a plan for another window or length.
        """
        self._check(k, v, delta, key_mask, fresh=True)
        if plan is None:
            live = operations.live_at_end(delta, operations.usable_keys(delta, key_mask), self.window)
        elif (plan.window, plan.evict_BGT.shape) != (self.window, delta.shape):
            raise ValueError(
                f"the plan is for window {plan.window} and delta {tuple(plan.evict_BGT.shape)}; "
                f"the cache has window {self.window} and delta is {tuple(delta.shape)}"
            )
        else:
            live = plan.evict_BGT == plan.key_len
        self._reset(k, delta)
        self._keep(live, k, v, delta, self._new_positions(k.shape[2]), k.shape[2])

    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor, delta: Tensor, key_mask: Tensor | None = None) -> None:
        """n new tokens: k, v [B, G, n, D], delta [B, G, n], key_mask bool [B, n]. See `extend` for their attention."""
        self._check(k, v, delta, key_mask)
        if not self._allocated:
            self._reset(k, delta)
        if k.shape[2] == 1:
            operations.insert(*self._buffers(), k, v, delta, key_mask)
            self.seen += 1
            return
        all_k, all_v, all_delta, positions = self._with(k, v, delta)
        usable = operations.usable_keys(all_delta, self._mask_with(key_mask, k.shape[2]))
        live = operations.live_at_end(all_delta, usable, self.window)
        self._keep(live, all_k, all_v, all_delta, positions, k.shape[2])

    def attend(self, q: Tensor, scale: float | None = None) -> Tensor:
        """Attention of one query at the last position to the live keys: q [B, H, 1, D] -> out [B, H, 1, D].

        Raises:
            ValueError: several queries (see `extend`), shapes that do not fit, a query that wants a gradient.
        """
        self._check_query(q, 1)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        return operations.attend(q, self.k_BGWD, self.v_BGWD, self.delta_BGW, self.count_BG, scale)[0]

    def extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        delta: Tensor,
        key_mask: Tensor | None = None,
        scale: float | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """n new tokens and their attention, each query to its own live keys, as if they came one by one.

        The w live keys, in the order of their positions, and the n new ones after them are attended to with
        `dynamic_mask_attention`, which is exact: a key that is dead already can be live for none of the n queries.
        One token takes the way of `decode_step`.

        Args:
            q: [B, H, n, D]; k, v: [B, G, n, D]; delta: [B, G, n]; key_mask: optional bool [B, n], False for padding.
            scale: factor of q k^T, default 1/sqrt(D).
            backend: the DMA backend for n > 1, as in `dynamic_mask_attention`.

        Returns:
            out [B, H, n, D]; 0 where a query has no live key.

        Raises:
            ValueError, Unsupported: as `dynamic_mask_attention` does; the cache is then as it was before.
        """
        n = k.shape[2]
        if n == 1:
            return decode_step(self, q, k, v, delta, scale, key_mask)
        self._check(k, v, delta, key_mask)
        if not self._allocated:
            self._reset(k, delta)
        self._check_query(q, n, k, v, delta)
        with torch.no_grad():
            if self.seen == 0:
                all_k, all_v, all_delta, mask, positions = k, v, delta, key_mask, self._new_positions(n)
            else:
                all_k, all_v, all_delta, positions = self._with(k, v, delta)
                mask = self._mask_with(key_mask, n)
            plan = make_plan(all_delta, self.window, key_mask=mask, query_len=n)
            finite = delta.isfinite()  # of the new keys alone: a free slot has NaN
            plan = replace(plan, finite_parts=finite if key_mask is None else finite | ~key_mask[:, None])
            out = dynamic_mask_attention(
                q, all_k, all_v, all_delta, self.window, scale=scale, plan=plan, backend=backend
            )
            assert isinstance(out, Tensor)
            self._keep(plan.evict_BGT == plan.key_len, all_k, all_v, all_delta, positions, n)
        return out

    @torch.no_grad()
    def reorder(self, beam_index: Tensor) -> None:
        """Row b becomes what row beam_index[b] was, in place: int [B], as beam search chooses them."""
        if self._allocated:
            if beam_index.shape != self.count_BG.shape[:1]:
                raise ValueError(f"beam_index must be [{self.count_BG.shape[0]}], got {tuple(beam_index.shape)}")
            for buffer in self._buffers():
                buffer.copy_(buffer.index_select(0, beam_index))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order: int [any]. The buffers are new ones."""
        if self._allocated:
            self._set(*(buffer.index_select(0, indices) for buffer in self._buffers()))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch `repeats` times in a row. The buffers are new ones."""
        if self._allocated:
            self._set(*(buffer.repeat_interleave(repeats, 0) for buffer in self._buffers()))

    def crop(self, max_length: int) -> None:
        """Refused: a cache that forgets dead keys cannot go back to where they were alive."""
        raise Unsupported(
            f"LiveKeys cannot be cropped to {max_length} tokens: keys that newer ones have evicted are gone, and would "
            'be live again. Assisted decoding and other uses of crop need cache="full", which keeps every key'
        )

    def reset(self) -> None:
        """Forget everything and keep the buffers."""
        self.seen = 0
        if self._allocated:
            self.count_BG.zero_()
            self.seen_BG.zero_()

    def _buffers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.k_BGWD, self.v_BGWD, self.delta_BGW, self.position_BGW, self.count_BG, self.seen_BG

    def _set(self, k: Tensor, v: Tensor, delta: Tensor, position: Tensor, count: Tensor, seen: Tensor) -> None:
        self.k_BGWD, self.v_BGWD, self.delta_BGW, self.position_BGW = k, v, delta, position
        self.count_BG, self.seen_BG = count, seen
        self._allocated = True

    def _reset(self, k: Tensor, delta: Tensor) -> None:
        """Forget everything; allocate unless the buffers there fit."""
        (B, G, _, D), w = k.shape, self.window
        wanted = ((B, G, w, D), k.dtype, k.device, delta.dtype)
        there = self._allocated and (self.k_BGWD.shape, self.k_BGWD.dtype, self.k_BGWD.device, self.delta_BGW.dtype)
        if there != wanted:
            integers = {"dtype": torch.int32, "device": k.device}
            k_BGWD, v_BGWD = k.new_zeros(B, G, w, D), k.new_zeros(B, G, w, D)
            position, (count, seen) = torch.zeros(B, G, w, **integers), torch.zeros(2, B, G, **integers)
            self._set(k_BGWD, v_BGWD, delta.new_zeros(B, G, w), position, count, seen)
        self.reset()

    def _new_positions(self, n: int) -> Tensor:
        """int32 [B, G, n]: the positions of the next n tokens."""
        return self.seen_BG[..., None] + torch.arange(n, dtype=torch.int32, device=self.seen_BG.device)

    def _with(self, k: Tensor, v: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k, v, delta and position of the slots, in the order of positions, then of the new keys. A free slot's delta is
        NaN."""
        live = torch.arange(self.window, device=k.device) < self.count_BG[..., None]
        order = self.position_BGW.masked_fill(~live, operations.NO_POSITION).argsort(-1)
        delta_BGW = self.delta_BGW.masked_fill(~live, float("nan")).gather(-1, order)
        return (
            torch.cat([operations.take(self.k_BGWD, order), k], 2),
            torch.cat([operations.take(self.v_BGWD, order), v], 2),
            torch.cat([delta_BGW, delta], -1),
            torch.cat([self.position_BGW.gather(-1, order), self._new_positions(k.shape[2])], -1),
        )

    def _mask_with(self, key_mask: Tensor | None, n: int) -> Tensor | None:
        """The key mask of the slots and n new keys."""
        return None if key_mask is None else torch.nn.functional.pad(key_mask, (self.window, 0), value=True)

    def _keep(self, live_BGT: Tensor, k: Tensor, v: Tensor, delta: Tensor, position: Tensor, n: int) -> None:
        """Write the live keys into the slots, after n more tokens."""
        source, count = operations.pack(live_BGT, self.window)
        # A free slot's row is multiplied by a probability of 0, so it may not hold a padded key's NaN.
        free = (torch.arange(self.window, device=k.device) >= count[..., None])[..., None]
        self.k_BGWD.copy_(operations.take(k, source).masked_fill_(free, 0.0))
        self.v_BGWD.copy_(operations.take(v, source).masked_fill_(free, 0.0))
        self.delta_BGW.copy_(delta.gather(-1, source))
        self.position_BGW.copy_(position.gather(-1, source))
        self.count_BG.copy_(count)
        self.seen_BG += n
        self.seen += n

    def _check(self, k: Tensor, v: Tensor, delta: Tensor, key_mask: Tensor | None, fresh: bool = False) -> None:
        if k.dim() != 4 or k.shape != v.shape or delta.shape != k.shape[:3] or k.shape[2] == 0:
            raise ValueError(
                "k and v must be [B, G, T, D] and delta [B, G, T] with T >= 1, "
                f"got {tuple(k.shape)}, {tuple(v.shape)} and {tuple(delta.shape)}"
            )
        wanted = (torch.float32, torch.float64) if k.dtype == torch.float64 else (torch.float32,)
        if k.dtype not in DTYPES or v.dtype != k.dtype or delta.dtype not in wanted:
            raise ValueError(
                f"k and v must share one of {DTYPES} and delta be float32, got {k.dtype}, {v.dtype}, {delta.dtype}"
            )
        shape = (k.shape[0], k.shape[2])
        if key_mask is not None and (key_mask.shape != shape or key_mask.dtype != torch.bool):
            raise ValueError(
                f"key_mask must be bool {shape}, True for real keys; got {key_mask.dtype} {tuple(key_mask.shape)}"
            )
        if self._allocated and not fresh:
            held = self.k_BGWD
            mine = (held.shape[:2], held.shape[3], held.dtype, self.delta_BGW.dtype, held.device)
            theirs = (k.shape[:2], k.shape[3], k.dtype, delta.dtype, k.device)
            if mine != theirs:
                raise ValueError(
                    f"the cache holds (B, G), D, dtype, delta's dtype, device of {mine}, the call has {theirs}: "
                    "prefill starts anew"
                )

    def _check_query(self, q: Tensor, n: int, *others: Tensor) -> None:
        if not self._allocated:
            raise ValueError("the cache is empty: prefill, append or extend it first")
        B, G, _, D = self.k_BGWD.shape
        if q.dim() != 4 or q.shape[2] != n or (q.shape[0], q.shape[3]) != (B, D) or q.shape[1] % G or not q.shape[1]:
            more = "; several queries belong to extend, which appends their keys as well" if n == 1 else ""
            raise ValueError(f"q must be [{B}, H, {n}, {D}] with H a multiple of {G}, got {tuple(q.shape)}{more}")
        if q.dtype != self.k_BGWD.dtype or q.device != self.k_BGWD.device:
            raise ValueError(f"q is {q.dtype} on {q.device}, the cache {self.k_BGWD.dtype} on {self.k_BGWD.device}")
        if wants_gradient(q, *others):
            raise ValueError("a decoding cache has no gradients: call it under torch.no_grad(), or train without it")


def decode_step(
    cache: LiveKeys,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """One token: update the cache, then attend to it. The region that decoding is timed by, besides `importance`.

    Args:
        q: [B, H, 1, D]; k, v: [B, G, 1, D]; delta: [B, G, 1] float32.
        key_mask: optional bool [B, 1], False for padding.
        scale: factor of q k^T, default 1/sqrt(D).

    Returns:
        out [B, H, 1, D], what the new token's query attends to.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a tensor that wants a gradient.
    """
    cache._check(k, v, delta, key_mask)
    if not cache._allocated:
        cache._reset(k, delta)
    cache._check_query(q, 1, k, v, delta)
    cache.append(k, v, delta, key_mask)
    return cache.attend(q, scale)
