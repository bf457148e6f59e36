"""The graphs of the templates in which the encoder looks and speaks: ask, chat, reflect, and best of four."""
from __future__ import annotations

import built_in_choices as choices
from canvas_graph import Column, Graph, Group, Node, Output, Row
from template_parts import (
    ENLARGED, IMAGE_BOX, LOADER_BOX, MENDING_LORA, MODEL_FILES, NOTE_BOX, PICTURE_BOX, PUBLISHED_SEED, WORLD, Drawing, Parts, built_in_drawing, built_in_parts,
    files_note, published_encoder, published_parts,
)  # fmt: skip

# High enough for what appears on the nodes when they run: an answer, a conversation, rounds. On an opened page all of
# it must still be large enough for the canvas to write its text.
ASK_BOX = (400, 600)
CHAT_BOX = (540, 1020)
LOOP_BOX = (460, 1110)
BEST_BOX = (460, 980)
ABOUT_BOX = (332, 500)

ASK = "ask-about-a-picture"
CHAT = "chat"
REFLECT = "reflect-until-right"
BEST = "best-of-four"

RANDOM = {"control_after_generate": "randomize"}


def drawing_node(graph: Graph, node_type: str, parts: Parts, box: tuple[int, int], **inputs) -> Node:
    """A node that draws by itself, and so takes all three parts."""
    return graph.add(node_type, box=box, model=parts.model, clip=parts.clip, vae=parts.vae, **inputs)


# ---- for the published weights


def published_ask() -> Graph:
    graph = Graph(f"OmniGen2-{ASK}")
    note = graph.note(
        "## Ask about a picture\n\nLoad an image, write a question, press **Run**; the answer appears on the node while it is written. The encoder "
        "of OmniGen2 is all that is needed: Qwen2.5-VL, which sees and writes.\n\nUnder **preset** are ready questions: captions, tags, objects "
        "with their places, text in the image, and with a second image what differs. **answer** can go on to any node that takes text, such as the "
        "prompt of OmniGen2 Encode." + files_note("text_encoders"),
        NOTE_BOX,
    )
    clip = published_encoder(graph)
    loaded = graph.add("LoadImage", box=IMAGE_BOX, image="example.png")
    asked = graph.add(
        "OmniGen2Ask", box=ASK_BOX, clip=clip["clip"], question="What is in this picture? Name each thing, its colour and where it is.",
        images__image_1=loaded["IMAGE"],
    )  # fmt: skip
    graph.layout = Row(Column(note, Group("Model", clip)), Group("Image", loaded), Group("Ask", asked))
    return graph


def published_chat() -> Graph:
    graph = Graph(f"OmniGen2-{CHAT}")
    note = graph.note(
        "## Chat\n\nWrite in the field below the conversation; **Enter** sends. The model decides whether it answers in words or with a picture; "
        "**mode** decides for it.\n\nTo change the last picture turn **show_last_picture** on and say what to change: a picture is drawn from the "
        "newest message and what is shown with it. Images of your own go into **images**.\n\nThe conversation is saved with the workflow, its "
        "pictures are in `output/omnigen2_chat`." + files_note(*MODEL_FILES),
        ABOUT_BOX,
    )
    parts = published_parts(graph)
    talk = drawing_node(
        graph, "OmniGen2Chat", parts, CHAT_BOX,
        message="Draw a red fox sitting in fresh snow at the edge of a birch forest, soft morning light, photograph.", **PUBLISHED_SEED,
    )  # fmt: skip
    shown = graph.add("PreviewImage", "The newest picture", PICTURE_BOX, images=talk["image"])
    graph.layout = Row(Column(note, parts.group), Group("Chat", talk), Group("Picture", shown))
    return graph


def published_reflect() -> Graph:
    graph = Graph(f"OmniGen2-{REFLECT}")
    note = graph.note(
        "## Reflect until right\n\nThe picture is drawn; the encoder looks at it and says what is missing or wrong against the prompt; it is edited "
        "or drawn again, until it is right, a correction does not help, or the **rounds** are used. The best picture goes out.\n\nThe node shows the "
        "rounds as they come: a click tells what was said of one, and **Go on from this round** has the next run begin there.\n\nEach round takes as "
        "long as one to three pictures, and the encoder's look at them." + files_note(*MODEL_FILES),
        ABOUT_BOX,
    )
    parts = published_parts(graph)
    loop = drawing_node(
        graph, "OmniGen2ReflectionLoop", parts, LOOP_BOX,
        prompt="Three red apples and one green pear in a blue bowl on a white wooden table, a yellow cup on the left of the bowl, soft window light, "
        "photograph.", **PUBLISHED_SEED,
    )  # fmt: skip
    saved = graph.add("SaveImage", "The best round", PICTURE_BOX, images=loop["image"], filename_prefix="OmniGen2")
    graph.layout = Row(Column(note, parts.group), Group("Draw, look, correct", loop), Group("Picture", saved))
    return graph


def published_best() -> Graph:
    graph = Graph(f"OmniGen2-{BEST}")
    note = graph.note(
        "## Best of four\n\nThe prompt is drawn with four seeds; the encoder asks of each picture whether every demand of the prompt is met, and "
        "ranks them. The best one is saved; **ranked** gives all of them, the best first.\n\nThe node shows the pictures with their scores: a click "
        "tells what was asked and answered. Change **count** for more or fewer." + files_note(*MODEL_FILES),
        NOTE_BOX,
    )
    parts = published_parts(graph)
    best = drawing_node(
        graph, "OmniGen2BestOfN", parts, BEST_BOX, count=4,
        prompt="A black cat and a white cat playing chess at a small round table by a rainy window, a steaming red cup between them, photograph.",
        **PUBLISHED_SEED,
    )  # fmt: skip
    saved = graph.add("SaveImage", "The best picture", (480, 520), images=best["image"], filename_prefix="OmniGen2")
    shown = graph.add("PreviewImage", "All, the best first", (480, 520), images=best["ranked"])
    graph.layout = Row(Column(note, parts.group), Group("Draw and judge", best), Group("Pictures", saved, shown))
    return graph


def published_looking_templates() -> list[Graph]:
    return [published_ask(), published_chat(), published_reflect(), published_best()]


# ---- on the built-in model


def enlarged(graph: Graph, image: Output, title: str, box: tuple[int, int] = (380, 420)) -> list[Node]:
    """The nodes that show a small picture large."""
    scaled = graph.add("ImageScaleBy", "Enlarge for display", (260, 110), image=image, upscale_method="lanczos", scale_by=ENLARGED)
    return [scaled, graph.add("PreviewImage", title, box, images=scaled["IMAGE"])]


def built_in_ask() -> Graph:
    graph = Graph(f"Try-it-{ASK}")
    note = graph.note(
        "## Try it: ask about a picture\n\nPress **Run**. The built-in model draws a picture, then its encoder is asked about it; the answer appears "
        "on the node. The first seed is fixed, so only the question is answered again.\n\nAsk for what is there: *What color is the circle?*, *Where "
        "is the blue square?*, *Which shape is red?*, *How many shapes are there?*, *Is there a green ring?*\n\n" + WORLD,
        ABOUT_BOX,
    )
    parts = built_in_parts(graph)
    source = Drawing(graph, parts, "1. Draw a picture", choices.ASK_PICTURE, seed=choices.ASK_SEED)
    asked = graph.add("OmniGen2Ask", box=ASK_BOX, clip=parts.clip, question=choices.ASK_QUESTION, images__image_1=source.image)
    graph.layout = Row(Column(note, parts.group), source.group, Group("2. Ask about it", asked))
    return graph


def built_in_chat() -> Graph:
    graph = Graph(f"Try-it-{CHAT}")
    note = graph.note(
        "## Try it: chat\n\nPress **Run**, or Enter in the field below the conversation, and the message is sent. The built-in model decides whether it "
        "answers in words or with a picture.\n\nThen ask about the picture (*What color is the ring?*), or turn **show_last_picture** on and say what "
        "to change (*Make the green ring blue*).\n\nThe conversation is saved with the workflow, its pictures are in `output/omnigen2_chat`.\n\n" + WORLD,
        ABOUT_BOX,
    )
    parts = built_in_parts(graph)
    talk = drawing_node(graph, "OmniGen2Chat", parts, CHAT_BOX, message=choices.CHAT_MESSAGE, seed=choices.CHAT_SEED, **RANDOM, **built_in_drawing())
    graph.layout = Row(Column(note, parts.group), Group("Chat", talk), Group("Picture", *enlarged(graph, talk["image"], "The newest picture")))
    return graph


def built_in_reflect() -> Graph:
    graph = Graph(f"Try-it-{REFLECT}")
    note = graph.note(
        "## Try it: reflect until right\n\nPress **Run**. The built-in model draws four shapes in a few steps, too few to be right every time. Its "
        "encoder looks at the picture and says what is wrong, and it is edited or drawn again, until it is right, a round does not help or the **rounds** are used.\n\nThe node "
        "shows the rounds: a click tells what was said of one, and **Go on from this round** has the next run begin there. With **rounds** at 0 you "
        "see what one shot gives. The LoRA was trained to mend pictures by such words; without it more corrections fail.\n\n" + WORLD,
        ABOUT_BOX,
    )
    parts = built_in_parts(graph)
    lora = graph.add("OmniGen2LoadLoRA", box=LOADER_BOX, model=parts.model, lora_name=MENDING_LORA, strength=1.0)
    parts.model = lora["model"]
    settings = built_in_drawing() | choices.FEW_STEPS
    loop = drawing_node(
        graph, "OmniGen2ReflectionLoop", parts, LOOP_BOX, prompt=choices.REFLECT_PROMPT, seed=choices.REFLECT_SEED, rounds=choices.REFLECT_ROUNDS,
        redraw="auto", reflect_by="auto", **RANDOM, **settings,
    )  # fmt: skip
    shown = enlarged(graph, loop["image"], "The best round")
    saved = graph.add("SaveImage", box=(260, 310), images=loop["image"], filename_prefix="OmniGen2-nano")
    graph.layout = Row(Column(note, parts.group, Group("LoRA", lora)), Group("Draw, look, correct", loop), Group("Picture", *shown, saved))
    return graph


def built_in_best() -> Graph:
    graph = Graph(f"Try-it-{BEST}")
    note = graph.note(
        "## Try it: best of four\n\nPress **Run**. The built-in model draws the prompt with four seeds in a few steps, too few to be right every time; "
        "its encoder looks at each picture and ranks them. The best one is saved.\n\nThe node shows the pictures with their scores: a click tells what "
        "was asked and answered.\n\n" + WORLD,
        ABOUT_BOX,
    )
    parts = built_in_parts(graph)
    settings = built_in_drawing() | choices.FEW_STEPS
    best = drawing_node(
        graph, "OmniGen2BestOfN", parts, BEST_BOX, prompt=choices.BEST_PROMPT, seed=choices.BEST_SEED, count=4, **RANDOM, **settings
    )
    saved = graph.add("SaveImage", "The best picture", (260, 310), images=best["image"], filename_prefix="OmniGen2-nano")
    shown = enlarged(graph, best["ranked"], "All, the best first", (480, 520))
    graph.layout = Row(Column(note, parts.group), Group("Draw and judge", best), Group("Pictures", saved, *shown))
    return graph


def built_in_looking_templates() -> list[Graph]:
    return [built_in_ask(), built_in_chat(), built_in_reflect(), built_in_best()]
