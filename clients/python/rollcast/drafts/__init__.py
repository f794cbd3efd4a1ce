"""Draft models (EAGLE-3 heads and MTP layers) in PyTorch: made, trained on rollouts, and judged."""

from ._layer import DraftError
from ._models import Draft, Eagle3Draft, Ends, MtpDraft, load_draft

__all__ = ["Draft", "DraftError", "Eagle3Draft", "Ends", "MtpDraft", "load_draft"]
