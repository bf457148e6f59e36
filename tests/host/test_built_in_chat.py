"""Chat and questions on the built-in model in a real server: long conversations, two at once, restarts, cancelling.

Whether what it says is right is for `dev.py score --reflection`; here it is that its own words and pictures go all the way.
"""

import pytest
from harness import Graph
from PIL import Image
from talk import NOTES, Talk, conversation, events, files, held, opened, turn
from transformers import DynamicCache

from omnigen2_core.conversation import Conversation, Role
from omnigen2_core.nano.world import Scene, Thing, render

BUILT_IN = "OmniGen2-nano (built in)"
SIZE = {"width": 96, "height": 96, "steps": 2}
PROMPT = "A large red circle in the middle on a white background"
QUESTION = "What color is the circle?"
CAPTION = "Describe the picture."
THINGS = (
    Thing(0, "red", "circle", "small"),
    Thing(2, "blue", "square", "large"),
    Thing(4, "green", "diamond", "large"),
    Thing(7, "yellow", "ring", "small"),
)


@pytest.fixture(scope="module")
def scene(server):
    """A picture of four things, which takes many words to describe."""
    return server.save_input("four-things.png", Image.fromarray(render(Scene("white", THINGS), 96, 96)))


def test_the_model_draws_what_is_to_be_drawn_and_answers_what_is_asked(server):
    drawn = turn(server, BUILT_IN, PROMPT, **SIZE)
    assert len(drawn.turns[-1].images) == 1 and drawn.turns[-1].text == ""
    asked = turn(server, BUILT_IN, QUESTION, history=drawn.to_json(), show_last_picture=True, **SIZE)
    assert asked.turns[-1].images == () and asked.turns[-1].text.strip()


def test_a_conversation_of_words_and_pictures_goes_on_within_its_limits(server):
    """Fifty turns by twos, as a page runs them: a picture, then a question about it."""
    limits = {"keep_turns": 8, "keep_images": 2}
    told, counts = Conversation(), []
    for number in range(25):
        for message, mode in ((PROMPT, "draw"), (QUESTION, "text")):
            talk = Talk(BUILT_IN)
            # Written to its end: an answer that is cut off would be a note too.
            settings = {"mode": mode, "seed": number, "show_last_picture": mode == "text", "max_length": 64}
            node = talk.say(message, history=told.to_json(), **settings, **SIZE, **limits)
            result = server.run(talk.graph)
            earlier, told = told, conversation(result, node)
            said = told.turns[-1]
            assert said.role is Role.ASSISTANT and bool(said.images) == (mode == "draw") and bool(said.text) == (mode == "text")
            # Beside the limit there are those of the newest message.
            assert len(told.turns) <= 8 and len(told.images) <= 4
            assert told.turns[-2].text == message
            if mode == "text":
                assert told.turns[-2].images == earlier.images[-1:]
        if number in (9, 24):
            counts.append(held(server))
    assert any("the oldest 2 turns were dropped" in note for note in result.ui[node][NOTES])
    assert any("the oldest images were dropped" in note for note in result.ui[node][NOTES])
    assert opened(server, told.images[-1]).size == (96, 96)
    assert counts[0] == counts[1]


def test_two_chats_in_a_run_do_not_mix(server, scene):
    talk = Talk(BUILT_IN)
    picture = talk.graph.add("LoadImage", image=scene)[0]
    asks = talk.say(CAPTION, images=[picture], mode="text", max_length=200, **SIZE)
    draws = talk.say(PROMPT, mode="draw", **SIZE)
    result = server.run(talk.graph)
    words, drawn = conversation(result, asks), conversation(result, draws)
    assert words.turns[-1].text and not words.turns[-1].images
    assert drawn.turns[-1].images and not drawn.turns[-1].text and len(drawn.turns) == len(words.turns) == 2
    assert {event["message"] for event in events(result, asks)} == {CAPTION}
    alone = turn(server, BUILT_IN, PROMPT, mode="draw", **SIZE)
    assert opened(server, alone.images[0]).tobytes() == opened(server, drawn.images[0]).tobytes()


def test_a_restart_between_turns_changes_nothing_of_what_is_said_next(start_server):
    server = start_server()
    drawn = turn(server, BUILT_IN, PROMPT, mode="draw", **SIZE)
    more = {"history": drawn.to_json(), "show_last_picture": True, "mode": "text", **SIZE}
    before = turn(server, BUILT_IN, QUESTION, **more)
    server.restart()
    after = turn(server, BUILT_IN, QUESTION, **more)
    assert after == before and after.turns[:2] == drawn.turns and after.turns[-1].text.strip()


@pytest.mark.parametrize("kind", ["chat", "ask"])
def test_cancelling_in_the_midst_of_its_words_leaves_nothing_behind(server, scene, kind):
    def asked(seconds: float = 0.0) -> tuple[Talk, Graph.Node]:
        talk = Talk(BUILT_IN)
        talk.clip = talk.graph.add("TestWritesSlowly", clip=talk.clip, seconds=seconds)[0]
        picture = talk.graph.add("LoadImage", image=scene)[0]
        if kind == "chat":
            return talk, talk.say(CAPTION, images=[picture], mode="text", max_length=200, **SIZE)
        choices = {"sampling": False, "seed": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
        settings = {"preset": "own_question", "question": CAPTION, "each_image": False, "max_length": 200, "at_once": 4, **choices}
        return talk, talk.graph.add("OmniGen2Ask", clip=talk.clip, **settings, **{"images.image_1": picture})

    talk, node = asked()
    whole = server.run(talk.graph).ui[node]["text"]
    assert len(whole[0].split()) >= 12
    before, heard, stopped = files(server), [], []
    talk, node = asked(seconds=0.5)

    def interrupt(event, data, result):
        if event == "progress" and data["node"] == node:
            heard.append(data["value"])
            if data["value"] >= 3 and not stopped:
                stopped.append(True)
                server.interrupt()

    assert server.run(talk.graph, on_event=interrupt, check=False).status == "interrupted"
    assert 3 <= max(heard) < 10, "it went on to write, and a word is a token here"
    assert files(server) == before
    counting = Graph()
    alive = counting.add("TestCountAlive", names=DynamicCache.__name__)
    assert server.records(server.run(counting), alive) == {DynamicCache.__name__: 0}
    talk, node = asked()
    assert server.run(talk.graph).ui[node]["text"] == whole
