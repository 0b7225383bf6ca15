import pytest

from dmabench.kernels import backends
from dmabench.workload.cells import DELTAS, make_cells
from dmabench.workload.presets import CPU, CUDA, PRESETS

KNOWN = [backend.id for backend in backends()]


def expand(blocks, device):
    defaults = {**(CUDA if device == "cuda" else CPU), "level": "kernel"}
    return [cell for block in blocks for cell in make_cells({**defaults, **block}, KNOWN, device, 0, True)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", [None, *PRESETS])
def test_every_preset_expands_into_cells_that_can_be_compared(name, device):
    blocks = PRESETS[name]["blocks"] if name else [{}]
    cells = expand(blocks, device)
    shapes = {cell.shape for cell in cells}
    assert cells and {cell.name for cell in cells} <= set(KNOWN)
    for function in ("dense", "dma"):
        assert {cell.shape for cell in cells if cell.function == function} == shapes, function
    assert all(cell.shape.heads % cell.shape.kv_heads == 0 for cell in cells)


def test_every_preset_says_what_it_is_and_sets_known_fields_alone():
    for name, preset in PRESETS.items():
        assert preset["about"] and preset["blocks"], name
        assert all(set(block) <= set(CPU) for block in preset["blocks"]), name
    assert set(CPU) == set(CUDA)


def test_the_paper_preset_has_the_shapes_of_every_reported_figure():
    from dmabench.summaries.reported import FIGURES, matches, ratios

    rows = [cell.settings() for cell in expand(PRESETS["paper"]["blocks"], "cuda")]
    for figure in FIGURES:
        lengths = {row["seqlen"] for row in rows if f"{row['function']}/{row['backend']}" in figure.backends
                   and matches(figure, row)}  # fmt: skip
        assert set(ratios(figure)) <= lengths, (figure.name, figure.series)


def test_deltas_and_windows_are_whole_axes():
    deltas = expand(PRESETS["deltas"]["blocks"], "cuda")
    for length in (8192, 32768, 131072):
        assert {cell.delta for cell in deltas if cell.shape.seqlen == length and cell.function == "dma"} == set(DELTAS)
    windows = expand(PRESETS["windows"]["blocks"], "cuda")
    for length in (8192, 32768):
        measured = {cell.window for cell in windows if cell.shape.seqlen == length and cell.function == "dma"}
        assert min(measured) == 64 and max(measured) == length


def test_quick_is_the_smallest_preset():
    work = {name: sum(cell.shape.seqlen**2 * cell.shape.heads for cell in expand(preset["blocks"], "cpu"))
            for name, preset in PRESETS.items()}  # fmt: skip
    assert min(work, key=work.get) == "quick"
