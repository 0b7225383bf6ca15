"""Trains alone, then in two gloo processes as torchrun starts them, and writes what came of it: `two_processes.py OUT`.

The processes are forked, so that torch is imported once.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import dmabench.tasks.train as training
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.processes import Processes
from dmabench.tasks.scoring import Score
from dmabench.tasks.task import Tools
from dmabench.tasks.task_model import build_model
from dmabench.tasks.train import Recipe

SETTINGS = {"attention": "mha", "window": 4, "d_model": 16, "layers": 2, "heads": 2, "kv_heads": 1, "seed": 3}
STEPS, STOP_AT = 8, 4
CASES = {"plain": {}, "accumulated": {"accumulate": 3}, "sharded": {"shard": True, "accumulate": 2}}

training.LOOK_S = 0.0  # so that a signal is seen at the next step


class Ragged:
    """Random tokens, with a label on a third of the positions, so that processes hold different numbers of labels."""

    def batch(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(32, (size, 12), generator=generator)
        labels = torch.where(torch.rand(size, 12, generator=generator) < 0.3, (ids * 5 + 1) % 32, -100)
        return ids, labels


def weights(model: DmabenchForCausalLM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def run(folder: Path, validate: Any = None, **recipe: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = build_model(SETTINGS, 32, 12)
    wanted = Recipe(STEPS, 7, 1e-2, clip=0.1, validate_every=STOP_AT, **recipe)  # 0.1 clips every step
    done = training.train(model, Ragged(), wanted, Tools("cpu", folder), validate)
    assert done.tokens == STEPS * 7 * 12
    return done.curve, weights(done.model)


def member(rank: int, out: Path, ports: Any) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": ports.get()}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    found: dict[str, Any] = {"world": Processes("cpu").count}
    for name, recipe in CASES.items():
        curve, whole = run(out / name, **recipe)
        found[name] = curve
        torch.save(whole, out / f"{name}-{rank}.pt")

        signals = [signal.SIGTERM] if rank == 0 else []  # one need not reach all processes

        def stop(model: Any, signals: list[signal.Signals] = signals) -> Score:
            if signals:
                os.kill(os.getpid(), signals.pop())
            return Score(0, 1, 0, 1, -1.0)

        try:
            run(out / f"{name}-again", stop, **recipe)
        except KeyboardInterrupt:
            found[f"{name}-stopped"] = True
        found[f"{name}-again"], again = run(out / f"{name}-again", stop, **recipe)
        found[f"{name}-equal"] = all(torch.equal(again[key], whole[key]) for key in whole)
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def alone(out: Path) -> None:
    curve, whole = run(out / "alone")
    torch.save(whole, out / "alone.pt")
    (out / "alone.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    fork = multiprocessing.get_context("fork")
    ports = fork.SimpleQueue()
    started = [fork.Process(target=alone, args=(out,))]
    started += [fork.Process(target=member, args=(rank, out, ports)) for rank in range(2)]
    for process in started:
        process.start()
    # Where they meet is served here, as torchrun does: a port that was merely found free may be taken by the time it is
    # used. Not before they are forked, since threads do not survive that.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in range(2):
        ports.put(store.port)
    for process in started:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in started))
