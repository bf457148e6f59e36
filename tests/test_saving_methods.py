"""The methods that save work: exact where they save nothing, counted where they do, and none of them leaks.

Every leak is also made on purpose, to show that the test would see it.
"""

import pytest
import torch
from dit_golden import DitCases, max_error, relative_rms, tiny_dit
from trajectories import Replay

from omnigen2_core.acceleration.adaptive_guidance import AdaptiveGuidance, disagreement
from omnigen2_core.acceleration.first_block import FirstBlockCache
from omnigen2_core.acceleration.guidance_reuse import GuidanceReuse
from omnigen2_core.acceleration.kept_context import KeptContext
from omnigen2_core.acceleration.presets import PRESETS, Acceleration
from omnigen2_core.acceleration.protocol import Run, Work
from omnigen2_core.acceleration.taylorseer import TaylorSeer
from omnigen2_core.errors import OmniGen2Error

STEPS = 20
LAYERS = 3
CASE = "ref1_dual_teacache_005"
SAVING = {
    "context_refresh": Acceleration(context_refresh=3),
    "guidance_every": Acceleration(guidance_every=3),
    "disagreement": Acceleration(disagreement=0.5),
    "first_block": Acceleration(first_block=0.5),
    "teacache": Acceleration(teacache=0.2),
    "taylorseer": Acceleration(taylorseer=3),
    "together": Acceleration(context_refresh=3, guidance_every=2, disagreement=1e-3, first_block=0.1),
}


@pytest.fixture(scope="module")
def model(golden):
    return tiny_dit(golden)


@pytest.fixture(scope="module")
def slow_model(golden):
    """The weights of the golden cache cases, whose steps differ little enough to be skipped."""
    slow = tiny_dit(golden)
    slow.time_caption_embed.timestep_embedder.linear_2.weight *= 0.0625
    return slow


@pytest.fixture(scope="module")
def replay(golden):
    return Replay.load(golden, CASE)


@pytest.fixture(scope="module")
def plain(slow_model, replay):
    return replay.run(slow_model, Run(STEPS))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def kinds(run, branch):
    return [work.kind for work in run.record if work.branch == branch]


# Exact where nothing is saved


@pytest.mark.parametrize(
    "methods",
    [
        {"make_context": lambda: KeptContext(1)},
        {"guidance": [GuidanceReuse(1)]},
        {"guidance": [AdaptiveGuidance(0.0)]},
        {"make_cache": lambda: FirstBlockCache(0.0)},
        {"make_cache": lambda: TaylorSeer(interval=1)},
    ],
    ids=["context", "reuse", "adaptive", "first_block", "taylorseer"],
)
def test_a_method_that_saves_nothing_is_the_plain_path_bit_for_bit(methods, slow_model, replay, plain):
    run = Run(STEPS, **methods)
    assert same(replay.run(slow_model, run), plain)
    assert {work.kind for work in run.record} == {"full"} and len(run.record) == 3 * STEPS


def test_all_off_is_a_plain_run():
    assert not Acceleration().run(STEPS).saves
    assert all(acceleration.run(STEPS).saves for acceleration in SAVING.values())


@pytest.mark.parametrize("name", ["t2i", "ref1", "ref3", "ref5", "batch2_mixed", "batch3_timesteps"])
def test_the_image_alone_against_what_was_kept_at_the_same_place_is_the_whole(name, golden, model):
    inputs = DitCases(golden).inputs(name)
    run = Run(STEPS, make_context=lambda: KeptContext(2))
    whole = model(**inputs, state=run.evaluation("cond", 0))
    alone = model(**inputs, state=run.evaluation("cond", 1))
    assert kinds(run, "cond") == ["full", "image"]
    assert max_error(alone, whole) <= 1e-5


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_the_image_alone_is_the_whole_in_half_precision(dtype, tolerance, golden):
    model, inputs = tiny_dit(golden, dtype), DitCases(golden).inputs("ref3", dtype)
    inputs["text"] = inputs["text"].to(dtype)
    run = Run(STEPS, make_context=lambda: KeptContext(2))
    whole = model(**inputs, state=run.evaluation("cond", 0))
    alone = model(**inputs, state=run.evaluation("cond", 1))
    assert relative_rms(alone, [v.float() for v in whole]) <= tolerance


def test_images_of_several_sizes_are_computed_whole(golden, model):
    inputs = DitCases(golden).inputs("batch2_sizes")
    run = Run(STEPS, make_context=lambda: KeptContext(2))
    plain = model(**inputs)
    for step in range(2):
        assert same(model(**inputs, state=run.evaluation("cond", step)), plain)
    assert kinds(run, "cond") == ["full", "full"]


# What is saved, and the record of it


@pytest.mark.parametrize("name", SAVING)
def test_each_method_saves_work_and_stays_near(name, slow_model, replay, plain):
    run = SAVING[name].run(STEPS)
    latents = replay.run(slow_model, run)
    assert len(run.record) == 3 * STEPS, "every evaluation that the guidance asks for is accounted for"
    assert sum(work.kind == "full" for work in run.record) < 3 * STEPS
    assert relative_rms(latents[-1:], plain[-1:]) < 0.4


def test_text_and_references_are_computed_every_so_often(slow_model, replay):
    run = Acceleration(context_refresh=4).run(STEPS)
    seen = []
    refiner = slow_model.ref_image_refiner[0].register_forward_hook(lambda *_: seen.append(1))
    tokens = []
    layer = slow_model.layers[0].register_forward_hook(lambda module, inputs, out: tokens.append(out.shape[1]))
    try:
        replay.run(slow_model, run)
    finally:
        refiner.remove()
        layer.remove()
    pattern = (["full"] + ["image"] * 3) * (STEPS // 4)
    assert [kinds(run, branch) for branch in ("cond", "ref", "uncond")] == [pattern] * 3
    # Once for the two branches that see it.
    assert len(seen) == STEPS // 4
    image = min(tokens)
    assert tokens.count(image) == 3 * pattern.count("image")
    assert run.record[0] == Work(0, "cond", "full", LAYERS, True)
    assert run.record[3] == Work(1, "cond", "image", LAYERS, False)


def test_first_block_runs_one_layer_where_it_skips(slow_model, replay):
    run = Acceleration(first_block=1e9).run(STEPS)
    replay.run(slow_model, run)
    assert run.computed == {branch: [0, STEPS - 1] for branch in ("cond", "ref", "uncond")}
    assert {work.layers for work in run.record if work.kind == "skipped"} == {1}


def test_first_block_gives_the_whole_where_nothing_changes(golden, model):
    inputs = DitCases(golden).inputs("ref1")
    run = Run(STEPS, lambda: FirstBlockCache(1e-6))
    whole = model(**inputs, state=run.evaluation("cond", 0))
    again = model(**inputs, state=run.evaluation("cond", 1))
    assert kinds(run, "cond") == ["full", "skipped"] and max_error(again, whole) <= 1e-5


def test_a_step_that_is_due_for_its_context_stays_due_while_layers_are_skipped(slow_model, replay):
    run = Acceleration(context_refresh=2, first_block=1e9).run(STEPS)
    replay.run(slow_model, run)
    # The image's tokens at step 1; from step 2 on the context is due, and nothing computes it before the last step.
    assert kinds(run, "cond") == ["full", *["skipped"] * (STEPS - 2), "full"]
    assert [work.context for work in run.record if work.branch == "cond"] == [True, False, *[True] * (STEPS - 2)]


def test_other_branches_are_evaluated_every_so_often(slow_model, replay):
    run = Acceleration(guidance_every=3).run(STEPS)
    replay.run(slow_model, run)
    assert kinds(run, "cond") == ["full"] * STEPS
    for branch in ("ref", "uncond"):
        assert [work.step for work in run.record if work.branch == branch and work.kind == "full"] == list(range(0, STEPS, 3))
        assert kinds(run, branch).count("omitted") == STEPS - 7


def test_a_branch_that_joins_late_is_evaluated_first(slow_model, replay):
    run = Acceleration(guidance_every=5, disagreement=1e-9, context_refresh=5).run(STEPS)
    replay.run(slow_model, run, range=(0.3, 1.0))
    first = {branch: next(work for work in run.record if work.branch == branch) for branch in ("ref", "uncond")}
    assert all((work.step, work.kind) == (6, "full") for work in first.values())


def synthetic(**velocities):
    """A way to ask for branches that have these velocities [B], and what was asked."""
    asked = []

    def ask(some):
        asked.append(tuple(some))
        return {branch: torch.tensor(velocities[branch], dtype=torch.float32)[:, None, None, None] for branch in some}

    return ask, asked


def test_reused_differences_are_each_branch_s_own_and_follow_the_prompt_s_prediction():
    method = GuidanceReuse(2)
    ask, asked = synthetic(cond=[1.0], ref=[2.0], uncond=[4.0])
    method.predict(("cond", "ref", "uncond"), ask)
    ask_later, asked_later = synthetic(cond=[10.0], ref=[0.0], uncond=[0.0])
    found = method.predict(("cond", "ref", "uncond"), ask_later)
    assert asked == [("cond", "ref", "uncond")] and asked_later == [("cond",)]
    assert {branch: value.item() for branch, value in found.items()} == {"cond": 10.0, "ref": 11.0, "uncond": 13.0}
    method.predict(("cond", "ref", "uncond"), ask_later)
    assert asked_later[-1] == ("cond", "ref", "uncond")


def pair(angle):
    """Two samples of velocities; the second's branch is turned by this angle from the prompt's."""
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[..., None, None]
    turned = torch.tensor([[1.0, 0.0], [torch.tensor(angle).cos(), torch.tensor(angle).sin()]])[..., None, None]
    return a, turned


def test_disagreement_is_one_minus_the_cosine_of_each_sample():
    assert disagreement(*pair(0.5)).tolist() == pytest.approx([0.0, 1 - torch.tensor(0.5).cos().item()], abs=1e-6)
    assert (disagreement(pair(0.0)[0], 3 * pair(0.0)[0]) >= 0).all()


def test_a_branch_is_left_out_once_every_sample_has_agreed():
    method, asked = AdaptiveGuidance(0.01), []

    def ask_at(angle):
        cond, uncond = pair(angle)

        def ask(some):
            asked.append(tuple(some))
            return {branch: {"cond": cond, "uncond": uncond}[branch] for branch in some}

        return ask

    far = method.predict(("cond", "uncond"), ask_at(1.0))
    near = method.predict(("cond", "uncond"), ask_at(0.01))
    assert not torch.equal(far["uncond"], far["cond"]) and not torch.equal(near["uncond"], near["cond"])
    after = method.predict(("cond", "uncond"), ask_at(1.0))
    assert asked == [("cond", "uncond"), ("cond", "uncond"), ("cond",)]
    assert torch.equal(after["uncond"], after["cond"])


def test_settings_that_exclude_each_other_or_mean_nothing_are_refused_in_a_sentence():
    with pytest.raises(OmniGen2Error, match="first_block and teacache .* only one"):
        Acceleration(first_block=0.1, teacache=0.1)
    with pytest.raises(OmniGen2Error, match="context_refresh is 0; give at least 1, which is off"):
        Acceleration(context_refresh=0)


def test_there_are_presets_and_exact_is_exact():
    assert list(PRESETS) == ["exact", "balanced", "turbo"]
    assert PRESETS["exact"].acceleration == Acceleration()


# Leaks


@pytest.mark.parametrize("name", SAVING)
def test_a_second_run_starts_from_nothing(name, slow_model, replay):
    acceleration = Acceleration(first_block=1e9) if name == "first_block" else SAVING[name]
    first = replay.run(slow_model, acceleration.run(STEPS))
    assert same(replay.run(slow_model, acceleration.run(STEPS)), first)
    if name == "teacache":
        return  # its first step computes whatever it remembers, so that it cannot leak into another run
    shared = acceleration.run(STEPS)
    replay.run(slow_model, shared, noise=-replay.tensors["noise"])
    assert not same(replay.run(slow_model, shared), first), "a run that goes on with another's memory is not seen here"


class OneForAll(Run):
    """A run whose branches share one state."""

    def evaluation(self, branch, step, text_key=None, **options):
        return super().evaluation("all", step, None, **options)


@pytest.mark.parametrize("name", ["context_refresh", "first_block", "teacache", "taylorseer"])
def test_branches_do_not_share_state(name, slow_model, replay):
    x, times = replay.tensors["noise"], replay.tensors["timesteps"][:9]
    made = SAVING[name].run(STEPS)
    methods = {"make_cache": made.make_cache, "make_context": made.make_context}

    def conds(run, with_others):
        predict, found = replay.predictor(slow_model, run), []
        for step, t in enumerate(times):
            found.append(predict("cond", x, float(t), step))
            if with_others:
                predict("ref", -x, float(t), step)
        return found

    alone = Run(STEPS, **methods)
    expected = conds(alone, False)
    assert len(alone.record) > sum(work.kind == "full" for work in alone.record), "nothing was saved: nothing is shown"
    assert same(conds(Run(STEPS, **methods), True), expected)
    assert not same(conds(OneForAll(STEPS, **methods), True), expected)


class FirstItemForAll(KeptContext):
    """Keeps the first item's keys and values for the whole batch."""

    def keys_values(self, layer, joint, keys, values):
        out = super().keys_values(layer, joint, keys, values)
        self._kept[layer] = tuple(kept[:1].expand_as(kept) for kept in self._kept[layer])
        return out


@pytest.mark.parametrize("name", ["batch2_mixed", "batch3_timesteps"])
def test_items_of_a_batch_do_not_share_what_is_kept(name, golden, model):
    cases = DitCases(golden)

    def run_of(inputs, keep, steps=3):
        run, found = Run(STEPS, make_context=keep), []
        for step in range(steps):
            later = {**inputs, "latents": inputs["latents"] * (1 - 0.1 * step), "timestep": inputs["timestep"] * 0.9 + 0.02 * step}
            found.append(model(**later, state=run.evaluation("cond", step)))
        assert kinds(run, "cond") == ["full", "image", "image"]
        return torch.stack(found)

    together = run_of(cases.inputs(name), lambda: KeptContext(3))
    broken = run_of(cases.inputs(name), lambda: FirstItemForAll(3))
    for i in range(together.shape[1]):
        alone = run_of(cases.sample(name, i), lambda: KeptContext(3))
        assert max_error(together[:, i], alone[:, 0]) <= 2e-5
    assert max_error(broken, together) > 1e-3


class FirstItemDecides(FirstBlockCache):
    """Whether the layers run is decided by the first item of the batch."""

    def _change(self, added):
        first = [added[:1], self._added[:1]]
        return ((first[0] - first[1]).abs().mean() / first[1].abs().mean()).item()


class FirstItemAgrees(AdaptiveGuidance):
    """A branch is left out once the first item of the batch agrees."""

    def predict(self, branches, ask):
        found = super().predict(branches, ask)
        for branch, agreed in self._agreed.items():
            if agreed[0]:
                self._left_out.add(branch)
        return found


BETWEEN = {"first_block": 0.1505, "disagreement": 0.0425}
"""Thresholds that some items of the batch are above at a step, and others below."""
DECIDED = {
    "first_block": lambda: Acceleration(first_block=BETWEEN["first_block"]).run(6),
    "disagreement": lambda: Acceleration(disagreement=BETWEEN["disagreement"]).run(6),
    "together": lambda: SAVING["together"].run(6),
}
BROKEN = {
    "first_block": lambda: Run(6, lambda: FirstItemDecides(BETWEEN["first_block"])),
    "disagreement": lambda: Run(6, guidance=[FirstItemAgrees(BETWEEN["disagreement"])]),
}


@pytest.mark.parametrize("name", DECIDED)
def test_the_order_of_a_batch_changes_nothing_but_its_order(name, golden, slow_model):
    """What is decided by values is decided for the batch, and no item's values reach another."""
    cases = DitCases(golden)
    inputs = cases.inputs("batch3_timesteps")

    def run_of(order, make_run):
        run, x = make_run(), inputs["latents"][order]
        for step in range(6):

            def ask(some):
                def one(branch):
                    text = inputs["text"] if branch == "cond" else inputs["text"].roll(1, -1)
                    text = text[order]
                    return slow_model(x, torch.full((3,), 0.01 * step), text, inputs["text_mask"][order],
                                      [inputs["references"][i] for i in order], state=run.evaluation(branch, step))  # fmt: skip

                return {branch: one(branch) for branch in some}

            found = run.predict(("cond", "uncond"), step, ask)
            x = x + 0.01 * (found["uncond"] + 2 * (found["cond"] - found["uncond"]))
        assert any(work.kind != "full" for work in run.record)
        return x

    def error(make_run):
        return max_error(run_of([2, 0, 1], make_run), run_of([0, 1, 2], make_run)[[2, 0, 1]])

    assert error(DECIDED[name]) <= 2e-5
    if name in BROKEN:
        assert error(BROKEN[name]) > 1e-4
