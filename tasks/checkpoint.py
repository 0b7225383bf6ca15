"""Checkpoints of a training: one file, replaced as a whole, with everything that the next step depends on."""

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dmabench.tasks.recipe import Recipe
from dmabench.tasks.task import Examples

NAME = "checkpoint.pt"


def identity(recipe: Recipe, model: Any, examples: Examples) -> dict[str, Any]:
    """What a checkpoint must share with the training that goes on from it: the recipe is compared by field."""
    digest = hashlib.sha256()
    for tensor in examples.batch(0, recipe.batch):
        digest.update(tensor.numpy().tobytes())
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    config = {name: repr(value) for name, value in model.config.to_dict().items()}
    return {"config": config, "shapes": shapes, "examples": digest.hexdigest()}


def save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rest: dict[str, Any], writes: bool = True
) -> None:
    """Writes `folder`/checkpoint.pt; an interruption leaves the one before whole.

    With several processes all of them call it, since sharded weights are gathered; one `writes`.

    Args:
        module: also wrapped in DDP or sharded.
        rest: whatever torch.load allows with weights_only.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(module, optimizer, options=options)
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{NAME}.unfinished"
    with open(unfinished, "wb") as file:
        torch.save({"model": weights, "optimizer": moments, "rest": rest}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / NAME)


def read(folder: Path) -> dict[str, Any] | None:
    """What `save` wrote, on the CPU, or None."""
    path = folder / NAME
    if not path.exists():
        return None
    held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return held


def check(held: dict[str, Any], recipe: Recipe, same: dict[str, Any], folder: Path) -> None:
    """ValueError, naming the difference, where a checkpoint is of another training."""
    rest = held["rest"]
    found = recipe.differences(rest["recipe"])
    theirs, ours = rest["identity"]["config"], same["config"]
    found += [
        f"{name} {theirs.get(name)}, not {ours.get(name)}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if not found and rest["identity"]["shapes"] != same["shapes"]:
        found = ["weights of other shapes"]
    if not found and rest["identity"]["examples"] != same["examples"]:
        found = ["other training examples"]
    if found:
        raise ValueError(
            f"the checkpoint in {folder} is of a training with {'; '.join(found)}: "
            "go on with the same settings, or remove the folder"
        )


def restore(held: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and optimizer in place, on whatever device they are, wrapped or sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(
        module, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"], options=options
    )


def random_state(device: torch.device) -> dict[str, Any]:
    """Of all global generators of this process."""
    name, keys, *place = np.random.get_state(legacy=True)
    state = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["numpy"] = (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *place)
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """What `random_state` returned, also after a round trip through a file."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *place = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *place))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
