"""Small models in float64 with weights large enough that a mistake shows.

Fixtures return functions, since test files cannot import one another.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmabench.tasks.config import ModelConfig
from dmabench.tasks.kinds import KINDS
from dmabench.tasks.model import DmabenchForCausalLM

PATTERN = "swa:1,dma:1,mha:1,nsa:1,mla:1"
EVERY_KIND = (*KINDS, PATTERN)
WINDOW = 16
VOCABULARY = 144


def small_config(attention: str, **overrides: Any) -> ModelConfig:
    """Two layers (a pattern: one each) of width 32, four query heads over two key/value heads."""
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 5 if attention == PATTERN else 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "window": WINDOW,
    }
    return ModelConfig(**{**settings, "attention": attention, **overrides})


def small_model(attention: str, seed: int = 0, **overrides: Any) -> DmabenchForCausalLM:
    """In float64, in evaluation mode, with weights that give logits of several units and importances that differ."""
    torch.manual_seed(seed)
    model = DmabenchForCausalLM(small_config(attention, **overrides)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".A"):
                parameter.normal_()
            else:
                parameter.normal_(std=0.4)
    return model


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids [rows, length] from 1 on; no row has one twice.

    In the first layer a token that comes again has the same importance, up to rounding, which depends on how many
    tokens are computed at once: which of the two stays in the window is then for rounding to say.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([1 + torch.randperm(VOCABULARY - 1, generator=generator)[:length] for _ in range(rows)])


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one batch, token 0 in the padding, and its attention mask."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    return ids, mask


@pytest.fixture(params=EVERY_KIND, ids=lambda kind: "pattern" if kind == PATTERN else kind)
def attention(request: pytest.FixtureRequest) -> str:
    """Every kind, and all of them in one model."""
    return request.param


@pytest.fixture
def small() -> SimpleNamespace:
    """config(attention, **overrides), model(attention, seed, **overrides), tokens(rows, length), padded(rows, side)."""
    return SimpleNamespace(
        config=small_config, model=small_model, tokens=tokens, padded=padded, window=WINDOW, pattern=PATTERN
    )
