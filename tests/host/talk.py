"""Graphs with OmniGen2 Chat, and what became of a turn: its conversation, its files, what the page heard."""

from __future__ import annotations

from harness import Graph
from PIL import Image

from omnigen2_core.conversation import Conversation

NOTES = "omnigen2_notes"
ANSWER = "omnigen2_chat"
EVENT = "omnigen2.chat"
DRAW = "<|img|>"
SETTINGS = {
    "history": "", "mode": "auto", "show_last_picture": False, "negative_prompt": "", "width": 64, "height": 48,
    "match_reference": True, "seed": 0, "steps": 2, "solver": "euler", "text_guidance": 2.0, "image_guidance": 1.5,
    "guidance_start": 0.0, "guidance_end": 1.0, "shift": "auto", "sampling": False, "temperature": 1.0, "top_p": 1.0,
    "top_k": 0, "repetition_penalty": 1.0, "max_length": 24, "keep_turns": 40, "keep_images": 8,
}  # fmt: skip
SAMPLER = {
    name: SETTINGS[name]
    for name in ("seed", "steps", "solver", "text_guidance", "image_guidance", "guidance_start", "guidance_end", "shift")
}


class Talk:
    """A graph with a loader, to which messages are added."""

    def __init__(self, folder: str):
        self.graph = Graph()
        loader = self.graph.add("OmniGen2LoadFolder", folder=folder, dtype="fp32")
        self.model, self.clip, self.vae = (loader[slot] for slot in range(3))

    def pictures(self, amount: int = 1, width: int = 64, height: int = 64, colour: int = 0xFF8000) -> list:
        return self.graph.add("EmptyImage", width=width, height=height, batch_size=amount, color=colour)[0]

    def say(self, message: str, written: str | None = None, images=(), seconds: float = 0.0, **inputs) -> Graph.Node:
        """A message, which the model answers with the text `written` if there is one."""
        clip = self.clip
        if written is not None:
            clip = self.graph.add("TestWrites", clip=clip, text=written, seconds=seconds)[0]
        slots = {f"images.image_{i}": image for i, image in enumerate(images, start=1)}
        given = {"model": self.model, "clip": clip, "vae": self.vae, "message": message, **SETTINGS, **inputs, **slots}
        return self.graph.add("OmniGen2Chat", **given)


def conversation(result, node: Graph.Node) -> Conversation:
    """The conversation after a turn, as a page or a program gets it."""
    [answer] = result.ui[node][ANSWER]
    return Conversation.from_json(answer["conversation"])


def turn(server, folder, message: str, *arguments, **inputs) -> Conversation:
    """One turn in a graph of its own."""
    talk = Talk(folder)
    node = talk.say(message, *arguments, **inputs)
    return conversation(server.run(talk.graph), node)


def refusal(server, talk: Talk) -> str:
    result = server.run(talk.graph, check=False)
    assert result.status == "error"
    return result.error


def files(server) -> set[str]:
    """The pictures of all chats."""
    return {path.relative_to(server.output).as_posix() for path in server.output.glob("omnigen2_chat/*")}


def held(server) -> dict[str, int]:
    """How many of the objects that turns make are in the server's memory: tensors, pictures, caches, conversations.

    In contrast to the memory's size this tells of every single one, however small.
    """
    counting = Graph()
    node = counting.add("TestCountAlive", names="Tensor Image PngImageFile DynamicCache ChatPictures Conversation Turn")
    return server.records(server.run(counting), node)


def opened(server, name: str) -> Image.Image:
    with Image.open(server.output / name) as picture:
        return picture.convert("RGB")


def events(result, node: Graph.Node) -> list[dict]:
    return [data for kind, data in result.events if kind == EVENT and data["node"] == node]
