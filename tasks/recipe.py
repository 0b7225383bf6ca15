"""How a model is trained: the recipe, the optimizer and the learning rate that follow from it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How to train. Weights, gradients and optimizer are float32.

    Raises:
        ValueError: numbers that make no training.
    """

    steps: int
    """At most."""
    batch: int
    """Examples a step, over all processes and accumulated parts."""
    lr: float
    """At its peak."""
    warmup: float = 0.1
    """Share of the steps over which lr rises from 0; from there it falls to 0 as half a cosine."""
    weight_decay: float = 0.1
    """Of matrices: embeddings, norms and whatever has one dimension have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    accumulate: int = 1
    """Parts in which each process computes its share of a step's batch: less memory, the same result."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: under bf16 autocast on CUDA (elsewhere float32, since a CPU has no gain from it). fp32: float32."""
    validate_every: int = 0
    """Steps; 0: only at the end."""
    stop_at: float | None = None
    """Validation accuracy that ends training."""
    seed: int = 0
    """Of the global random generators; the weights have theirs in `build_model`, the data in its own."""
    shard: bool = False
    """With several processes: FSDP2 (weights, gradients and optimizer split over them) instead of DDP (copies)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (0 < self.lr < math.inf):
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to 1, got {self.warmup}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {self.precision!r}")

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Where the fields in `other` are not these: "lr 0.001, not 0.003"."""
        own = asdict(self)
        names = [*own, *(name for name in other if name not in own)]
        pairs = ((name, other.get(name), own.get(name)) for name in names)
        return [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: never 0, so that no step is idle."""
        rise = round(self.warmup * self.steps)
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / (self.steps - rise)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters of a model that are trained, which decays matrices alone.

    On a GPU it is one kernel for all of them, which a CUDA graph can hold.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in filter(lambda one: one.requires_grad, model.parameters()):
        (others if parameter.dim() < 2 or id(parameter) in embeddings else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    on_gpu = all(parameter.is_cuda for parameter in decayed + others)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        betas=recipe.betas,
        fused=on_gpu or None,
        capturable=on_gpu,
    )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """What the forward runs under: bf16 on CUDA if the precision asks for it, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and device.type == "cuda")
