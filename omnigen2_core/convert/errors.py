"""What each format costs in exactness, against the weights that are converted."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import CONFIG_KEY, ModelFolder, SingleFile
from ..mllm import build_mllm, encode_text, load_mllm_state_dict
from ..quantised import PackedTensor
from ..transformer import OmniGen2Config, OmniGen2Transformer
from .convert import convert_part, ending
from .mix import readable
from .source import KINDS, Source, source_of_file, source_of_folder

LARGEST_RUN = 1 << 29
"""Numbers in a part up to which its output is compared too: that takes two copies of them in fp32."""


@dataclass(frozen=True)
class FormatError:
    """Of one part in one format. bits: a weight takes, all tensors together. weights, worst: error of the stored matrices
    relative to their size (root of the mean squares), of all together and of the worst. output: likewise of what the
    part computes, None where it was not run.
    """

    bits: float
    size: int
    weights: float
    worst: float
    output: float | None


def measure(source: Source, format: str) -> FormatError:
    """Convert `source` to `format` in a temporary file, read that again, and compare. The output is compared where the
    source has its config.
    """
    with tempfile.TemporaryDirectory(prefix="omnigen2-") as folder:
        path = Path(folder) / f"{source.part}{ending(format)}"
        converted = convert_part(source, path, format)
        found = SingleFile(path, KINDS[source.part]).state_dict(torch.float32, packed=True)
        wrong = power = worst = 0.0
        for name, tensor in found.items():
            if isinstance(tensor, PackedTensor):
                off, own = _squares(source, name, tensor.numbers().flatten())
                wrong, power = wrong + off, power + own
                worst = max(worst, math.sqrt(off / own) if own else 0.0)
        count = sum(math.prod(info.shape) for info in source.tensors.values())
        output = None
        if count <= LARGEST_RUN and CONFIG_KEY in source.metadata:
            exact = {name: torch.cat(list(source.pieces(name))).float() for name in source.tensors}
            rounded = {name: t.numbers() if isinstance(t, PackedTensor) else t for name, t in found.items()}
            before, after = (_OUTPUTS[source.part](source, weights) for weights in (exact, rounded))
            output = ((after - before).norm() / before.norm()).item()
        size = sum(size for _, size in converted.tensors)
        return FormatError(8 * size / count, size, math.sqrt(wrong / power), worst, output)


def _squares(source: Source, name: str, numbers: Tensor) -> tuple[float, float]:
    """Sums of squares: of the error of `numbers`, flat, and of the source's own."""
    off = own = 0.0
    start = 0
    for piece in source.pieces(name):
        exact = piece.float().flatten()
        off += (numbers[start : start + len(exact)] - exact).double().square().sum().item()
        own += exact.double().square().sum().item()
        start += len(exact)
    return off, own


@torch.inference_mode()
def _velocity(source: Source, weights: Mapping[str, Tensor]) -> Tensor:
    """What the transformer makes of noise, a text and a reference that are drawn once and for all."""
    config = OmniGen2Config.from_dict(json.loads(source.metadata[CONFIG_KEY]))
    model = OmniGen2Transformer(config, device="meta")
    model.load_state_dict(weights, assign=True)
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(4, config.in_channels, 16, 16, generator=draw)
    text = torch.randn(4, 20, config.text_feat_dim, generator=draw)
    references = [[torch.randn(config.in_channels, 16, 16, generator=draw)] for _ in range(4)]
    return model(latents, torch.tensor([0.1, 0.4, 0.7, 0.95]), text, references=references)


@torch.inference_mode()
def _hidden(source: Source, weights: Mapping[str, Tensor]) -> Tensor:
    """What the encoder makes of a row of words that is drawn once and for all."""
    config = json.loads(source.metadata[CONFIG_KEY])
    model = build_mllm(config, dtype=torch.float32)
    load_mllm_state_dict(model, weights)
    ids = torch.randint(0, config.get("vocab_size", 1000) // 2, (2, 40), generator=torch.Generator().manual_seed(0))
    return encode_text(model, ids, torch.ones_like(ids))


_OUTPUTS: dict[str, Callable[[Source, Mapping[str, Tensor]], Tensor]] = {"transformer": _velocity, "mllm": _hidden}


def print_errors(path: Path, formats: Iterable[str], part: str | None = None) -> None:
    """A table for each part of the folder or file at `path`, a line for each format as it is measured."""
    if path.is_dir():
        folder = ModelFolder(path)
        sources = [source_of_folder(folder, name) for name in ([part] if part else KINDS)]
    else:
        sources = [source_of_file(path)]
    formats = list(formats)
    for source in sources:
        print(f"\n{source.name}, {readable(source.size)}")
        print(f"{'format':<8}{'bits':>6}{'size':>10}{'weights':>10}{'worst':>10}{'output':>10}", flush=True)
        for format in formats:
            found = measure(source, format)
            output = "-" if found.output is None else f"{100 * found.output:.3f} %"
            print(
                f"{format:<8}{found.bits:>6.2f}{readable(found.size):>10}{100 * found.weights:>8.3f} %"
                f"{100 * found.worst:>8.3f} %{output:>10}",
                flush=True,
            )
    print(
        "\nRoot of the mean squared error, relative to what is exact: of all matrices that are stored in the format, of "
        "the worst of\nthem, and of what the part computes from drawn inputs (- where it is too large to run here)."
    )
