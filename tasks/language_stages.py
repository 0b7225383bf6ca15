"""Settings of language training: axes, what follows from others, and the stages that they make."""

from dataclasses import dataclass
from pathlib import Path

from dmabench.tasks import tokenizer
from dmabench.tasks.kinds import POSITIONS, known_kinds
from dmabench.tasks.presets import FIELDS, PRESETS
from dmabench.tasks.task import Axis, Settings
from dmabench.tasks.task_model import WINDOWED

STRETCH = 4
"""Default length of the second stage, over that of the first."""
LATER_LR = 3
"""Default of the first stage's learning rate over that of the second. Ours: the paper does not tell its own."""
LATER_ROPE_BASE = 1e5
"""The paper's, in its second stage."""
SMALLEST_WINDOW = 16
"""Of the windows that follow from a length."""

AXES: tuple[Axis, ...] = (
    Axis("size", str, "Size of the model (dmabench list models).", choices=tuple(PRESETS)),
    Axis("attention", str, "Which attention every layer has.", choices=known_kinds()),
    Axis(
        "window",
        int,
        "Keys a query attends to; default: the size's, a quarter of --seqlen at most.",
        least=1,
        only=WINDOWED,
    ),
    Axis("data", str, "Text: a file, a folder, synthetic, or org/name[:config] of the hub. No commas."),
    Axis("heldout", str, "Text held out; default: `validation` files of the folder, else a part of --data."),
    Axis("text_field", str, "Field of JSON lines and of the hub's rows that has the text."),
    Axis("strict", bool, "Refuse text with broken lines, instead of skipping and counting them."),
    Axis("tokenizer", str, "trained (on the text), bytes, a folder, or org/name of the hub."),
    Axis("vocab", int, "Tokens of a tokenizer that is trained; default: the size's.", least=tokenizer.LEAST),
    Axis("init_from", str, "Begin with the weights of this folder, a Qwen3 checkpoint; instead of --size."),
    Axis("seqlen", int, "Tokens of a sequence.", least=2),
    Axis("tokens", float, "Tokens to train on: 40e6; text comes again where there is less of it.", least=1),
    Axis("rope_base", float, "Base of rotary positions; default: the size's.", least=1),
    Axis("stage2_tokens", float, "Tokens of a second stage; 0: none.", least=0),
    Axis("stage2_seqlen", int, f"Tokens of its sequences; default: {STRETCH} times --seqlen.", least=2),
    Axis("stage2_rope_base", float, f"Base of its positions; default {LATER_ROPE_BASE:g}.", least=1),
    Axis("stage2_window", int, "Its window; default: --window.", least=1, only=WINDOWED),
    Axis("stage2_lr", float, f"Its learning rate; default: --lr / {LATER_LR}.", least=0),
    Axis("lr", float, "Learning rate, at its peak.", least=0),
    Axis("batch", int, "Sequences a training step; in a second stage as many tokens.", least=1),
    Axis("step_tokens", int, "Tokens a training step, from which --batch follows where it is not given.", least=1),
    Axis("heldout_tokens", int, "Tokens of the test at most; each validation takes a quarter of them.", least=8),
    Axis("positions", str, "How the model knows positions.", choices=POSITIONS[:2]),
    Axis("short_conv", int, "Width of a short convolution before every attention; 0: none.", least=0),
    Axis("mla_latent", int, "Numbers that mla caches for a token; default: width / 4.", least=1, only=("mla",)),
    Axis(
        "nsa",
        str,
        "Sizes of nsa: equal (as many keys as the window) or paper.",
        choices=("equal", "paper"),
        only=("nsa",),
    ),
    Axis("seed", int, "Seed of weights and of the order of the text.", least=0),
)


@dataclass(frozen=True)
class Stage:
    """A training at one length."""

    tokens: int
    seqlen: int
    batch: int
    lr: float
    rope_base: float | None
    """None: as the model has it."""
    window: int | None

    @property
    def steps(self) -> int:
        """Whole steps in its tokens."""
        return self.tokens // (self.batch * self.seqlen)

    @property
    def refusal(self) -> str | None:
        """Why it cannot be."""
        if self.steps:
            return None
        step = self.batch * self.seqlen
        return (
            f"{self.tokens} tokens are fewer than one step of {self.batch} sequences of {self.seqlen} ({step} tokens): "
            "train on more (--tokens), or take a smaller --batch"
        )


def stages_of(settings: Settings) -> list[Stage]:
    """One, or two, of settings that are complete."""
    window, lr, batch = settings["window"], settings["lr"], settings["batch"]
    first = Stage(int(settings["tokens"]), settings["seqlen"], batch, lr, settings["rope_base"], window)
    if not settings["stage2_tokens"]:
        return [first]
    length = settings["stage2_seqlen"]
    rows = max(1, batch * first.seqlen // length)
    # Not filled in: settings that differ in what follows from the first rate would be taken for two, not for one with
    # two rates to choose from.
    own_lr = settings["stage2_lr"] if settings["stage2_lr"] is not None else lr / LATER_LR
    later = own_lr, settings["stage2_rope_base"], settings["stage2_window"]
    return [first, Stage(int(settings["stage2_tokens"]), length, rows, *later)]


def complete(settings: Settings) -> Settings:
    """What follows: sizes from the preset, the window, the batch, a second stage's settings from the first's."""
    found = dict(settings)
    length, windowed = found["seqlen"], found["attention"] in WINDOWED
    if found["init_from"]:
        found |= {"size": None, "tokenizer": settings["tokenizer"] or found["init_from"]}
    if not found["tokenizer"]:
        found["tokenizer"] = tokenizer.TRAINED
    if found["tokenizer"] != tokenizer.TRAINED:
        found["vocab"] = None
    elif found["vocab"] is None:
        found["vocab"] = max(_size_of(found, "vocab_size"), 2 * tokenizer.LEAST - 2)
    if found["window"] is None and windowed:
        own = _size_of(found, "window") if found["size"] else length
        found["window"] = min(own, max(SMALLEST_WINDOW, length // 4))
    if found["batch"] is None:
        found["batch"] = max(1, found["step_tokens"] // length)
    found["step_tokens"] = None  # done with: cells of equal batches are equal
    return found | _second(found, windowed)


def _size_of(settings: Settings, field: str) -> int:
    """What the preset of the size has in a field of presets.FIELDS."""
    return int(PRESETS[settings["size"] or "tiny"]["size"][FIELDS.index(field)])


def names_of(settings: Settings) -> Settings:
    """Settings as a file may keep them: paths without the folders of this machine."""
    paths = ("data", "heldout", "tokenizer", "init_from")
    return {
        name: Path(value).name if name in paths and value and Path(value).is_absolute() else value
        for name, value in settings.items()
    }


def _second(found: Settings, windowed: bool) -> Settings:
    if not found["stage2_tokens"]:
        return {name: None for name in found if name.startswith("stage2_")}
    defaults = {
        "stage2_seqlen": STRETCH * found["seqlen"],
        "stage2_rope_base": LATER_ROPE_BASE,
        "stage2_window": found["window"] if windowed else None,
    }
    return {name: value for name, value in defaults.items() if found[name] is None}
