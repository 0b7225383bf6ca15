"""The decoding cache of dynamic mask attention: it holds exactly the live keys, at most `window` for each head.

A key's rank among the keys so far only falls, so a key that is out of the `window` best never returns (lifetimes.py)
and can be forgotten: the cache is bounded and exact at any length. arXiv 2508.02124 keeps the whole cache instead.
"""

import math
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from dmabench.kernels.dma import dynamic_mask_attention
from dmabench.kernels.live_keys import checks, operations
from dmabench.kernels.live_keys.slots import Slots
from dmabench.kernels.plan import Plan, make_plan
from dmabench.kernels.registry import Unsupported


class LiveKeys(Slots):
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
        checks.check_keys(k, v, delta, key_mask)
        if plan is None:
            live = operations.live_at_end(delta, operations.usable_keys(delta, key_mask), self.window)
        else:
            checks.check_plan(plan, self.window, delta)
            live = plan.evict_BGT == plan.key_len
        self._reset(k, delta)
        self._keep(live, k, v, delta, self._new_positions(k.shape[2]), k.shape[2])

    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor, delta: Tensor, key_mask: Tensor | None = None) -> None:
        """n new tokens: k, v [B, G, n, D], delta [B, G, n], key_mask bool [B, n]. See `extend` for their attention."""
        checks.check_keys(k, v, delta, key_mask)
        self._start(k, delta)
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
        if not self._allocated:
            raise ValueError("the cache is empty: prefill, append or extend it first")
        checks.check_query(q, 1, self.k_BGWD)
        checks.check_no_gradient(q)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        attend = _kernels().run_attend if _fused(q, self.delta_BGW) else operations.attend
        return attend(q, self.k_BGWD, self.v_BGWD, self.delta_BGW, self.count_BG, scale)

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
        checks.check_keys(k, v, delta, key_mask)
        n = k.shape[2]
        if n == 1:
            return decode_step(self, q, k, v, delta, scale, key_mask)
        checks.check_query(q, n, k)
        checks.check_no_gradient(q, k, v, delta)
        self._start(k, delta)
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

    def crop(self, max_length: int) -> None:
        """Refused: a cache that forgets dead keys cannot go back to where they were alive."""
        raise Unsupported(
            f"LiveKeys cannot be cropped to {max_length} tokens: keys that newer ones have evicted are gone, and would "
            'be live again. Assisted decoding and other uses of crop need cache="full", which keeps every key'
        )

    def _start(self, k: Tensor, delta: Tensor) -> None:
        """Check new keys against those held, or allocate for keys like them."""
        if self._allocated:
            checks.check_same(self.k_BGWD, self.delta_BGW, k, delta)
        else:
            self._reset(k, delta)

    def _new_positions(self, n: int) -> Tensor:
        """int32 [B, G, n]: the positions of the next n tokens."""
        return self.seen_BG[..., None] + torch.arange(n, dtype=torch.int32, device=self.seen_BG.device)

    def _with(self, k: Tensor, v: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k, v, delta and position of the slots by position, then of the new keys; delta is NaN for a free slot."""
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
    checks.check_keys(k, v, delta, key_mask)
    checks.check_query(q, 1, k)
    checks.check_no_gradient(q, k, v, delta)
    if not _fused(q, delta):
        cache.append(k, v, delta, key_mask)
        return cache.attend(q, scale)
    cache._start(k, delta)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    cache.seen += 1
    return _kernels().run_step(q, k, v, delta, key_mask, *cache._buffers(), scale)


def _fused(q: Tensor, delta: Tensor) -> bool:
    """Whether the Triton kernels of a decoding step take this query."""
    return q.is_cuda and _kernels().takes(q, delta)


def _kernels() -> ModuleType:
    """Imported late: Triton exists on Linux alone."""
    from dmabench.kernels.live_keys import step

    return step
