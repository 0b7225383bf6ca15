"""Imports go one way: between the rooms, and between the packages of the harness (CONTRIBUTING.md, "The rooms")."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"dmabench": {"dmabench", "kernels", "tasks"}, "tasks": {"tasks", "kernels"}, "kernels": {"kernels"}}
"""What each may import from."""


def imported(path: Path) -> set[str]:
    """Modules of dmabench that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "dmabench"}


def room(module: str) -> str:
    second = module.split(".")[1]
    return second if second in ("kernels", "tasks") else "dmabench"


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_import_only_downwards(name: str) -> None:
    files = list((ROOT / name).rglob("*.py"))
    assert files
    upwards = [(str(path), module) for path in files for module in imported(path) if room(module) not in ROOMS[name]]
    assert upwards == []


def test_packages_of_the_harness_form_no_circle() -> None:
    packages = {path.parent.name for path in (ROOT / "dmabench").glob("*/__init__.py")}
    assert {"cli", "gates", "timing"} <= packages
    arrows: dict[str, set[str]] = {name: set() for name in packages}
    for name in packages:
        for path in (ROOT / "dmabench" / name).rglob("*.py"):
            arrows[name] |= {module.split(".")[1] for module in imported(path)} & packages - {name}
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of packages: {' -> '.join(error.args[1])}")
    assert order[-1] == "cli"


def test_contributing_lists_the_packages_in_an_order_that_holds() -> None:
    lines = re.search(r"from those below it:\n\n((?:    .*\n)+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert lines is not None
    level: dict[str, int] = {}
    for number, line in enumerate(lines[1].splitlines()):
        level |= {name: number for name in re.findall(r"(\w+)/", line)}
    assert set(level) == {path.parent.name for path in (ROOT / "dmabench").glob("*/__init__.py")}
    for name in level:
        for path in (ROOT / "dmabench" / name).rglob("*.py"):
            for other in {module.split(".")[1] for module in imported(path)} & set(level) - {name}:
                assert level[other] > level[name], f"{path} imports from {other}/, which is listed above {name}/"
