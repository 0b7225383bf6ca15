"""Tasks by name: ours, and those of entry points, of which a broken one costs itself alone."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from dmabench.tasks import registry

OURS = list(registry.OWN)


@pytest.fixture
def outside(monkeypatch):
    """Registers tasks as an installed package would: outside(name=object, or the exception that loading raises, ...)"""

    def install(**loaded):
        class Fake(EntryPoint):
            def load(self):
                if isinstance(found := loaded[self.name], Exception):
                    raise found
                return found

        entries = [Fake(name, f"{name}:TASK", registry.ENTRY_POINTS) for name in loaded]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: {registry.ENTRY_POINTS: entries}.get(group, []))
        registry.get.cache_clear()

    yield install
    registry.get.cache_clear()


def toy(name):
    """A task of that name that nothing else registers."""
    return replace(registry.get("patterns"), name=name)


def test_ours_are_there(outside):
    outside()
    found = registry.tasks()
    assert list(found) == list(registry.names()) == OURS
    assert {"mqar", "needle", "patterns"} <= set(found)
    assert all(task.name == name for name, task in found.items())


def test_names_are_known_without_importing_a_task():
    code = (
        "import sys; from dmabench.tasks import registry; print(*registry.names()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(OURS) <= set(done.stdout.split())


def test_one_from_outside_is_listed_behind_ours(outside):
    mine = toy("addition")
    outside(addition=mine)
    assert list(registry.names()) == [*OURS, "addition"]
    assert registry.get("addition") is mine
    assert registry.tasks()["addition"] is mine


@pytest.mark.parametrize(
    ("loaded", "words"),
    [
        (
            ImportError("no module named numbers9"),
            r"'broken'.*cannot be loaded \(ImportError: no module named numbers9\)",
        ),
        (42, "must load to the Task 'broken', not to int"),
        ("other", "must load to the Task 'broken', not to the task 'other'"),
    ],
    ids=["import fails", "no task", "another name"],
)
def test_a_broken_one_costs_itself_alone_and_is_named(outside, loaded, words):
    good = toy("good")
    outside(broken=toy("other") if loaded == "other" else loaded, good=good)
    with pytest.raises(ValueError, match=words):
        registry.get("broken")
    with pytest.warns(UserWarning, match=words):
        found = registry.tasks()
    assert list(found) == [*OURS, "good"]
    assert found["good"] is good


def test_a_name_of_ours_stays_ours(outside):
    outside(mqar=toy("mqar"))
    with pytest.warns(UserWarning, match="registers 'mqar', which is a task of dmabench"):
        found = registry.get("mqar")
    assert found.title == "Multi-query associative recall"


def test_two_of_a_name_are_refused(outside, monkeypatch):
    entries = [EntryPoint("twice", f"{package}:TASK", registry.ENTRY_POINTS) for package in ("a", "b")]
    outside()
    monkeypatch.setattr(registry, "entry_points", lambda *, group: entries)
    with pytest.raises(ValueError, match="two tasks register as 'twice'"):
        registry.get("twice")


def test_an_unknown_name_is_answered_with_the_known_ones(outside):
    outside()
    with pytest.raises(ValueError, match="no task 'mqr'; known are mqar, needle, patterns"):
        registry.get("mqr")
