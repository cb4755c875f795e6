"""What two stages must have in common to share a base: its weights and its tokenizer."""

from onebase.recipe.sections import FrozenModel


class BaseIdentity(FrozenModel):
    """Which frozen model, exactly: two bases of the same shape differ in their weights' hash."""

    model: str
    revision: str | None
    quantization: str
    config_sha256: str
    weights_sha256: str
    vocabulary: int
    hidden_layers: int


class TokenizerIdentity(FrozenModel):
    """Which tokens a conversation becomes."""

    tokenizer_sha256: str
    template_sha256: str
    """Of the chat template and the system message."""
    pad_id: int
    stop_ids: list[int]
