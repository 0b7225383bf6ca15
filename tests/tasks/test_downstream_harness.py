"""Scores are lm-eval's own: equal to the last digit to its command, whatever we add to its model.

The only module that runs lm-eval's tasks: its import takes seconds.
"""

import itertools
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dmabench.tasks.downstream import catalogue, checkpoints, local_data
from dmabench.tasks.downstream.answers import Answers
from dmabench.tasks.downstream.peers import Peers
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config

TASKS = ("lambada_openai", "mmlu_stem", "wikitext")
SIZES = {"initializer_range": 0.2, "max_position_embeddings": 96}
BATCH = 4


def write(path: Path, items: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (local_data.SAMPLE_ITEMS / name).read_text().splitlines()]


def save_tokenizer(folder: Path, lines: list[str]) -> int:
    """A byte-level BPE trained on a few lines; its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    whole.save_pretrained(folder)
    return len(whole)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data folder in the layout of local files, two models that share a tokenizer, and lm-eval's overrides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # forked processes hang where OpenMP had started threads
    root = tmp_path_factory.mktemp("downstream")
    for name in ("lambada_openai/test", "wikitext/test", "triviaqa/train", "triviaqa/validation"):
        write(root / "data" / f"{name}.jsonl", read(f"{name}.jsonl"))
    asked, shown = read("mmlu/test.jsonl"), read("mmlu/dev.jsonl")
    for at, subject in enumerate(catalogue.groups()["mmlu"]):
        folder = root / "data" / "mmlu" / subject.removeprefix("mmlu_")
        write(folder / "test.jsonl", [asked[at % 4], asked[(at + 1) % 4]][: 1 + at % 2])
        write(folder / "dev.jsonl", shown)
    lines = [item["text"] for item in read("lambada_openai/test.jsonl")]
    for name, seed in (("qwen", 0), ("dma", 1)):
        folder = root / name
        size = save_tokenizer(folder, lines)
        torch.manual_seed(seed)
        if name == "qwen":
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
            config = Qwen3Config(
                vocab_size=size, hidden_size=64, intermediate_size=128, bos_token_id=0, eos_token_id=0, **heads, **SIZES
            )
            Qwen3ForCausalLM(config).save_pretrained(folder)
        else:
            config = model_config("tiny", "dma", window=16, vocab_size=size, **SIZES)
            DmabenchForCausalLM(config).save_pretrained(folder)
    (root / "overrides").mkdir()
    local_data.write_overrides(root / "overrides", root / "data")
    yield root
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lm_eval(place):
    """lm-eval, told to stay away from the network and from the tools that describe a machine."""
    import huggingface_hub.constants
    import lm_eval
    import lm_eval.evaluator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
        yield lm_eval


def manager(place):
    from dmabench.tasks.downstream import harness

    return harness.task_manager(place / "overrides", hub=False)


def language_model(place, name="qwen", batch=BATCH, reads=None, peers=None):
    from dmabench.tasks.downstream.language_model import LanguageModel

    loaded = checkpoints.load(checkpoints.find(str(place / name)), "cpu")
    reads = reads or checkpoints.reads(loaded.model, loaded.tokenizer)
    return LanguageModel(loaded.model, loaded.tokenizer, batch, reads, peers)


def ours(place, model, task, shots=None, answers=None, limit=None):
    from dmabench.tasks.downstream import harness

    model.start(Answers() if answers is None else answers)
    return harness.score(model, harness.load(manager(place), task, shots), task, limit)


def check_equal(outcome, results):
    """Every value, and what the model answered to each request."""
    assert len(outcome.rows) >= 2
    for row in outcome.rows:
        assert results["results"][row["task"]][f"{row['metric']},{row['filter']}"] == row["value"], row["task"]
    assert set(results["samples"]) == set(outcome.samples)
    for task, samples in results["samples"].items():
        for theirs, mine in zip(samples, outcome.samples[task], strict=True):
            assert theirs["filtered_resps"] == mine["filtered_resps"]


@pytest.mark.parametrize(
    ("task", "shots"), [("lambada_openai", None), ("wikitext", None), ("mmlu", 0), ("mmlu_stem", 2)]
)
def test_equal_to_lm_eval_on_a_stock_checkpoint(lm_eval, place, task, shots):
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={place / 'qwen'}",
        tasks=[task],
        num_fewshot=shots,
        batch_size=BATCH,
        device="cpu",
        task_manager=manager(place),
        bootstrap_iters=1000,
    )
    outcome = ours(place, language_model(place), task, shots)
    check_equal(outcome, results)
    first = next(row for row in outcome.rows if row["task"] == task)
    assert first["shots"] == (shots or 0) and first["subtask_of"] is None
    if task == "mmlu":
        assert first["chance"] == 0.25 and first["examples"] == sum(1 + at % 2 for at in range(57))
        assert {row["task"] for row in outcome.rows} >= {"mmlu", "mmlu_stem", "mmlu_anatomy"}
    theirs = results["results"][first["task"]][f"{first['metric']}_stderr,none"]
    assert first["stderr"] == (theirs if isinstance(theirs, float) else None)


@pytest.mark.parametrize("task", TASKS)
def test_equal_to_simple_evaluate_with_our_model(lm_eval, place, task):
    from lm_eval.models.huggingface import HFLM

    model = language_model(place, "dma")
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, backend="causal", batch_size=BATCH)
    results = lm_eval.simple_evaluate(model=theirs, tasks=[task], task_manager=manager(place), bootstrap_iters=0)
    check_equal(ours(place, model, task), results)
    check_equal(ours(place, model, task, answers=Answers(place / "answers" / task)), results)


def test_generation_is_lm_eval_s(lm_eval, place):
    from lm_eval.models.huggingface import HFLM

    (place / "overrides" / "short.yaml").write_text(
        "task: short\ninclude: triviaqa.yaml\ngeneration_kwargs: {until: [], max_gen_toks: 12, do_sample: false}\n"
    )
    model = language_model(place, "dma", batch=2)
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, backend="causal", batch_size=2)
    results = lm_eval.simple_evaluate(
        model=theirs, tasks=["short"], num_fewshot=1, task_manager=manager(place), bootstrap_iters=0, limit=3
    )
    outcome = ours(place, model, "short", 1, limit=3)
    for mine, one in zip(outcome.samples["short"], results["samples"]["short"], strict=True):
        assert mine["resps"] == one["resps"] and one["resps"][0][0]
    assert outcome.rows[0]["metric"] == "exact_match" and outcome.rows[0]["chance"] == 0


def test_audit_counts_what_was_cut_and_what_was_sparse(lm_eval, place):
    model = language_model(place, "dma", reads=40)
    lambada = ours(place, model, "lambada_openai").rows[0]
    assert lambada["truncated"] == 1 and lambada["tokens_max"] > 40
    assert lambada["sparsity_active"] == 1 and 0.3 < lambada["density"] < 0.8  # a window of 16 in 40 tokens
    model.model.set_window(40)
    wide = ours(place, model, "lambada_openai").rows[0]
    assert wide["sparsity_active"] == 0 and wide["density"] == 1 and wide["value"] != lambada["value"]
    whole = ours(place, model, "wikitext").rows[0]
    assert whole["truncated"] == 1 and whole["tokens_max"] > whole["tokens_mean"] > 40


def test_out_of_memory_halves_the_batch_and_says_so(lm_eval, place, monkeypatch):
    expected = ours(place, language_model(place), "lambada_openai")
    model = language_model(place)
    said, forward = [], model.model.forward
    model.said = said.append

    def small_memory(input_ids, **kwargs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", small_memory)
    outcome = ours(place, model, "lambada_openai")
    assert model.batch_size_per_gpu == 2
    assert len(said) == 1 and "out of memory with 4 sequences at once: going on with 2" in said[0]
    for mine, one in zip(outcome.rows, expected.rows, strict=True):
        assert mine["value"] == pytest.approx(one["value"], rel=1e-4)

    def no_memory(input_ids, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model.model, "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        ours(place, model, "lambada_openai")


@pytest.mark.parametrize("task", ["lambada_openai", "wikitext"])
def test_an_interrupted_task_goes_on_where_it_was(lm_eval, place, tmp_path, monkeypatch, task):
    expected = ours(place, language_model(place), task, answers=Answers(tmp_path / "whole"))
    model = language_model(place)
    forward, calls = model.model.forward, itertools.count()

    def interrupted(input_ids, **kwargs):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return forward(input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours(place, model, task, answers=Answers(tmp_path / "cell"))
    assert len(Answers(tmp_path / "cell")) == 1
    outcome = ours(place, model, task, answers=Answers(tmp_path / "cell"))
    assert next(calls) == 1 + len(Answers(tmp_path / "whole"))  # the batch that was cut off, and not the one before
    assert [row["value"] for row in outcome.rows] == [row["value"] for row in expected.rows]


def process(rank, place, port, results):
    """One of two processes: everything that one alone would give."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
    model = language_model(place, peers=Peers(rank, 2, rank))
    forward, calls = model.model.forward, itertools.count()

    def counted(*args, **kwargs):
        next(calls)
        return forward(*args, **kwargs)

    model.model.forward = counted
    found = [ours(place, model, task).rows for task in TASKS]
    results.put((rank, found, next(calls)))
    torch.distributed.destroy_process_group()


def test_two_gloo_processes_equal_one(lm_eval, place, tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    both = [fork.Process(target=process, args=(rank, place, tmp_path / "port", results)) for rank in range(2)]
    for one in both:
        one.start()
    found = sorted((results.get(timeout=200) for _ in both), key=lambda one: one[0])
    for one in both:
        one.join(timeout=60)
    expected = [ours(place, language_model(place), task).rows for task in TASKS]
    assert found[0][1] == expected and found[1][1] == expected
    calls = [count for _, _, count in found]
    assert min(calls) > 0.3 * sum(calls), "one process did the work of both"


def test_models_do_not_share_answers(lm_eval, place, tmp_path):
    first = ours(place, language_model(place, "qwen"), "lambada_openai", answers=Answers(tmp_path / "a"))
    second = ours(place, language_model(place, "dma"), "lambada_openai", answers=Answers(tmp_path / "b"))
    assert first.rows[0]["value"] != second.rows[0]["value"]
    assert first.rows[0]["task_hash"] == second.rows[0]["task_hash"]


def test_unknown_tasks_and_missing_data_are_told(lm_eval, place):
    from dmabench.tasks.downstream import harness

    with pytest.raises(ValueError, match="did you mean lambada_openai"):
        harness.check_tasks(manager(place), ["wikitext", "lambada_opena"])
    (place / "overrides" / "broken.yaml").write_text(
        "task: broken\ninclude: lambada_openai.yaml\ndataset_kwargs: {data_files: {test: no_such_file.jsonl}}\n"
    )
    with pytest.raises(ValueError, match="the data of broken cannot be had"):
        harness.load(manager(place), "broken", None)
