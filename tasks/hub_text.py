"""Text from the Hugging Face hub, streamed through `datasets`, which is imported only here and only when it is used."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dmabench.tasks.text_problems import Problems


class Unreachable(ValueError):
    """The hub does not answer, or has no such text."""


@dataclass(frozen=True)
class HubText:
    """The train split of org/name, or of org/name:config."""

    name: str
    field: str = "text"
    endless: bool = True

    def digest(self) -> str:
        """Of the name, the field and the commit that the hub has now.

        Raises:
            Unreachable: no hub, or nothing of that name on it.
        """
        try:
            from huggingface_hub import HfApi

            commit = HfApi().dataset_info(self.name.partition(":")[0], timeout=30).sha
        except Exception as error:  # its own classes, those of its HTTP library, and OSError
            raise self._unreachable(error) from error
        return f"hub {self.name} {self.field} {commit}"

    def documents(self, problems: Problems) -> Iterator[str]:
        """Its texts, as they arrive.

        Raises:
            Unreachable: no hub, or nothing of that name on it.
            ValueError: no `datasets`, or rows without the field.
        """
        for number, row in enumerate(self._rows(), start=1):
            text = row.get(self.field)
            if isinstance(text, str) and text.strip():
                yield text
            elif self.field not in row:
                told = f"{self.name} has the fields {', '.join(row)} and no {self.field}"
                raise ValueError(f"{told}: name the right one with --text-field")
            else:
                problems.skip(f"{self.name} row {number}", "a blank text")

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ValueError("text from the hub needs datasets (pip install datasets); or name a file") from error
        name, _, config = self.name.partition(":")
        try:
            yield from load_dataset(name, config or None, split="train", streaming=True)
        except Exception as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return Unreachable(
            f"the hub does not give {self.name} ({type(error).__name__}: {first}). Without a network, name a file "
            "or a folder with --data, or --data synthetic for made-up text"
        )
