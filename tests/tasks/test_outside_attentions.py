"""Attentions from other packages: found by name, loaded when asked for; a broken one costs itself alone."""

from importlib.metadata import EntryPoint

import pytest
import torch

from dmabench.tasks import outside_attentions
from dmabench.tasks.attention.swa import WindowAttention
from dmabench.tasks.config import parse_pattern
from dmabench.tasks.kinds import KINDS, known_kinds, windowed_kinds
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.parameters import table
from dmabench.tasks.presets import model_config
from dmabench.tasks.task_model import density, sparsity_active


class Mine(WindowAttention):
    windowed = True


class Whole(WindowAttention):
    """Says nothing of a window."""


class Entry(EntryPoint):
    """One that loads to what LOADED has under its name, or raises it."""

    def load(self):
        loaded = LOADED[self.name]
        if isinstance(loaded, Exception):
            raise loaded
        return loaded


LOADED = {"mine": Mine, "whole": Whole, "broken": ImportError("no such library"), "number": 17, "dma": Mine}


@pytest.fixture
def outside(monkeypatch):
    """Registers those of LOADED as an installed package would."""
    caches = (outside_attentions.names, outside_attentions.load, outside_attentions.is_sound)

    def register(*names):
        entries = [Entry(name, "somewhere:Thing", outside_attentions.ENTRY_POINTS) for name in names]
        monkeypatch.setattr(outside_attentions, "entry_points", lambda group: entries)
        for one in caches:
            one.cache_clear()

    yield register
    monkeypatch.undo()
    for one in caches:
        one.cache_clear()


def test_ours_come_first_and_keep_their_names(outside):
    outside("whole", "mine", "dma")
    assert known_kinds() == (*KINDS, "mine", "whole") and windowed_kinds() == ("swa", "nsa", "dma", "mine")
    assert type(DmabenchForCausalLM(model_config("tiny", "dma")).model.layers[0].self_attn) is not Mine


def test_a_model_may_have_one_in_any_layer(outside):
    outside("mine")
    config = model_config("tiny", "mine,mha", window=8)
    model = DmabenchForCausalLM(config).eval()
    assert isinstance(model.model.layers[0].self_attn, Mine)
    assert config.has_window and config.window_of("mine") == 8 and sparsity_active(config, 9)
    assert density(config, 32) == pytest.approx(density(model_config("tiny", "swa,mha", window=8), 32))
    ids = torch.randint(0, 256, (1, 20))
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        seen = model(input_ids=ids[:, :19], use_cache=True).past_key_values
        last = model(input_ids=ids[:, 19:], past_key_values=seen).logits
    torch.testing.assert_close(last[:, 0], whole[:, 19], rtol=1e-4, atol=1e-4)


def test_without_a_word_of_a_window_it_has_none(outside):
    outside("whole")
    config = model_config("tiny", "whole")
    assert not config.has_window and config.window_of("whole") is None and density(config, 32) == 1


def test_parameters_are_listed_beside_ours_without_a_broken_one(outside):
    outside("mine", "broken")
    with pytest.warns(
        UserWarning, match=r"'broken' in dmabench.attentions, .* cannot be loaded \(ImportError: no such"
    ):
        listed = table()
    assert [row["attention"] for row in listed[:6]] == [*KINDS, "mine"]


@pytest.mark.parametrize(
    ("names", "kind", "why"),
    [
        (("broken",), "broken", r"cannot be loaded \(ImportError: no such library\)"),
        (("number",), "number", "must load to the class of a layer; 17 has no new_state, rotary_dims|has no forward"),
        (("mine", "mine"), "mine", "registered by another package and another package: it must be by one"),
    ],
)
@pytest.mark.filterwarnings("ignore:the")
def test_a_broken_one_is_refused_where_it_is_asked_for(outside, names, kind, why):
    outside(*names)
    assert windowed_kinds() == ("swa", "nsa", "dma")
    assert DmabenchForCausalLM(model_config("tiny", "swa")) is not None
    with pytest.raises(ValueError, match=why):
        DmabenchForCausalLM(model_config("tiny", kind))


def test_an_unknown_one_is_answered_with_the_known(outside):
    outside("mine")
    with pytest.raises(ValueError, match="known are mha, swa, mla, nsa, dma, mine; did you mean 'mine'"):
        parse_pattern("mina")
