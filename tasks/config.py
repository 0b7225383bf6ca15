"""The settings of a model: Qwen3's, plus which attention each layer has and what that attention needs."""

import difflib
from typing import Any

from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from dmabench.kernels.native_sparse import Settings, settings_for
from dmabench.tasks.kinds import POSITIONS, known_kinds, windowed_kinds

CACHES = ("bounded", "full")
IMPORTANCES = ("v", "k", "random", "constant", "recency")


class ModelConfig(Qwen3Config):
    """Qwen3's fields (hidden_size, num_attention_heads, ...) and these. Everything is saved with a checkpoint.

    Fields that a test may override when it loads a checkpoint: window, positions, yarn_factor, trained_positions,
    dma_backend, dma_bias, dma_mask, nsa_backend, nsa, decode_cache. The others belong to the weights.
    """

    model_type = "dmabench"

    attention: str = "dma"
    """A kind, or a pattern that the layers repeat: "swa:5,mha:1" is five sliding-window layers, then a dense one."""
    window: int = 512
    """Keys a query attends to in swa and dma; nsa divides it between its branches (see `nsa`)."""
    short_conv: int = 0
    """Width of the causal depthwise convolution on the input of each attention, whatever its kind; 0 for none."""
    positions: str = "rope"
    """rope, none, or yarn: rotary positions stretched at evaluation by `yarn_factor` beyond `trained_positions`."""
    yarn_factor: float = 4.0
    trained_positions: int | None = None
    """Tokens in a training sequence, which yarn stretches from; default max_position_embeddings."""
    decode_cache: str = "bounded"
    """bounded: swa and dma keep `window` keys a head. full: all layers keep all, as assisted decoding (crop) needs."""
    dma_backend: str = "auto"
    dma_parametrisation: str = "exp"
    dma_importance: str = "v"
    """What dma's importance comes from, for ablations of it (the default is the paper's). v, k: learned from values, or
    from normed keys before rotary positions. random: from values through weights that stay as they were drawn.
    constant: none, which is a sliding window. recency: the position times 2^(-8 h / G) for the h-th of G key/value
    heads, which is a sliding window with ALiBi's bias (arXiv 2108.12409)."""
    dma_shared: bool = False
    """One importance for all heads of a layer, instead of one a key/value head."""
    dma_bias: bool = True
    """Importance is added to the scores. Without, it only chooses keys, and nothing trains it."""
    dma_mask: bool = True
    """Importance chooses `window` keys. Without, all keys are attended to, and it only is a bias."""
    nsa_backend: str = "auto"
    nsa: str | dict[str, int] = "equal"
    """NSA's sizes. equal: those with which a query reads `window` single keys, as in dma. paper: those of the NSA
    paper, whatever the window. Or a dictionary with the fields of kernels.native_sparse.Settings."""
    mla_latent: int | None = None
    """Numbers that MLA caches a token, beside the rotary key; default hidden_size / 4."""
    mla_rope_dim: int | None = None
    """Rotary dims of MLA's queries and of its shared key; default head_dim / 2."""
    mla_nope_dim: int | None = None
    """The other query and key dims of an MLA head; default: what brings its parameters nearest to MHA's."""
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()

    @property
    def kinds(self) -> list[str]:
        """The attention of each layer."""
        pattern = parse_pattern(self.attention)
        return [pattern[layer % len(pattern)] for layer in range(self.num_hidden_layers)]

    @property
    def has_window(self) -> bool:
        """Whether `window` changes any layer."""
        return bool(set(self.kinds) & set(windowed_kinds()))

    def window_of(self, kind: str) -> int | None:
        """Keys that a query of swa, of dma, or of a windowed attention from outside attends to at most; None for other
        kinds, and for dma without its mask."""
        bounded = self.dma_mask if kind == "dma" else kind != "nsa" and kind in windowed_kinds()
        return self.window if bounded else None

    @property
    def position_limit(self) -> int | None:
        """Tokens that positions reach to; None where there are no positions."""
        if self.positions == "none":
            return None
        if self.positions == "yarn":
            return int(self.yarn_factor * (self.trained_positions or self.max_position_embeddings))
        return self.max_position_embeddings

    @property
    def nsa_settings(self) -> Settings:
        """NSA's sizes; ValueError where they do not fit each other."""
        if isinstance(self.nsa, dict):
            return Settings(**self.nsa)
        _one_of("nsa", self.nsa, ("equal", "paper"))
        return settings_for(self.window if self.nsa == "equal" else None)

    @property
    def latent_dims(self) -> tuple[int, int, int]:
        """Latent, nope and rope dims of MLA; a head's value dims are head_dim.

        With D = hidden_size, H query and G key/value heads of size d, latent L, rope R, nope N, an MHA layer has
        `D d (2H + 2G)` parameters in its projections and an MLA layer `D H (N + R)` (queries) `+ D (L + R)` (latent and
        rotary key) `+ L H (N + d)` (keys and values) `+ H d D` (output). Solved for N and rounded to a multiple of a
        quarter head. At D = 1536, 12/6 heads of 128, L = 384, R = 64: 7,077,888 against N (18432 + 4608) + 4,815,360
        gives N = 98.2, so 96: 7,028,736 parameters, 0.7% of the layer's projections below MHA.
        """
        D, H, G, d = self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim
        L = self.mla_latent or D // 4
        R = self.mla_rope_dim or d // 2
        if self.mla_nope_dim:
            return L, self.mla_nope_dim, R
        exact = (D * d * (2 * H + 2 * G) - D * H * R - D * (L + R) - L * H * d - H * d * D) / (D * H + L * H)
        step = max(1, d // 4)
        return L, min(d, max(step, round(exact / step) * step)), R

    def rotary(self, dim: int) -> Qwen3Config:
        """The settings of a rotary embedding of `dim` dims with these positions."""
        parameters = {"rope_type": "default", "rope_theta": self.rope_parameters["rope_theta"]}
        if self.positions == "yarn":
            trained = self.trained_positions or self.max_position_embeddings
            parameters |= {"rope_type": "yarn", "factor": self.yarn_factor, "original_max_position_embeddings": trained}
        return Qwen3Config(
            head_dim=dim,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.position_limit or self.max_position_embeddings,
            rope_parameters=parameters,
        )

    def check(self) -> None:
        """ValueError, in a sentence, for settings that do not fit; called again when a model is built."""
        if "nsa" in parse_pattern(self.attention):
            _ = self.nsa_settings
        _one_of("positions", self.positions, POSITIONS)
        _one_of("decode_cache", self.decode_cache, CACHES)
        _one_of("dma_importance", self.dma_importance, IMPORTANCES)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value heads "
                "evenly: num_attention_heads must be a multiple of num_key_value_heads"
            )
        if self.head_dim % 4:
            raise ValueError(f"head_dim {self.head_dim} must be a multiple of 4: rotary positions rotate pairs of dims")
        _at_least("window", self.window, 1)
        for name in ("mla_latent", "mla_nope_dim", "mla_rope_dim"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("short_conv", self.short_conv, 0)
        if self.positions == "yarn" and not self.yarn_factor >= 1:
            raise ValueError(f"yarn_factor {self.yarn_factor} must be at least 1: yarn stretches positions")


def parse_pattern(attention: str) -> list[str]:
    """The kinds of a pattern's layers: "swa:5,mha:1" gives five times swa, then mha.

    Raises:
        ValueError: an unknown kind, with the nearest known one, or a count that is none.
    """
    kinds: list[str] = []
    for part in attention.split(","):
        kind, _, count = (text.strip() for text in part.partition(":"))
        _one_of("attention", kind, known_kinds())
        if count and not (count.isdecimal() and int(count) > 0):
            raise ValueError(
                f"attention {attention!r}: {count!r} is no number of layers; a pattern looks like swa:5,mha:1"
            )
        kinds += [kind] * int(count or 1)
    return kinds


def window_note(config: ModelConfig, length: int) -> str | None:
    """What to say where a window covers a whole sequence of `length` tokens, so that nothing is sparse; else None."""
    windowed = sorted({kind for kind in config.kinds if config.window_of(kind)})
    if not windowed or length > config.window:
        return None
    return (
        f"window {config.window} covers all {length} tokens: {' and '.join(windowed)} attention is dense here. "
        "Choose a smaller window or a longer sequence to see sparsity"
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.3)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} {value!r} is unknown, known are {', '.join(known)}{meant}")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
