import pytest
import torch

from dmabench.errors import Refusal
from dmabench.kernels import Unsupported
from dmabench.store.failures import status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unsupported("no kernel for head dim 96"), "UNSUPPORTED"),
        (MemoryError("needs 5 GiB"), "OUT_OF_MEMORY"),
        (torch.OutOfMemoryError("tried to allocate"), "OUT_OF_MEMORY"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "OUT_OF_MEMORY"),
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), "OUT_OF_MEMORY"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "RUNTIME_ERROR"),
        (ValueError("wrong"), "RUNTIME_ERROR"),
    ],
    ids=str,
)
def test_status(error, status):
    found, reason = status_of(error)
    assert found == status and str(error).split("\n")[0] in reason


def test_a_refusal_is_for_the_user():
    with pytest.raises(Refusal, match="odd"):
        status_of(Refusal("odd length"))
