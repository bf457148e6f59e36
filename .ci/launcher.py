"""Run a Python file or module after mending what an unmatched torch breaks.

    python launcher.py path/to/main.py [arguments]
    python launcher.py -m package.module [arguments]

Package indexes offer torchvision and torchaudio built against CUDA. Beside a torch without CUDA
their native libraries cannot be loaded and importing either package fails, although nothing here
calls those libraries. Where the packages can be imported, this changes nothing.
"""
import importlib.util
import runpy
import sys
import types
from pathlib import Path


def mend_torch_companions() -> None:
    """Make torchvision and torchaudio importable without their native libraries, where those fail."""
    import torch

    if not _torchvision_library_loads():
        # torchvision attaches shape rules to these two operators while it is imported.
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        extension = types.ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = extension._IS_ALIGN_AVAILABLE = False
        extension.fail_if_no_align = lambda function: function
        sys.modules["torchaudio._extension"] = extension


def _torchvision_library_loads() -> bool:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for library in Path(spec.origin).parent.glob("_C*.pyd" if sys.platform == "win32" else "_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def main() -> None:
    mend_torch_companions()
    if sys.argv[1] == "-m":
        sys.argv[:] = sys.argv[2:]
        # This repository's modules, from whatever folder the command was started.
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = sys.argv[1:]
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
