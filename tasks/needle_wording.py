"""RULER's wording of needles (arXiv 2404.06654; the prompts of its `niah` tasks), and the keys and values in it.

    A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the
    number afterwards.
    ... One of the special magic numbers for calm-river is: 4821907. ...
    What is the special magic number for calm-river mentioned in the provided text? The special magic number for
    calm-river mentioned in the provided text is 4821907

Keys are an adjective and a noun, as RULER's are; the lists are ours, and shorter. Values are numbers of 7 digits.
"""

from collections.abc import Sequence

ADJECTIVES = (
    *("ancient", "angry", "bitter", "brave", "bright", "broken", "calm", "careful", "clever", "cold", "crooked"),
    *("curious", "dark", "deep", "dusty", "eager", "early", "empty", "faint", "famous", "fancy", "fierce", "foolish"),
    *("fresh", "gentle", "golden", "grand", "grateful", "hollow", "honest", "humble", "hungry", "icy", "idle", "jolly"),
    *("lazy", "little", "lonely", "loud", "lucky", "mild", "modern", "muddy", "narrow", "nervous", "noble", "odd"),
    *("pale", "patient", "plain", "polite", "proud", "quick", "quiet", "rapid", "rough", "round", "rusty", "sharp"),
)
NOUNS = (
    *("anchor", "apple", "arrow", "autumn", "badge", "barrel", "basket", "beacon", "bell", "blanket", "bottle"),
    *("bridge", "bucket", "button", "candle", "canyon", "carpet", "castle", "cellar", "chain", "cloud", "compass"),
    *("copper", "cottage", "curtain", "desert", "dragon", "engine", "falcon", "feather", "fiddle", "forest", "garden"),
    *("glacier", "hammer", "harbor", "helmet", "island", "jacket", "journal", "kettle", "ladder", "lantern", "lemon"),
    *("marble", "meadow", "mirror", "needle", "ocean", "orchard", "pebble", "pencil", "pillow", "planet", "rabbit"),
    *("river", "saddle", "shadow", "silver", "spider", "temple", "thunder", "tunnel", "violin", "walnut", "window"),
)
KEYS = len(ADJECTIVES) * len(NOUNS)
LEAST_VALUE, VALUES = 1_000_000, 9_000_000
"""Values are LEAST_VALUE and so many from there on: all numbers of 7 digits."""


def key_of(number: int) -> str:
    """One of KEYS keys."""
    return f"{ADJECTIVES[number // len(NOUNS)]}-{NOUNS[number % len(NOUNS)]}"


def introduction(several: bool) -> str:
    """What comes before the text; several: whether more than one number is asked for."""
    subject, told, number = ("Some", "numbers are", "numbers") if several else ("A", "number is", "number")
    return (
        f"{subject} special magic {told} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {number} afterwards.\n"
    )


def needle(key: str, value: str) -> str:
    """The sentence that is hidden."""
    return f"One of the special magic numbers for {key} is: {value}."


def question(keys: Sequence[str], several: bool) -> str:
    """What comes after the text: question and beginning of the answer, which ends before the blank of the first value.

    Args:
        keys: those that are asked about, each once.
        several: whether more than one number is asked for.
    """
    what, number, verb = ("What are all", "numbers", "are") if several else ("What is", "number", "is")
    told = f"special magic {number} for {listed(keys)} mentioned in the provided text"
    return f"\n{what} the {told}? The {told} {verb}"


def listed(words: Sequence[str]) -> str:
    """As RULER lists keys: "a", "a, and b", "a, b, and c"."""
    return f"{', '.join(words[:-1])}, and {words[-1]}" if len(words) > 1 else words[0]
