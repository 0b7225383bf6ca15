"""Downstream benchmarks: lm-eval's own tasks, prompts and metrics, on our models and on any of Hugging Face.

    catalogue         which tasks have local files, and where their stock definition is
    local_data        a folder of files in place of the hub
    hub               is it there
    checkpoints       a model, its tokenizer and the hash of its weights
    peers, answers    processes that share one evaluation, and what they computed so far
    language_model    lm-eval's model class, with our batches
    audit             how long the examples were, and whether sparsity was active on them
    harness           one task on one model, as rows

Only language_model and harness import lm_eval, which takes seconds: import those two where a model is scored.
"""
