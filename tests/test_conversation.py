"""A conversation is a value: JSON in and out, strict about what it is given, and bounded."""

import json

import pytest

from omnigen2_core.conversation import MAX_TEXT, Conversation, Dropped, Limits, Role, Turn, bounded, without_images
from omnigen2_core.errors import ConversationError

FOX = Conversation(
    (
        Turn(Role.USER, "Draw a fox \"so\" 雪 🦊\n</script>", ("in/sketch 1.png",)),
        Turn(Role.ASSISTANT, "", ("chat/fox_00001_.png",)),
        Turn(Role.USER, "What is it?"),
        Turn(Role.ASSISTANT, "A fox."),
    )
)


def talk(exchanges, images=1):
    """A conversation of so many messages, each with images, and answers with one, that ends with one more message."""
    turns = []
    for number in range(exchanges):
        turns.append(Turn(Role.USER, f"message {number}", tuple(f"u{number}.{i}.png" for i in range(images))))
        turns.append(Turn(Role.ASSISTANT, "", (f"a{number}.png",)))
    return Conversation((*turns, Turn(Role.USER, "newest", ("n.png",))))


def by_parts(conversation):
    """A prompt length: 10 for each turn and 100 for each image."""
    return 10 * len(conversation.turns) + 100 * len(conversation.images)


# As JSON


@pytest.mark.parametrize(
    "conversation",
    [Conversation(), FOX, Conversation(FOX.turns[:1]), without_images(FOX, {"in/sketch 1.png"})],
    ids=["empty", "two exchanges", "a message", "a dropped image"],
)
def test_it_survives_json(conversation):
    text = conversation.to_json()
    assert Conversation.from_json(text) == conversation
    assert Conversation.from_json(json.dumps(json.loads(text), indent=2)) == conversation
    text.encode("ascii")


def test_its_json_is_as_documented():
    assert json.loads(FOX.to_json()) == {
        "format": "omnigen2-conversation",
        "version": 1,
        "turns": [
            {"role": "user", "text": 'Draw a fox "so" 雪 🦊\n</script>', "images": ["in/sketch 1.png"]},
            {"role": "assistant", "text": "", "images": ["chat/fox_00001_.png"]},
            {"role": "user", "text": "What is it?", "images": []},
            {"role": "assistant", "text": "A fox.", "images": []},
        ],
    }


@pytest.mark.parametrize("text", ["", "  \n"])
def test_no_text_is_an_empty_conversation(text):
    assert Conversation.from_json(text) == Conversation()


def test_half_a_surrogate_pair_survives_too():
    odd = Conversation((Turn(Role.USER, "\ud83e"),))
    assert Conversation.from_json(odd.to_json().encode("utf-8").decode("utf-8")) == odd


def document(**changes):
    values = json.loads(FOX.to_json()) | changes
    return json.dumps({name: value for name, value in values.items() if value is not None})


def first_turn(**values):
    return document(turns=[{"role": "user", "text": "", "images": []} | values])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON: .* in line 1, column 2"),
        ("[" * 100_000, "is no conversation; empty it"),
        ('{"version": ' + "1" * 5000 + "}", "is no conversation; empty it"),
        (" " + "x" * 8_000_000, "has 8000001 characters of JSON; at most"),
        ("[]", r"It is \[\]; it must be a JSON object"),
        ("null", "It is None; it must be"),
        (document(format=None), "It lacks format"),
        (document(format="chatml"), "format is 'chatml'; a conversation's is 'omnigen2-conversation'"),
        (document(version=2), "version 2, and this pack reads up to 1; update the pack"),
        (document(version=0), "version is 0"),
        (document(version=True), "version is True"),
        (document(version="1"), "version is '1'"),
        (document(turns={}), r"turns are \{\}; they must be a list"),
        (document(more=1), "It has 'more', which is not known here"),
        (document(turns=["hello"]), r"turns\[0\] cannot be used. It is 'hello'"),
        (document(turns=[{"text": "x"}]), r"turns\[0\] cannot be used. It lacks role"),
        (first_turn(role="system"), r"turns\[0\] .* role is 'system'; it must be 'user' or 'assistant'"),
        (first_turn(role=["user"]), "role is"),
        (first_turn(role="assistant"), r"turns\[0\] is the assistant's, but it is the user's turn"),
        (document(turns=[{"role": "user"}] * 2), r"turns\[1\] is the user's, but it is the assistant's turn"),
        (document(turns=[{"role": "user"}, {"role": "assistant"}] * 501), "has 1002 turns; at most 1000"),
        (first_turn(text=5), "text is 5; it must be a string"),
        (first_turn(text="x" * (MAX_TEXT + 1)), f"text has {MAX_TEXT + 1} characters"),
        (first_turn(images="a.png"), "images are 'a.png'; they must be a list"),
        (first_turn(images=[{"pixels": [0] * 99}]), "image is .*; it must be a file name"),
        (first_turn(images=["a.png"] * 6), "6 images; one turn may have 5"),
        (first_turn(images_dropped=-1), "images_dropped is -1"),
        (first_turn(images_dropped=True), "images_dropped is True"),
        (first_turn(html="<b>"), r"turns\[0\] .* 'html', which is not known"),
    ],
    ids=range(29),
)
def test_malformed_json_is_refused_with_the_place_and_the_value(text, message):
    with pytest.raises(ConversationError, match=message) as refusal:
        Conversation.from_json(text)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x.png", "a/../../x.png", "a/./x.png", "a//x.png", "a/", "C:x.png", "..\\x.png", "a\\b.png",
     "a\nb.png", "a\0.png", "file://x.png", "x" * 513, 5, None],
)  # fmt: skip
def test_only_relative_names_of_files_are_images(name):
    with pytest.raises(ConversationError, match="no relative file name|must be a file name"):
        Turn(Role.USER, "", (name,))


def test_a_conversation_is_a_value():
    assert hash(FOX) == hash(Conversation.from_json(FOX.to_json()))
    longer = FOX.with_turn(Turn(Role.USER, "more"))
    assert len(FOX.turns) == 4 and len(longer.turns) == 5


# Limits


def test_what_is_within_the_limits_stays_as_it_is():
    assert bounded(talk(2), Limits(), by_parts) == (talk(2), Dropped())
    assert Dropped().notes() == []


def test_too_many_images_lose_the_oldest_and_their_turns_say_so():
    kept, dropped = bounded(talk(2, images=2), Limits(images=3), by_parts)
    assert dropped == Dropped(("u0.0.png", "u0.1.png", "a0.png", "u1.0.png"))
    assert kept.images == ("u1.1.png", "a1.png", "n.png")
    assert [turn.images_dropped for turn in kept.turns] == [2, 1, 1, 0, 0]
    assert [turn.text for turn in kept.turns] == [turn.text for turn in talk(2).turns]


def test_a_turn_counts_no_more_dropped_images_than_a_turn_can_have():
    full = Turn(Role.USER, "", tuple("abcde"), images_dropped=5)
    talk = Conversation((full, Turn(Role.ASSISTANT, "A."), Turn(Role.USER, "B?")))
    assert without_images(talk, {"a"}).turns[0] == Turn(Role.USER, "", tuple("bcde"), images_dropped=5)
    assert bounded(talk, Limits(images=4), by_parts)[0] == without_images(talk, {"a"})


def test_too_many_turns_lose_the_oldest_with_their_answers():
    kept, dropped = bounded(talk(5), Limits(turns=6, images=100), by_parts)
    assert kept.turns == talk(5).turns[6:] and len(kept.turns) + 1 <= 6
    assert dropped == Dropped(("u0.0.png", "a0.png", "u1.0.png", "a1.png", "u2.0.png", "a2.png"), 6)


def test_too_many_tokens_cost_first_the_oldest_images_then_the_oldest_turns():
    few, dropped = bounded(talk(3), Limits(tokens=470), by_parts)
    assert by_parts(few) == 470 and len(few.turns) == 7
    assert few.images == ("a1.png", "u2.0.png", "a2.png", "n.png")
    assert dropped == Dropped(("u0.0.png", "a0.png", "u1.0.png"))
    fewer, dropped = bounded(talk(3), Limits(tokens=130), by_parts)
    assert fewer.images == ("n.png",) and len(fewer.turns) == 3 and dropped.turns == 4


def test_the_newest_message_stays_whole_or_is_refused():
    kept, _ = bounded(talk(3), Limits(turns=2, images=0, tokens=110), by_parts)
    assert kept.turns == talk(3).turns[-1:]
    with pytest.raises(ConversationError, match="110 tokens and may have 109; .* smaller images.$") as refusal:
        bounded(talk(3), Limits(tokens=109, message_tokens=109), by_parts)
    assert "limit" not in str(refusal.value), "who reads this has no input for it"


def test_a_message_longer_than_a_conversation_may_be_costs_the_earlier_turns_and_nothing_else():
    kept, dropped = bounded(talk(3), Limits(tokens=109, message_tokens=110), by_parts)
    assert kept.turns == talk(3).turns[-1:] and dropped.turns == 6


def test_a_message_may_show_two_photos_of_a_phone():
    photos = Conversation((Turn(Role.USER, "Put the woman from image 1 into image 2.", ("1.png", "2.png")),))
    assert bounded(photos, Limits(), lambda _: 60 + 2 * 144 * 108) == (photos, Dropped())


def test_what_was_dropped_is_told_in_sentences():
    images, turns = Dropped(("a.png", "b.png"), 2).notes()
    assert images == "To stay within the limits, the oldest images were dropped: a.png, b.png."
    assert turns == "To stay within the limits, the oldest 2 turns were dropped."


@pytest.mark.parametrize("limits", [{"turns": 1}, {"images": -1}, {"tokens": 0}, {"tokens": 9, "message_tokens": 8}])
def test_limits_that_leave_nothing_are_refused(limits):
    with pytest.raises(ConversationError, match="set it to"):
        Limits(**limits)
