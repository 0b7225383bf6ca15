"""`dmabench list models`: what each part of each model costs, and how far the attentions are from each other."""

import json

import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import doctor, listing


@pytest.fixture
def call():
    app = typer.Typer()
    for command in (listing, doctor):
        command.add_to(app)
    return lambda *words: CliRunner(env={"COLUMNS": "80"}).invoke(app, ["list", "models", *words])


def test_numbers_are_whole_as_json(call):
    rows = json.loads(call("--json").stdout)
    (dma,) = (row for row in rows if (row["preset"], row["attention"]) == ("7M", "dma"))
    # 6 layers of q, k, v, o (256 x 128 x 6), two norms of 128, W_dt (128 x 1) and A (1).
    assert dma["attn"] == 6 * (256 * 128 * 6 + 2 * 128 + 128 + 1)
    assert dma["total"] == dma["embedding"] + dma["attn"] + dma["ffn"] + dma["norm"]
    assert dma["embedding"] == 8192 * 256 and dma["ffn"] == 6 * 3 * 256 * 768


def test_the_difference_is_always_shown(call):
    result = call()
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if "%" in line]
    assert len(lines) == 50
    assert ["30M", "mla", "29.501M", "+0.44%"] in [line[:4] for line in lines]
    assert max(map(len, result.stdout.splitlines())) <= 80
