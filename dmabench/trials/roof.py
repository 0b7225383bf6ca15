"""How long a cell may take: what a training step of small models was measured to take on a GPU, or its operations over
a stated share of what the device reaches in a matrix product, whichever is more."""

from collections.abc import Iterable
from dataclasses import dataclass

from dmabench.trials.cells import Trial

SHARE = {"cpu": 0.25, "cuda": 0.1}
"""Of the roof, in training small models. Assumed, and said with every estimate."""
STEP_S, STEP_TOKENS, STEP_LAYERS, STEP_WIDTH = 7.5e-3, 32768, 2, 128
"""Seconds of a GPU for one training step of so many tokens, of a model with so many layers of that width: 7.1 to 8.0 ms
for mha, swa, mla and dma (H100 80GB, torch 2.11, eight cells at once, train_s / steps_done / 8 of the rows in
results/reference/h100/mqar, commit 765a8ad). Such models are bound by memory, so it grows with all three. Measured
before steps were replayed from CUDA graphs and moved half as much: an upper bound since."""
CELL_S = 3.0
"""Seconds of a cell on a GPU beside its tokens: building, capturing, timing inference. Assumed, not measured."""
TUNING_S = {"nsa": 290.0}
"""Seconds in which an attention tunes its kernels, once for each worker: more than this for the first cell of nsa with
fla-core 0.6.0 (H100, as above; the cell had not ended)."""
ASSUMED_TFLOPS = 790.0
"""An H100's matrix product in bf16 as `dmabench kernels` measured it (results/reference/h100), for machines without."""


@dataclass(frozen=True)
class Roof:
    """What a device reaches, and how that is known."""

    tflops: float
    share: float
    step_s: float
    """Of the step above; 0 where none was measured."""
    about: str
    cell_s: float = 0.0

    def seconds(self, trial: Trial) -> float:
        """An estimate, without what `once` has."""
        if trial.refusal:
            return 0.0
        cost, settings = trial.cost, trial.settings
        computing = cost.flops / (self.share * self.tflops * 1e12)
        steps = settings.get("steps") or 0
        measured = self.step_s * steps
        layers, width = settings.get("layers"), settings.get("d_model")
        if layers and width:  # a forward alone takes a third of a step
            size = layers * width / (STEP_LAYERS * STEP_WIDTH)
            measured = self.step_s * (cost.tokens + cost.scored / 3) / STEP_TOKENS * size
        return max(computing, measured) + self.cell_s

    def once(self, trials: Iterable[Trial]) -> float:
        """Seconds of one worker beside the cells: tuning, on a GPU."""
        kinds = {str(trial.settings.get("attention")) for trial in trials if not trial.refusal}
        return sum(TUNING_S.get(kind, 0.0) for kind in kinds) if self.step_s else 0.0


def roof_of(device: str) -> Roof:
    """Measured here in a second; assumed for a GPU that is not there."""
    import torch

    from dmabench.timing.clock import measured_roofs

    on_gpu = device.startswith("cuda")
    share = SHARE["cuda" if on_gpu else "cpu"]
    if not on_gpu:
        tflops = measured_roofs(device, torch.float32)["roof_tflops"]
        told = f"operations at {share:.0%} of the {tflops:.3g} TFLOP/s that an fp32 matrix product reaches here now"
        return Roof(tflops, share, 0.0, told)
    tflops, whose = ASSUMED_TFLOPS, "assumed of an H100"
    if torch.cuda.is_available():
        tflops = measured_roofs(device, torch.bfloat16)["roof_tflops"]
        whose = "that a bf16 matrix product reaches here now"
    told = (
        f"{1e3 * STEP_S:g} ms for a step of {STEP_TOKENS // 1024}k tokens of {STEP_LAYERS} layers of width "
        f"{STEP_WIDTH}, as measured on an H100 before steps were replayed (results/reference/h100/mqar), in "
        f"proportion, or operations at {share:.0%} of the {tflops:.3g} TFLOP/s {whose}; {CELL_S:g} s a cell assumed "
        "for the rest"
    )
    return Roof(tflops, share, STEP_S, told, CELL_S)
