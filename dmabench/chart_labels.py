"""Names at the ends of a chart's lines, so that nobody has to match colours with a legend."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def label_ends(axes: "Axes", labels: list[tuple[float, float, str, str]]) -> None:
    """A name at every line's end: right of the axes for lines that reach the last length, in the order of the ends and
    never on top of each other; just above the end for lines that stop before it."""
    axes.figure.canvas.draw()  # settles the limits that the positions below depend on
    box = axes.get_window_extent()
    scale = 72 / axes.figure.dpi  # points a pixel

    def position(label: tuple[float, float, str, str]) -> tuple[float, float]:
        x, y = axes.transData.transform(label[:2])
        return (x - box.x0) * scale, (y - box.y0) * scale

    last = max(label[0] for label in labels)
    inside: list[tuple[float, float]] = []
    outside = []
    for label in sorted(labels, key=position):
        x, y = position(label)
        crowded = any(abs(x - other_x) < 90 and abs(y - other_y) < 24 for other_x, other_y in inside)
        if label[0] == last or crowded or y > box.height * scale - 24:
            outside.append(label)
            continue
        inside.append((x, y))
        shift, side = (0, "center") if x > 40 else (-4, "left")
        look: dict[str, Any] = {
            "fontsize": 7,
            "va": "bottom",
            "ha": side,
            "color": label[3],
            "path_effects": halo(),
            "zorder": 7,
        }
        axes.annotate(label[2], label[:2], (shift, 7), textcoords="offset points", **look)
    outside.sort(key=lambda label: position(label)[1])
    room = [9.0 * (label[2].count("\n") + 1) + 1.5 for label in outside]
    places = spread([position(label)[1] for label in outside], room, box.height * scale)
    for (x, y, text, colour), place in zip(outside, places, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            text,
            (x, y),
            (1.045, place / (box.height * scale)),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=colour,
            linespacing=1.1,
            annotation_clip=False,
            arrowprops={**leader, "shrinkA": 1, "shrinkB": 3},
        )


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
