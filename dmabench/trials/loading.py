"""A task by its name. Importing one may import torch."""

from dmabench.errors import Refusal
from dmabench.tasks import registry
from dmabench.tasks.task import Task


def load(name: str) -> Task:
    """The task; Refusal where it cannot be imported."""
    try:
        return registry.get(name)
    except Exception as error:
        raise Refusal(
            f"the task {name} cannot be used ({type(error).__name__}: {error}); repair or uninstall its package"
        ) from error
