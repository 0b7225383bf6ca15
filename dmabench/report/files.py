"""The charts and tables of a report as files beside the page, and the links to them.

report.html
report-files/
    index.md        the summary, and every file with the command that made its rows
    files.json      the same for programs
    <run>/          of each chart PNG, SVG, CSV (the rows behind it) and Markdown; of each table CSV and Markdown
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dmabench.charts.data import rows_behind
from dmabench.charts.style import STYLE
from dmabench.errors import Refusal
from dmabench.report.export import csv_text
from dmabench.report.parts import data_uri
from dmabench.tables.kernels import markdown_lines

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

INDEX, LIST = "index.md", "files.json"
FORMATS = {"png": "PNG", "svg": "SVG", "csv": "CSV", "md": "Markdown"}
DPI = 150


class Files:
    """Writes files into the folder beside a page. Those of an earlier report that are not written again are deleted;
    nothing else in the folder is touched."""

    def __init__(self, page: Path) -> None:
        self.folder = page.with_name(f"{page.stem}-files")
        self.written: list[dict[str, Any]] = []
        self._folders: dict[str, str] = {}
        self._before = self._listed()

    def chart(self, run: str, chart: dict[str, Any], commands: Sequence[str]) -> dict[str, Any]:
        """A chart as the template takes it: `uri`, `alt`, `links` and `commands` in place of its figure.

        Args:
            run: in whose folder its files stand.
            chart: `figure`, `stem` and `alt` (parts.chart).
            commands: that measure what it shows.

        Raises:
            Refusal: the files cannot be written.
        """
        figure, stem = chart["figure"], self._free(run, chart["stem"])
        svg = _drawn(figure, "svg").decode()
        title = "; ".join(text.get_text() for text in figure.texts[:2])
        data = rows_behind(figure)
        contents: dict[str, str | bytes] = {"png": _drawn(figure, "png"), "svg": svg}
        if data is not None:
            contents["csv"] = csv_text(data)
        contents["md"] = _about_chart(title, stem, chart["alt"], commands, data)
        links = self._write(run, stem, title, commands, contents)
        return {"uri": data_uri(svg), "alt": chart["alt"], "links": links, "commands": list(commands)}

    def table(
        self, run: str, stem: str, title: str, table: dict[str, Any], commands: Sequence[str], notes: Iterable[str] = ()
    ) -> list[tuple[str, str]]:
        """Links to a table (headers, cells, words) that is stored here.

        Raises:
            Refusal: the files cannot be written.
        """
        told = [f"# {_plain(title)}", *map(_code, commands)]
        told.append(_lines(table["headers"], table["cells"], table["words"]))
        told.append("\n".join(f"- {_plain(note)}" for note in notes))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([table["headers"], *table["cells"]])
        contents: dict[str, str | bytes] = {"csv": text.getvalue(), "md": _joined(told)}
        return self._write(run, self._free(run, stem), title, commands, contents)

    def close(self, sentences: Sequence[str]) -> list[tuple[str, str]]:
        """Writes the index, deletes what an earlier report left, and returns the links to the index.

        Raises:
            Refusal: the index cannot be written.
        """
        parts = ["# Dynamic mask attention, measured", "\n".join(sentences)]
        for run in dict.fromkeys(one["run"] for one in self.written):
            mine = [one for one in self.written if one["run"] == run]
            parts += [f"## {_plain(run)}", *map(_code, mine[0]["commands"])]
            parts.append("\n".join(_index_line(one) for one in mine))
        index = self._store(INDEX, _joined(parts))
        listed = self._store(LIST, json.dumps({"schema": 1, "files": self.written}, indent=1, ensure_ascii=False))
        now = {name for one in self.written for name in one["files"]}
        for name in self._before - now:
            path = self.folder / name
            path.unlink(missing_ok=True)
            if path.parent != self.folder and not any(path.parent.iterdir()):
                path.parent.rmdir()
        return [("Markdown", index), ("JSON", listed)]

    def _write(
        self, run: str, stem: str, title: str, commands: Sequence[str], contents: dict[str, str | bytes]
    ) -> list[tuple[str, str]]:
        folder = self.folder_of(run)
        names = {form: f"{folder}/{stem}.{form}" for form in contents}
        links = [(FORMATS[form], self._store(names[form], content)) for form, content in contents.items()]
        self.written.append({"run": run, "title": title, "files": list(names.values()), "commands": list(commands)})
        return links

    def _store(self, name: str, content: str | bytes) -> str:
        """Writes a file of the folder, and returns its address from the page."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise Refusal(
                f"cannot write the report's files to {self.folder}: {error.strerror or error}. "
                "Name another page with --out FILE."
            ) from error
        return quote(f"{self.folder.name}/{name}")

    def _free(self, run: str, stem: str) -> str:
        """The stem, with a number behind it where the run has a file of that name already."""
        taken = {(one["run"], Path(one["files"][0]).stem) for one in self.written}
        number, free = 2, stem
        while (run, free) in taken:
            free, number = f"{stem}-{number}", number + 1
        return free

    def folder_of(self, run: str) -> str:
        """A name that is safe on every file system, and no other run's."""
        if run not in self._folders:
            free = plain = re.sub(r"[^\w-]+", "-", run).strip("-") or "run"
            number = 2
            while free in self._folders.values():
                free, number = f"{plain}-{number}", number + 1
            self._folders[run] = free
        return self._folders[run]

    def _listed(self) -> set[str]:
        """What an earlier report wrote, as far as it stands in the folder."""
        try:
            files = json.loads((self.folder / LIST).read_text(encoding="utf-8"))["files"]
            names = [str(name) for one in files for name in one["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        inside = self.folder.resolve()
        return {name for name in names if (self.folder / name).resolve().is_relative_to(inside)}


def stem_of(words: str) -> str:
    """A file name without its ending."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60] or "table"


def _drawn(figure: "Figure", form: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if form == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None})  # the same rows give the same file
        else:
            figure.savefig(buffer, format=form, dpi=DPI)
    return buffer.getvalue()


def _about_chart(title: str, stem: str, alt: str, commands: Sequence[str], data: "pandas.DataFrame | None") -> str:
    told = [f"# {_plain(title)}", f"![{_plain(alt)}]({stem}.svg)", *map(_code, commands)]
    if data is not None:
        texts = data.map(_text)
        same = [name for name in texts.columns if len(texts) > 1 and texts[name].nunique() == 1]
        told.append(
            "Of all rows: " + ", ".join(f"{name} {_plain(texts[name].iloc[0])}" for name in same) if same else ""
        )
        headers = [name for name in texts.columns if name not in same]
        words = [name for name in headers if not data[name].map(lambda value: isinstance(value, int | float)).all()]
        told.append(_lines(headers, texts[headers].to_numpy().tolist(), words))
    return _joined(told)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return "" if value is None or value != value else f"{value:.6g}" if isinstance(value, float) else str(value)


def _index_line(one: dict[str, Any]) -> str:
    links = ", ".join(f"[{name.rpartition('.')[2]}]({quote(name)})" for name in one["files"])
    return f"- {_plain(one['title'])}: {links}"


def _lines(headers: Sequence[str], cells: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    return markdown_lines(headers, [[cell.replace("<", "&lt;") for cell in line] for line in cells], words)


def _code(command: str) -> str:
    return f"`{command.replace('`', ' ')}`"


def _plain(text: str) -> str:
    """Without the marks of Markdown that would end a link, or make HTML."""
    return re.sub(r"[\[\]<>`\n]", " ", text)


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
