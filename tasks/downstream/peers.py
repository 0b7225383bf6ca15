"""The processes that share one evaluation, as torchrun starts them."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Peers:
    """This process among its peers; alone without torchrun."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank, in every process."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def join() -> Peers:
    """This process among those that torchrun started. What they exchange is small and lies in main memory: gloo."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Peers()
    import torch.distributed as dist

    if not dist.is_initialized():
        # A process with short examples waits for one with long ones.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    return Peers(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
