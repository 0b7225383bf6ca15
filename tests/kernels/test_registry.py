"""Which backends there are, what they answer before a call, and those from outside."""

import pytest
import torch

from dmabench.kernels import Backend, Problem, Unsupported, dynamic_mask_attention, registry

OURS = {
    "dma/reference",
    "dma/flex",
    "dma/triton",
    "dma/cuda",
    "dma/sdpa-masked",
    "dma/live-keys",
    "dense/sdpa-flash",
    "dense/sdpa-cudnn",
    "dense/sdpa-math",
    "dense/flex",
    "dense/fa3",
    "dense/fa4",
    "swa/flex",
    "swa/varlen-flash",
    "swa/sdpa",
    "mla/expanded",
    "mla/absorbed",
    "nsa/reference",
    "nsa/fla",
}


class _Entry:
    """Stands in for importlib.metadata.EntryPoint."""

    def __init__(self, name: str, loaded: object):
        self.name, self.loaded = name, loaded

    def load(self) -> object:
        return self.loaded


@pytest.fixture
def outside(monkeypatch, fresh_registry):
    """Makes backends available as an installed package would: outside(name=loaded, ...)."""

    def install(**loaded: object) -> None:
        entries = [_Entry(name, value) for name, value in loaded.items()]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: entries if group == "dmabench.backends" else [])
        registry.backends.cache_clear()

    return install


def _double(q, k, v, *, delta, plan, scale):
    """A backend that one can tell from all others."""
    return registry.get("dma/reference").attend(q, k, v, delta=delta, plan=plan, scale=scale)[0] * 2, None


def test_all_of_ours_are_there_once(outside):
    outside()
    ids = [backend.id for backend in registry.backends()]
    assert len(ids) == len(set(ids)) and set(ids) == OURS
    assert {backend.function for backend in registry.backends()} == set(registry.FUNCTIONS)
    assert all(registry.get(name).id == name for name in OURS)


def test_an_unknown_id_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no backend 'dma/tritn'; known are dma/reference, dma/flex, dma/triton"):
        registry.get("dma/tritn")


def test_a_backend_from_outside_is_reached_by_its_name(outside, inputs):
    outside(mine=Backend("dma", "mine", _double))
    out = dynamic_mask_attention(*inputs(), 4, backend="mine")
    assert torch.equal(out, 2 * dynamic_mask_attention(*inputs(), 4, backend="reference"))
    assert [backend.id for backend in registry.backends()][-1] == "dma/mine"


def test_an_entry_point_may_hold_several(outside):
    outside(
        b=[Backend("dense", "b1", _double), Backend("swa", "b2", _double)],
        a=(Backend("dma", "a1", _double),),
    )
    assert [backend.id for backend in registry.backends()][-3:] == ["dma/a1", "dense/b1", "swa/b2"]  # by entry's name


@pytest.mark.parametrize("taken", ["flex", "mine"])
def test_an_id_that_is_taken_is_refused(outside, taken):
    outside(mine=Backend("dma", "mine", _double), other=Backend("dma", taken, _double))
    with pytest.raises(ValueError, match=f"two backends register as dma/{taken}: rename or uninstall one"):
        registry.backends()


def test_the_same_name_under_another_function_is_fine(outside):
    outside(mine=[Backend("dma", "mine", _double), Backend("dense", "mine", _double)])
    assert {"dma/mine", "dense/mine"} <= {backend.id for backend in registry.backends()}


def test_an_unknown_function_is_refused():
    with pytest.raises(ValueError, match="mine: unknown function 'attention', known are dma, dense, swa, mla, nsa"):
        Backend("attention", "mine", _double)


def test_a_backend_without_backward_says_so(outside, inputs):
    outside(mine=Backend("dma", "mine", _double, passes=("fwd",)))
    with pytest.raises(Unsupported, match="dma/mine: dma/mine has no backward"):
        dynamic_mask_attention(*inputs(grad=True), 4, backend="mine")
    with torch.no_grad():
        dynamic_mask_attention(*inputs(grad=True), 4, backend="mine")


def test_reasons_in_order(outside):
    """No backward, then missing on the device, then what it refuses of the problem."""
    outside(
        mine=Backend(
            "dma",
            "mine",
            _double,
            passes=("fwd",),
            missing=lambda device: "no card" if device == "cpu" else None,
            refuses=lambda problem: "too small" if problem.window < 8 else None,
        )
    )
    mine = registry.get("dma/mine")

    def refusal(device: str, window: int, backward: bool) -> str | None:
        return mine.refusal(Problem(device, torch.float32, 1, 2, 1, 32, 32, 16, window, backward))

    assert refusal("cpu", 4, True) == "dma/mine has no backward"
    assert refusal("cpu", 4, False) == mine.unavailable("cpu") == "no card"
    assert refusal("cuda", 4, False) == "too small"
    assert refusal("cuda", 8, False) is None


def test_a_backend_without_lse_says_so_when_asked(outside, inputs):
    outside(mine=Backend("dma", "mine", _double))
    with pytest.raises(Unsupported, match="dma/mine does not return lse on cpu; dma/reference does"):
        dynamic_mask_attention(*inputs(), 4, backend="mine", return_lse=True)


def test_passes_on_a_device_are_those_it_does_not_refuse():
    assert registry.get("dma/reference").passes_on("cpu") == ("fwd", "bwd", "fwd+bwd")
    assert registry.get("dma/flex").passes_on("cpu") == ("fwd",)
    assert registry.get("dma/flex").passes_on("cuda") == ("fwd", "bwd", "fwd+bwd")
    assert registry.get("dma/sdpa-masked").passes_on("cuda") == ("fwd",)
    assert registry.get("dma/triton").passes_on("cpu") == ()


def test_a_decode_pass_is_asked_for_one_query():
    """A backend that decodes alone, and those that decode beside their other passes; none of them has to differentiate
    it."""
    assert registry.get("swa/sdpa").passes_on("cpu") == ("decode",)
    assert registry.get("mla/absorbed").passes_on("cpu") == ("fwd", "decode")
    assert registry.get("dense/sdpa-math").passes_on("cpu") == ("fwd", "bwd", "fwd+bwd", "decode")
    assert registry.get("dense/sdpa-cudnn").passes_on("cuda") == ("fwd", "bwd", "fwd+bwd", "decode")


def test_a_backend_is_found_in_a_traced_call(fresh_registry):
    """Reading entry points is nothing that torch.compile can trace; a call without graph breaks must not need it."""

    def count(x):
        return x * len(registry.get("dma/reference").passes)

    torch._dynamo.reset()
    one = torch.ones(1)
    assert torch.compile(count, backend="eager", fullgraph=True)(one) == count(one)
