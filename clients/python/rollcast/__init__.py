"""Controller client of Rollcast: submit prompts, iterate responses as they finish, send weights."""

from pathlib import Path as _Path

from ._batch import Batch
from ._client import Client
from ._types import (
    BatchStatus,
    Prompt,
    Response,
    RollcastError,
    RoutedExperts,
    Sampling,
    Scored,
    ScoreSequence,
    Status,
    Summary,
    Timeout,
    WeightsServed,
    WeightsStatus,
    WeightSpan,
    WorkerStatus,
    WorkerSummary,
    WorkerWeights,
)

__version__ = (_Path(__file__).parent / "VERSION").read_text().strip()

__all__ = [
    "Batch",
    "BatchStatus",
    "Client",
    "Prompt",
    "Response",
    "RollcastError",
    "RoutedExperts",
    "Sampling",
    "ScoreSequence",
    "Scored",
    "Status",
    "Summary",
    "Timeout",
    "WeightSpan",
    "WeightsServed",
    "WeightsStatus",
    "WorkerStatus",
    "WorkerSummary",
    "WorkerWeights",
]
