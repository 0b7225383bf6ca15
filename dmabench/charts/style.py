"""Colours and markers of the charts, on white paper and on dark."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

# Okabe and Ito, "Color Universal Design", 2008, without black (dense) and yellow (too pale for lines on white).
# A backend has the same colour and marker in every chart; one that is not named here takes what is left.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NAMED = ("dma/flex", "dma/triton", "dma/cuda", "swa/flex", "dma/sdpa-masked", "dma/reference")
GREYS = ("#000000", "#4d4d4d", "#757575", "#999999")
NAMED_DENSE = ("dense/sdpa-cudnn", "dense/sdpa-flash", "dense/flex", "dense/sdpa-math")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vP"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "dmabench",
}

# The same hues, lighter, for a reader whose page is dark; paper, ink and lines are those of templates/report.html.j2.
DARK = {
    "#ffffff": "#161616",
    "#000000": "#f0f0f0",
    "#444444": "#c8c8c8",
    "#4d4d4d": "#cfcfcf",
    "#666666": "#a8a8a8",
    "#757575": "#b0b0b0",
    "#777777": "#a8a8a8",
    "#8c8c8c": "#9a9a9a",
    "#999999": "#929292",
    "#bdbdbd": "#6a6a6a",
    "#e4e4e4": "#333333",
    "#f2f2f2": "#222222",
    "#0072b2": "#4da6e0",
    "#d55e00": "#ff8a3d",
    "#009e73": "#2fc79b",
    "#cc79a7": "#e39cc4",
    "#e69f00": "#f0b429",
    "#56b4e9": "#8fd0f5",
}


def with_dark_colours(svg: str) -> str:
    """The same drawing with a style sheet for readers who prefer dark pages. matplotlib writes every colour into a
    `style` attribute, and leaves it out where it is SVG's own black."""
    rules = [f"svg {{ fill: {DARK['#000000']} }}"]
    for light, dark in DARK.items():
        rules += [f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}' for what in ("fill", "stroke")]
    sheet = "<style>@media (prefers-color-scheme: dark) { " + " ".join(rules) + " }</style>"
    head, closing, rest = svg.partition("</defs>")
    return f"{head}{sheet}{closing}{rest}"


def places_of(frame: "pandas.DataFrame") -> dict[str, int]:
    """Which colour and marker each backend takes, from all rows of the run, so that its charts agree."""
    places: dict[str, int] = {}
    # A backend without any time draws no line, so its colour is free.
    ids = sorted(frame.loc[frame["total_ms"].gt(0), "id"].unique())
    for dense, named in ((True, NAMED_DENSE), (False, NAMED)):
        mine = [one for one in ids if one.startswith("dense/") == dense]
        others = [one for one in mine if one not in named]
        free = [place for place, one in enumerate(named) if one not in mine]
        free += range(len(named), len(named) + len(others))
        places |= {one: named.index(one) for one in mine if one in named} | dict(zip(others, free, strict=False))
    return places


def look_of(name: str, number: int, places: dict[str, int]) -> dict[str, Any]:
    """Line and marker of a backend's number-th window: colour says which backend, dashes which window."""
    dense = name.startswith("dense/")
    place = places[name]
    colours = GREYS if dense else COLOURS
    colour = colours[place % len(colours)]
    return {
        "color": colour,
        "linestyle": DASHES[(place if dense else number) % len(DASHES)],
        "linewidth": 1.1 if dense else 1.5,
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4,
        "markerfacecolor": "white" if dense or number else colour,
        "zorder": 3 if dense else 4,
    }
