"""How long a cell may take: its operations over a stated share of what the device reaches in a matrix product."""

from dataclasses import dataclass

SHARE = {"cpu": 0.25, "cuda": 0.1}
"""Of the roof, in training small models."""
ASSUMED_TFLOPS = 790.0
"""An H100's matrix product in bf16 as `dmabench kernels` measured it (results/reference/h100), for machines without."""


@dataclass(frozen=True)
class Roof:
    """What a device reaches, and how that is known."""

    tflops: float
    share: float
    about: str

    def seconds(self, flops: float) -> float:
        """An estimate."""
        return flops / (self.share * self.tflops * 1e12)


def roof_of(device: str) -> Roof:
    """Measured here in a second; assumed for a GPU that is not there."""
    import torch

    from dmabench.clock import measured_roofs

    on_gpu = device.startswith("cuda")
    share = SHARE["cuda" if on_gpu else "cpu"]
    if on_gpu and not torch.cuda.is_available():
        return Roof(
            ASSUMED_TFLOPS, share, f"operations at {share:.0%} of the {ASSUMED_TFLOPS:.0f} TFLOP/s assumed of an H100"
        )
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tflops = measured_roofs(device, dtype)["roof_tflops"]
    name = f"{'bf16' if on_gpu else 'fp32'} matrix product reaches here now"
    return Roof(tflops, share, f"operations at {share:.0%} of the {tflops:.3g} TFLOP/s that a {name}")
