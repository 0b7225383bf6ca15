import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmabench.cli.compare import share_of
from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.store import runs

REFERENCE = Path(__file__).parents[3] / "results" / "reference"


@pytest.fixture
def store(tmp_path, monkeypatch, environment, row):
    """store({row fields}, ...): the folder name of a run of `dmabench kernels` under tmp_path, six samples a cell."""
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])

    def make(*rows, command="kernels"):
        run = runs.Run.start(tmp_path, command, [command], {"seed": 0, "device": "cuda"}, environment)
        for one in rows:
            times = [one["total_ms"]] * 6 if one.get("total_ms") else []
            run.append(one, {"gpu_ms": times, "wall_ms": times, "turns": [2, 2, 2]})
        run.finish()
        return run.name

    return make


@pytest.fixture
def call(tmp_path):
    return lambda *words: CliRunner().invoke(app, ["compare", *words, "--results", str(tmp_path)])


def test_what_is_slower_is_seen_and_fails_where_it_is_asked(store, call, row):
    a = store(row("dma/flex", 8192, 1.0), row("dense/sdpa-flash", 8192, 2.0))
    b = store(row("dma/flex", 8192, 1.2), row("dense/sdpa-flash", 8192, 2.0))
    plain = call(a, b)
    assert plain.exit_code == 0 and a in plain.stdout and b in plain.stdout
    (line,) = [line for line in plain.stdout.splitlines() if line.startswith("dma/flex")]
    assert line.split()[-5:-2] == ["1.00", "1.20", "1.200"] and line.endswith("SLOWER")
    assert "2 cells in both: 1 SAME, 1 SLOWER." in plain.stdout
    assert max(map(len, plain.stdout.splitlines())) <= 100
    failed = call(a, b, "--fail-on", "5%")
    assert failed.exit_code == 1 and "slower by 20.0% at most: dma/flex (fwd; T 8192; w 1024)" in failed.stderr
    assert call(a, b, "--fail-on", "20%").exit_code == 0
    assert call(b, a, "--fail-on", "5%").exit_code == 0  # faster is no regression


def test_a_status_that_got_worse_fails(store, call, row):
    a = store(row("dma/flex"), row("dense/sdpa-flash"))
    b = store(row("dma/flex", total_ms=None, status="INCORRECT", reason="dv is off"), row("dense/sdpa-flash"))
    assert call(a, b).exit_code == 0 and "INCORRECT[1]" in call(a, b).stdout
    failed = call(a, b, "--fail-on", "50%")
    assert failed.exit_code == 1 and "PASSED -> INCORRECT: dma/flex" in failed.stderr
    assert call(b, a, "--fail-on", "5%").exit_code == 0


def test_json_is_one_object(store, call, row):
    a, b = store(row("dma/flex", 8192, 1.0), row("swa/flex")), store(row("dma/flex", 8192, 1.2))
    result = call(a, b, "--json", "--fail-on", "0.05")
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["counts"] == {"SLOWER": 1} and told["fail_on"] == 0.05
    assert told["a"]["run"] == a and told["b"]["run"] == b and len(told["only_a"]) == 1 and told["only_b"] == []
    assert told["cells"][0]["regressed"] and told["geometric_means"]["dma"] == pytest.approx(1.2)


@pytest.mark.parametrize("words", [("nope", "latest"), ("latest", "latest")])
def test_runs_that_are_none_or_the_same_are_refused(store, call, row, words):
    store(row("dma/flex"))
    result = call(*words)
    assert isinstance(result.exception, Refusal)
    assert ("the same run" if words[0] == "latest" else "no run 'nope'") in str(result.exception)


def test_what_cannot_be_compared_is_refused(store, call, row):
    good = store(row("dma/flex"))
    for other, words in (
        (store(row("dma/flex"), command="mqar"), "is a run of `dmabench mqar`"),
        (store(), "has no rows"),
        (store(row("dma/flex", kv_heads=1)), "no cell in common (kv_heads is 8 in A and 1 in B)"),
    ):
        result = call(good, other)
        assert isinstance(result.exception, Refusal) and words in str(result.exception)


def test_an_unknown_time_is_refused(store, call, row):
    result = call(store(row("dma/flex")), store(row("dma/flex")), "--time", "cpu")
    assert isinstance(result.exception, Refusal) and "choose from gpu, wall, total" in str(result.exception)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), (" 5 % ", 0.05), ("0.05", 0.05), ("0", 0.0), ("150%", 1.5)])
def test_shares(text, share):
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "-5%", "-0.1", "nan", "inf%", "", "%", "five", "1"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(Refusal, match="is no share") as refused:
        share_of(text)
    assert ("did you mean 5%?" in str(refused.value)) == (text == "5")


def test_a_damaged_line_is_said_and_the_rest_compared(store, call, row, tmp_path):
    a, b = store(row("dma/flex")), store(row("dma/flex"))
    with open(tmp_path / b / "rows.jsonl", "a") as file:
        file.write('{"schema": 1, "cel')
    result = call(a, b)
    assert result.exit_code == 0 and "damaged, skipped" in result.stderr and "1 SAME" in result.stdout


def test_stored_runs_of_a_card_agree_with_themselves():
    """Two sittings on two H200s, the same kernels: nothing is faster or slower, and what was mended is."""
    names = [str(REFERENCE / "h200" / "kernels" / name) for name in
             ("20261123T230838Z-kernels-adbf30c", "20261123T232647Z-kernels-1ec8074")]  # fmt: skip
    told = json.loads(CliRunner().invoke(app, ["compare", *names, "--json", "--fail-on", "5%"]).stdout)
    assert told["counts"] == {"SAME": 7, "BETTER": 1}
    assert any("two cards of one kind" in note for note in told["notes"])
