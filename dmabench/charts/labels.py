"""Names at the ends of a chart's lines, so that nobody has to match colours with a legend."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 28
"""Characters that fit beside the axes; longer names (an outside backend's) are cut."""


class Label(NamedTuple):
    """What to write at the end of a line: where it ends, its colour, the backend, what tells its lines apart ("w 1k"),
    and why it ends there ("" when it does not end early)."""

    x: float
    y: float
    colour: str
    name: str
    note: str
    end: str

    @property
    def text(self) -> str:
        note = f", {self.note}" if self.note else ""
        room = LONGEST - len(note)
        name = self.name if len(self.name) <= room else self.name[: room - 1] + "…"
        return name + note + (f"\n{self.end}" if self.end else "")

    @property
    def height(self) -> float:
        """In points."""
        return 9.0 * (self.text.count("\n") + 1)


def label_ends(axes: "Axes", labels: list[Label]) -> None:
    """A name at every line's end: right of the axes for lines that reach the last length, in the order of the ends and
    never on top of each other; stacked just above the end for lines that stop before it."""
    # Asking for the limits settles them, which the positions below depend on; drawing would too, but takes long.
    axes.get_xlim()
    axes.get_ylim()
    box = axes.get_window_extent()
    scale = 72 / axes.figure.dpi  # points a pixel
    height = box.height * scale

    def position(label: Label) -> tuple[float, float]:
        x, y = axes.transData.transform((label.x, label.y))
        return (x - box.x0) * scale, (y - box.y0) * scale

    last = max(label.x for label in labels)
    stacks: list[tuple[Label, float]] = []  # the topmost end of a stack, and the points its labels take above it
    outside = []
    # From the top: a label above the topmost end of its neighbours covers none of them.
    for label in sorted(_joined(labels), key=position, reverse=True):
        x, y = position(label)
        if label.x == last:
            outside.append(label)
            continue
        near = [
            number
            for number, (top, _) in enumerate(stacks)
            if abs(x - position(top)[0]) < 90 and position(top)[1] - y < 24
        ]
        top, used = stacks[near[0]] if near else (label, 7.0)
        if position(top)[1] + used + label.height > height:
            outside.append(label)
            continue
        if near:
            stacks[near[0]] = (top, used + label.height)
        else:
            stacks.append((top, used + label.height))
        shift, side = (0, "center") if x > 40 else (-4, "left")
        look: dict[str, Any] = {
            "fontsize": 7,
            "va": "bottom",
            "ha": side,
            "color": label.colour,
            "path_effects": halo(),
            "zorder": 7,
            "linespacing": 1.1,
        }
        axes.annotate(label.text, (top.x, top.y), (shift, used), textcoords="offset points", **look)
    outside.sort(key=lambda label: position(label)[1])
    places = spread([position(label)[1] for label in outside], [label.height + 1.5 for label in outside], height)
    for label, place in zip(outside, places, strict=True):
        leader = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            label.text,
            (label.x, label.y),
            (1.045, place / height),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=label.colour,
            linespacing=1.1,
            annotation_clip=False,
            arrowprops={**leader, "shrinkA": 1, "shrinkB": 3},
        )


def _joined(labels: list[Label]) -> list[Label]:
    """Lines of one backend that end in the same point (within 5%, less than a marker) share a label."""
    joined: list[Label] = []
    for label in labels:
        for number, other in enumerate(joined):
            same = (label.name, label.x, label.end) == (other.name, other.x, other.end)
            if same and abs(math.log(label.y / other.y)) < 0.05:
                joined[number] = other._replace(note=f"{other.note}, {label.note.removeprefix('w ')}")
                break
        else:
            joined.append(label)
    return joined


def halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="white")]


def spread(wanted: list[float], room: list[float], height: float) -> list[float]:
    """Positions (points, ascending like `wanted`) at least half of both rooms apart, kept within [0, height] where
    they fit, by pushing apart from below and then back from above."""
    places = list(wanted)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + (room[i] + room[i - 1]) / 2)
    if places:
        places[-1] = min(places[-1], height)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - (room[i] + room[i + 1]) / 2)
    return places
