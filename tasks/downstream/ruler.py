"""What lm-eval's RULER takes for granted of a tokenizer."""

EXAMPLE_TOKENS, NOISES, ANSWER_TOKENS, CHAINS, HOPS = 500, 5, 30, 1, 4
"""Of the worked example in prompts of ruler_vt (lm_eval/tasks/ruler/vt_utils.py, get_dataset): the most tokens it may
have, the sentences around it at least, and what its answer is given."""


def refuse_endless(task: str, tokenizer: str) -> None:
    """ValueError where lm-eval would look for the worked example of `task` for ever: it tries shorter ones until one
    has 500 tokens, and with few characters a token none has.

    Args:
        tokenizer: its folder.
    """
    if task not in ("ruler", "ruler_vt"):
        return
    from lm_eval.tasks.ruler.common_utils import get_tokenizer
    from lm_eval.tasks.ruler.vt_utils import generate_input_output

    text, answer = generate_input_output(NOISES, CHAINS, HOPS, is_icl=True)
    shortest = f"{text} {answer}"
    tokens = len(get_tokenizer(tokenizer)(shortest).input_ids) + ANSWER_TOKENS
    if tokens > EXAMPLE_TOKENS:
        density = len(shortest) / (tokens - ANSWER_TOKENS)
        raise ValueError(
            f"{task} shows a worked example of {EXAMPLE_TOKENS} tokens, and with this tokenizer the shortest has "
            f"{tokens} ({density:.1f} characters a token): score a model with a larger vocabulary"
        )
