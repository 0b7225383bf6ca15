"""Every attention, at both levels and in every pass, through the worker: right, timed, and described."""

import pytest

from dmabench.kernels import registry
from dmabench.store.rows import FIELDS
from dmabench.timing import worker
from dmabench.workload.cells import Cell, Shape

WHOLE = {
    "dma": "reference",
    "dense": "sdpa-math",
    "mla": "expanded",
    "nsa": "reference",
}
DECODES = {"dma": "live-keys", "dense": "sdpa-flash", "swa": "sdpa", "mla": "absorbed", "nsa": "reference"}
WINDOW = 20


def _cell(function: str, backend: str, pass_: str, level: str, seqlen: int, dtype: str, window: int | None) -> Cell:
    shape = Shape(pass_, level, seqlen, 2, 4, 2, 16, dtype, 0, "cpu")
    return Cell(function, backend, shape, window, "iid" if function == "dma" else None)


def _measure(cells: list[Cell]) -> list[dict]:
    said: list[dict] = []
    worker.measure(cells, {"cap_s": 0.01}, said.append)
    return [message["row"] for message in said if message["event"] == "row"]


def _windows(function: str) -> tuple[int | None, ...]:
    return {"dense": (None,), "mla": (None,), "nsa": (WINDOW, None)}.get(function, (WINDOW,))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("level", ["kernel", "layer"])
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd", "decode"])
def test_every_attention_passes(pass_, level, dtype):
    backends = DECODES if pass_ == "decode" else WHOLE
    cells = [
        _cell(function, name, pass_, level, 150, dtype, window)
        for function, name in backends.items()
        for window in _windows(function)
    ]
    rows = _measure(cells)
    assert len(rows) == len(cells)
    for row in rows:
        assert row["status"] == "PASSED", (row["function"], row["window"], row["reason"])
        assert set(FIELDS) <= set(row) and row["total_ms"] > 0 and row["error"] <= row["error_budget"]
        assert (row["kernel_ms"] is None) == (level == "layer" or pass_ == "fwd+bwd")
        assert (row["cache_mib"] is not None) == (pass_ == "decode")
        assert (row["settings"] is not None) == (row["function"] == "nsa") and row["padded_heads"] is None
    if level == "kernel" and pass_ == "decode":
        (dma,) = [row for row in rows if row["function"] == "dma"]
        assert dma["importance_ms"] > 0 and dma["kernel_ms"] > 0


def test_the_settings_of_native_sparse_attention_are_told():
    rows = _measure([_cell("nsa", "reference", "fwd", "kernel", 80, "fp32", window) for window in (48, None)])
    assert [row["settings"] for row in rows] == ["l 8 d 8 l' 8 n 4 w 16", "l 32 d 16 l' 64 n 16 w 512"]


@pytest.mark.parametrize("seqlen", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1])
def test_decoding_at_the_edges_of_the_window(seqlen):
    functions = [name for name in DECODES if name != "nsa"]
    cells = [_cell(name, DECODES[name], "decode", "kernel", seqlen, "fp32", _windows(name)[0]) for name in functions]
    assert {row["status"] for row in _measure(cells)} == {"PASSED"}


def test_a_summary_is_made_in_the_step_that_completes_its_block():
    """With w = 48 blocks have 8 tokens: after 79 tokens the new one completes the tenth."""
    rows = _measure([_cell("nsa", "reference", "decode", "kernel", seqlen, "fp32", 48) for seqlen in (79,)])
    assert [row["status"] for row in rows] == ["PASSED"]


def test_what_the_caches_keep_is_counted():
    """fp32, B=2, H=4, G=2, D=16: a token is 512 bytes of k and v; mla keeps 16 + 8 numbers a row of the batch."""
    seqlen = 300
    cells = [_cell(n, b, "decode", "kernel", seqlen, "fp32", _windows(n)[0]) for n, b in DECODES.items()]
    kept = {row["function"]: row["cache_mib"] * 2**20 for row in _measure(cells)}
    token = 2 * 2 * 2 * 16 * 4
    assert kept["dense"] == token * (seqlen + 1) and kept["swa"] == token * WINDOW
    assert kept["mla"] == 2 * (seqlen + 1) * (16 + 8) * 4
    assert kept["dma"] == token * WINDOW + 2 * 2 * WINDOW * 8 + 2 * 2 * 8  # delta and position; count and seen
    assert kept["nsa"] == token * (seqlen + 1 + 150)  # with w = 20 there is a summary of every two tokens


def test_the_dma_cache_does_not_grow_with_the_tokens_seen():
    cells = [_cell("dma", "live-keys", "decode", "kernel", seqlen, "fp32", WINDOW) for seqlen in (50, 500)]
    rows = [_measure([cell])[0] for cell in cells]
    assert rows[0]["cache_mib"] == rows[1]["cache_mib"]


@pytest.mark.parametrize(
    ("name", "pass_", "told"),
    [
        ("dma/reference", "decode", "dma/live-keys decodes"),
        ("nsa/fla", "decode", "nsa/reference decodes"),
        ("mla/expanded", "decode", "mla/absorbed decodes"),
        ("swa/flex", "decode", "swa/sdpa decodes"),
        ("dense/flex", "decode", "dense/sdpa-flash decodes"),
        ("dma/live-keys", "fwd", "takes one query, to decode"),
        ("swa/sdpa", "fwd", "takes one query, to decode"),
        ("mla/absorbed", "bwd", "has no backward"),
        ("nsa/fla", "fwd", "CUDA device"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(name, pass_, told):
    function, backend = name.split("/")
    (row,) = _measure([_cell(function, backend, pass_, "kernel", 64, "fp32", _windows(function)[0])])
    assert row["status"] == "UNSUPPORTED" and told in row["reason"], row["reason"]


def test_native_sparse_attention_refuses_what_it_cannot_take():
    short, narrow = (
        _measure([_cell("nsa", "reference", "fwd", "kernel", seqlen, "fp32", window)])[0]
        for seqlen, window in ((40, None), (100, 8))
    )
    assert "40 tokens are less than one block of 64" in short["reason"]
    assert "window 8 is too small" in narrow["reason"]
    assert {short["status"], narrow["status"]} == {"UNSUPPORTED"}


def test_backends_that_share_a_cache_find_it_as_it_was():
    """The gate counts with other keys in the same memory; the recheck after timing sees whether the past is back."""
    kinds = [("dense", "sdpa-flash", None), ("nsa", "reference", WINDOW), ("dense", "sdpa-math", None)]
    rows = _measure([_cell(function, name, "decode", "kernel", 150, "fp32", w) for function, name, w in kinds])
    assert [row["status"] for row in rows] == ["PASSED"] * 3, [row["reason"] for row in rows]


def test_every_backend_that_decodes_is_known_to_a_cache():
    for backend in registry.backends():
        if "decode" in backend.passes:
            cell = _cell(backend.function, backend.name, "decode", "kernel", 80, "fp32", _windows(backend.function)[0])
            (row,) = _measure([cell])
            assert row["status"] in ("PASSED", "UNSUPPORTED"), (backend.id, row["reason"])
            assert "does not decode" not in (row["reason"] or "")
