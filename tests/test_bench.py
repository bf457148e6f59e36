"""The bench: what a run is composed of, how much arithmetic that is, and what intervals say of bars."""

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnigen2_core.acceleration.pattern import pattern_of
from omnigen2_core.acceleration.presets import PRESETS, Acceleration
from omnigen2_core.acceleration.protocol import Work
from omnigen2_core.bench import built_in, cases, machine, patterns, report, work
from omnigen2_core.bench.composed import _first_steps, _grouped, _mean
from omnigen2_core.bench.inputs import Inputs, random_weights
from omnigen2_core.bench.results import Claim, Results
from omnigen2_core.bench.steps import OurSteps, one_of_each
from omnigen2_core.bench.timing import MOST_ROUNDS, Effort, interleaved
from omnigen2_core.bench.verdict import BY_FLOOR, FAILS, HOLDS, NOISY, Bar, Estimate, estimate, or_floor
from omnigen2_core.bench.whole import start_ours, whole_run
from omnigen2_core.bench.work import Plan, Step
from omnigen2_core.checkpoints import ModelFolder
from omnigen2_core.guidance import Guidance, combine
from omnigen2_core.nano.candidates import of_preset
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.problems import FIRST
from omnigen2_core.nano.results import Batch, fingerprint
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

CPU = torch.device("cpu")
SMALL = OmniGen2Config(
    hidden_size=24, num_layers=3, num_refiner_layers=2, num_attention_heads=4, num_kv_heads=2, multiple_of=8,
    axes_dim_rope=(2, 2, 2), text_feat_dim=20,
)  # fmt: skip
CASES = [cases.Case(references, 64, 32) for references in cases.TASKS.values()]
STEPS = 6


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


# Cases


def test_a_case_is_a_task_at_a_size():
    case = cases.parse("three-1536x640")
    assert (case.references, case.image, case.grid, case.name) == (3, 3840, (40, 96), "three-1536x640")
    assert case.branches == ("cond", "ref", "uncond")
    assert case.layout("ref").length == 200 + 4 * 3840 and case.layout("uncond").length == 200 + 3840
    assert cases.parse("t2i-512x512").branches == ("cond", "uncond")


@pytest.mark.parametrize("name, says", [("paint-512x512", "is no case"), ("t2i", "is no case"), ("t2i-500x512", "multiples of 16")])
def test_what_is_no_case_is_refused_with_what_is(name, says):
    with pytest.raises(ValueError, match=says):
        cases.parse(name)


# What a run is composed of


def calls_of(model, case, acceleration):
    """How often a real run does each step, counted at the blocks, and the run's own record."""
    found = Counter()

    def watch(blocks, kind):
        def note(module, given, output):
            x, rest = given[0], given[1:]
            if kind != "layer":
                found[Step(kind, x.shape[1], x.shape[1], len(x))] += 1
                return
            rows, keys = rest[-1], case.layout("cond").length if with_references[0] else case.layout("uncond").length
            alone = x.shape[1] < keys
            kinds = "image" if alone else "layer" if rows is None else "last"
            found[Step(kinds, output.shape[1], keys)] += 1

        for block in blocks:
            block.register_forward_hook(note)
            if hasattr(block.norm1, "linear"):
                block.norm1.linear.register_forward_hook(lambda *_: found.update([Step("modulation", 1, 1)]))

    watch(model.context_refiner, "text")
    watch(model.noise_refiner, "noise")
    watch(model.ref_image_refiner, "reference")
    watch(model.layers, "layer")
    with_references = [False]
    model.register_forward_pre_hook(lambda module, given: with_references.__setitem__(0, bool(given[4] and given[4][0])))
    inputs, run = Inputs(SMALL, torch.float32, CPU), acceleration.run(STEPS)

    def predict(branch, x, step):
        found[Step("ends", case.image, case.layout(branch).length)] += 1
        state = run.evaluation(branch, step, text_key=branch == "cond")
        time = torch.full((1,), step / STEPS)
        return model(x, time, inputs.text(branch), None, [inputs.references(case, branch)], state=state)

    x = inputs.latents(case)
    for step in range(STEPS):
        velocities = run.predict(case.branches, step, lambda some: {branch: predict(branch, x, step) for branch in some})
        x = x + combine(velocities, Guidance()) / STEPS
    return found, run.record


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
@pytest.mark.parametrize(
    "acceleration",
    [Acceleration(), *(PRESETS[name].acceleration for name in ("balanced", "turbo")), Acceleration(taylorseer=3)],
    ids=["exact", "balanced", "turbo", "taylorseer"],
)
def test_the_plan_counts_what_a_run_does(case, acceleration):
    model = OmniGen2Transformer(SMALL)
    model.load_state_dict(random_weights(SMALL, torch.float32, CPU))
    found, record = calls_of(model, case, acceleration)
    plan = work.ours(case, record, SMALL)
    assert plan == found


def test_a_plain_run_computes_every_branch_that_the_guidance_asks_for():
    guidance = Guidance(2.0, 1.5, (0.0, 0.5))
    t2i, three = cases.parse("t2i-512x512"), cases.parse("three-512x512")
    assert pattern_of(t2i.plain_record(4, guidance)) == {"cond": "FFFF", "uncond": "FFF."}
    assert pattern_of(three.plain_record(2, guidance)) == {"cond": "FF", "ref": "FF", "uncond": "FF"}


def test_a_plain_run_shares_what_branches_have_in_common():
    case = cases.parse("edit-512x512")
    plan = work.ours(case, case.plain_record(50))
    long, short, image = 200 + 2048, 200 + 1024, 1024
    assert plan == {
        Step("layer", long, long): 2 * 31 * 50,
        Step("layer", short, short): 31 * 50,
        Step("last", image, long): 2 * 50,
        Step("last", image, short): 50,
        Step("noise", image, image): 2 * 50,
        Step("reference", image, image): 2 * 50,
        Step("modulation", 1, 1): 36 * 50,
        Step("ends", image, long): 2 * 50,
        Step("ends", image, short): 50,
        Step("text", 200, 200): 2 * 2,
    }
    assert work.evaluations(plan) == 150


def test_native_shares_nothing_and_refines_references_together():
    case = cases.parse("three-512x512")
    plan = work.native(case, case.branches, 20)
    assert plan[Step("text", 200, 200)] == plan[Step("noise", 1024, 1024)] == 2 * 3 * 20
    assert plan[Step("reference", 3072, 3072)] == 2 * 2 * 20
    assert plan[Step("layer", 200 + 4096, 200 + 4096)] == 32 * 2 * 20
    t2i = cases.parse("t2i-512x512")
    assert work.evaluations(work.native(t2i, work.TEMPLATE, 20)) == 60


def test_a_run_takes_what_its_steps_take():
    plan = Plan({Step("layer", 8, 8): 3, Step("ends", 4, 8): 2})
    assert work.compose(plan, {Step("layer", 8, 8): 0.5, Step("ends", 4, 8): 0.25, Step("text", 2, 2): 9.0}) == 2.0


def test_fewer_plain_steps_are_guided_in_the_same_share_of_the_run():
    record = [Work(step, branch, "full") for step in range(10) for branch in ("cond", "uncond")[: 1 + (step < 8)]]
    few = _first_steps(record, 5)
    assert [(item.step, item.branch) for item in few] == [
        (step, branch) for step in range(5) for branch in ("cond", "uncond")[: 1 + (step < 4)]
    ]


def test_several_records_are_averaged():
    step = Step("layer", 8, 8)
    assert _mean([Plan({step: 2}), Plan({step: 4, Step("ends", 4, 8): 2})]) == {step: 3, Step("ends", 4, 8): 1}


def test_pairs_are_timed_together():
    layer, last, refiner = Step("layer", 9, 9), Step("last", 4, 9), Step("noise", 4, 4)
    groups = _grouped({("ours", layer), ("native", layer), ("ours", last), ("ours", refiner), ("native", refiner)})
    assert sorted(map(sorted, groups)) == sorted(
        [[("native", layer), ("ours", last), ("ours", layer)], [("native", refiner), ("ours", refiner)]]
    )
    together, apart = Step("reference", 12, 12), Step("reference", 4, 4, 3)
    assert len(_grouped({("ours", apart), ("native", together)})) == 1


# Arithmetic


def by_products(q, k, v, mask):
    """Attention as matrix products, which the counter of operations knows."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).contiguous()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_the_arithmetic_of_each_step_is_what_torch_counts(case):
    inputs, weights = Inputs(SMALL, torch.float32, CPU), random_weights(one_of_each(SMALL), torch.float32, CPU)
    steps = OurSteps(SMALL, weights, inputs, attention=by_products)
    plan = work.ours(case, [*case.plain_record(1), Work(1, "cond", "image", 3)], SMALL)
    assert {step.kind for step in plan} >= {"layer", "last", "image", "text", "noise", "modulation", "ends"}
    for step in plan:
        action = steps.make(case, step)
        with FlopCounterMode(display=False) as counter:
            action()
        assert counter.get_total_flops() == work.step_flops(step, case, SMALL), step


def test_the_rates_product_is_counted_as_torch_counts_it():
    product = machine.MatrixProduct(8, 16, 32)
    action = product.make(torch.float32, CPU)
    with FlopCounterMode(display=False) as counter:
        action()
    assert counter.get_total_flops() == product.flops


# Intervals and bars


def test_a_ratios_interval_is_that_of_its_pairs():
    group = {"slow": [2.0, 2.2, 4.2, 2.1, 2.0], "fast": [1.0, 1.1, 2.0, 1.0, 1.0]}
    found = estimate([group], lambda seconds: seconds["slow"] / seconds["fast"])
    assert found.value == pytest.approx(2.0) and found.low <= found.value <= found.high
    assert 1.95 < found.low and found.high < 2.15, "pairs were torn apart"
    steady = estimate([{"slow": [2.0] * 5, "fast": [1.0] * 5}], lambda seconds: seconds["slow"] / seconds["fast"])
    assert steady == Estimate.exact(2.0)


def test_what_slows_whole_rounds_widens_no_ratio_within_them_but_one_to_others():
    slow_rounds = {"slow": [2.0, 2.0, 8.0, 3.0, 6.0, 2.2], "fast": [1.0, 1.0, 4.0, 1.5, 3.0, 1.1]}
    steady = {"other": [1.0] * 6}
    within = estimate([slow_rounds, steady], lambda seconds: seconds["slow"] / seconds["fast"])
    assert (within.low, within.high) == pytest.approx((2.0, 2.0))
    across = estimate([slow_rounds, steady], lambda seconds: seconds["slow"] / seconds["other"])
    assert across.low < 2.2 and across.high > 3.5


@pytest.mark.parametrize(
    "low, high, least, most",
    [(1.1, 1.2, HOLDS, FAILS), (0.8, 0.9, FAILS, HOLDS), (0.9, 1.1, NOISY, NOISY), (1.0, 1.1, HOLDS, NOISY)],
)
def test_a_bar_holds_by_the_whole_interval(low, high, least, most):
    found = Estimate((low + high) / 2, low, high)
    assert Bar(1.0).verdict(found) == least
    assert Bar(1.0, at_most=True).verdict(found) == most


@pytest.mark.parametrize(
    "bar, floor, said",
    [(HOLDS, FAILS, HOLDS), (HOLDS, HOLDS, HOLDS), (FAILS, HOLDS, BY_FLOOR), (NOISY, HOLDS, BY_FLOOR), (FAILS, NOISY, NOISY),
     (NOISY, FAILS, NOISY), (FAILS, FAILS, FAILS)],
)  # fmt: skip
def test_a_bar_holds_by_itself_or_by_the_floor_and_says_which(bar, floor, said):
    assert or_floor(bar, floor) == said


def test_the_status_asks_for_every_bar_that_was_measured():
    results = Results({"processor": "one"})
    results.claims.append(Claim("told", Estimate.exact(0.1)))
    assert results.all_hold
    results.claims.append(Claim.judged("asked", Estimate.exact(2.0), Bar(1.5)))
    assert results.all_hold
    results.claims.append(Claim("by the floor", Estimate(1.0, 0.9, 1.1), "×", Bar(1.05), BY_FLOOR))
    assert results.all_hold
    results.claims.append(Claim.judged("noisy", Estimate(1.5, 1.4, 1.6), Bar(1.5)))
    assert not results.all_hold
    tables = report.to_markdown(results)
    assert "| noisy | 1.500× | 1.400 to 1.600 | ≥ 1.5× | too noisy to tell |" in tables
    assert json.loads(report.to_json(results))["claims"][0]["what"] == "told"


# Timing


def test_what_is_compared_takes_turns():
    order = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved(actions, Effort(0.0, least=3), CPU)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_quick_things_are_measured_more_often_but_not_for_ever():
    assert Effort(10.0).rounds(1.0) == 10 and Effort(10.0).rounds(9.0) == 5 and Effort(10.0).rounds(0.0) == MOST_ROUNDS


# What is measured does what a model does


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_a_whole_run_by_shared_evaluations_is_that_by_separate_ones(case):
    inputs = Inputs(SMALL, torch.float32, CPU)
    model = OmniGen2Transformer(SMALL)
    model.load_state_dict(random_weights(SMALL, torch.float32, CPU))
    start = start_ours(model, inputs, None)

    def separate(case, steps):
        return {
            branch: lambda x, time, step, branch=branch: model(
                x, time, inputs.text(branch), None, [inputs.references(case, branch)]
            )
            for branch in case.branches
        }

    shared, apart = (whole_run(begin, case, case.branches, 3, inputs) for begin in (start, separate))
    assert torch.allclose(shared, apart, atol=1e-4)


# Kept patterns


def test_kept_patterns_are_those_of_the_presets_as_they_are(tmp_path):
    def batches(turbo):
        for kind, references in FIRST.kinds.items():
            for candidate, right in ((of_preset(PRESETS["exact"]), "1111"), (of_preset(PRESETS["balanced"]), "1111"), (turbo, "1100")):
                pattern = {"cond": "FI" if candidate == turbo else "FF"}
                yield Batch(str(candidate), FIRST.name, kind, references, 0, right, (), pattern, 1.0)

    def written(turbo, weights="other"):
        path = tmp_path / "presets.jsonl"
        path.write_text("\n".join([json.dumps({"weights": weights}), *(json.dumps(asdict(batch)) for batch in batches(turbo))]))
        return patterns.kept_patterns(path)

    found = written(of_preset(PRESETS["turbo"]))
    assert found.records["turbo", "edit"] == [[Work(0, "cond", "full", 32, True), Work(1, "cond", "image", 32, False)]]
    assert found.change["turbo", "three"].value == pytest.approx(-50.0) and found.change["balanced", "t2i"].value == 0
    assert found.change["turbo", "t2i"].low < -50 < found.change["turbo", "t2i"].high
    assert found.on_other_weights
    assert not written(of_preset(PRESETS["turbo"]), fingerprint(ModelFolder(WEIGHTS))).on_other_weights
    assert written(replace(of_preset(PRESETS["turbo"]), steps=7)) is None
    assert patterns.kept_patterns(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize("other", [True, False])
def test_patterns_of_other_weights_are_said_to_be_so(other):
    results = Results({})
    change = {("turbo", "edit"): Estimate.exact(-1.0)}
    built_in.score_claims(patterns.Patterns({}, change, "presets.jsonl", on_other_weights=other), results)
    [claim] = results.claims
    assert claim.what.endswith("with turbo (recorded on other weights)") == other and claim.verdict == HOLDS
    assert any("recorded on other weights than those that the built-in model has now" in note for note in results.notes) == other


def test_each_task_has_a_kind_of_problem_with_as_many_references():
    assert {task: FIRST.kinds[kind] for task, kind in patterns.KINDS.items()} == cases.TASKS
