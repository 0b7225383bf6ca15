"""Statistics of masks: known values for known masks."""

import pytest
import torch

from dmabench.kernels.lifetimes import eviction_times
from dmabench.kernels.mask_facts import head_overlaps
from dmabench.tasks.mask_statistics import QUANTILES, chance_overlap, columns, mask_statistics
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config


def test_random_heads_overlap_by_chance_and_one_head_with_none():
    torch.manual_seed(0)
    evict = eviction_times(torch.randn(20, 2, 512), 64)
    assert head_overlaps(evict, 512) == pytest.approx([chance_overlap(64, 512)] * 2, rel=0.05)
    assert head_overlaps(evict[:, :1], 512) is None


def model(**fields):
    torch.manual_seed(0)
    config = model_config("tiny", window=8, initializer_range=0.3, max_position_embeddings=20, **fields)
    return DmabenchForCausalLM(config).eval()


def test_every_head_at_every_length_that_is_reached():
    one = model()
    ids = torch.randint(0, 256, (3, 70))
    heads = mask_statistics(one, ids, trained=16)
    assert [(head.layer, head.head, head.tokens) for head in heads] == [
        (layer, head, tokens) for layer in range(2) for tokens in (16, 32, 64) for head in range(2)
    ]
    for head in heads:
        assert head.quantiles == tuple(sorted(head.quantiles)) and len(head.quantiles) == len(QUANTILES)
        assert head.threshold <= head.quantiles[-1] and 0 <= head.age < head.tokens and 0 < head.overlap <= 1
    thresholds = [head.threshold for head in heads if (head.layer, head.head) == (0, 0)]
    assert thresholds == sorted(thresholds)  # the 8th best of more keys
    assert one.config.max_position_embeddings == 20
    assert {len(column) for column in columns(heads).values()} == {len(heads)}


def test_a_sliding_window_and_a_shared_mask():
    ids = torch.randint(0, 256, (2, 64))
    for head in mask_statistics(model(dma_importance="constant"), ids, trained=64):
        assert (head.age, head.overlap, head.threshold) == (3, 1.0, 0.0)
    assert all(head.overlap == 1 for head in mask_statistics(model(dma_shared=True), ids, trained=64))


def test_without_a_mask_all_keys_live():
    (head, *_) = mask_statistics(model(dma_mask=False), torch.randint(0, 256, (2, 64)), trained=64)
    assert head.overlap == 1 and 20 < head.age < 28
