"""Rows of `dmabench mask`: one a key/value head, for a named distribution of importance or for a trained model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dmabench.errors import Refusal
from dmabench.kernels.mask_facts import BLOCK_K, BLOCK_Q, head_facts, quantile
from dmabench.workload.inputs import delta_from_file, named_delta
from dmabench.workload.model_delta import PREFIX

if TYPE_CHECKING:
    from torch import Tensor

    from dmabench.tasks.text_importance import TextImportance

COMMAND = "mask"
Row = dict[str, Any]


def distribution_rows(
    names: Sequence[str],
    lengths: Sequence[int],
    windows: Sequence[int],
    kv_heads: int,
    seed: int,
    files: dict[str, str],
) -> Iterator[list[Row]]:
    """The rows of each cell: the same importance that `dmabench kernels` times one sequence with.

    Args:
        names: distributions, or labels of `files` (label -> path of a .npy file).

    Raises:
        Refusal: a file that does not fit.
    """
    for name in names:
        for seqlen in lengths:
            for window in windows:
                if name in files:
                    delta = delta_from_file(files[name], 1, kv_heads, seqlen)
                else:
                    delta = named_delta(name, 1, kv_heads, seqlen, window if name == "sawtooth" else 0, seed)
                about = {"delta": name, "model": None, "weights": None, "text": None, "layer": None, "seed": seed}
                yield _rows(about | {"seqlen": seqlen, "window": window}, delta[0])


def model_rows(read: "TextImportance", lengths: Sequence[int]) -> Iterator[list[Row]]:
    """The rows of each layer, for each window that the model was run with and each length: importance of a token does
    not depend on later ones."""
    for (window, layer), delta in read.deltas.items():
        for seqlen in lengths:
            about = {
                "delta": f"{PREFIX}{read.model}:{layer}:{read.text}".replace(",", "_"),
                "model": read.model,
                "weights": read.weights,
                "text": read.text,
                "layer": layer,
                "seed": None,
            }
            yield _rows(about | {"seqlen": seqlen, "window": window}, delta[:, :seqlen])


def _rows(about: Row, delta_GT: "Tensor") -> list[Row]:
    try:
        heads = head_facts(delta_GT, about["window"])
    except ValueError as error:
        raise Refusal(f"{about['delta']}: {error}") from error
    settings = about | {"kv_heads": len(heads)}
    cell = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    rows = []
    for head, facts in enumerate(heads):
        told = asdict(facts) | {"lifetimes": list(facts.lifetimes)}
        levels = {f"lifetime_p{round(100 * level)}": quantile(facts.lifetimes, level) for level in (0.1, 0.5, 0.9)}
        part = {"part": head + 1, "parts": len(heads), "status": "PASSED", "reason": None}
        sizes = {"block_q": BLOCK_Q, "block_k": BLOCK_K}
        rows.append({"cell": cell, **part, **settings, "head": head, **told, **levels, **sizes})
    return rows
