"""A testing node for pictures that do not fit."""
import copy

import torch


class Small:
    """An autoencoder in whose place the whole runs out of memory; all else is its own."""

    def __init__(self, model, record):
        self._model, self._record = model, record

    def __getattr__(self, name):
        if name in ("decode_tiled", "encode_tiled"):
            self._record.append("tiled")
        return getattr(self._model, name)

    def decode(self, *args, **kwargs):
        self._record.append("whole")
        raise torch.OutOfMemoryError("the card is full")

    encode = decode


class TestOutOfMemory:
    """The VAE on a card that cannot hold a whole picture, and what it was asked for."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    RETURN_TYPES = ("VAE", "TEST_RECORD")
    FUNCTION = "fill"
    CATEGORY = "testing"

    def fill(self, vae):
        vae, record = copy.copy(vae), []
        vae.first_stage_model = Small(vae.first_stage_model, record)
        return (vae, record)


NODES = {node.__name__: node for node in (TestOutOfMemory,)}
