"""The graphs of the templates that save work: an edit with OmniGen2 Accelerate."""
from __future__ import annotations

import built_in_choices as choices
from canvas_graph import Column, Graph, Group, Row
from template_parts import (
    IMAGE_BOX, MODEL_FILES, NOTE_BOX, PICTURE_BOX, PROMPT_BOX, PUBLISHED_SEED, SAMPLER_BOX, WORLD, Drawing, built_in_parts, decode, encode,
    files_note, published_parts, sample,
)  # fmt: skip

from omnigen2_core.acceleration.presets import PRESETS

ACCELERATE_BOX = (300, 0)
PRESET = "balanced"


def published_accelerate() -> Graph:
    exact, chosen = PRESETS["exact"], PRESETS[PRESET]
    graph = Graph("OmniGen2-accelerate")
    note = graph.note(
        f"## Edit an image sooner\n\n**OmniGen2 Accelerate** computes the prompt and the image only now and then, and the guidance less often; with "
        f"**balanced** goes a run of {chosen.steps} steps in place of {exact.steps}. The sampler says below what it computed and how long it took.\n\n"
        f"**turbo**, with {PRESETS['turbo'].steps} steps, is faster and may change details; **exact** with {exact.steps} steps computes everything. The "
        "node goes before any sampler; the steps are the sampler's own. The presets were chosen with the built-in model, so compare a few pictures."
        + files_note(*MODEL_FILES),
        NOTE_BOX,
    )
    parts = published_parts(graph)
    node = graph.add("OmniGen2Accelerate", box=ACCELERATE_BOX, model=parts.model, preset=PRESET)
    loaded = graph.add("LoadImage", "Image 1", IMAGE_BOX, image="example.png")
    encoded = encode(graph, parts, "Change the background to a sunny beach.", [loaded["IMAGE"]], box=PROMPT_BOX)
    sampled = sample(graph, node["model"], encoded, box=SAMPLER_BOX, steps=chosen.steps, solver=chosen.solver, **PUBLISHED_SEED)
    decoded = decode(graph, parts, sampled)
    saved = graph.add("SaveImage", images=decoded["IMAGE"], filename_prefix="OmniGen2", box=PICTURE_BOX)
    graph.layout = Row(
        Column(note, parts.group), Column(Group("Images", loaded), Group("Acceleration", node)),
        Column(Group("Prompt", encoded), Group("Sampling", sampled)), Group("Picture", decoded, saved),
    )  # fmt: skip
    return graph


def built_in_accelerate() -> Graph:
    exact, chosen, turbo = (PRESETS[name] for name in ("exact", PRESET, "turbo"))
    graph = Graph("Try-it-accelerate")
    note = graph.note(
        f"## Try it: accelerate\n\nThe built-in model draws a picture and edits it twice: in {exact.steps} steps with everything computed, and with "
        f"**OmniGen2 Accelerate** set to balanced, in the {chosen.steps} steps for which that was chosen. Below each sampler stands what it computed "
        "and how long it took.\n\nTry **turbo** "
        f"(with {turbo.steps} steps), or **custom**, which has a setting for each method. The node goes before any sampler; the steps are the sampler's "
        "own.\n\n" + WORLD,
        NOTE_BOX,
    )
    parts = built_in_parts(graph)
    source = Drawing(graph, parts, "1. Draw a picture", choices.ACCELERATE_PICTURE)
    plain = Drawing(graph, parts, "2. Edit it, everything computed", choices.ACCELERATE_EDIT, [source.image], seed=choices.ACCELERATE_SEED, steps=exact.steps)
    node = graph.add("OmniGen2Accelerate", box=ACCELERATE_BOX, model=parts.model, preset=PRESET)
    faster = Drawing(
        graph, parts, "3. Edit it, accelerated", choices.ACCELERATE_EDIT, [source.image], seed=choices.ACCELERATE_SEED, final=True,
        model=node["model"], steps=chosen.steps, solver=chosen.solver,
    )  # fmt: skip
    about = Column(note, parts.group, Group("Acceleration", node))
    graph.layout = Row(about, Column(source.group, Row(plain.group, faster.group)))
    return graph
