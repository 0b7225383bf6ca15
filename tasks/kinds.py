"""The attentions that a layer of a model can have, and how a model can know positions: names alone, so that a task's
command and tables need not import transformers."""

from dmabench.tasks import outside_attentions

KINDS = ("mha", "swa", "mla", "nsa", "dma")
"""Our attentions, in the order of tables: dense, sliding window, latent, native sparse, dynamic mask."""
WINDOWED = ("swa", "nsa", "dma")
"""Those of ours that `window` changes."""

POSITIONS = ("rope", "none", "yarn")


def known_kinds() -> tuple[str, ...]:
    """Every attention that a layer can have: ours, then those from outside. Imports none."""
    return (*KINDS, *(name for name in outside_attentions.names() if name not in KINDS))


def windowed_kinds() -> tuple[str, ...]:
    """Those that `window` changes. A broken one from outside is none of them: it is refused where a model has it."""
    return (*WINDOWED, *(kind for kind in known_kinds() if kind not in KINDS and outside_attentions.is_windowed(kind)))
