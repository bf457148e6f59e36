"""What the templates on the built-in model say where it looks, speaks or saves work, and what must come of it.

Words, seeds and steps that another training may turn from right to wrong are here and nowhere else. After changing one,
write the templates anew (author.py), then their pictures (author_thumbnails.py) and the README's (author_screenshots.py).

A scene is what the judge has to see: its ground, then place, colour, shape and size of each thing.
"""
from __future__ import annotations

# Try-it-accelerate: a picture, and an edit of it that must come out right in 50 plain steps and with the preset balanced.
ACCELERATE_PICTURE = "A large green triangle in the middle and a large red circle at the top left on a white background"
ACCELERATE_EDIT = "Make the green triangle purple"
ACCELERATE_SEED = 1
ACCELERATE_SCENE = ("white", ("middle", "purple", "triangle", "large"), ("top left", "red", "circle", "large"))

# Try-it-ask-about-a-picture: a picture is drawn and asked about. Every one of the names must be in the answer.
ASK_PICTURE = "A large red circle at the top left and a small blue square at the bottom right on a yellow background"
ASK_SEED = 1
ASK_SCENE = ("yellow", ("top left", "red", "circle", "large"), ("bottom right", "blue", "square", "small"))
ASK_QUESTION = "What does the picture show?"
ASK_NAMES = ("red circle", "blue square", "yellow")

# Try-it-chat: the message that stands in the field when it is opened, which the model must answer with this picture.
CHAT_MESSAGE = "Draw a large green ring in the middle and a small red cross at the top left on a white background"
CHAT_SEED = 1
CHAT_SCENE = ("white", ("middle", "green", "ring", "large"), ("top left", "red", "cross", "small"))
# What is said after it, with the newest picture shown again or not, and words that must be in the answer; without words
# a picture with this scene must come.
CHAT_QUESTION = ("What color is the ring?", False, ("green",))
CHAT_EDIT = ("Make the green ring blue", True, ("white", ("middle", "blue", "ring", "large"), ("top left", "red", "cross", "small")))

# Where one drawing is not to be right every time: few steps, at which guidance would only spoil colours.
FEW_STEPS = {"steps": 3, "text_guidance": 1.0, "image_guidance": 1.0}

# Try-it-reflect-until-right: the first picture of this seed must be wrong, and the best one right.
REFLECT_PROMPT = (
    "A small green triangle at the top right, a large purple circle in the middle, a small red square on the left and a large blue ring at the bottom "
    "on a yellow background"
)
REFLECT_SEED = 36
REFLECT_ROUNDS = 2
REFLECT_SCENE = (
    "yellow", ("top right", "green", "triangle", "small"), ("middle", "purple", "circle", "large"), ("left", "red", "square", "small"),
    ("bottom", "blue", "ring", "large"),
)  # fmt: skip

# Try-it-best-of-four: of four seeds from this one on, one at least must draw it right and one wrong.
BEST_PROMPT, BEST_SEED, BEST_SCENE = REFLECT_PROMPT, 35, REFLECT_SCENE

# The pictures beside the templates for the published weights, which the built-in model draws in their place: for each
# the words that take the place of the template's, what it is shown, and settings other than the built-in model's own.
CROSS_AND_RING = (
    "A large white cross on the left, a small orange square at the top, a large green ring in the middle and a small red triangle at the bottom right "
    "on a black background"
)
THUMBNAILS = {
    "OmniGen2-ask-about-a-picture": (ASK_QUESTION, ["A large purple cross in the middle and a small white ring at the top right on a blue background"], {}),
    "OmniGen2-chat": ("Draw a large orange triangle on the left and a small white circle on the right on a purple background", [], {}),
    "OmniGen2-reflect-until-right": (CROSS_AND_RING, [], {"seed": 40, **FEW_STEPS}),
    "OmniGen2-best-of-four": (CROSS_AND_RING, [], {"seed": 38, **FEW_STEPS}),
}  # fmt: skip

# Every graph for the published weights runs on the built-in model in a test: the pictures that are loaded, the words, and
# what the picture it saves has to show. They are the simplest that use the whole graph.
RED_CIRCLE, BLUE_SQUARE, GREEN_TRIANGLE = ("left", "red", "circle", "large"), ("right", "blue", "square", "large"), ("middle", "green", "triangle", "large")
TWO = ("white", RED_CIRCLE, BLUE_SQUARE)
DRAWN = ([], "A large red circle on the left and a large blue square on the right on a white background", TWO)
GROUND_CHANGED = ([TWO], "Change the background to yellow", ("yellow", RED_CIRCLE, BLUE_SQUARE))
SOURCES = [("white", GREEN_TRIANGLE), ("yellow", RED_CIRCLE), ("black", BLUE_SQUARE)]
RUNS = {
    "OmniGen2-text-to-image": DRAWN,
    "OmniGen2-edit": GROUND_CHANGED,
    "OmniGen2-accelerate": GROUND_CHANGED,
    "OmniGen2-masked-edit": ([TWO], "Make the blue square green", ("white", RED_CIRCLE, ("right", "green", "square", "large"))),
    "OmniGen2-in-context-two-references": (
        SOURCES[:2], "Put the shape from image 1 on the right and the shape from image 2 on the left on a blue background",
        ("blue", ("right", "green", "triangle", "large"), RED_CIRCLE),
    ),
    "OmniGen2-in-context-three-references": (
        SOURCES, "Put the shape from image 1 on the left, the shape from image 2 in the middle and the shape from image 3 on the right on a white background",
        ("white", ("left", "green", "triangle", "large"), ("middle", "red", "circle", "large"), BLUE_SQUARE),
    ),
    "OmniGen2-LoRA": (
        SOURCES[:2], "Put the shape from image 1 on the right and the shape from image 2 on the left on a blue background",
        ("blue", ("right", "green", "triangle", "large"), RED_CIRCLE),
    ),
    "OmniGen2-chat": ([], "Draw a large red circle on the left and a large blue square on the right on a white background", TWO),
    "OmniGen2-reflect-until-right": DRAWN,
    "OmniGen2-best-of-four": DRAWN,
    "neverbiasu-text-to-image": DRAWN,
    "neverbiasu-edit": GROUND_CHANGED,
    "Yuan-ManX-text-to-image": DRAWN,
    "Yuan-ManX-edit": GROUND_CHANGED,
}  # fmt: skip
ASKED = (("white", ("middle", "red", "circle", "large")), "What color is the circle?", "red")
"""The template that asks shows no picture: what is loaded, the question, and a word that must be in the answer."""
