"""The Triton kernels that make tile lists, against tensor operations: interpreted here, on a card where there is one.

What the lists must hold is test_block_masks.py's business. The interpreter is chosen when a kernel is decorated and
reaches into triton.language, so it gets a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch
import triton

from dmabench.kernels import block_masks_torch, block_masks_triton, make_plan
from dmabench.kernels.block_masks import tile_lists
from dmabench.kernels.plan import Tiles

COMPARE = """
import torch
from dmabench.kernels import block_masks_torch, block_masks_triton
from dmabench.kernels.plan import Tiles

def compare(B, G, N, query_blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(query_blocks + 1, (B, G, N, 4), generator=generator, dtype=torch.int32).sort(-1).values
    corners[torch.rand(B, G, N, generator=generator) < 0.2] = 0  # dead tiles
    no_full = torch.rand(B, G, N, generator=generator) < 0.3
    corners[no_full, 1] = corners[no_full, 2] = corners[no_full, 0]
    first, full_first, full_last, last = corners.unbind(-1)  # strided
    tiles = Tiles(128, 128, first, last, full_first, full_last)
    for make in ("by_query_block", "by_tile"):
        found = getattr(block_masks_triton, make)(tiles, query_blocks)
        right = getattr(block_masks_torch, make)(tiles, query_blocks)
        for mine, theirs in zip(found, right, strict=True):
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.is_contiguous()
            assert torch.equal(mine, theirs), (make, B, G, N, query_blocks)

block_masks_triton.CHUNK = 32  # lists of several chunks
compare(1, 1, 1, 1, 0)
compare(2, 2, 37, 9, 1)
compare(1, 1, 5, 70, 2)
block_masks_triton.CHUNK = 1024
compare(1, 2, 20, 33, 3)
print("compared")
"""


def test_interpreted_kernels_make_the_same_lists():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", COMPARE], env=environment, capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0 and "compared" in ran.stdout, ran.stderr[-3000:]


@pytest.mark.parametrize("kernel", ["_by_query_block_kernel", "_by_tile_kernel"])
def test_kernels_compile_for_a_card(kernel):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(block_masks_triton, kernel)
    signature = {name: "*i32" if name.endswith("_ptr") else "i32" for name in function.arg_names[:-1]}
    source = ASTSource(function, {**signature, "CHUNK": "constexpr"}, {"CHUNK": 1024})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize(("B", "G", "T", "w", "query_len"), [(2, 3, 1000, 100, 333), (1, 2, 140000, 512, 140000)])
def test_lists_of_a_plan_on_a_card(B, G, T, w, query_len):
    delta = torch.randn(B, G, T, generator=torch.Generator().manual_seed(T))
    tiles = make_plan(delta.to("cuda"), w, query_len=query_len).tiles(128, 128)
    found = tile_lists(tiles, -(-query_len // 128), by_tile=True)
    on_cpu = (x.cpu() for x in (tiles.first_BGN, tiles.last_BGN, tiles.full_first_BGN, tiles.full_last_BGN))
    right = tile_lists(Tiles(128, 128, *on_cpu), -(-query_len // 128), by_tile=True)
    for name, mine in vars(found).items():
        assert torch.equal(mine.cpu(), getattr(right, name)), name
    assert block_masks_torch.by_tile(tiles, 7)[1].is_cuda  # the tensor operations run on a card as well
