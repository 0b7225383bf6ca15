"""What each attention should do on each pattern: written before anything was trained, so that results can disagree.

Two numbers decide. `needed` tokens of a sequence can still be asked for: all that are copied, all that are marked, all
pairs. And an answer lies some way back: the distance of a copy, else up to the whole sequence.

- mha reads every key and mla every token's latent: both learn all three at any size.
- swa keeps the last w keys. It learns to copy if layers relay the distance, d <= layers x (w - 1), and does not care
  how much is copied. Marked tokens and pairs lie anywhere, and what will be asked is unknown while they could be
  relayed: it fails at both if w is below the sequence, with an accuracy of about w / T.
- nsa chooses blocks with the query and needs few of them for one answer: it learns all three at any of these sizes.
- dma chooses keys without the query, by importance, which comes from a key's value and knows no age. It learns to drop
  what is filler, so it must hold all that can be asked: with w below `needed` it fails, with an accuracy of about
  w / needed plus chance. Answers stand in the sequence again after they were given and look as important, the later
  ones first, so it is sure to learn only with w of twice `needed`; between the two it is open. This holds for copies
  as well: a window of d + 1 holds a stream for swa, but dma cannot forget a token for its age unless all are equally
  important. (Then later ones win and it is a window; nothing in training rewards that before it works.) What was
  copied does not stand in the sequence again, so there w of `needed` is enough.
"""

from dmabench.tasks.task import Settings

LEARNS, FAILS, OPEN = "learns", "fails", "open"
"""Accuracy of 0.95 (the control's) or more; less; either."""


def needed(settings: Settings) -> int:
    """Tokens (copy, select) or pairs (induce) that can still be asked for when a sequence has shown them all."""
    return int(settings[{"copy": "copied", "select": "marked", "induce": "pairs"}[settings["pattern"]]])


def predicted(settings: Settings) -> str:
    """What a cell should come to: LEARNS, FAILS or OPEN.

    Args:
        settings: pattern and its sizes, seqlen, attention, window and layers.
    """
    attention, window, pattern = settings["attention"], settings["window"], settings["pattern"]
    if attention not in ("swa", "dma") or window >= settings["seqlen"]:
        return LEARNS
    if attention == "swa":
        reaches = pattern == "copy" and settings["distance"] <= settings["layers"] * (window - 1)
        return LEARNS if reaches else FAILS
    if window < needed(settings):
        return FAILS
    return LEARNS if pattern == "copy" or window >= 2 * needed(settings) else OPEN
