"""The command of a task from another package: options, refusals, dry runs, rows and tables, in this process."""

import importlib
import json
import os
import signal
from contextlib import contextmanager

import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import listing, main, tasks, tasks_run
from dmabench.errors import Refusal
from dmabench.tasks import registry
from dmabench.trials.ranks import Ranks
from dmabench.trials.run import in_process


@pytest.fixture(scope="module")
def installed(toys, tmp_path_factory):
    """The package, where this process finds it; its cells run in this process too."""
    folder = toys.install(tmp_path_factory.mktemp("installed"))

    @contextmanager
    def here(path, options, ranks, jobs):
        yield in_process

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("DMABENCH_COMMIT", toys.COMMIT)
        patch.setattr(tasks_run, "_runner", here)
        patch.setattr("dmabench.trials.worker.SAMPLING_S", 0.02)
        importlib.invalidate_caches()
        yield folder
    registry.get.cache_clear()


@pytest.fixture(scope="module")
def call(installed):
    app = typer.Typer(cls=main.Commands, rich_markup_mode="rich", pretty_exceptions_enable=False)
    for command in (tasks, listing):
        command.add_to(app)
    return lambda *words, columns=80: CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(w) for w in words])


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_help_names_the_task_without_importing_it(call, monkeypatch):
    monkeypatch.setattr(registry, "get", lambda name: pytest.fail("imported"))
    result = call("--help")
    assert result.exit_code == 0 and "A task of the package toy-package." in result.stdout
    assert "mqar" in result.stdout


def test_every_axis_is_an_option_and_the_examples_run(call):
    result = call("toy", "--help", columns=120)
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 120
    for told in (
        "--attention",
        "mha, swa, dma",
        "--no-fillers",
        "Default 20 on a CPU, 2k on a GPU.",
        "--seeds",
        "--shard",
    ):
        assert told in result.stdout
    examples = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("dmabench toy")]
    assert len(examples) == 3
    for example in examples:
        assert call(*example.split()[1:], "--dry-run", "--device", "cpu").exit_code == 0, example


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--window", "0"], "--window 0: 0 is too small; the least is 1"),
        (["--attention", "dna"], "did you mean dma?"),
        (["--lr", "fast"], "--lr 'fast' is not a number"),
        (["--seeds", "0"], "write how many, from 1 to 1000"),
        (["--seeds", "2", "--seed", "1"], "leave out --seeds or --seed"),
        (["--preset", "quik"], "did you mean quick?"),
        (["--quick", "--preset", "two"], "leave one of them out"),
        (["--shard", "3/2"], "from 1/4 to 4/4"),
        (["--shard", "1/9"], "there are 3 cells, so at most 3 parts"),
        (["--cell-timeout", "0"], "write a number of seconds above 0"),
        (["--jobs", "0"], "write how many cells are trained at once, 1 or more"),
        (["--device", "tpu"], "write cpu, cuda"),
        (["--device", "cuda:99"], "use --device cpu"),
        (["--window", "512", "--attention", "dma"], "take --window 80 or less"),
        (["--resume", "nope"], "there is no run 'nope'"),
        (["--resume", "latest"], "yet: make one with `dmabench toy --quick`"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, words, told, tmp_path):
    result = call("toy", *words, "--results", tmp_path / "results")
    assert isinstance(result.exception, Refusal) and told in str(result.exception), result.exception
    assert result.stdout == "" and not list(tmp_path.glob("results/*"))


def test_jobs_under_torchrun_are_refused(call, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "here", lambda: Ranks(0, 2, 0))
    result = call("toy", "--jobs", "2", "--results", tmp_path / "results")
    assert isinstance(result.exception, Refusal) and "leave out one of the two" in str(result.exception)
    assert not (tmp_path / "results").exists()


def test_an_unknown_option_of_a_task_is_a_usage_error(call):
    result = call("toy", "--depth", "3")
    assert result.exit_code == 2 and "No such option" in result.stderr


def test_a_dry_run_tells_what_each_cell_takes_and_leaves_nothing(call, tmp_path):
    words = ("toy", "--window", "8,128", "--seeds", "2", "--dry-run", "--results", tmp_path / "results")
    result = call(*words, "--device", "cpu")
    assert result.exit_code == 0 and not (tmp_path / "results").exists()
    assert "toy: 6 cells, about" in result.stdout and "40000" in result.stdout and "0,1" in result.stdout
    assert "[1] cannot be: window 128 covers all 80 tokens" in result.stdout
    assert "a cell at a time: operations at 25% of the" in result.stderr and "reaches here now" in result.stderr
    cells = lines(call(*words, "--device", "cpu", "--json"))
    assert len({cell["cell"] for cell in cells}) == 6 and sum(bool(cell["reason"]) for cell in cells) == 2
    for cell in cells:
        assert (cell["status"] == "UNSUPPORTED") == bool(cell["reason"])
        assert cell["tokens"] == (0 if cell["reason"] else 20_000) and cell["mib"] == (0 if cell["reason"] else 10)
    free = [cell for cell in cells if not cell["reason"]]
    assert all(cell["minutes"] > 0 and cell["flops"] == 2e10 for cell in free)


def test_a_dry_run_for_a_gpu_needs_none(call):
    result = call("toy", "--dry-run", "--device", "cuda")
    assert result.exit_code == 0 and ("H100" in result.stderr or "bf16 matrix product" in result.stderr)


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory):
    """A run of five cells, one of them refused: its folder, the words, and what was printed."""
    root = tmp_path_factory.mktemp("results")
    words = ("toy", "--window", "8,16,128", "--lengths", "64,96", "--device", "cpu", "--results", root)
    return root, words, call(*words)


def test_rows_reach_the_store_and_the_table(toys, finished):
    root, _, result = finished
    assert result.exit_code == 0, result.output
    rows, manifest = toys.stored(root)
    assert [(row["attention"], row["window"], row["status"], row["part"]) for row in rows] == [
        ("mha", None, "PASSED", 1),
        ("mha", None, "PASSED", 2),
        ("dma", 8, "PASSED", 1),
        ("dma", 8, "PASSED", 2),
        ("dma", 16, "PASSED", 1),
        ("dma", 16, "PASSED", 2),
        ("dma", 128, "UNSUPPORTED", 1),
    ]
    assert all(row["infer_ms"] >= 2 and row["device_told"] == "cpu" for row in rows if row["status"] == "PASSED")
    assert (manifest["command"], manifest["status"], manifest["seeds"]) == ("toy", "finished", [0])
    assert {"accelerate", "transformers"} <= manifest["environment"]["versions"].keys()
    assert "dma" in result.stdout and "mha" in result.stdout and "0.95" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "window 128 covers all 64 tokens" in result.output and manifest["run"] in result.stderr


def test_a_finished_run_resumed_runs_nothing_and_prints_its_rows(toys, finished, call):
    root, words, _ = finished
    before = toys.stored(root)[0]
    result = call(*words, "--resume", "latest", "--jobs", "2", "--json")  # no setting: it changes no result
    assert result.exit_code == 0 and lines(result) == before == toys.stored(root)[0]


def test_a_resume_with_other_settings_names_them(finished, call):
    _, words, _ = finished
    for more, told in (
        (("--lr", "1"), "setting lr: 1e-3 -> 1"),
        (("--compile",), "setting compile: false -> true"),
        (("--shard", "1/2"), "setting shard: none -> 1/2"),
        (("--no-fillers",), "setting fillers: true -> false"),
    ):
        result = call(*words, "--resume", "latest", *more)
        assert isinstance(result.exception, Refusal) and told in str(result.exception)


def test_shards_are_runs_that_have_all_cells_between_them(toys, call, tmp_path, finished):
    for index in (1, 2):
        result = call(*finished[1][:-1], tmp_path / str(index), "--shard", f"{index}/2")
        assert result.exit_code == 0, result.output
    parts = [{row["cell"] for row in toys.stored(tmp_path / str(index))[0]} for index in (1, 2)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == {row["cell"] for row in toys.stored(finished[0])[0]}


def test_ctrl_c_keeps_a_checkpoint_that_the_resumed_run_goes_on_from(toys, call, tmp_path):
    words = ("toy", "--window", "8", "--fate", "ctrl-c", "--device", "cpu", "--results", tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    result = call(*words)
    rows, manifest = toys.stored(tmp_path)
    assert result.exit_code == 130 and manifest["status"] == "interrupted", result.output
    assert [row["attention"] for row in rows] == ["mha"]
    assert (
        f"1 of 2 cells are stored, and the checkpoint of one more. Repeat the command with --resume {manifest['run']}"
        in " ".join(result.stderr.split())
    )
    result = call(*words, "--resume", "latest")
    rows, manifest = toys.stored(tmp_path)
    assert result.exit_code == 0 and manifest["status"] == "finished"
    assert "could not be drawn" not in result.stderr  # of a task that has none of the axes that charts know
    assert [(row["attention"], row["first_step"]) for row in rows] == [("mha", 0), ("dma", 10)]
    assert not list(tmp_path.glob("*/cells")) and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("fate", "status", "code"), [("fails", "RUNTIME_ERROR", 1), ("starves", "OUT_OF_MEMORY", 0)])
def test_a_failing_cell_is_a_row_and_the_exit_code_says_so(call, tmp_path, fate, status, code):
    result = call("toy", "--window", "8", "--fate", fate, "--device", "cpu", "--results", tmp_path, "--json")
    assert result.exit_code == code and [row["status"] for row in lines(result)] == ["PASSED", status]


def test_nothing_scored_is_3(call, tmp_path):
    words = ("toy", "--attention", "dma", "--window", "8", "--fate", "starves", "--device", "cpu")
    result = call(*words, "--results", tmp_path)
    assert result.exit_code == 3 and "Nothing could be scored" in result.stderr


def test_models_are_kept_where_asked(call, tmp_path):
    result = call("toy", "--attention", "mha", "--device", "cpu", "--results", tmp_path, "--keep-models")
    assert result.exit_code == 0 and len(list(tmp_path.glob("*/cells/*/checkpoint.json"))) == 1


def test_a_task_is_listed_with_its_presets(call):
    listed = {one["task"]: one for one in json.loads(call("list", "tasks", "--json").stdout)}
    assert listed["toy"]["about"] == "For tests of the harness." and listed["toy"]["presets"] == ["quick", "two"]
    assert "lr" in listed["toy"]["axes"]
    presets = json.loads(call("list", "presets", "--json").stdout)
    assert {"preset": "quick", "command": "toy", "about": "the smallest", "blocks": [{"window": "8"}]} in presets
    assert "--seed 0,1" in call("list", "presets").stdout


def test_a_task_that_cannot_be_imported_costs_its_command_alone(toys, call, monkeypatch):
    def broken(name):
        raise ImportError("no module named nonesuch")

    monkeypatch.setattr(registry, "get", broken)
    result = call("toy", "--dry-run")
    assert isinstance(result.exception, Refusal) and "nonesuch" in str(result.exception)
    assert "nonesuch" in call("list", "tasks").stdout and call("list", "presets").exit_code == 0
    assert os.environ.get("DMABENCH_COMMIT") == toys.COMMIT


def test_an_axis_cannot_take_an_option_of_the_harness(installed):
    from dataclasses import replace

    from dmabench.cli.task_options import signature

    task = registry.get("toy")
    clash = replace(task, axes=(*task.axes, replace(task.axes[0], name="device")))
    with pytest.raises(ValueError, match="names an axis --device, which every task has"):
        signature(clash)


def test_a_dry_run_shows_cells_of_one_kind_together(monkeypatch):
    """What an axis does not apply to is no row of a wide, empty table."""
    monkeypatch.setenv("COLUMNS", "300")  # a heading is one line
    result = CliRunner().invoke(main.app, ["ablate", "--quick", "--dry-run", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    headings = [line for line in result.output.splitlines() if line.startswith("on ")]
    assert ["tokenizer" in line for line in headings] == [True, False], headings
