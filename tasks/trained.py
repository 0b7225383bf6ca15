"""What a training has come to, and how far it is: the one for its caller, the other for its checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dmabench.tasks.scoring import Score


@dataclass(frozen=True)
class Validation:
    """One look at the validation split during a training."""

    step: int
    """Steps done."""
    accuracy: float
    tokens: int | None = None
    """Trained on until then. None, as is the loss, where a file is from before they were kept."""
    loss: float | None = None
    """Mean over labels, natural logarithm."""


@dataclass
class Trained:
    """What came of a training."""

    model: Any
    """The model that was given, trained in place (with `shard` and several processes: a whole copy)."""
    steps: int
    tokens: int
    loss: float
    """Mean of the last steps, at most 20."""
    seconds: float
    """Of training over all runs that it took; validation and checkpoints are left out."""
    tokens_per_s: float
    """Without the first step of each run, in which kernels are compiled."""
    validation: Score | None
    """The last."""
    stopped: Literal["finished", "early"]
    curve: list[float]
    """Loss of each step: mean over its labels."""
    validations: list[Validation]
    replayed: int = 0
    """Steps of this run that were replayed from CUDA graphs."""
    not_replayed: str | None = None
    """Why they could not be, where they should have been."""

    def facts(self) -> dict[str, Any]:
        """What a row says of its training. `steps` is a setting, the most there may be; these are `steps_done`."""
        return {
            "validation_accuracy": self.validation.accuracy if self.validation else None,
            "loss": self.loss,
            "steps_done": self.steps,
            "tokens": self.tokens,
            "train_s": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "stopped": self.stopped,
            "steps_replayed": self.replayed,
            "not_replayed": self.not_replayed,
        }


@dataclass
class Past:
    """What has happened so far; a checkpoint holds it."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    paced_tokens: int = 0
    paced_seconds: float = 0.0
    """Without the first step of each run."""
    curve: list[float] = field(default_factory=list)
    validation: dict[str, Any] | None = None
    validations: list[Validation] = field(default_factory=list)
    early: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What `of` makes it again from, and torch.load allows with weights_only."""
        return asdict(self)

    @classmethod
    def of(cls, held: dict[str, Any]) -> "Past":
        """From a checkpoint; older ones hold pairs of steps and accuracy."""
        looks = [Validation(**one) if isinstance(one, dict) else Validation(*one) for one in held["validations"]]
        return cls(**{**held, "validations": looks})


def held_out_curve(trainings: Sequence[Trained]) -> dict[str, Any]:
    """What rows keep of the validations of a model that was trained in these stages, one after the other:
    {"curve_tokens": tokens trained on, "curve_loss": validation loss after them}, lists alike in length."""
    tokens: list[int] = []
    losses: list[float] = []
    before = 0
    for training in trainings:
        for one in training.validations:
            if one.tokens is not None and one.loss is not None:
                tokens.append(before + one.tokens)
                losses.append(float(f"{one.loss:.6g}"))
        before += training.tokens
    return {"curve_tokens": tokens, "curve_loss": losses}
