"""How long a cell may take: its operations over a stated share of what the device reaches in a matrix product, and
the launches of its steps."""

from dataclasses import dataclass

from dmabench.trials.cells import Trial

SHARE = {"cpu": 0.25, "cuda": 0.1}
"""Of the roof, in training small models. Assumed, and said with every estimate."""
STEP_S = {"cpu": 0.0, "cuda": 0.02}
"""The least that a training step takes: a GPU waits for the launches of a small model. Assumed, not measured."""
ASSUMED_TFLOPS = 790.0
"""An H100's matrix product in bf16 as `dmabench kernels` measured it (results/reference/h100), for machines without."""


@dataclass(frozen=True)
class Roof:
    """What a device reaches, and how that is known."""

    tflops: float
    share: float
    step_s: float
    about: str

    def seconds(self, trial: Trial) -> float:
        """An estimate."""
        if trial.refusal:
            return 0.0
        computing = trial.cost.flops / (self.share * self.tflops * 1e12)
        return max(computing, self.step_s * (trial.settings.get("steps") or 0))


def roof_of(device: str) -> Roof:
    """Measured here in a second; assumed for a GPU that is not there."""
    import torch

    from dmabench.timing.clock import measured_roofs

    on_gpu = device.startswith("cuda")
    kind = "cuda" if on_gpu else "cpu"
    share, step_s = SHARE[kind], STEP_S[kind]
    least = f", {1e3 * step_s:.0f} ms a step at least" if step_s else ""
    if on_gpu and not torch.cuda.is_available():
        told = f"operations at {share:.0%} of the {ASSUMED_TFLOPS:.0f} TFLOP/s assumed of an H100{least}"
        return Roof(ASSUMED_TFLOPS, share, step_s, told)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tflops = measured_roofs(device, dtype)["roof_tflops"]
    product = f"{'a bf16' if on_gpu else 'an fp32'} matrix product reaches here now"
    return Roof(tflops, share, step_s, f"operations at {share:.0%} of the {tflops:.3g} TFLOP/s that {product}{least}")
