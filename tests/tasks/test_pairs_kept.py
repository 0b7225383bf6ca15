"""Pairs kept, against the definitions: every query's live keys, one by one."""

import pytest
import torch

from dmabench.kernels import importance
from dmabench.tasks.pairs_kept import pairs_kept
from dmabench.tasks.recall_examples import Layout

LAYOUT = Layout(6, 48, 100)
RECALL = LAYOUT.make(0, "test", range(5))


def counted(live_per_layer):
    """The two means from live[b][head][query] -> set of keys, for each layer."""
    P = LAYOUT.pairs
    some, shares = [], []
    for b, queries in enumerate(RECALL.queries.tolist()):
        for pair, query in enumerate(queries):
            heads = [head[query] for live in live_per_layer for head in live[b]]
            some.append(any(2 * pair in keys or 2 * pair + 1 in keys for keys in heads))
            shares.append(sum(len([j for j in keys if j < 2 * P]) / len(keys) for keys in heads) / len(heads))
    return sum(some) / len(some), sum(shares) / len(shares)


def test_dma_keeps_the_most_important(small):
    window = 4
    model = small.model("dma", window=window)
    # Importance is read where the kernels get it: from what v_proj returns in a forward.
    values = []
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _m, _i, out: values.append(out.detach()))
    model.model(input_ids=RECALL.input_ids)
    live_per_layer = []
    for layer, v in zip(model.model.layers, list(values), strict=True):
        attention = layer.self_attn
        delta = importance(v.unflatten(-1, (2, -1)).transpose(1, 2), attention.W_dt, attention.A).detach()
        live_per_layer.append(
            [
                [
                    [set(sorted(range(i + 1), key=lambda j: (-row[j], -j))[:window]) for i in range(LAYOUT.seqlen)]
                    for row in heads
                ]
                for heads in delta.tolist()
            ]
        )
    kept = pairs_kept(model, RECALL, 2)
    expected = counted(live_per_layer)
    assert 0 < expected[0] < 1
    assert (kept.pairs_kept, kept.live_in_pairs) == pytest.approx(expected)


@pytest.mark.parametrize("window", [1, 10, 25, 48, 100])
def test_a_window_keeps_the_nearest(small, window):
    live = [[[set(range(max(0, i - window + 1), i + 1)) for i in range(LAYOUT.seqlen)]]] * 5
    kept = pairs_kept(small.model("swa", window=window), RECALL, 3)
    assert (kept.pairs_kept, kept.live_in_pairs) == pytest.approx(counted([live]))


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_dense_attention_keeps_every_pair(small, attention):
    live = [[[set(range(i + 1)) for i in range(LAYOUT.seqlen)]]] * 5
    kept = pairs_kept(small.model(attention), RECALL, 5)
    assert kept.pairs_kept == 1
    assert kept.live_in_pairs == pytest.approx(counted([live])[1])


def test_blocks_chosen_by_the_query_are_not_counted(small):
    assert pairs_kept(small.model("nsa"), RECALL, 5) is None
    assert pairs_kept(small.model("swa:1,nsa:1"), RECALL, 5) is None


def test_nothing_is_left_behind_on_the_model(small):
    model = small.model("dma").train()
    pairs_kept(model, RECALL, 5)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()
