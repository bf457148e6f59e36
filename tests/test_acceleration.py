"""TeaCache and TaylorSeer follow the reference step by step, and no state outlives its run or leaves its branch."""

import pytest
import torch
from dit_golden import DitCases, max_error, tiny_dit
from trajectories import Replay

from omnigen2_core.acceleration.protocol import Run
from omnigen2_core.acceleration.taylorseer import TaylorSeer
from omnigen2_core.acceleration.teacache import COEFFICIENTS, TeaCache, expected_change

CACHED = (
    "t2i_teacache_005",
    "t2i_teacache_02",
    "ref1_dual_teacache_005",
    "ref1_dual_teacache_02",
    "t2i_taylorseer",
    "ref1_dual_taylorseer",
    "ref1_dual_taylorseer_dpm",
)


@pytest.fixture(scope="module")
def model(golden):
    return tiny_dit(golden)


@pytest.fixture(scope="module")
def slow_model(golden, model):
    """The weights of the TeaCache cases, whose steps differ little enough to be skipped."""
    slow = tiny_dit(golden)
    slow.time_caption_embed.timestep_embedder.linear_2.weight *= 0.0625
    return slow


@pytest.mark.parametrize("name", CACHED)
def test_golden_trajectory(name, golden, model, slow_model):
    replay = Replay.load(golden, name)
    run = Run(replay.about["steps"], replay.make_cache)
    steps = replay.run(slow_model if "weight_scale" in replay.about else model, run)
    for branch, want in replay.about["branches"].items():
        assert run.computed.get(branch, []) == want["steps_computed"]
        assert run.skipped.get(branch, []) == want["steps_from_cache"]
    assert max_error(steps, replay.tensors["latents_per_step"][:, None]) <= 1e-4


def test_teacache_accumulates_as_the_reference_does(golden, slow_model):
    replay = Replay.load(golden, "t2i_teacache_005")
    seen = []

    class Watched(TeaCache):
        def run_layers(self, stack, evaluation):
            before = self._accumulated[0] if self._accumulated else None
            out = super().run_layers(stack, evaluation)
            if evaluation.branch == "cond":
                seen.append((before, self._accumulated[0]))
            return out

    replay.run(slow_model, Run(20, lambda: Watched(0.05)))
    for step, change, accumulated, computed in replay.about["teacache_trace"]["cond"]:
        if change is not None and not computed:
            assert seen[step][1] == pytest.approx(accumulated, abs=1e-5)
            assert seen[step][1] - seen[step][0] == pytest.approx(expected_change(change), abs=1e-5)


def test_expected_change_is_the_published_polynomial():
    assert expected_change(0.0) == COEFFICIENTS[-1]
    assert expected_change(0.5) == pytest.approx(
        -5.48259225 / 16 + 11.48772289 / 8 - 4.47407401 / 4 + 2.47730926 / 2 - 0.03316487
    )


@pytest.mark.parametrize("make_cache", [lambda: TeaCache(1e9), TaylorSeer])
def test_a_branch_that_joins_late_computes_first(make_cache, golden, slow_model):
    # A guidance range that starts after step 0: the reference has no state for the late branches and fails.
    replay = Replay.load(golden, "ref1_dual_teacache_005")
    steps = replay.about["steps"]
    run = Run(steps, make_cache)
    latents = replay.run(slow_model, run, range=(0.3, 1.0))
    first = next(step for step in range(steps) if step / steps >= 0.3)
    assert run.computed["ref"][0] == run.computed["uncond"][0] == first
    assert run.computed["cond"][0] == 0
    assert all(x.isfinite().all() for x in latents)


def test_teacache_always_computes_the_first_and_last_step(golden, slow_model):
    replay = Replay.load(golden, "t2i_teacache_005")
    run = Run(20, lambda: TeaCache(1e9))
    replay.run(slow_model, run)
    assert run.computed == {"cond": [0, 19], "uncond": [0, 19]}


def test_a_second_run_starts_from_nothing(golden, slow_model):
    replay = Replay.load(golden, "t2i_teacache_005")
    before = {name: value.clone() for name, value in slow_model.state_dict().items()}
    attributes = {module: set(vars(module)) for module in slow_model.modules()}
    first = replay.run(slow_model, Run(20, replay.make_cache))
    second = replay.run(slow_model, Run(20, replay.make_cache))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert {module: set(vars(module)) for module in slow_model.modules()} == attributes
    assert all(torch.equal(value, before[name]) for name, value in slow_model.state_dict().items())


def test_branches_do_not_share_a_cache(golden, slow_model):
    replay = Replay.load(golden, "ref1_dual_teacache_02")
    run = Run(replay.about["steps"], replay.make_cache)
    predict = replay.predictor(slow_model, run)
    x, times = replay.tensors["noise"], replay.tensors["timesteps"]
    alone = [predict("cond", x, float(t), i) for i, t in enumerate(times[:6])]
    mixed_run = Run(replay.about["steps"], replay.make_cache)
    predict = replay.predictor(slow_model, mixed_run)
    mixed = []
    for i, t in enumerate(times[:6]):
        mixed.append(predict("cond", x, float(t), i))
        predict("uncond", 3 * x, float(t), i)
        predict("ref", -x, float(t), i)
    assert run.skipped["cond"], "nothing was skipped, so nothing is shown"
    assert all(torch.equal(a, b) for a, b in zip(alone, mixed, strict=True))


@pytest.mark.parametrize("make_cache", [lambda: TeaCache(1e9), lambda: TaylorSeer(warm_up=1)])
def test_a_change_of_size_is_computed_not_extrapolated(make_cache, golden, model):
    inputs = DitCases(golden).inputs("t2i")
    run = Run(10, make_cache)
    model(**inputs, state=run.evaluation("cond", 0))
    smaller = {**inputs, "latents": inputs["latents"][..., :4]}
    got = model(**smaller, state=run.evaluation("cond", 1))
    assert torch.equal(got, model(**smaller))
    assert run.computed == {"cond": [0, 1]}


def test_one_sample_of_a_batch_that_changes_makes_the_batch_compute(golden, slow_model):
    inputs = DitCases(golden).inputs("batch3_timesteps")
    inputs["timestep"] = torch.full((3,), 0.5)
    run = Run(10, lambda: TeaCache(0.2))
    slow_model(**inputs, state=run.evaluation("cond", 0))
    slow_model(**inputs, state=run.evaluation("cond", 1))
    assert run.skipped == {"cond": [1]}
    inputs["latents"] = torch.cat((inputs["latents"][:2], -inputs["latents"][2:]))
    slow_model(**inputs, state=run.evaluation("cond", 2))
    assert run.computed == {"cond": [0, 2]}


def test_taylorseer_is_exact_for_a_polynomial():
    class Stack:
        """Layers whose output is a cubic in the call number."""

        calls = 0

        class joint:
            layouts = ("one",)

        def run(self):
            computed.append(self.calls)
            return self.output()

        def output(self):
            return torch.full((1, 2, 3), 2.0 + 3.0 * self.calls)

    stack, cache = Stack(), TaylorSeer()
    computed = []
    for call in range(16):
        stack.calls = call
        assert torch.allclose(cache.run_layers(stack, None), stack.output(), atol=1e-4)
    assert computed == [0, 1, 2, 3, 4, 7, 10, 13]


def test_state_without_a_cache_changes_nothing_and_refines_text_once(golden, model):
    inputs = DitCases(golden).inputs("batch2_mixed")
    plain = model(**inputs)
    calls = []
    handle = model.context_refiner[0].register_forward_hook(lambda *_: calls.append(1))
    run = Run(3)
    try:
        for step in range(3):
            assert torch.equal(model(**inputs, state=run.evaluation("cond", step, text_key="prompt")), plain)
        assert len(calls) == 1
        inputs["text"] = -inputs["text"]
        assert not torch.equal(model(**inputs, state=run.evaluation("uncond", 0, text_key="negative")), plain)
        assert len(calls) == 2
        model(**inputs, state=run.evaluation("other", 0))
        model(**inputs, state=run.evaluation("other", 1))
        assert len(calls) == 4, "text without a key is refined every time"
    finally:
        handle.remove()
    assert run.computed == {"cond": [0, 1, 2], "uncond": [0], "other": [0, 1]}


def test_what_branches_share_is_kept_for_each_device():
    """A host with several cards evaluates branches on several at once."""
    image = torch.ones(1, 4)
    state = Run(1).evaluation("cond", 0, text_key="prompt")
    state.memory_of("image", [image])["refined"] = "here"
    assert state.memory_of("image", [image.to("meta")]) == {}
    assert state.memory_of("image", [image]) == {"refined": "here"}
