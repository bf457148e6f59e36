"""What one sampling run on a native MODEL remembers, and conditionings that need not be computed.

Both are ComfyUI wrappers that our MODEL carries, so they work under any guider and sampler. The run object is made
when sampling starts and dropped when it ends; nothing stays on the model.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable, Hashable, Mapping, Sequence

import torch
from comfy.patcher_extension import WrappersMP

from ...omnigen2_core.acceleration.protocol import Evaluation, Run
from ...omnigen2_core.errors import OmniGen2Error
from ...omnigen2_core.schedule import step_at
from .compiling import Compiling

WRAPPER_KEY = "omnigen2"
# Entries of a MODEL's transformer options: the run in progress, and what makes a run's memory from its steps.
RUN_KEY = "omnigen2_run"
MAKE_RUN_KEY = "omnigen2_make_run"
# Where core's EasyCache and LazyCache keep their own state.
EASYCACHE_KEY = "easycache"

MAIN = "positive"
"""Every guider's name for the conditioning of the prompt itself."""

# Differ between conditionings that compute the same.
_LABELS = {"uuid", "prompt_type"}
# Carry state of their own, or change the weights; such conditionings are never taken for one another.
_STATEFUL = {"control", "gligen", "hooks"}
# The conditioning is another one, or none, in a part of the run.
_CHANGING = {"timestep_start", "timestep_end", "hooks"}


class HostRun:
    """One sampling run: rotary tables and refined texts by conditioning, and which conditionings are equal.

    sigmas: falling noise levels. conds: the guider's conditionings by its names for them.
    """

    def __init__(self, sigmas: torch.Tensor, conds: Mapping[str, list[dict]], make_run: Callable[[int], Run] = Run):
        self.levels = sigmas.tolist()
        self.run = make_run(max(len(self.levels) - 1, 1))
        # False while hooks may change the weights from step to step.
        self.fixed_weights = True
        self._names: dict[Hashable, str] = {}
        for name, entries in conds.items():
            for place, entry in enumerate(entries):
                self._names.setdefault(entry["uuid"], f"{name} {place + 1}" if place else name)
        # How often each conditioning was evaluated in the call of the sampler that is in progress.
        self._evaluated: Counter[str] = Counter()
        self._texts: dict[Hashable, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._equal: dict[Hashable, bool] = {}

    def evaluation(
        self, text: torch.Tensor, mask: torch.Tensor | None, transformer_options: dict[str, Any]
    ) -> Evaluation:
        """This forward pass's place in the run. Its text is shared with earlier passes of the same conditionings."""
        ids = tuple(transformer_options.get("uuids") or ())
        branch = ",".join(self._names.get(i, str(i)) for i in ids)
        self._evaluated[branch] += 1
        if self._evaluated[branch] > 1:
            # ComfyUI cuts the areas of one conditioning out of another too, under the same name.
            branch = f"{branch} area {self._evaluated[branch]}"
        # An attention of another node may change from step to step, and the text passes through it.
        fixed = self.fixed_weights and "optimized_attention_override" not in transformer_options
        return self.run.evaluation(
            branch,
            self.step(transformer_options["sigmas"]),
            self._text_key(ids, text, mask) if fixed else None,
            plain=not self.fixed_weights or has_replaced_blocks(transformer_options),
        )

    def step(self, sigma: torch.Tensor) -> int:
        """The step that an evaluation at this noise level belongs to."""
        return step_at(float(sigma[0]), self.levels)

    def begin_call(self, conds: Sequence[list[dict] | None]) -> None:
        """The sampler asks for predictions once more."""
        self._evaluated.clear()
        if any("hooks" in entry for cond in conds if cond is not None for entry in cond):
            self.fixed_weights = False

    def names(self, conds: Sequence[list[dict] | None]) -> list[str | None]:
        """The guider's name of each conditioning; None for one that has none, or is not to be computed."""
        return [self._names.get(cond[0]["uuid"]) if cond else None for cond in conds]

    def equal(self, a: list[dict] | None, b: list[dict] | None) -> bool:
        """Whether two conditionings give the same prediction; looked at once per run."""
        if a is None or b is None or len(a) != len(b):
            return False
        names = tuple(entry["uuid"] for entry in a), tuple(entry["uuid"] for entry in b)
        if names not in self._equal:
            self._equal[names] = all(_same_entry(x, y) for x, y in zip(a, b))
        return self._equal[names]

    def _text_key(self, ids: tuple, text: torch.Tensor, mask: torch.Tensor | None) -> Hashable | None:
        if not ids:
            return None
        # A name alone is not enough: area conditionings share names, and other packs may change text on the way.
        known = self._texts.setdefault(ids, (text, mask))
        return ids if _same(known, (text, mask)) else None


def has_replaced_blocks(transformer_options: Mapping[str, Any]) -> bool:
    """Whether another node has put its own in the place of layers."""
    return bool(transformer_options.get("patches_replace", {}).get("dit"))


def refuse_easycache(transformer_options: Mapping[str, Any]) -> None:
    """Raises OmniGen2Error for a MODEL that has core's EasyCache or LazyCache on it."""
    if EASYCACHE_KEY in transformer_options:
        raise OmniGen2Error(
            f"{transformer_options[EASYCACHE_KEY].name} and OmniGen2 Accelerate are both on this MODEL, and each would "
            "take what the other has approximated for computed; remove one of them, or set OmniGen2 Accelerate to exact."
        )


def sample_with_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE wrapper: makes the run object, and drops it when the run ends in any way."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    state = HostRun(sigmas, guider.conds, options.get(MAKE_RUN_KEY, Run))
    if state.run.saves:
        refuse_easycache(options)
    compiling = Compiling(guider.model_options)
    options[RUN_KEY] = state
    try:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        options.pop(RUN_KEY, None)
        compiling.report()


def compute_what_is_needed(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH wrapper: what an earlier conditioning of the call gives, or a method supplies, is not computed.

    Core's text-to-image template guides with three conditionings of which two are equal.
    """
    options = model_options.get("transformer_options", {})
    state: HostRun | None = options.get(RUN_KEY)
    if state is None:
        return executor(model, conds, x_in, timestep, model_options)
    state.begin_call(conds)
    source = [next(j for j in range(i + 1) if j == i or state.equal(conds[j], conds[i])) for i in range(len(conds))]
    once = [cond if j == i else None for i, (j, cond) in enumerate(zip(source, conds))]

    def compute(some: Sequence[list[dict] | None]) -> list[torch.Tensor]:
        return executor(model, some, x_in, timestep, model_options)

    if state.run.saves:
        out = _compute_with_methods(state, compute, once, x_in, timestep, plain=has_replaced_blocks(options))
    else:
        out = compute(once)
    return [out[j] if j == i else out[j].clone() for i, j in enumerate(source)]


def _compute_with_methods(
    state: HostRun,
    compute: Callable[[Sequence[list[dict] | None]], list[torch.Tensor]],
    conds: Sequence[list[dict] | None],
    x: torch.Tensor,
    timestep: torch.Tensor,
    *,
    plain: bool,
) -> list[torch.Tensor]:
    """Estimates of the clean latents for each conditioning, some of which the run's methods supply.

    Each is computed by itself: a method's state belongs to one, and which are computed together may change.
    """
    names = state.names(conds)
    estimates = [torch.zeros_like(x) for _ in conds]

    def alone(i: int) -> torch.Tensor:
        return compute([cond if j == i else None for j, cond in enumerate(conds)])[i]

    known = [name for name in names if name is not None]
    changing = any(_CHANGING & entry.keys() for cond in conds if cond is not None for entry in cond)
    if plain or changing or MAIN not in known or len(set(known)) < sum(cond is not None for cond in conds):
        for i, cond in enumerate(conds):
            if cond is not None:
                estimates[i] = alone(i)
        return estimates

    sigma = timestep.reshape(-1, *[1] * (x.ndim - 1))
    computed: set[str] = set()

    def ask(some: Sequence[str]) -> dict[str, torch.Tensor]:
        velocities = {}
        for name in some:
            i = names.index(name)
            estimates[i] = alone(i)
            velocities[name] = (x - estimates[i]) / sigma
        computed.update(some)
        return velocities

    velocities = state.run.predict([MAIN, *(name for name in known if name != MAIN)], state.step(timestep), ask)
    for i, name in enumerate(names):
        if name is not None and name not in computed:
            estimates[i] = x - sigma * velocities[name]
    return estimates


def add_run_wrappers(patcher) -> None:
    """Give a freshly loaded MODEL both wrappers; its clones inherit them."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, sample_with_run)
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, compute_what_is_needed)


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
