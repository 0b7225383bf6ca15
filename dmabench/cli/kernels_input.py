"""What the words of `dmabench kernels` mean: the device, the blocks of settings, the cells. What is wrong with them is
said here, before anything is made or measured."""

from difflib import get_close_matches

from dmabench.errors import Refusal
from dmabench.workload.cells import Cell, make_cells
from dmabench.workload.presets import CPU, CUDA, DECODE, LAYER, PRESETS
from dmabench.workload.sweeps import parse_sweep

SWEEPS = ("seqlen", "window", "batch", "heads", "kv_heads", "head_dim")


def check_words(given: dict[str, str | None], preset: str | None) -> None:
    """Refuse what can be refused before torch is imported, which takes seconds."""
    for name in SWEEPS:
        if (text := given[name]) is not None:
            parse_sweep(text, f"--{name.replace('_', '-')}")
    if preset is not None and preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(f"--preset {preset!r} is unknown; choose from {', '.join(PRESETS)}{hint}")


def choose_device(wanted: str) -> str:
    """What --device means here: "cpu", "cuda" or "cuda:1"."""
    import torch

    if wanted not in ("auto", "cpu", "cuda") and not wanted.startswith("cuda:"):
        raise Refusal(f"--device {wanted!r} is unknown; write cpu, cuda, cuda:1 or auto")
    count = torch.cuda.device_count()  # makes no CUDA context
    if wanted == "auto":
        return "cuda" if count else "cpu"
    index = wanted.removeprefix("cuda").removeprefix(":") or "0"
    if wanted != "cpu" and not (index.isdigit() and int(index) < count):
        raise Refusal(f"--device {wanted}: torch sees {count} CUDA devices; see dmabench doctor, or use --device cpu")
    return wanted


def settings_blocks(given: dict[str, str | None], preset: str | None, device: str) -> list[dict[str, str]]:
    """Device defaults, overridden by the preset, overridden by flags. Where no backends are named, they depend on the
    pass and the level: then each pass and level has a block of its own."""
    defaults = CUDA if device.startswith("cuda") else CPU
    flags = {name: value for name, value in given.items() if value is not None}
    blocks = []
    for block in PRESETS[preset]["blocks"] if preset else [{}]:
        chosen = {**defaults, **block, **flags}
        if "backend" in block or "backend" in flags:
            blocks.append(chosen)
        else:
            blocks += _with_backends(chosen, "cuda" if device.startswith("cuda") else "cpu")
    return blocks


def _with_backends(block: dict[str, str], device: str) -> list[dict[str, str]]:
    """The block, divided so that each part has the default backends of its passes and level."""
    passes, levels = ([word.strip() for word in block[name].split(",")] for name in ("pass", "level"))
    whole = ",".join(word for word in passes if word != "decode")
    parts = []
    for level in levels:
        if whole:
            backends = LAYER[device] if level == "layer" else block["backend"]
            parts.append({**block, "level": level, "pass": whole, "backend": backends})
        if "decode" in passes:
            parts.append({**block, "level": level, "pass": "decode", "backend": DECODE[device]})
    return parts


def label_delta_files(blocks: list[dict[str, str]]) -> dict[str, str]:
    """Replace `file:PATH` by a label of name and content, so that no path reaches a row; label -> path."""
    import hashlib
    from pathlib import Path

    labels: dict[str, str] = {}
    for block in blocks:
        words = block["delta"].split(",")
        for n, word in enumerate(words):
            if not word.strip().startswith("file:"):
                continue
            path = Path(word.strip().removeprefix("file:"))
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
            except OSError as error:
                raise Refusal(f"--delta {word}: cannot read the file ({error.strerror}); give a .npy file") from error
            words[n] = f"file:{path.name}@{digest}"
            labels[words[n]] = str(path)
        block["delta"] = ",".join(words)
    return labels


def check_delta_files(cells: list[Cell], files: dict[str, str]) -> None:
    """Refuse a file that does not fit now, not after an hour of other cells."""
    if not files:
        return
    from dmabench.workload.inputs import delta_from_file

    for cell in cells:
        if cell.delta in files:
            path = files[cell.delta]
            try:
                delta_from_file(path, cell.shape.batch, cell.shape.kv_heads, cell.shape.key_len)
            except (TypeError, ValueError) as error:
                raise Refusal(f"--delta file:{path}: holds no real numbers ({error}); save floats") from error


def expand(blocks: list[dict[str, str]], device: str, seed: int, dense: bool) -> list[Cell]:
    """The cells of all blocks, each once."""
    from dmabench.kernels import backends

    known = [backend.id for backend in backends()]
    cells = [cell for block in blocks for cell in make_cells(block, known, device, seed, dense)]
    return list({cell.id: cell for cell in cells}.values())


def check_replay(cells: list[Cell]) -> None:
    """Refuse --replay where no CUDA graph can be made of the region."""
    for cell in cells:
        if not cell.shape.device.startswith("cuda"):
            raise Refusal("--replay times CUDA graphs, and this run is on a CPU: leave it out")


def switched() -> dict[str, str]:
    """A setting of the run: which kernels serve Hopper, where the environment says another choice than the usual one.

    Raises:
        Refusal: it names what does not exist.
    """
    from dmabench.kernels.dma_cuda import hopper

    wrong = hopper.misnamed()
    if wrong:
        raise Refusal(wrong)
    named = ",".join(name for name in hopper.KERNELS if name in hopper.ON) or "none"
    return {} if named == hopper.USUAL else {"hopper": named}
