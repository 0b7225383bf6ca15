"""What became of a cell that raised: a status and a sentence. Runs in the worker."""

import traceback

import torch

from dmabench.errors import Refusal
from dmabench.kernels import Unsupported

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory")
"""What is said where no exception of its own is raised: the CPU's allocator, and a driver that has no room left."""


def status_of(error: Exception) -> tuple[str, str]:
    """(status, reason) of a row whose cell raised; a Refusal is raised again. The whole traceback goes to stderr where
    it may be a bug."""
    reason = _sentence(error)
    if isinstance(error, Refusal):
        raise error
    if isinstance(error, Unsupported):
        return "UNSUPPORTED", reason
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in NO_MEMORY):
        return "OUT_OF_MEMORY", reason
    traceback.print_exception(error)
    module = type(error).__module__
    if module.startswith(("torch._inductor", "torch._dynamo", "triton.compiler")):
        return "COMPILE_ERROR", reason
    return "RUNTIME_ERROR", f"{type(error).__name__}: {reason}"


def context_is_lost(error: Exception) -> bool:
    """After an illegal access every CUDA call of this process fails: only another process can go on."""
    if not torch.cuda.is_available() or isinstance(error, (Unsupported, MemoryError, torch.OutOfMemoryError)):
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def _sentence(error: BaseException) -> str:
    """The message on one line, cut, with the cause's where a compiler wrapped it."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if error.__cause__ is None:
        return text
    return f"{text[:120]} (cause: {_sentence(error.__cause__)})"
