"""Every template in the real frontend: it opens whole, sends what its API file says, and its picture is right."""
from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import built_in_choices as choices
from browser_harness import PATIENCE
from built_in_graphs import assert_shows
from harness import PACK_NAME, ROOT, Result
from template_parts import BUILT_IN, FILES, built_in_settings

FOLDER = ROOT / "workflows"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
BUILT_IN_NAMES = [name for name in NAMES if BUILT_IN in (FOLDER / f"{name}.json").read_text(encoding="utf-8")]
PUBLISHED_NAMES = sorted(set(NAMES) - set(BUILT_IN_NAMES))
USES = {
    "text-to-image", "edit", "in-context-two-references", "in-context-three-references", "masked-edit", "lora",
    "accelerate", "ask-about-a-picture", "chat", "reflect-until-right", "best-of-four",
}  # fmt: skip
LARGEST_THUMBNAIL = 40_000
LARGEST_SCREENSHOT = 60_000


DRAWING = {"OmniGen2Encode", "OmniGen2Sample", "OmniGen2Chat", "OmniGen2ReflectionLoop", "OmniGen2BestOfN"}


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files(server):
    """Empty files by the names that the templates choose, so that nothing is missing, and ComfyUI's example picture."""
    placeholders = [server.models / folder / name for folder, (name, _) in FILES.items()]
    for file in placeholders:
        file.touch()
    picture = server.input / server.save_input("example.png", Image.new("RGB", (320, 240), "grey"))
    yield
    for file in [*placeholders, picture]:
        file.unlink()


def test_each_use_is_there_for_the_published_weights_and_to_try():
    def uses(names, prefix):
        return {name.removeprefix(prefix).lower() for name in names}

    published, built_in = uses(PUBLISHED_NAMES, "OmniGen2-"), uses(BUILT_IN_NAMES, "Try-it-")
    assert published == built_in == USES


def test_the_readme_names_them_all_and_its_screenshots_are_small():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"(workflows/{name}.json)" not in readme] == []
    screenshots = re.findall(r"web/docs/images/screenshot-\w+\.png", readme)
    assert bool(screenshots) == built_in_settings()["trained_reflection"], "they show what the built-in model can do"
    for screenshot in screenshots:
        assert (ROOT / screenshot).stat().st_size <= LARGEST_SCREENSHOT


@pytest.mark.parametrize("name", NAMES)
def test_the_template_browser_shows_it(server, name):
    """Name and picture are all that a pack can give; the frontend takes both from these addresses."""
    assert name in server.get("/workflow_templates")[PACK_NAME]
    assert json.loads(server.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{name}.json")) == read(name)
    picture = FOLDER / f"{name}.jpg"
    assert server.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{name}.jpg") == picture.read_bytes()
    with Image.open(picture) as opened:
        assert opened.format == "JPEG" and min(opened.size) >= 256
    assert picture.stat().st_size <= LARGEST_THUMBNAIL


def test_the_template_browser_shows_no_api_files(server):
    assert sorted(server.get("/workflow_templates")[PACK_NAME]) == NAMES
    assert sorted(file.stem for file in (FOLDER / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_whole_and_sends_its_api_file(canvas, files, name):
    canvas.load(read(name))
    assert canvas.missing_nodes() == []
    assert canvas.prompt() == read(f"api/{name}")
    assert canvas.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_its_nodes_do_not_overlap(canvas, files, name):
    """Not even with the few lines that Nodes 2.0 adds to a node."""
    canvas.load(read(name))
    boxes = canvas.evaluate("""() => app.graph.nodes.map(node => {
        const shown = document.querySelector(`[data-node-id="${node.id}"]`);
        const [x, y, width, height] = node.getBounding();
        return [node.title, x, y, x + width, y + (LiteGraph.vueNodesMode && shown ? Math.max(height, shown.offsetHeight) : height)];
    })""")
    overlapping = [
        (one, other)
        for i, (one, left, top, right, bottom) in enumerate(boxes)
        for other, left2, top2, right2, bottom2 in boxes[i + 1 :]
        if left < right2 and left2 < right and top < bottom2 and top2 < bottom
    ]
    assert overlapping == []


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_the_server_takes_it_and_the_loaders_refuse_what_is_not_a_model(server, files, name):
    """Validated against the nodes as they are; an empty file is as far as a run can get here."""
    result = server.run(read(f"api/{name}"), check=False)
    assert result.status == "error"
    assert any(name in result.error for name, _ in FILES.values()), result.error


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_missing_files_can_be_downloaded_from_the_canvas(name):
    offered = [model for node in read(name)["nodes"] for model in node["properties"].get("models", [])]
    chosen = {value for node in read(name)["nodes"] for value in node.get("widgets_values") or [] if str(value).endswith(".safetensors")}
    assert {model["name"] for model in offered} == chosen
    for model in offered:
        assert FILES[model["directory"]] == (model["name"], model["url"])
        assert model["url"].endswith("/" + model["name"])


@pytest.mark.parametrize("name", [name for name in PUBLISHED_NAMES if not name.endswith("ask-about-a-picture")])
def test_the_settings_are_the_references(name):
    from omnigen2_core.acceleration.presets import PRESETS

    inputs = {}
    for node in read(f"api/{name}").values():
        inputs |= node["inputs"] if node["class_type"] in DRAWING else {}
    expected = {
        "steps": 50, "solver": "euler", "text_guidance": 5, "image_guidance": 2, "shift": "auto", "denoise": 1,
        "width": 1024, "height": 1024, "guidance_start": 0, "guidance_end": 1, "encoder_sees_images": False,
    }  # fmt: skip
    if name.endswith("accelerate"):
        expected |= {"steps": PRESETS["balanced"].steps, "solver": PRESETS["balanced"].solver}
    # Of the nodes that draw by themselves, none has a denoise, and the chat has its own way to see images.
    absent = expected.keys() - inputs.keys()
    assert absent <= {"denoise", "encoder_sees_images"}
    assert {key: inputs[key] for key in expected if key not in absent} == {key: value for key, value in expected.items() if key not in absent}


# ---- on the built-in model, judged by a program that sees only the pixels


def run_of(canvas, name: str) -> tuple[dict, Result]:
    """Open a template and run it; its workflow and what came of it."""
    workflow = read(name)
    canvas.load(workflow)
    result = canvas.run()
    assert canvas.errors == []
    return workflow, result


def pictures(canvas, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run a template; the saved picture, and those shown on the way by the title of their frame."""
    return pictures_of(canvas, *run_of(canvas, name))


def pictures_of(canvas, workflow: dict, result: Result) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The saved picture of a run, and those shown on the way by the title of their frame."""
    saved, = canvas.images(result, saver_of(workflow))
    shown = {}
    for node in workflow["nodes"]:
        if node["type"] == "PreviewImage":
            enlarged, = canvas.images(result, str(node["id"]))
            shown[frame_of(workflow, node)] = np.asarray(enlarged.resize(saved.size, Image.Resampling.BOX))
    return np.asarray(saved), shown


def saver_of(workflow: dict) -> str:
    return next(str(node["id"]) for node in workflow["nodes"] if node["type"] == "SaveImage")


def frame_of(workflow: dict, node: dict) -> str:
    for group in workflow["groups"]:
        left, top, width, height = group["bounding"]
        if left <= node["pos"][0] < left + width and top <= node["pos"][1] < top + height:
            return group["title"]
    raise AssertionError(f"node {node['id']} is in no frame")


def test_text_to_image_draws_what_the_prompt_says(canvas):
    picture, _ = pictures(canvas, "Try-it-text-to-image")
    assert_shows(picture, "yellow", ("top left", "red", "circle", "large"), ("bottom right", "blue", "square", "small"))


def test_the_edit_changes_what_the_prompt_says_and_nothing_else(canvas):
    picture, shown = pictures(canvas, "Try-it-edit")
    circle = ("top left", "red", "circle", "large")
    assert_shows(shown["1. Draw a picture"], "white", ("middle", "green", "triangle", "large"), circle)
    assert_shows(picture, "white", ("middle", "purple", "triangle", "large"), circle)


def test_shapes_of_two_references_come_together(canvas):
    picture, shown = pictures(canvas, "Try-it-in-context-two-references")
    assert_shows(shown["1. Draw image 1"], "white", ("middle", "red", "ring", "large"))
    assert_shows(shown["2. Draw image 2"], "yellow", ("left", "blue", "cross", "small"))
    assert_shows(picture, "green", ("top left", "red", "ring", "large"), ("bottom right", "blue", "cross", "small"))


def test_shapes_of_three_references_come_together(canvas):
    picture, _ = pictures(canvas, "Try-it-in-context-three-references")
    assert_shows(
        picture, "purple", ("top left", "red", "ring", "large"), ("middle", "blue", "cross", "small"), ("bottom right", "green", "diamond", "large")
    )


def test_the_masked_edit_changes_only_what_the_mask_shows(canvas):
    """What is asked for happens in the right half; the left half stays what it was."""
    picture, shown = pictures(canvas, "Try-it-masked-edit")
    circle = ("left", "red", "circle", "large")
    assert_shows(shown["1. Draw a picture"], "white", circle, ("right", "blue", "square", "large"))
    assert_shows(picture, "white", circle, ("right", "green", "square", "large"))
    half = picture.shape[1] // 2
    assert np.abs(picture[:, :half].astype(int) - shown["1. Draw a picture"][:, :half]).mean() <= 2


def test_the_lora_frames_the_picture_and_without_it_there_is_no_frame(canvas):
    from omnigen2_core.nano.framed import frame_mask
    from omnigen2_core.nano.world import COLOURS

    ring = ("middle", "red", "ring", "large")
    picture, _ = pictures(canvas, "Try-it-LoRA")
    frame = frame_mask(picture.shape[1], picture.shape[0])
    assert np.abs(picture[frame].astype(int) - COLOURS["white"]).mean() < 40
    unframed = picture.copy()
    unframed[frame] = COLOURS["blue"]
    assert_shows(unframed, "blue", ring)

    canvas.load(read("Try-it-LoRA"))
    canvas.evaluate("() => { app.graph.nodes.find(n => n.type === 'OmniGen2LoadLoRA').mode = 4 }")
    plain, = canvas.images(canvas.run(), saver_of(read("Try-it-LoRA")))
    assert_shows(np.asarray(plain), "blue", ring)


def test_the_accelerated_edit_is_as_right_as_the_plain_one_and_computes_less(canvas):
    canvas.server.free()  # What an earlier run has left would be taken from there, and nothing read out.
    workflow, result = run_of(canvas, "Try-it-accelerate")
    picture, shown = pictures_of(canvas, workflow, result)
    assert_shows(shown["2. Edit it, everything computed"], *choices.ACCELERATE_SCENE)
    assert_shows(picture, *choices.ACCELERATE_SCENE)
    evaluations = {
        frame_of(workflow, node): int(re.search(r"(\d+) (evaluations$|in full)", result.ui[str(node["id"])]["omnigen2_readout"][0].split(" · ")[0])[1])
        for node in workflow["nodes"] if node["type"] == "OmniGen2Sample"
    }  # fmt: skip
    assert 4 * evaluations["3. Edit it, accelerated"] < evaluations["2. Edit it, everything computed"]


# ---- on the built-in model, where it looks and speaks


def node_of(workflow: dict, node_type: str) -> str:
    return next(str(node["id"]) for node in workflow["nodes"] if node["type"] == node_type)


def preview(canvas, workflow: dict, result: Result) -> list[np.ndarray]:
    """What the template shows enlarged, in the size in which it was drawn."""
    side = built_in_settings()["default_width"]
    shown = canvas.images(result, node_of(workflow, "PreviewImage"))
    return [np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in shown]


def drawn(canvas, name: str) -> np.ndarray:
    """A picture in the output folder."""
    folder, _, file = name.rpartition("/")
    data = canvas.server.get_bytes("/view", filename=file, subfolder=folder, type="output")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def shows(picture: np.ndarray, ground: str, *things: tuple[str, str, str, str]) -> bool:
    try:
        assert_shows(picture, ground, *things)
    except AssertionError:
        return False
    return True


def test_a_question_about_a_drawn_picture_is_answered_on_the_node(canvas):
    workflow, result = run_of(canvas, "Try-it-ask-about-a-picture")
    picture, = preview(canvas, workflow, result)
    assert_shows(picture, *choices.ASK_SCENE)
    [answer] = result.ui[node_of(workflow, "OmniGen2Ask")]["text"]
    canvas.page.get_by_text(answer, exact=True).first.wait_for(timeout=60_000)
    # Opened again, it is not asked again: the server has kept the answer.
    canvas.load(workflow)
    expect(canvas.page.get_by_text(answer, exact=True)).to_have_count(0, timeout=PATIENCE)
    canvas.run()
    canvas.page.get_by_text(answer, exact=True).first.wait_for(timeout=60_000)
    assert [name for name in choices.ASK_NAMES if name not in answer] == [], answer


def test_the_chat_draws_when_asked_to_answers_about_the_picture_and_changes_it(canvas):
    workflow, result = run_of(canvas, "Try-it-chat")
    node = node_of(workflow, "OmniGen2Chat")

    def answer() -> dict:
        return json.loads(result.ui[node]["omnigen2_chat"][0]["conversation"])["turns"][-1]

    def say(message: str, show_last_picture: bool) -> Result:
        canvas.evaluate("""([id, values]) => {
            for (const [name, value] of Object.entries(values)) app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value;
        }""", [node, {"message": message, "show_last_picture": show_last_picture}])
        return canvas.run()

    log = canvas.page.get_by_role("log")
    assert choices.CHAT_MESSAGE in log.inner_text()
    assert log.locator("> div").count() == 2 and answer()["role"] == "assistant"
    [name] = answer()["images"]
    assert_shows(drawn(canvas, name), *choices.CHAT_SCENE)
    assert_shows(*preview(canvas, workflow, result), *choices.CHAT_SCENE)

    message, show_last_picture, words = choices.CHAT_QUESTION
    result = say(message, show_last_picture)
    assert answer()["images"] == [] and [word for word in words if word not in answer()["text"]] == []
    message, show_last_picture, scene = choices.CHAT_EDIT
    result = say(message, show_last_picture)
    [name] = answer()["images"]
    assert_shows(drawn(canvas, name), *scene)
    assert log.locator("> div").count() == 6


def test_reflecting_ends_with_a_right_picture_where_the_first_was_wrong(canvas):
    workflow, result = run_of(canvas, "Try-it-reflect-until-right")
    made = result.ui[node_of(workflow, "OmniGen2ReflectionLoop")]["omnigen2_rounds"][0]
    pictures = [drawn(canvas, name) for name in made["pictures"]]
    saved, = canvas.images(result, saver_of(workflow))
    assert np.array_equal(np.asarray(saved), pictures[made["best"]])
    rounds = canvas.page.locator(".omnigen2-rounds").get_by_role("list").get_by_role("button")
    assert rounds.count() == len(pictures) and "Round 0" in rounds.first.get_attribute("aria-label")
    assert not shows(pictures[0], *choices.REFLECT_SCENE), "it shows nothing of reflection"
    assert_shows(np.asarray(saved), *choices.REFLECT_SCENE)
    assert made["stop"] == "the picture is right"


def test_of_four_pictures_a_right_one_is_the_best(canvas):
    workflow, result = run_of(canvas, "Try-it-best-of-four")
    made = result.ui[node_of(workflow, "OmniGen2BestOfN")]["omnigen2_rounds"][0]
    pictures = [drawn(canvas, name) for name in made["pictures"]]
    saved, = canvas.images(result, saver_of(workflow))
    assert np.array_equal(np.asarray(saved), pictures[made["best"]])
    shown = canvas.page.locator(".omnigen2-rounds").get_by_role("list").get_by_role("button").all()
    assert len(preview(canvas, workflow, result)) == len(shown) == len(pictures) == 4
    assert [f"Picture {number}" in button.get_attribute("aria-label") for number, button in enumerate(shown, 1)] == [True] * 4
    assert_shows(np.asarray(saved), *choices.BEST_SCENE)
    assert not all(shows(picture, *choices.BEST_SCENE) for picture in pictures), "any of them would have done"
