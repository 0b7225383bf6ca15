"""A folder of files in place of the hub: a stock task runs on them with nothing but its data source overridden.

    DIR/<task>/<split>.jsonl       DIR/mmlu/<subject>/{test,dev}.jsonl

The files have the columns that the stock definition reads, one JSON object a line.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmabench.tasks.downstream.catalogue import (
    RULER,
    SAMPLES,
    Stock,
    definitions,
    group_definition,
    groups,
    members,
    stock_tasks,
)

SAMPLE_ITEMS = Path(__file__).with_name("sample_items")
SPLIT_FIELDS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Served:
    """What a folder has for one task or group."""

    task: str
    examples: int
    """Lines in the files that are scored."""
    missing: tuple[str, ...]
    """Files that it lacks, relative to the folder; empty: it can serve the task."""
    fewshot_missing: tuple[str, ...]
    """Files that it lacks for prompts with examples in them."""


def find_folder(named: str) -> Path:
    """The folder that was named, or lm_eval in it (other data may lie beside).

    Raises:
        ValueError: there is none, or it serves no task.
    """
    folder = Path(named).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise ValueError(f"data folder {folder} {what}: give a folder with files such as lambada_openai/test.jsonl")
    if (folder / "lm_eval").is_dir():
        folder = folder / "lm_eval"
    if not any(not one.missing for one in served(folder)):
        raise ValueError(
            f"data folder {folder} serves no task: it has none of the files that one needs, such as "
            "lambada_openai/test.jsonl, wikitext/test.jsonl or mmlu/anatomy/test.jsonl. "
            "Is it the folder above or below?"
        )
    return folder


def served(folder: Path) -> list[Served]:
    """Every task and group of the catalogue, with what `folder` has for it."""
    return [serve(folder, name) for name in [*stock_tasks(), *groups()]]


def serve(folder: Path, name: str) -> Served:
    """What `folder` has for a task or group of the catalogue."""
    examples = 0
    missing: list[str] = []
    fewshot_missing: list[str] = []
    for stock in (stock_tasks()[member] for member in members(name)):
        scored, shown = _file(stock, stock.scored), _file(stock, stock.shown)
        if (folder / scored).is_file():
            examples += _lines(folder / scored)
        else:
            missing.append(scored)
        if not stock.whole_texts and not (folder / shown).is_file():
            fewshot_missing.append(shown)
    return Served(name, examples, tuple(missing), tuple(fewshot_missing))


def sample_examples(name: str, split: str | None = None) -> int:
    """Items of a sample task (of its scored split)."""
    stock = SAMPLES[name]
    return _lines(SAMPLE_ITEMS / _file(stock, split or stock.scored))


def write_overrides(into: Path, folder: Path | None) -> None:
    """Writes definitions to `into` that include the stock ones and override their data source.

    Tasks of `folder` (where there is one) keep their names; sample tasks, and RULER's, which make their own data, are
    always there. A split whose file is
    missing is taken from the definition, unless it is the scored one: then the task is left out.
    """
    import yaml  # type: ignore[import-untyped,unused-ignore]

    stock_at = definitions()
    for name, stock in SAMPLES.items():
        fields = {"task": name, "tag": None, "include": str(stock_at / stock.definition)}
        fields |= _source(stock, SAMPLE_ITEMS, into / "cache")
        _write(into / f"{name}.yaml", fields, yaml)
    for name in (*RULER, "ruler"):
        _write(into / f"{name}.yaml", {"include": str(_ruler_definition(stock_at, name))}, yaml)
    if folder is None:
        return
    for name, stock in stock_tasks().items():
        if (folder / _file(stock, stock.scored)).is_file():
            fields = {"include": str(stock_at / stock.definition), **_source(stock, folder, into / "cache")}
            _write(into / f"{name}.yaml", fields, yaml)
    for group in groups():
        if not serve(folder, group).missing:
            _write(into / f"{group}.yaml", {"include": str(stock_at / group_definition(group))}, yaml)


def _source(stock: Stock, folder: Path, cache: Path) -> dict[str, Any]:
    files = {
        split: str((folder / _file(stock, split)).resolve())
        for split in dict.fromkeys(stock.splits.values())
        if (folder / _file(stock, split)).is_file()
    }
    absent = {field: None for field, split in stock.splits.items() if split not in files}
    # The cache of datasets would keep converted copies of local files for ever.
    source = {"data_files": files, "cache_dir": str(cache)}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": source, **absent}


def _ruler_definition(stock_at: Path, name: str) -> Path:
    names = {"ruler_vt": "vt", "ruler_cwe": "cwe", "ruler_fwe": "fwe"}
    names |= {"ruler_qa_squad": "qa_squad", "ruler_qa_hotpot": "qa_hotpot"}
    return stock_at / "ruler" / f"{names.get(name, name)}.yaml"


def _file(stock: Stock, split: str) -> str:
    return f"{stock.folder}/{split}.jsonl"


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _write(path: Path, fields: dict[str, Any], yaml: Any) -> None:
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
