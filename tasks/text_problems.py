"""What was wrong with a text: counted and named while it is read, or refused at once."""

from dataclasses import dataclass, field

NAMED = 5
"""Places that are told of; the others are counted."""


@dataclass
class Problems:
    """Lines and files that were left out."""

    strict: bool = False
    """Raise at the first."""
    count: int = 0
    places: list[str] = field(default_factory=list)
    """The first few: "books.jsonl line 7: no JSON"."""

    def skip(self, where: str, why: str) -> None:
        """Leaves one out.

        Raises:
            ValueError: the first, where strict.
        """
        if self.strict:
            raise ValueError(f"{where}: {why}; repair it, or leave out --strict to have such places skipped")
        self.count += 1
        if len(self.places) < NAMED:
            self.places.append(f"{where}: {why}")

    @property
    def sentence(self) -> str | None:
        """How many were left out and the first of them; None where nothing was."""
        if not self.count:
            return None
        more = f"; and {self.count - len(self.places)} more" if self.count > len(self.places) else ""
        return f"{self.count} part{'s' * (self.count > 1)} of the text skipped: {'; '.join(self.places)}{more}"
