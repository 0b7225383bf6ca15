"""The processes of a training, one or several: copies of the model (DDP) or shares of it (FSDP2)."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")


class Processes:
    """The processes that torchrun started, or this one alone.

    accelerate makes the process group (gloo on CPUs, NCCL on GPUs) and wraps with DDP. FSDP2 is torch's own call, since
    accelerate has it for accelerators alone, and a path that no CPU can take would never be tested.
    """

    def __init__(self, device: str) -> None:
        """
        Args:
            device: of one process; of several, cpu, or a cuda device of which each process takes the one of its rank.
        """
        self.device, self.rank, self.count = torch.device(device), 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        from accelerate import Accelerator, DistributedDataParallelKwargs

        # The precision is the forward's own affair: accelerate keeps one for the life of a process.
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",
            device_placement=False,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self.device = self._accelerator.device
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def wrap(self, module: nn.Module, layers: nn.ModuleList, shard: bool) -> nn.Module:
        """The module, to be called instead: gradients of its backward are means over the processes.

        Args:
            layers: of the module; sharded one by one, so that only one is whole at a time.
        """
        if self.count == 1:
            return module
        if not shard:
            wrapped: nn.Module = self._accelerator.prepare_model(module)
            return wrapped
        from torch.distributed.fsdp import fully_shard  # a second, which tables of finished runs need not wait for

        for layer in layers:
            fully_shard(layer)
        fully_shard(module)
        return module

    def without_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Gradients of forwards and backwards inside are kept in each process, to be added up by the next outside."""
        if self.count == 1:
            return nullcontext()
        from torch.distributed.fsdp import FSDPModule

        return _kept(module) if isinstance(module, FSDPModule) else self._accelerator.no_sync(module)

    def clip(self, module: nn.Module, norm: float) -> None:
        """Scales the gradients so that their norm, over all processes, is at most `norm`."""
        nn.utils.clip_grad_norm_(module.parameters(), norm)

    def sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def agree(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, device=self.device)
        return held[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in all of them."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(held, value)
        return held

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    def whole(self, model: Any, sharded: bool) -> Any:
        """The model as one process can use it: itself, or a copy put together from the shares."""
        if self.count == 1 or not sharded:
            return model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        with torch.random.fork_rng(devices=[]):
            copy = type(model)(model.config)
        copy.load_state_dict(weights)
        return copy.to(self.device)


@contextmanager
def _kept(module: "FSDPModule") -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Only algorithms that give the same bits each time, if wanted; others raise."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, read at its first call
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
