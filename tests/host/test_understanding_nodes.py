"""OmniGen2 Ask and OmniGen2 Enhance Prompt in a real server: what they write, how it appears, how it is cancelled."""

import html

import pytest
from harness import Graph
from PIL import Image
from small_models import TEXT_LIMIT, install_folder, write_encoder
from transformers import DynamicCache

from omnigen2_core.nano.world import Scene, Thing, render
from omnigen2_core.presets import PRESETS

BUILT_IN = "OmniGen2-nano (built in)"
NOTES = "omnigen2_notes"
SHOWN = "omnigen2_text"
REWRITTEN = "omnigen2_rewritten"
GROUNDS = ["blue", "white", "black"]
GROUND = "What color is the background?"
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def folder(server, golden):
    """A model that reads anything and whose own words mean nothing."""
    return install_folder(server.models, golden)


@pytest.fixture(scope="module")
def scenes(server):
    """Pictures of the built-in model's world, one on each ground."""
    thing = Thing(4, "red", "circle", "large")
    drawn = {ground: render(Scene(ground, (thing,)), 96, 96) for ground in GROUNDS}
    return [server.save_input(f"{ground}.png", Image.fromarray(pixels)) for ground, pixels in drawn.items()]


class Talk:
    """A graph with a loader, to which questions and prompts are added."""

    def __init__(self, folder: str):
        self.graph = Graph()
        self.clip = self.graph.add("OmniGen2LoadFolder", folder=folder, dtype="fp32")[1]

    def loaded(self, *files: str) -> list:
        return [self.graph.add("LoadImage", image=file)[0] for file in files]

    def batch(self, amount: int, size: int = 56) -> list:
        return self.graph.add("EmptyImage", width=size, height=size, batch_size=amount, color=0xFF8000)[0]

    def writing(self, text: str, seconds: float = 0.0) -> None:
        """From here on the model writes this text."""
        self.clip = self.graph.add("TestWrites", clip=self.clip, text=text, seconds=seconds)[0]

    def ask(self, question="what is it?", images=(), **inputs) -> Graph.Node:
        settings = {
            "preset": "own_question", "each_image": False, "sampling": False, "seed": 0, "max_length": 12, "at_once": 4
        }  # fmt: skip
        return self.add("OmniGen2Ask", images, **{"question": question, **settings, **inputs})

    def enhance(self, prompt="a fox", images=(), **inputs) -> Graph.Node:
        settings = {"edited": "", "sampling": False, "seed": 0, "max_length": 400}
        return self.add("OmniGen2EnhancePrompt", images, **{"prompt": prompt, **settings, **inputs})

    def add(self, kind: str, images, **inputs) -> Graph.Node:
        slots = {f"images.image_{i}": image for i, image in enumerate(images, start=1)}
        return self.graph.add(kind, **{"clip": self.clip, **SAMPLING, **inputs, **slots})


def texts(server, talk: Talk, node: Graph.Node) -> list[str]:
    """What goes out of a node's output, which is also what it reports."""
    shown = talk.graph.add("PreviewAny", source=node[0])
    result = server.run(talk.graph)
    assert result.ui[shown]["text"] == result.ui[node]["text"]
    return result.ui[node]["text"]


def refusal(server, talk: Talk) -> str:
    result = server.run(talk.graph, check=False)
    assert result.status == "error"
    return result.error


def read(shown: str) -> str:
    """The text that a browser makes of progress text."""
    return html.unescape(shown.replace("  \n", "\n")).replace("\N{NO-BREAK SPACE}", " ")


# Questions and answers


def test_every_image_of_a_list_gets_its_own_answer(server, scenes):
    talk = Talk(BUILT_IN)
    assert texts(server, talk, talk.ask(GROUND, talk.loaded(*scenes), each_image=True)) == GROUNDS


def test_a_list_of_questions_is_asked_at_once_and_each_gets_the_answer_that_it_gets_alone(server, scenes):
    questions = [GROUND, "Is there a red circle?", "How many shapes are there?"]
    talk = Talk(BUILT_IN)
    listed = talk.graph.add("TestTexts", lines="\n".join(questions))
    together = texts(server, talk, talk.ask(listed[0], talk.loaded(scenes[0])))
    for question, answer in zip(questions, together, strict=True):
        alone = Talk(BUILT_IN)
        assert texts(server, alone, alone.ask(question, alone.loaded(scenes[0]))) == [answer]
    assert together[0] == "blue"


def test_chance_is_decided_by_the_seed_and_by_nothing_else(server, folder):
    def ask(seed: int, at_once: int, sampling: bool = True) -> list[str]:
        talk = Talk(folder)
        listed = talk.graph.add("TestTexts", lines="what is it?\nwhat is it?")
        return texts(server, talk, talk.ask(listed[0], sampling=sampling, seed=seed, at_once=at_once))

    first = ask(7, at_once=2)
    assert first == ask(7, at_once=1)
    assert first[0] != first[1]
    assert ask(8, at_once=2)[0] == first[1]
    assert ask(7, at_once=2, sampling=False) == ask(8, at_once=2, sampling=False)


def test_a_ready_question_about_one_image_is_asked_about_each(server, folder):
    talk = Talk(folder)
    assert len(texts(server, talk, talk.ask("", [talk.batch(7)], preset="caption_short"))) == 7


def test_the_node_offers_every_ready_question(server):
    kind, options = server.node("OmniGen2Ask")["input"]["required"]["preset"]
    assert (options["options"] if kind == "COMBO" else kind) == ["own_question", *PRESETS]


def test_a_comparison_takes_two_images_and_says_so(server, folder):
    talk = Talk(folder)
    assert len(texts(server, talk, talk.ask("", [talk.batch(1), talk.batch(1, 84)], preset="compare"))) == 1
    talk = Talk(folder)
    talk.ask("", [talk.batch(3)], preset="compare")
    assert "about 2 images at a time and got 3" in refusal(server, talk)


def test_an_answer_that_was_cut_off_is_said(server, folder):
    for length, notes in ((5, ["The answer was cut off after 5 tokens; raise max_length for more."]), (6, [])):
        talk = Talk(folder)
        talk.writing("a fox")
        node = talk.ask(max_length=length)
        result = server.run(talk.graph)
        assert (result.ui[node]["text"], result.ui[node][NOTES]) == (["a fox"], notes)


def test_an_answer_without_a_word_is_said_and_takes_the_place_of_an_earlier_one(server, folder):
    talk = Talk(folder)
    talk.writing("")
    node = talk.ask()
    result = server.run(talk.graph)
    assert (result.ui[node]["text"], result.ui[node][SHOWN], result.texts) == ([""], [""], [(node, "")])
    assert result.ui[node][NOTES] == ["The answer was ended by the model without a word; ask in other words."]
    listed = talk.graph.add("TestTexts", lines="one?\ntwo?\nthree?")
    several = talk.ask(listed[0])
    assert server.run(talk.graph).ui[several][NOTES] == [
        "Answers 1, 2, 3 were ended by the model without a word; ask in other words."
    ]


def test_a_picture_is_made_once_however_many_questions_are_about_it(server, folder):
    def count(questions: int) -> int:
        talk = Talk(folder)
        talk.clip = talk.graph.add("TestWritesCount", clip=talk.clip)[0]
        listed = talk.graph.add("TestTexts", lines="\n".join(["what is it?"] * questions))
        return int(texts(server, talk, talk.ask(listed[0], [talk.batch(1)], at_once=1))[0])

    assert count(40) < count(1) + 20


# While it is written


def test_text_grows_on_the_node_with_its_very_characters(server, folder):
    text = "1. <b>여우</b> ![x](http://a.b/c.png)\n    _two_ & `three`"
    talk = Talk(folder)
    talk.writing(text, seconds=0.05)
    node = talk.ask(max_length=0)
    result = server.run(talk.graph)
    shown = [read(piece) for where, piece in result.texts if where == node]
    assert len(shown) > 3 and shown[0] == "", "what an earlier run wrote is taken away"
    assert all(later.startswith(earlier) for earlier, later in zip(shown, shown[1:]))
    assert shown[-1] == text == result.ui[node]["text"][0]
    assert result.ui[node][SHOWN] == [result.texts[-1][1]], "where the result is kept, the page shows this, which is no markup"
    assert not any(mark in piece.replace("&#", "") for _, piece in result.texts for mark in "<>[]_`&")
    assert result.progress(node)[-1] == (256, 256)


def test_of_several_answers_the_node_shows_those_being_written_and_in_the_end_all(server, folder):
    talk = Talk(folder)
    talk.writing("a fox", seconds=0.12)
    listed = talk.graph.add("TestTexts", lines="what is it?\nwhat is it?\nwhat is it?")
    talk.ask(listed[0], at_once=2)
    shown = [read(piece) for _, piece in server.run(talk.graph).texts]
    assert shown[-1] == "1: a fox\n\n2: a fox\n\n3: a fox"
    assert {"1: a fox\n\n2: a fox", "3: a fox"} <= set(shown)
    assert not any("1: " in text and "3: " in text for text in shown[:-1])


def test_many_answers_go_out_whole_and_are_shown_up_to_a_limit(server, folder):
    talk = Talk(folder)
    answers = [" ".join(["a fox in the snow"] * 20)] * 64
    talk.writing(answers[0])
    listed = talk.graph.add("TestTexts", lines="\n".join(["what is it?"] * 64))
    node = talk.ask(listed[0], at_once=64, max_length=400)
    result = server.run(talk.graph)
    whole = "\n\n".join(f"{number}: {answer}" for number, answer in enumerate(answers, 1))
    assert result.ui[node]["text"] == answers
    assert read(result.ui[node][SHOWN][0]) == f"{whole[:20_000]}…"
    assert max(len(read(piece)) for _, piece in result.texts) == 20_001


@pytest.mark.parametrize("way", ["ask", "enhance"])
def test_cancelling_stops_within_a_token_frees_the_cache_and_leaves_the_next_run_unharmed(server, folder, way):
    def run_plainly(max_length: int):
        talk = Talk(folder)
        node = getattr(talk, way)(max_length=max_length, images=[talk.batch(1)])
        return texts(server, talk, node)

    undisturbed = run_plainly(11)
    talk = Talk(folder)
    talk.writing("a fox in the snow " * 10, seconds=0.5)
    node = getattr(talk, way)(max_length=180)
    reported = []

    def interrupt(kind, data, result):
        if kind == "progress" and data["node"] == node:
            reported.append(data["value"])
            if len(reported) == 1:
                server.interrupt()

    assert server.run(talk.graph, on_event=interrupt, check=False).status == "interrupted"
    assert reported[-1] <= reported[0] + 4
    counting = Graph()
    alive = counting.add("TestCountAlive", names=DynamicCache.__name__)
    assert server.records(server.run(counting), alive) == {DynamicCache.__name__: 0}
    assert run_plainly(11) == undisturbed


def test_the_room_asked_for_grows_with_the_answers_and_their_length(server, folder):
    def needed(answers: int, max_length: int, pictures: int = 0) -> float:
        talk = Talk(folder)
        inputs = {"prompt": "hello", "answers": answers, "max_length": max_length, "pictures": pictures}
        node = talk.graph.add("TestWritingMemory", clip=talk.clip, **inputs)
        return server.records(server.run(talk.graph), node)["bytes"]

    one = needed(1, 2000) - needed(1, 1000)
    assert one > 0
    assert needed(3, 2000) - needed(3, 1000) == 3 * one
    first, second = needed(1, 9, 1) - needed(1, 9), needed(1, 9, 2) - needed(1, 9, 1)
    assert 0 < second < first, "pictures are looked at one after the other"


# Enhanced prompts


def test_the_rewritten_prompt_goes_out_and_stands_on_the_node(server, folder):
    talk = Talk(folder)
    talk.writing("Prompt: A red fox sits in\nfresh snow.")
    node = talk.enhance("여우", [talk.batch(2)])
    result = server.run(talk.graph)
    assert result.ui[node] == {NOTES: [], "text": ["A red fox sits in fresh snow."], SHOWN: [result.texts[-1][1]], REWRITTEN: ["A red fox sits in fresh snow."]}
    assert read(result.texts[-1][1]) == "A red fox sits in fresh snow."


def test_a_rewritten_prompt_is_never_longer_than_the_encoder_reads(server, folder):
    talk = Talk(folder)
    talk.writing("A fox is in the snow. " * 18)
    node = talk.enhance()
    result = server.run(talk.graph)
    [text] = result.ui[node]["text"]
    assert text.endswith("snow.") and len(text) < TEXT_LIMIT
    assert any(f"the encoder reads {TEXT_LIMIT}" in note for note in result.ui[node][NOTES])


def test_an_edited_prompt_goes_out_unchanged_and_the_model_is_not_asked(server, folder):
    talk = Talk(folder)
    talk.writing("something else", seconds=60)
    node = talk.enhance(edited="my own <words>  ")
    assert texts(server, talk, node) == ["my own <words>  "]


def test_the_built_in_model_enhances_as_far_as_its_words_go(server, scenes):
    talk = Talk(BUILT_IN)
    node = talk.enhance("a red circle", talk.loaded(scenes[0]), max_length=40)
    result = server.run(talk.graph)
    assert not any("wrote no prompt" in note for note in result.ui[node][NOTES])


# What is refused


@pytest.mark.parametrize("way", ["ask", "enhance"])
def test_a_clip_that_cannot_write_is_refused_with_the_node_to_use(server, folder, way):
    talk = Talk(folder)
    talk.clip = talk.graph.add("TestCoreClip", clip=talk.clip)[0]
    getattr(talk, way)()
    message = refusal(server, talk)
    assert "ComfyUI's own OmniGen2 encoder" in message and "OmniGen2 Load Encoder" in message


@pytest.mark.parametrize("way", ["ask", "enhance"])
def test_an_encoder_without_eyes_answers_words_and_refuses_images(server, folder, golden, way):
    write_encoder(server.models / "text_encoders" / "blind.safetensors", golden, vision=False)
    for images in (0, 1):
        talk = Talk(folder)
        talk.clip = talk.graph.add("OmniGen2LoadEncoder", text_encoder="blind.safetensors", dtype="auto")[0]
        node = getattr(talk, way)(images=[talk.batch(1)] * images, max_length=2)
        if images:
            message = refusal(server, talk)
            assert "blind.safetensors" in message and "qwen_2.5_vl_fp16.safetensors" in message
        else:
            assert len(texts(server, talk, node)) == 1


@pytest.mark.parametrize(
    ("way", "inputs", "message"),
    [
        ("ask", {"question": " "}, "The question is empty"),
        ("ask", {"images": 6}, "Got 6 images for one message"),
        ("ask", {"preset": "caption_dense"}, "about 1 image at a time and got 0"),
        ("ask", {"max_length": 5000}, "more than the 4096 that the model reads. Allow the answer "),
        ("enhance", {"prompt": ""}, "The prompt to enhance is empty"),
        ("enhance", {"images": 6}, "Got 6 images for one message"),
    ],
)
def test_what_cannot_be_written_about_is_refused_in_a_sentence(server, folder, way, inputs, message):
    talk = Talk(folder)
    images = [talk.batch(inputs["images"])] if "images" in inputs else []
    getattr(talk, way)(**{**inputs, "images": images})
    assert message in refusal(server, talk)
