"""Make smaller files of OmniGen2's weights.

    python dev.py convert OmniGen2 OmniGen2-Q5_K --format q5_k
    python dev.py convert OmniGen2 omnigen2-Q5_K.gguf --format q5_k --part transformer
    python dev.py convert omnigen2_fp16.safetensors omnigen2-fp8.safetensors --format fp8
    python dev.py convert OmniGen2 --errors

SOURCE is the authors' folder or a single .safetensors file of the diffusion model or the encoder, in bf16, fp16 or fp32.
A folder becomes a folder, with both parts converted and the rest copied; with --part, and for a file, OUT is a file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import OmniGen2Error
from .convert import convert
from .mix import FORMATS, describe, readable
from .source import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 with a sentence where it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="dev.py convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="model folder, or .safetensors file")
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", help="folder, or file, that is made")
    parser.add_argument("--format", choices=FORMATS, help="what the matrices are stored in")
    parser.add_argument("--part", choices=list(KINDS), help="only this part of a folder, as a file")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--errors", action="store_true", help="make no file; print what each format, or --format, costs in exactness"
    )
    options = parser.parse_args(arguments)
    try:
        if options.errors:
            from .errors import print_errors

            print_errors(options.source, [options.format] if options.format else FORMATS, options.part)
            return 0
        if options.out is None or options.format is None:
            parser.error("give OUT and --format, or --errors")
        started = time.monotonic()
        bar = Bar()
        done = convert(
            options.source, options.out, options.format, part=options.part, force=options.force, progress=bar.show
        )
        bar.end()
        for part in done:
            print(f"\n{part.path}")
            print(describe(part.tensors))
            after = sum(size for _, size in part.tensors)
            print(f"{readable(after)} of {readable(part.size_before)}")
        print(f"\nDone in {time.monotonic() - started:.0f} s.")
        return 0
    except OmniGen2Error as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"this could not be read or written ({error}); make room, or choose another place", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was begun is gone again", file=sys.stderr)
        return 130


class Bar:
    """Progress as text: one line that is written over on a terminal, else a line for every tenth."""

    WIDTH = 40

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.shown = ""
        self.name = ""

    def show(self, name: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `name`."""
        share = done / total if total else 1.0
        if not self.terminal:
            share = int(share * 10) / 10
        filled = int(share * self.WIDTH)
        sizes = f"{readable(done)} of {readable(total)}" if self.terminal else readable(total)
        line = f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] {100 * share:3.0f} %  {name}, {sizes}"
        if line == self.shown:
            return
        if self.terminal:
            print(("\n" if self.name not in ("", name) else "\r") + line, end="", flush=True)
        else:
            print(line, flush=True)
        self.shown, self.name = line, name

    def end(self) -> None:
        """Leave the line."""
        if self.terminal and self.shown:
            print()


if __name__ == "__main__":
    raise SystemExit(main())
