"""lm-eval's Hugging Face model, with what it lacks: halved batches where memory ends, answers kept on disk, processes
that share the batches, and notes of what each example asked.

Batches are made as lm-eval makes them, and each is computed by lm-eval's own code, so the numbers are its numbers,
whichever process computes a batch.
"""

import gc
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix

from dmabench.tasks.downstream import ahead
from dmabench.tasks.downstream.answers import Answers, key
from dmabench.tasks.downstream.audit import Example
from dmabench.tasks.downstream.peers import Peers

T = TypeVar("T")
Request = tuple[Any, list[int], list[int]]
"""What is scored: its text, the tokens of the context and those of the continuation."""


class LanguageModel(HFLM):
    """A loaded model as lm-eval asks it. Set `answers` before each task; read `asked` and `batch_size` after it."""

    def __init__(self, model: Any, tokenizer: Any, batch: int, max_length: int, peers: Peers | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(
                pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, max_length=max_length
            )
        self.peers = peers or Peers()
        self.answers = Answers()
        self.asked: list[Example] = []
        self.told: Callable[[int, int], None] = lambda done, total: None
        """Called with requests answered and requests in all, of one kind of request of a task."""
        self.said: Callable[[str], None] = lambda sentence: None
        self._batch = batch
        self._instances: Sequence[Any] = ()
        self._planned: list[list[Request]] | None = None
        self._replaying = False
        self._encoded: dict[str, list[int]] | None = None
        self._ahead: dict[str, Any] = {}

    def start(self, answers: Answers) -> None:
        """Before a task: forgets what the last one left."""
        self.answers, self.asked = answers, []
        self.batch_size_per_gpu = self._batch

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's asks the hub for a commit, which a local checkpoint has not."""
        return {"model_num_parameters": sum(p.numel() for p in self.model.parameters())}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As lm-eval's."""
        self._instances = requests
        self._ahead = self._encode_ahead(ahead.texts_of(one.args for one in requests))
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._instances, self._ahead = (), {}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """As lm-eval's, which asks for one batch after the other: once to see them all, once for the answers."""
        self._encoded = {}
        for one in requests:
            tokens = len(self.tok_encode(one.args[0]))
            self.asked.append(Example(one.task_name, one.doc_id, tokens, min(tokens, self.max_length)))
        try:
            self._planned = []
            super().loglikelihood_rolling(requests, disable_tqdm=True)
            batches, self._planned = self._planned, None
            self._answer(batches, [_content(batch) for batch in batches], self._score)
            self._replaying = True
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self._encoded, self._planned, self._replaying = None, None, False

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """As lm-eval's."""
        groups: dict[str, list[int]] = {}
        lengths = [len(self.tok_encode(one.args[0])) for one in requests]
        for number, one in enumerate(requests):
            groups.setdefault(json.dumps(one.args[1], sort_keys=True, default=str), []).append(number)
            room = self.max_length - one.args[1].get("max_gen_toks", self.max_gen_toks)
            self.asked.append(Example(one.task_name, one.doc_id, lengths[number], min(lengths[number], room)))
        batches: list[list[int]] = []
        for members in groups.values():
            members.sort(key=lambda number: (-lengths[number], requests[number].args[0]))
            batches += [members[at : at + self._batch] for at in range(0, len(members), self._batch)]
        asked = [[requests[number] for number in batch] for batch in batches]
        names = [key((one.args[0], str(one.args[1])) for one in batch) for batch in asked]
        return _in_order(batches, self._answer(asked, names, self._generate), len(requests))

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """As lm-eval's; whole texts are encoded once where several steps need them."""
        if string in self._ahead and not (args or kwargs):
            return self._ahead[string].tolist()
        if self._encoded is None or args or kwargs:
            return super().tok_encode(string, *args, **kwargs)
        if string not in self._encoded:
            self._encoded[string] = super().tok_encode(string)
        return self._encoded[string]

    def _encode_ahead(self, texts: list[str]) -> dict[str, Any]:
        """Those that lm-eval encodes alike: it treats texts that begin with the token before all texts differently."""
        begin = self.tokenizer.decode(self.prefix_token_id)
        alike = [text for text in texts if not has_bos_prefix(text, begin)]
        return ahead.encode(self.tokenizer, alike, **_add_special_kwargs(None, self.add_bos_token))

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self._planned is not None:
            self._planned.append(requests)
            return [(0.0, False)] * len(requests)
        if self._replaying:
            return self.answers[_content(requests)]
        for one, (_, context, continuation) in zip(self._instances, requests, strict=False):
            tokens = len(context) + len(continuation) - 1  # the last one is predicted, not read
            self.asked.append(Example(one.task_name, one.doc_id, tokens, min(tokens, self.max_length)))
        batches = batches_of(requests, self._batch)
        asked = [[requests[number] for number in batch] for batch in batches]
        answers = self._answer(asked, [_content(batch) for batch in asked], self._score)
        return _in_order(batches, answers, len(requests))

    def _answer(self, batches: list[list[T]], names: list[str], compute: Callable[[list[T]], list[Any]]) -> list[Any]:
        """The answers to all batches. Each process computes every world-th one, what the disk has excepted."""
        total, done = sum(map(len, batches)), 0
        mine: dict[str, list[Any]] = {}
        self.told(0, total)
        for number, (batch, name) in enumerate(zip(batches, names, strict=True)):
            if number % self.peers.world == self.peers.rank:
                if name not in self.answers:
                    self.answers.add(name, compute(batch))
                mine[name] = self.answers[name]
            done += len(batch)
            self.told(done, total)
        if self.peers.world > 1:
            for others in self.peers.gather(mine):
                self.answers.update(others)
        return [self.answers[name] for name in names]

    def _score(self, requests: list[Request]) -> list[tuple[float, bool]]:
        return self._shrinking(
            requests,
            lambda size: batches_of(requests, size),
            lambda part: super(LanguageModel, self)._loglikelihood_tokens(part, disable_tqdm=True),
        )

    def _generate(self, requests: list[Any]) -> list[str]:
        return self._shrinking(
            requests,
            lambda size: [list(range(at, min(at + size, len(requests)))) for at in range(0, len(requests), size)],
            lambda part: super(LanguageModel, self).generate_until(part, disable_tqdm=True),
        )

    def _shrinking(
        self, requests: list[T], split: Callable[[int], list[list[int]]], compute: Callable[[list[T]], list[Any]]
    ) -> list[Any]:
        """compute(requests), in parts of half the size after memory ran out, for this batch and those after it."""
        while True:
            parts = split(int(self.batch_size_per_gpu))
            longest = max(map(len, parts)) if len(parts) > 1 else len(split(1))
            try:
                answers = [compute([requests[number] for number in part]) for part in parts]
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or min(int(self.batch_size_per_gpu), longest) == 1:
                    raise
                reason = (str(error).splitlines() or ["out of memory"])[0]
            else:
                return _in_order(parts, answers, len(requests))
            # Out of the handler: the traceback holds on to what has to be freed.
            gc.collect()
            clear_device_cache()
            before = min(int(self.batch_size_per_gpu), longest)
            self.batch_size_per_gpu = before // 2
            self.said(f"out of memory with {before} sequences at once: going on with {before // 2} ({reason})")


def batches_of(requests: Sequence[Request], size: int) -> list[list[int]]:
    """Numbers of the requests by batch, as HFLM forms them: requests that differ in their last token alone share a
    sequence, the longest sequences come first, and a batch has `size` of them."""
    shared: dict[tuple[int, ...], list[int]] = {}
    for number, (_, context, continuation) in enumerate(requests):
        shared.setdefault(tuple(context + continuation[:-1]), []).append(number)
    first: list[tuple[int, tuple[int, ...], list[int]]] = []
    for members in shared.values():
        longest = max(members, key=lambda number: len(requests[number][2]))
        tokens = tuple(requests[longest][1] + requests[longest][2])
        first.append((-len(tokens), tokens, members))
    first.sort()
    return [
        sorted(number for _, _, members in first[at : at + size] for number in members)
        for at in range(0, len(first), size)
    ]


def _content(batch: Sequence[Request]) -> str:
    return key((context, continuation) for _, context, continuation in batch)


def _in_order(batches: list[list[int]], answers: list[list[Any]], total: int) -> list[Any]:
    """Answers by batch, as a list by request."""
    found: list[Any] = [None] * total
    for batch, given in zip(batches, answers, strict=True):
        for number, answer in zip(batch, given, strict=True):
            found[number] = answer
    return found


def free_memory() -> None:
    """Frees what a model left on the device before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
