"""The errors a user can cause. Each message says what is wrong, shows the value, and says what to do."""


class OmniGen2Error(ValueError):
    """Base of every error in this package that better input or another file would avoid."""


class CheckpointError(OmniGen2Error):
    """A weight file or config is not what it should be: wrong model, truncated, pickled, missing parts."""


class LoRAError(CheckpointError):
    """A LoRA file that matches nothing in the model, or matches it wrongly."""


class PromptError(OmniGen2Error):
    """A prompt that cannot be tokenized or encoded."""


class SizeError(OmniGen2Error):
    """An image or latent size that the model cannot take."""


class ReferenceImageError(OmniGen2Error):
    """Too many reference images, or one that cannot be used."""


class ReflectionError(OmniGen2Error):
    """A reflection or best-of-N run that cannot start, or a transcript that cannot be read."""


class JudgeError(OmniGen2Error):
    """The user's own judge cannot be asked: no key, refused, too slow, or its answer is malformed."""


class GenerationError(OmniGen2Error):
    """A setting of text generation that is out of its range."""


class SamplingError(OmniGen2Error):
    """A setting of a sampling run that is out of its range: its steps or times, their shift, the solver."""


class ConversationError(OmniGen2Error):
    """A conversation that cannot be read or continued: malformed JSON, a picture gone, roles out of turn, no such mode."""


class CompileError(OmniGen2Error):
    """The model cannot be compiled on this machine."""
