"""What a graphics card is never asked for: MPS has no float64, no complex numbers and no fp8, and waiting costs every card.

"meta" stands for the card. It is a device that is no CPU, so the code takes the path of one, and it has no values, so an
operation that reads one back fails, but for one that is named below.
"""

import json

import pytest
import torch
from make_checkpoints import write_folder
from PIL import Image
from talking import golden_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from omnigen2_core.acceleration.protocol import Run
from omnigen2_core.guidance import Guidance
from omnigen2_core.pipeline import EncodedText, OmniGen2Pipeline
from omnigen2_core.solvers import SOLVERS
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ABSENT = {torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2}


class Seen(TorchDispatchMode):
    """Collects the dtypes of everything that operations leave on a device."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.dtypes = device, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # A whole run asks once for each evaluation whether its input is that of the branch before; here it never is.
        if function is torch.ops.aten.equal.default and args[0].is_meta:
            return False
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                self.dtypes.add(tensor.dtype)
        return out


@pytest.fixture(scope="module")
def config(golden):
    return OmniGen2Config.from_dict(json.loads((golden / "dit_config.json").read_text()))


@pytest.fixture
def pipeline(golden, tmp_path):
    files = tmp_path / "tokenizer"
    files.mkdir()
    golden_tokenizer(golden).save(str(files / "tokenizer.json"))
    write_folder(tmp_path / "model", golden, tokenizer=files)
    return OmniGen2Pipeline.from_folder(tmp_path / "model", device="cpu")


def predict(config, dtype: torch.dtype, device: str) -> Seen:
    """Two evaluations of a batch with references, without and with an object that remembers the run."""
    model = OmniGen2Transformer(config, dtype=dtype, device=device)

    def tensor(*shape):
        return torch.zeros(shape, dtype=dtype, device=device)

    run = Run(steps=2)
    with Seen(device) as seen:
        for state in (None, run.evaluation("cond", 0, "prompt")):
            velocity = model(
                tensor(2, 16, 6, 4),
                tensor(2),
                tensor(2, 9, 64),
                None,
                [[tensor(16, 4, 4), tensor(16, 4, 6)], None],
                text_lengths=[9, 5],
                state=state,
            )
    assert velocity.shape == (2, 16, 6, 4)
    return seen


@pytest.mark.parametrize("training", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_transformer_asks_a_card_for_floats_of_one_size_and_never_waits_for_it(config, dtype, training):
    """With gradients it computes as it is written, without them in fewer passes over memory."""
    with torch.set_grad_enabled(training):
        assert predict(config, dtype, "meta").dtypes <= {torch.float32, dtype, torch.bool}


@torch.no_grad()
def test_only_a_cpu_turns_heads_as_complex_numbers(config):
    assert predict(config, torch.float32, "cpu").dtypes & ABSENT >= {torch.complex64}
    for dtype in (torch.bfloat16, torch.float16):
        assert not predict(config, dtype, "cpu").dtypes & {torch.complex64, torch.complex128}


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_whole_run_from_a_reference_to_pixels(pipeline, dtype, solver):
    """Encoding by the autoencoder, schedule, guidance, solver and decoding; the text comes from an encoder elsewhere."""
    parts = (part.to("meta", dtype) for part in (pipeline.transformer, pipeline.vae))
    placed = OmniGen2Pipeline(*parts, pipeline.encoder, pipeline.tokenizer, pipeline.profile)
    width = pipeline.transformer.config.text_feat_dim
    text, negative = (EncodedText(torch.zeros(1, length, width), torch.ones(1, length, dtype=torch.int64)) for length in (7, 4))
    with Seen("meta") as seen:
        reference = placed.encode_reference(Image.new("RGB", (64, 48)))
        latents = placed.sample_latents(
            text, negative, placed.noise([1], 64, 48), [[reference]], steps=4, guidance=Guidance(3.0, 2.0), solver=solver
        )
        pixels = placed.decode(latents)
    assert pixels.device.type == "meta" and pixels.shape == (1, 3, 48, 64)
    assert latents.dtype is torch.float32
    assert not seen.dtypes & ABSENT, seen.dtypes
