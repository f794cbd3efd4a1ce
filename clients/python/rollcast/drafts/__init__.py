"""Draft models (EAGLE-3 heads and MTP layers) in PyTorch: made, trained on rollouts, and judged."""

from ._layer import DraftError
from ._models import Draft, Eagle3Draft, Ends, MtpDraft, load_draft
from ._noise import choose, gumbel, token_bits
from ._samples import (
    DumpedStates,
    Rollout,
    Sample,
    Watch,
    ends_of,
    ends_of_checkpoint,
    padded,
    read_rollouts,
    sample_with,
)
from ._training import Acceptance, DraftTrainer, acceptance, draft_loss

__all__ = [
    "Acceptance",
    "Draft",
    "DraftError",
    "DraftTrainer",
    "DumpedStates",
    "Eagle3Draft",
    "Ends",
    "MtpDraft",
    "Rollout",
    "Sample",
    "Watch",
    "acceptance",
    "choose",
    "draft_loss",
    "ends_of",
    "ends_of_checkpoint",
    "gumbel",
    "load_draft",
    "padded",
    "read_rollouts",
    "sample_with",
    "token_bits",
]
