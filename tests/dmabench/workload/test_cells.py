import subprocess
import sys

import pytest

from dmabench.errors import Refusal
from dmabench.workload.cells import Cell, by_shape, make_cells, select_backends

KNOWN = [
    "dma/reference",
    "dma/flex",
    "dense/sdpa-flash",
    "dense/sdpa-cudnn",
    "dense/sdpa-math",
    "dense/flex",
    "swa/flex",
]
SETTINGS = {
    "seqlen": "1k,2k",
    "window": "256",
    "batch": "1",
    "heads": "4",
    "kv_heads": "2",
    "head_dim": "64",
    "dtype": "fp32",
    "pass": "fwd",
    "delta": "iid",
    "backend": "dma/flex,dense/sdpa-flash,swa/flex",
    "level": "kernel",
}


def cells(device="cpu", dense=True, seed=0, **settings):
    return make_cells({**SETTINGS, **settings}, KNOWN, device, seed, dense)


def names(found):
    return list(dict.fromkeys(cell.name for cell in found))


def test_importing_cells_loads_no_torch():
    code = "import sys, dmabench.workload.cells; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("*", KNOWN),
        ("dma*", ["dma/reference", "dma/flex"]),
        ("flex", ["dma/flex", "dense/flex", "swa/flex"]),
        ("dma", ["dma/reference", "dma/flex"]),
        ("swa/flex, dma/flex", ["dma/flex", "swa/flex"]),
        ("dense/sdpa-?ath", ["dense/sdpa-math"]),
        ("flex,dma/flex", ["dma/flex", "dense/flex", "swa/flex"]),
    ],
)
def test_globs_choose_backends_in_their_own_order(pattern, chosen):
    assert select_backends(pattern, KNOWN) == chosen


@pytest.mark.parametrize(("pattern", "near"), [("dma/flx", "dma/flex"), ("refrence", "reference"), ("flex,zzz", None)])
def test_a_pattern_that_matches_nothing_is_refused(pattern, near):
    with pytest.raises(Refusal, match="--backend") as refusal:
        select_backends(pattern, KNOWN)
    assert (f"did you mean {near}?" in str(refusal.value)) if near else ("did you mean" not in str(refusal.value))


def test_only_what_a_function_depends_on_multiplies_its_cells():
    found = cells(window="64,128", delta="iid,rising", seqlen="1k")
    counted = {name: sum(cell.name == name for cell in found) for name in names(found)}
    assert counted == {"dma/flex": 4, "dense/sdpa-flash": 1, "swa/flex": 2}
    assert all(cell.window is None and cell.delta is None for cell in found if cell.function == "dense")
    assert all(cell.delta is None for cell in found if cell.function == "swa")


def test_windows_are_those_that_a_function_has():
    """Native sparse attention has its paper's settings besides, latent attention has none."""
    known = ["dma/x", "swa/x", "mla/x", "nsa/x"]
    found = make_cells({**SETTINGS, "backend": "*", "window": "64,128", "seqlen": "1k"}, known, "cpu", 0, False)
    windows = {name: [cell.window for cell in found if cell.name == name] for name in known}
    assert windows == {"dma/x": [64, 128], "swa/x": [64, 128], "mla/x": [None], "nsa/x": [64, 128, None]}


def test_a_decoded_token_comes_after_those_seen():
    (decoded, *_), (whole, *_) = cells(**{"pass": "decode"}), cells()
    assert decoded.shape.key_len == 1025 and whole.shape.key_len == 1024


def test_dense_rows_are_added_where_a_speedup_needs_them():
    assert names(cells("cuda", backend="dma/flex")) == [
        "dma/flex", "dense/sdpa-flash", "dense/sdpa-cudnn", "dense/sdpa-math"
    ]  # fmt: skip
    assert names(cells("cpu", backend="dma/flex")) == ["dma/flex", "dense/sdpa-flash", "dense/sdpa-math"]
    assert names(cells("cpu", backend="dma/flex,dense/sdpa-math")) == ["dma/flex", "dense/sdpa-math"]
    assert names(cells(backend="dma/flex", dense=False)) == ["dma/flex"]


def test_ids_are_of_the_settings_and_survive_a_round_trip():
    found = cells()
    assert len({cell.id for cell in found}) == len(found) == 6
    assert [Cell.from_settings(cell.settings()) for cell in found] == found
    assert [cell.id for cell in cells()] == [cell.id for cell in found]
    for change in ({"seed": 1}, {"device": "cuda"}, {"dtype": "bf16"}, {"heads": "8"}, {"pass": "bwd"}):
        assert not {cell.id for cell in cells(**change)} & {cell.id for cell in found}, change


def test_cells_of_one_shape_are_timed_together():
    groups = by_shape(cells(window="64,128") * 2)
    assert [len(group) for group in groups] == [5, 5]
    assert all(len({cell.shape for cell in group}) == 1 for group in groups)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"heads": "6", "kv_heads": "4"}, "--kv-heads may be 1, 2, 3, 6"),
        ({"heads": "1", "kv_heads": "2"}, "--kv-heads may be 1"),
        ({"head_dim": "8"}, "outside 16..256"),
        ({"head_dim": "512"}, "outside 16..256"),
        ({"pass": "forward"}, "--pass 'forward' is unknown"),
        ({"pass": "fwd,"}, "--pass '' is unknown"),
        ({"dtype": "fp8"}, "--dtype 'fp8' is unknown"),
        ({"delta": "file"}, "--delta 'file' is unknown"),
        ({"level": "model"}, "--level 'model' is unknown"),
        ({"window": "0"}, "--window 0"),
        ({"batch": "0"}, "--batch 0"),
        ({"kv_heads": "0"}, "--kv-heads 0"),
    ],
)
def test_impossible_settings_are_refused_by_flag(settings, told):
    with pytest.raises(Refusal) as refusal:
        cells(**settings)
    assert told in str(refusal.value)
