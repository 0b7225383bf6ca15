"""`python -m dmabench`, the same as the console script."""

import os
import sys

# `python -m` puts the current folder first on sys.path; in a checkout that would make the rooms `kernels` and `tasks`
# importable at top level, where `kernels` shadows Hugging Face's package of that name.
sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]

from dmabench.cli.main import run  # noqa: E402

if __name__ == "__main__":
    run()
