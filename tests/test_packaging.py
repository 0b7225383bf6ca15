"""What is installed is what is in the checkout: packages, data files, import names; and what --help does not import."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from dmabench import __version__

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("dmabench", "kernels", "tasks")


def room_files() -> set[str]:
    """Every file of the three rooms, relative to the checkout, without caches and without notes to the reader."""
    found = (path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file())
    return {p.as_posix() for p in found if "__pycache__" not in p.parts and p.suffix not in (".pyc", ".md")}


def installed_name(path: str) -> str:
    """kernels/plan.py is installed as dmabench/kernels/plan.py."""
    return path if path.startswith("dmabench/") else f"dmabench/{path}"


def python(*arguments: str, cwd: Path) -> str:
    """What this environment's Python prints when run in that folder; its exit code must be 0."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it, made without a network from a clean copy of the checkout."""
    copy, built = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    python("-c", f"from setuptools import build_meta as b; b.build_sdist({str(built)!r})", cwd=copy)
    (sdist,) = built.glob("*.tar.gz")
    python("-m", "tarfile", "-e", str(sdist), cwd=built)
    unpacked = built / sdist.name.removesuffix(".tar.gz")
    python("-c", f"from setuptools import build_meta as b; b.build_wheel({str(built)!r})", cwd=unpacked)
    (wheel,) = built.glob("*.whl")
    return sdist, wheel


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    initial = {path for path in room_files() if path.endswith("/__init__.py")}
    assert {f"{room}/__init__.py" for room in ROOMS} <= initial
    assert set(listed) == {installed_name(p).removesuffix("/__init__.py").replace("/", ".") for p in initial}


def test_every_folder_with_code_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel, and of the test above."""
    folders = {Path(path).parent.as_posix() for path in room_files() if path.endswith(".py")}
    assert [folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_wheel_holds_the_rooms_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        information = f"dmabench-{__version__}.dist-info/"
        assert {n for n in names if not n.startswith(information)} == {installed_name(p) for p in room_files()}
        assert wheel.read(f"{information}top_level.txt").decode().split() == ["dmabench"]
        assert wheel.read(f"{information}licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_sdist_holds_the_rooms(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist.getmembers() if member.isfile()}
    assert {n for n in names if n.split("/")[0] in ROOMS} == room_files()
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.parametrize("module", ["kernels", "tasks"])
def test_rooms_are_no_top_level_modules(module: str, tmp_path: Path) -> None:
    """Another project's package of that name may be installed; ours must never be what is found."""
    find = f"from importlib.util import find_spec; print(find_spec({module!r}))"
    assert str(ROOT / module) in python("-c", find, cwd=ROOT), "this test cannot see what it looks for"
    assert str(ROOT / module) not in python("-c", find, cwd=tmp_path)


def test_these_tests_do_not_see_the_checkout() -> None:
    """What tests/conftest.py promises."""
    assert ROOT not in {Path(entry).resolve() for entry in sys.path}


def test_python_m_runs_anywhere(tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        assert python("-m", "dmabench", "--version", cwd=folder).split() == ["dmabench", __version__]


def test_python_m_takes_the_checkout_off_the_path() -> None:
    """Once dmabench runs, even inside the checkout, `kernels` is not ours and dmabench.kernels is."""
    script = """
import contextlib, importlib.util, io, runpy, sys
sys.argv = ["dmabench", "--version"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module("dmabench", run_name="__main__")
for name in ("kernels", "dmabench.kernels"):
    spec = importlib.util.find_spec(name)
    print(spec and spec.origin)
"""
    top_level, ours = python("-c", script, cwd=ROOT).splitlines()
    assert str(ROOT / "kernels") not in top_level
    assert Path(ours).parts[-2:] == ("kernels", "__init__.py")


def imported_by(script: str, folder: Path) -> set[str]:
    """The top-level modules that are loaded after `script`, which may end in SystemExit(0)."""
    report = "import atexit, json, sys; atexit.register(lambda: print('\\n' + json.dumps(list(sys.modules))))"
    loaded = json.loads(python("-c", f"{report}\n{script}", cwd=folder).splitlines()[-1])
    return {name.split(".")[0] for name in loaded}


def test_import_dmabench_is_light(tmp_path: Path) -> None:
    loaded = imported_by("import dmabench", tmp_path)
    assert "dmabench" in loaded
    assert {"torch", "numpy", "typer"}.isdisjoint(loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["kernels", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """What makes --help answer at once; the modules are looked at, since the time depends on the machine."""
    loaded = imported_by(f"sys.argv[1:] = {arguments}; from dmabench.cli.main import run; run()", tmp_path)
    assert "typer" in loaded
    assert {"torch", "triton", "numpy", "pandas", "matplotlib", "jinja2"}.isdisjoint(loaded)


# In pieces, so that this file does not match itself.
REGISTRIES = ("pypi" + ".org", "python" + "hosted.org", "download." + "pytorch.org", "ana" + "conda.org")
FOLDERS = ("/" + "home/", "/" + "root/", "/" + "Users/", "/" + "work/", "/" + "tmp/")


def test_nothing_of_this_machine_is_tracked() -> None:
    """Registries and folders differ from machine to machine: neither belongs in a file that others read."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"git cannot list the tracked files: {done.stderr.strip()}")
    tracked = [ROOT / name for name in done.stdout.split("\0") if (ROOT / name).is_file()]
    assert "uv.lock" not in {path.name for path in tracked}

    registries, folders = ("|".join(map(re.escape, names)) for names in (REGISTRIES, FOLDERS))
    pattern = re.compile(rf"{registries}|(?<![\w.~/}}-])(?:{folders})\w")
    assert pattern.search(f"see https://{REGISTRIES[0]}/x") and pattern.search(f"in {FOLDERS[0]}me")
    found = []
    for path in tracked:
        text = path.read_bytes().decode("utf-8", errors="ignore")  # pictures are looked through as well
        found += [f"{path.relative_to(ROOT)}: {line[:100]}" for line in text.splitlines() if pattern.search(line)]
    assert found == []
