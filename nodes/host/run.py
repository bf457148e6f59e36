"""What one sampling run on a native MODEL remembers, and equal conditionings computed once.

Both are ComfyUI wrappers that our MODEL carries, so they work under any guider and sampler. The run object is made
when sampling starts and dropped when it ends; nothing stays on the model.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable, Hashable

import torch
from comfy.patcher_extension import WrappersMP

from ...omnigen2_core.acceleration.protocol import BranchCache, Evaluation, Run
from ...omnigen2_core.schedule import step_at

WRAPPER_KEY = "omnigen2"
# Entries of a MODEL's transformer options: the run in progress, and a maker of caches, one for each branch of a run.
RUN_KEY = "omnigen2_run"
CACHE_KEY = "omnigen2_make_cache"

# Differ between conditionings that compute the same.
_LABELS = {"uuid", "prompt_type"}
# Carry state of their own, or change the weights; such conditionings are never taken for one another.
_STATEFUL = {"control", "gligen", "hooks"}


class HostRun:
    """One sampling run: rotary tables and refined texts by conditioning, and which conditionings are equal."""

    def __init__(self, sigmas: torch.Tensor, make_cache: Callable[[], BranchCache] | None = None):
        self.levels = sigmas.tolist()
        self.run = Run(max(len(self.levels) - 1, 1), make_cache)
        # False while hooks may change the weights from step to step.
        self.fixed_weights = True
        # How often each conditioning was evaluated in the call of the sampler that is in progress.
        self._evaluated: Counter[str] = Counter()
        self._texts: dict[Hashable, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._equal: dict[Hashable, bool] = {}

    def evaluation(
        self, text: torch.Tensor, mask: torch.Tensor | None, transformer_options: dict[str, Any]
    ) -> Evaluation:
        """This forward pass's place in the run. Its text is shared with earlier passes of the same conditionings."""
        names = tuple(transformer_options.get("uuids") or ())
        step = step_at(float(transformer_options["sigmas"][0]), self.levels)
        branch = ",".join(map(str, names))
        self._evaluated[branch] += 1
        if self._evaluated[branch] > 1:
            # ComfyUI cuts the areas of one conditioning out of another too, under the same name.
            branch = f"{branch} area {self._evaluated[branch]}"
        # An attention of another node may change from step to step, and the text passes through it.
        fixed = self.fixed_weights and "optimized_attention_override" not in transformer_options
        return self.run.evaluation(branch, step, self._text_key(names, text, mask) if fixed else None)

    def begin_call(self) -> None:
        """The sampler asks for predictions once more."""
        self._evaluated.clear()

    def equal(self, a: list[dict] | None, b: list[dict] | None) -> bool:
        """Whether two conditionings give the same prediction; looked at once per run."""
        if a is None or b is None or len(a) != len(b):
            return False
        names = tuple(entry["uuid"] for entry in a), tuple(entry["uuid"] for entry in b)
        if names not in self._equal:
            self._equal[names] = all(_same_entry(x, y) for x, y in zip(a, b))
        return self._equal[names]

    def _text_key(self, names: tuple, text: torch.Tensor, mask: torch.Tensor | None) -> Hashable | None:
        if not names:
            return None
        # A name alone is not enough: area conditionings share names, and other packs may change text on the way.
        known = self._texts.setdefault(names, (text, mask))
        return names if _same(known, (text, mask)) else None


def sample_with_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE wrapper: makes the run object, and drops it when the run ends in any way."""
    options = executor.class_obj.model_options["transformer_options"]
    options[RUN_KEY] = HostRun(sigmas, options.get(CACHE_KEY))
    try:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        options.pop(RUN_KEY, None)


def compute_equal_once(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH wrapper: a conditioning equal to an earlier one of the same call takes its prediction.

    Core's text-to-image template guides with three conditionings of which two are equal.
    """
    run: HostRun | None = model_options.get("transformer_options", {}).get(RUN_KEY)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    run.begin_call()
    if any("hooks" in entry for cond in conds if cond is not None for entry in cond):
        run.fixed_weights = False
    source = [next(j for j in range(i + 1) if j == i or run.equal(conds[j], conds[i])) for i in range(len(conds))]
    once = [cond if j == i else None for i, (j, cond) in enumerate(zip(source, conds))]
    out = executor(model, once, x_in, timestep, model_options)
    return [out[j] if j == i else out[j].clone() for i, j in enumerate(source)]


def add_run_wrappers(patcher) -> None:
    """Give a freshly loaded MODEL both wrappers; its clones inherit them."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, sample_with_run)
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, compute_equal_once)


def _same_entry(a: dict, b: dict) -> bool:
    keys = a.keys() - _LABELS
    if keys & _STATEFUL or keys != b.keys() - _LABELS:
        return False
    return all(_same(a[key], b[key]) for key in keys)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if hasattr(a, "can_concat") and hasattr(a, "cond"):
        return _same(a.cond, b.cond)
    return isinstance(a, (str, int, float, bool)) and a == b
