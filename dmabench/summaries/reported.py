"""The figures others reported (reported.yaml), and ours beside them where a shape matches."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dmabench.summaries.speedups import fastest_dense, shape_of

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
FILE = Path(__file__).with_name("reported.yaml")
# The three kernels the paper names. The reference is a specification, and sdpa-masked is the paper's own baseline.
KERNELS = ("dma/cuda", "dma/triton", "dma/flex")
PAPER_BASELINE = "dma/sdpa-masked"


class Figure(NamedTuple):
    """One reported series: where it was measured and which of our rows stand beside it."""

    name: str
    series: str
    run_pass: str
    shape: dict[str, Any]
    backends: tuple[str, ...]
    device: str


_FIG7 = {"heads": 32, "kv_heads": 8, "head_dim": 128, "window": 1024, "dtype": "bf16"}
_CHART = {"batch": 1, "heads": 2, "kv_heads": 1, "head_dim": 128, "window": 2048}
# Its head dimension is not stated; 128 is what the authors' other figures use.
_REPOSITORY = {"heads": 2, "kv_heads": 1, "head_dim": 128, "window": 1024}
FIGURES = (
    Figure("v6_fig7", "forward", "fwd", _FIG7, KERNELS, "A100-SXM4-80GB"),
    Figure("v6_fig7", "backward", "bwd", _FIG7, KERNELS, "A100-SXM4-80GB"),
    Figure("v1_chart", "cuda", "fwd", _CHART, ("dma/cuda",), "not stated"),
    Figure("v1_chart", "triton", "fwd", _CHART, ("dma/triton",), "not stated"),
    Figure("v1_chart", "flex", "fwd", _CHART, ("dma/flex",), "not stated"),
    Figure("repository_a100_w1024", "cuda", "fwd", _REPOSITORY, KERNELS, "A100"),
)


@cache
def reported() -> dict[str, Any]:
    """reported.yaml as it stands: nothing in it was measured by this project."""
    import yaml  # type: ignore[import-untyped,unused-ignore]

    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def figure(name: str, series: str) -> Figure:
    """The reported series; KeyError when there is none."""
    for one in FIGURES:
        if (one.name, one.series) == (name, series):
            return one
    raise KeyError(f"{name}/{series}")


def ratios(one: Figure) -> dict[int, float]:
    """Reported speed-up by sequence length, over SDPA with a T x T mask, kernel time alone."""
    table = reported()["kernels"][one.name]
    if one.name == "v6_fig7":
        return dict(table[one.series])
    columns = table.get("columns", ["sdpa_masked", "cuda"])
    column = columns.index(one.series)
    return {length: times[0] / times[column] for length, times in table.items() if isinstance(length, int)}


def matches(one: Figure, row: Row) -> bool:
    """Is the row a kernel's, of the figure's pass and shape? (Not its device: that is shown, or asked for by a
    claim.)"""
    if row.get("level") not in (None, "kernel"):
        return False
    found = {**row, "dtype": {"bfloat16": "bf16"}.get(str(row.get("dtype")), row.get("dtype"))}
    return row.get("pass") == one.run_pass and all(found.get(field) == value for field, value in one.shape.items())


def masked_key(row: Row) -> tuple[Any, ...]:
    """What a row and the paper's baseline must share: the shape, the window and delta."""
    return (*shape_of(row), row.get("window"), row.get("delta"))


def masked_rows(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """The PASSED rows of the paper's baseline by masked_key."""
    return {
        masked_key(row): row
        for row in rows
        if f"{row.get('function')}/{row.get('backend')}" == PAPER_BASELINE and row.get("status") == "PASSED"
    }


def reported_beside(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One dict for every PASSED row whose shape and length match a reported figure.

    Keys: figure, series, backend, pass, seqlen, window, delta, run, device, ratio_masked (kernel_ms against SDPA with a
    T x T mask, as the paper counts), ratio_dense (total_ms against the fastest dense row, as we count), reported,
    reported_device. A ratio is None where its baseline was not measured.
    """
    rows = list(rows)
    masked, dense = masked_rows(rows), fastest_dense(rows)
    beside = []
    for one in FIGURES:
        published = ratios(one)
        for row in rows:
            name = f"{row.get('function')}/{row.get('backend')}"
            if name not in one.backends or row.get("status") != "PASSED" or row.get("seqlen") not in published:
                continue
            if not matches(one, row):
                continue
            beside.append(
                {
                    "figure": one.name,
                    "series": one.series,
                    "backend": name,
                    **{field: row.get(field) for field in ("pass", "seqlen", "window", "delta", "run", "device")},
                    "ratio_masked": _ratio(masked.get(masked_key(row)), row, "kernel_ms"),
                    "ratio_dense": _ratio(dense.get(shape_of(row)), row, "total_ms"),
                    "reported": published[row["seqlen"]],
                    "reported_device": one.device,
                }
            )
    return beside


def reported_table(rows: Iterable[Row]) -> "Table | None":
    """reported_beside as a rich table, or None when no shape matches."""
    beside = reported_beside(rows)
    if not beside:
        return None
    from rich import box
    from rich.table import Table
    from rich.text import Text

    devices = ", ".join(dict.fromkeys(str(one["device"]) for one in beside))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        title=Text(f"Beside reported figures · ours on {devices}", style="bold"),
        title_justify="left",
        caption=Text(
            "masked: kernel time against SDPA with a T x T mask, as reported · dense: whole cost, fastest dense"
        ),
        caption_justify="left",
    )
    for header in ("figure", "backend", "pass", "T", "delta"):
        table.add_column(header, justify="right" if header == "T" else "left")
    for header in ("ours, masked", "reported", "on", "ours, dense"):
        table.add_column(header, justify="left" if header == "on" else "right")
    for one in beside:
        ours = [("" if one[field] is None else f"{one[field]:.1f}x") for field in ("ratio_masked", "ratio_dense")]
        words = [one["figure"], one["backend"], one["pass"], str(one["seqlen"]), str(one["delta"])]
        cells = [*words, ours[0], f"{one['reported']:.1f}x", one["reported_device"], ours[1]]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _ratio(base: Row | None, row: Row, field: str) -> float | None:
    return base[field] / row[field] if base and base.get(field) and row.get(field) else None
