"""What the README shows runs as written."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmabench.cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("dmabench ")
]
RUN = min(
    (ROOT / "results" / "reference").glob("h100/kernels/*"), key=lambda path: (path / "rows.jsonl").stat().st_size
)
LOOK = ("report", "mask", "compare", "reproduce", "export", "list", "doctor", "env")
"""Commands that measure nothing, and have no --dry-run."""


def test_there_are_commands():
    assert {words[1] for words in COMMANDS} >= {
        "kernels",
        "mqar",
        "needle",
        "patterns",
        "train",
        "eval",
        "report",
        "list",
        "doctor",
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_understood(words, tmp_path, monkeypatch):
    """Measuring commands as a dry run, which checks every option and expands every sweep."""
    monkeypatch.setenv("DMABENCH_RESULTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # A dry run of tune compiles for minutes; what it compiles is tested in tests/kernels/test_dma_triton_compile.py.
    monkeypatch.setattr("dmabench.timing.tuning.look_ahead", lambda candidate, *_: candidate)
    for name in ("A", "B"):  # for commands that look at runs
        shutil.copytree(RUN, tmp_path / name)
    arguments = words[1:]
    if arguments[0] not in LOOK and "--dry-run" not in arguments:
        arguments = [*arguments, "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_the_python_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(example, scope)
    assert scope["q"].grad is not None and scope["out"].shape == (1, 4, 1000, 64)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}( [a-z-]+)*:", makefile, re.MULTILINE), target
