"""The gates of one shape, made when first asked for, so that their answers serve all its backends."""

from functools import cached_property

from dmabench.decode_gate import DecodeGate
from dmabench.gate import Gate
from dmabench.inputs import Inputs
from dmabench.level_gate import LevelGate


class Gates:
    """One for each kind of subject (subjects.py)."""

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
