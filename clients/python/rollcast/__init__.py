"""Controller client of Rollcast: submit prompts, iterate responses as they finish."""

from ._client import Batch, Client
from ._types import (
    BatchStatus,
    Prompt,
    Response,
    RollcastError,
    Sampling,
    Status,
    Summary,
    Timeout,
    WeightSpan,
    WorkerStatus,
    WorkerSummary,
)

__all__ = [
    "Batch",
    "BatchStatus",
    "Client",
    "Prompt",
    "Response",
    "RollcastError",
    "Sampling",
    "Status",
    "Summary",
    "Timeout",
    "WeightSpan",
    "WorkerStatus",
    "WorkerSummary",
]
