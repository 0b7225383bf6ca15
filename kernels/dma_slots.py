"""The two fused backends that are still to be written: they say so wherever backends are listed or asked for."""

from typing import NoReturn

from dmabench.kernels.registry import Backend, Unsupported

_WHY = {
    "triton": "the fused Triton kernels are not built yet; use dma/flex",
    "cuda": "the CUDA C++ kernels are not built yet; use dma/flex",
}


def _slot(name: str) -> Backend:
    def attend(*_, **__) -> NoReturn:
        raise Unsupported(_WHY[name])

    return Backend(function="dma", name=name, attend=attend, missing=lambda device: _WHY[name])


BACKENDS = [_slot(name) for name in _WHY]
