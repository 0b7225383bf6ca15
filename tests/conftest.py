"""What every test shares: the import path of an installed package, the `gpu` marker, the settings of hypothesis."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout on sys.path, where the rooms `kernels` and `tasks` would be top-level modules.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Widths and colours are those of a pipe, whatever terminal or CI starts the tests; typer reads some at its import.
for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)

# Triton keeps what it compiles below the home folder, and fails where it cannot.
try:
    (Path.home() / ".triton").mkdir(exist_ok=True)
except OSError:
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"triton-{os.getuid()}"))

# No deadline: the first call of a kernel compiles it; nor one for drawing examples, which a busy machine may miss. CI
# draws the same examples each time: a red run can be repeated.
settings.register_profile(
    "dmabench",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("dmabench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # here, since it takes seconds and most single-file runs do not need it

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
