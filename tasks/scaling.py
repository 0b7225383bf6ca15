"""Scaling: language models of several sizes, trained on as many tokens, and what size and computation are worth.

    dmabench scaling --data books/ --size 7M,13M,30M --attention mha,dma --tokens 40e6 --seeds 3

One cell is one model, trained as `dmabench train` trains it. What is fitted to the rows stands in
dmabench/statistics/scaling_fit.py.
"""

from dmabench.tasks import language
from dmabench.tasks.language_model import config_of
from dmabench.tasks.language_stages import AXES, complete, stages_of
from dmabench.tasks.parameters import parameters
from dmabench.tasks.scaling_presets import DEFAULTS, PRESETS
from dmabench.tasks.task import Row, Settings, Task, Tools
from dmabench.tasks.task_model import config_cost


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Trains and scores one model; the row of `dmabench train`, with the two measures of size.

    Raises:
        ValueError: as language.run.
    """
    (row,) = language.run(settings, tools)
    return [{**row, **size_of(settings, row["vocabulary"])}]


def size_of(settings: Settings, vocabulary: int) -> Row:
    """{"body_parameters": parameters beside the embedding, "train_flops": operations of all training steps}."""
    config = config_of(settings, vocabulary)
    counts = parameters(config)
    flops = 0.0
    for stage in stages_of(settings):
        config.window = stage.window or config.window
        flops += config_cost(config, stage.steps * stage.batch * stage.seqlen, stage.seqlen, 1).flops
    return {"body_parameters": counts["total"] - counts["embedding"], "train_flops": flops}


TASK = Task(
    name="scaling",
    title="Scaling: loss over size and computation",
    about="Train models of several sizes on as many tokens: held-out loss over parameters and FLOPs, with fits.",
    examples=(
        "dmabench scaling",
        "dmabench scaling --data books/ --size 7M,13M,30M --attention mha,dma --lr 1e-3,3e-3 --seeds 3",
        "dmabench scaling --preset paper --dry-run",
    ),
    axes=AXES,
    defaults=DEFAULTS,
    presets=PRESETS,
    refusal=language.refusal,
    cost=language.cost,
    run=run,
    control=0.0,
    columns=("test_loss", "perplexity", "parameters", "train_flops", "bits_per_byte", "density"),
    complete=complete,
    prepare=language.prepare,
    chosen_by="validation_loss",
)
