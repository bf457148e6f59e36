"""Replays a folder of golden data: `python dev.py parity DIR`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from ..errors import OmniGen2Error
from .report import print_rows
from .run import Setup, replay_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPE_HELP = (
    "dtype of the networks (default: fp32). Other than fp32, the relative RMS error is judged: at most 2e-2 in bf16, 5e-3 in "
    "fp16. Of the encoder, cases with images in bf16, and all cases in fp16, have only their weights in that dtype and their "
    "activations in fp32; beside the former stands how far off they are with activations in bf16, which is not judged."
)
_HOST_TOKENIZER = "comfy/text_encoders/qwen25_tokenizer"


def find_tokenizer(root: Path) -> Path | None:
    """Qwen2.5's tokenizer files in the private host below `root`, if it has been set up."""
    for depth in ("", "*/", "*/*/"):
        for folder in sorted((root / ".host").glob(depth + _HOST_TOKENIZER)):
            return folder
    return None


def usable_device(name: str) -> torch.device:
    """The device of that name, tried out. Raises ArgumentTypeError for one that this torch cannot compute on."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"this torch ({torch.__version__}) cannot compute on {name!r}: {reason}") from error
    return device


def main(arguments: list[str] | None = None) -> int:
    """Print one line for each case; 0 if all hold, 1 if one does not, 2 if nothing could be replayed."""
    parser = argparse.ArgumentParser(prog="dev.py parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder in the layout of tests/golden")
    parser.add_argument("--device", type=usable_device, default="cpu", help="device of the networks (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help=_DTYPE_HELP)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with Qwen2.5's tokenizer files")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    tokenizer = options.tokenizer or find_tokenizer(Path(__file__).resolve().parents[2])
    # cuDNN would otherwise round fp32 convolutions to ten bits.
    torch.backends.cudnn.allow_tf32 = False
    try:
        return print_rows(replay_folder(options.folder, Setup(options.device, DTYPES[options.dtype], tokenizer)))
    except OmniGen2Error as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
