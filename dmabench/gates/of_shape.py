"""The gates of one shape, made when first asked for, so that their answers serve all its backends."""

from functools import cached_property

from dmabench.gates.decode import DecodeGate
from dmabench.gates.kernel import Gate
from dmabench.gates.levels import LevelGate
from dmabench.workload.inputs import Inputs


class Gates:
    """One for each kind of subject (timing/subjects.py)."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs

    @cached_property
    def kernel(self) -> Gate:
        return Gate(self.inputs, self.inputs.shape.pass_ != "fwd")

    @cached_property
    def level(self) -> LevelGate:
        return LevelGate(self.kernel)

    @cached_property
    def decode(self) -> DecodeGate:
        return DecodeGate(self.inputs)
