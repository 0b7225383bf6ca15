"""`dmabench --config FILE`: options of commands in a TOML file, a section for each command.

    [kernels]
    seqlen = "8k,32k"
    pass = ["fwd", "bwd"]
    replay = true

They become words of the command line, in front of those that were typed, unless the same option was typed. What a run
records of itself is then the whole command.
"""

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal

FLAG = "--config"
NEVER = ("help", "install-completion", "show-completion")


def in_front(words: list[str]) -> list[str]:
    """The command line with --config FILE first, where it may stand behind the command too."""
    for at, word in enumerate(words):
        if word == "--":
            break
        if word == FLAG and at + 1 < len(words):
            return [FLAG, words[at + 1], *words[:at], *words[at + 2 :]]
        if word.startswith(f"{FLAG}="):
            return [word, *words[:at], *words[at + 1 :]]
    return words


def words_of(file: str, name: str, command: Any, typed: list[str], commands: Iterable[str]) -> list[str]:
    """The options of a command that the file gives and that were not typed, as words.

    Args:
        name: of the command, which is its section.
        command: what Typer made of it.
        typed: the words behind the command's name.
        commands: names that a section may have.

    Raises:
        Refusal: a file that cannot be read, an unknown section or option (the nearest is offered), a value that an
            option cannot have.
    """
    found = _read(file)
    for section, values in found.items():
        if not isinstance(values, dict):
            raise Refusal(f"{file}: {section} stands in no section: write it under the command's name, [kernels] say")
        if section not in commands:
            raise Refusal(f"{file}: [{section}] is no command{_near(section, commands, '; did you mean [{}]?')}")
    options = {}
    for parameter in command.params:
        for word in (*parameter.opts, *parameter.secondary_opts):
            if word.startswith("--") and word[2:] not in NEVER:
                options[word[2:]] = parameter
    words = []
    for key, value in found.get(name, {}).items():
        option = key.replace("_", "-")
        parameter = options.get(option)
        if parameter is None:
            near = _near(option, options, "; did you mean {}?")
            raise Refusal(f"{file}: [{name}] has {key}, which is no option of dmabench {name}{near}")
        if not any(_is(word, parameter) for word in typed):
            words += _as_words(file, f"[{name}] {key}", f"--{option}", value, parameter)
    return words


def _read(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{FLAG} {file}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{FLAG} {file}: is no TOML ({error})") from error


def _near(word: str, known: Iterable[str], told: str) -> str:
    close = get_close_matches(word, list(known), n=1)
    return told.format(close[0]) if close else f": known are {', '.join(sorted(known))}"


def _is(word: str, parameter: Any) -> bool:
    return word.partition("=")[0] in (*parameter.opts, *parameter.secondary_opts)


def _as_words(file: str, where: str, flag: str, value: Any, parameter: Any) -> list[str]:
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise Refusal(f"{file}: {where} is a switch: true or false, not {value!r}")
        others = parameter.secondary_opts if flag in parameter.opts else parameter.opts
        return [flag] if value else list(others[:1])
    values = value if isinstance(value, list) else [value]
    wrong = next((one for one in values if isinstance(one, bool) or not isinstance(one, str | int | float)), None)
    if wrong is not None or not values:
        raise Refusal(f"{file}: {where} takes a word or a number, or a list of them, not {value!r}")
    if parameter.multiple:
        return [f"{flag}={one}" for one in values]
    return [f"{flag}={','.join(map(str, values))}"]
