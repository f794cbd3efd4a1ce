"""Between the plain values of _types and the messages of the wire."""

from __future__ import annotations

from array import array
from dataclasses import fields
from operator import index
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

from . import rollcast_pb2 as wire
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
    WeightsServed,
    WeightsStatus,
    WeightSpan,
    WorkerStatus,
    WorkerSummary,
    WorkerWeights,
)

AnyPrompt = Union[Prompt, Iterable[int]]
AnySequence = Union[ScoreSequence, Tuple[Iterable[int], int]]  # or (token ids, prompt tokens)

_FINISH_REASONS = {
    wire.FINISH_REASON_STOP: "stop",
    wire.FINISH_REASON_LENGTH: "length",
    wire.FINISH_REASON_CANCELLED: "cancelled",
}


_FLIPS = {
    "between_batches": wire.WEIGHT_FLIP_BETWEEN_BATCHES,
    "chunk_edge": wire.WEIGHT_FLIP_CHUNK_EDGE,
}


def flip_to_wire(flip: str) -> wire.WeightFlip:
    if flip not in _FLIPS:
        raise RollcastError("bad_config", f"flip {flip!r}: give one of {', '.join(_FLIPS)}")
    return _FLIPS[flip]


def sampling_to_wire(sampling: Sampling, where: str) -> wire.Sampling:
    given: Dict[str, Any] = {
        f.name: getattr(sampling, f.name)
        for f in fields(sampling)
        if getattr(sampling, f.name) is not None
    }
    try:
        if "stop_token_ids" in given:
            given["stop_token_ids"] = wire.TokenIds(ids=[index(t) for t in given["stop_token_ids"]])
        return wire.Sampling(**given)
    except (TypeError, ValueError) as error:
        raise RollcastError("bad_sampling", f"{where}: {error}") from None


def group_to_wire(number: int, prompt: AnyPrompt, group_size: int) -> wire.Group:
    where = f"group {number}"
    if isinstance(prompt, str):
        raise RollcastError("bad_prompt", f"{where}: text must be tokenised first, give token ids")
    given = prompt if isinstance(prompt, Prompt) else Prompt(token_ids=list(prompt))
    try:
        group = wire.Group(
            id=given.id,
            prompt_token_ids=[index(t) for t in given.token_ids],
            group_size=group_size if given.group_size is None else given.group_size,
            seed=given.seed,
        )
    except (TypeError, ValueError) as error:
        raise RollcastError("bad_prompt", f"{where}: {error}") from None
    if given.sampling is not None:
        group.sampling.CopyFrom(sampling_to_wire(given.sampling, where))
    return group


def batch_to_wire(
    batch_key: str,
    groups: List[wire.Group],
    sampling: wire.Sampling,
    seed: int,
    required_weight_version: Optional[int],
    policy: str,
    chunk_tokens: Optional[int],
    routed_experts_from: Optional[int],
) -> wire.SubmitBatch:
    try:
        return wire.SubmitBatch(
            batch_key=batch_key,
            groups=groups,
            sampling=sampling,
            seed=seed,
            required_weight_version=required_weight_version,
            policy=policy,
            chunk_tokens=chunk_tokens,
            routed_experts_from=routed_experts_from,
        )
    except (TypeError, ValueError) as error:
        raise RollcastError("bad_config", f"batch: {error}") from None


def _experts_from_wire(result: wire.Result) -> Optional[RoutedExperts]:
    if not result.HasField("routed_experts"):
        return None
    experts = result.routed_experts
    a_position = experts.layers * experts.per_token * experts.id_bytes
    positions = len(experts.ids) // a_position if a_position else 0
    if positions * a_position != len(experts.ids) or experts.id_bytes > 2:
        raise RollcastError(
            "frame_malformed",
            f"result {result.sequence} of batch {result.batch_key} has {len(experts.ids)} bytes of "
            f"routed experts, {a_position} a position",
        )
    return RoutedExperts(
        start=experts.start,
        positions=positions,
        layers=experts.layers,
        per_token=experts.per_token,
        data=experts.ids,
        dtype="uint16" if experts.id_bytes == 2 else "uint8",
    )


def response_from_wire(result: wire.Result) -> Response:
    if len(result.logprobs) != len(result.token_ids):
        raise RollcastError(
            "frame_malformed",
            f"result {result.sequence} of batch {result.batch_key} has {len(result.logprobs)} "
            f"logprobs for {len(result.token_ids)} tokens",
        )
    return Response(
        group=result.group,
        index=result.index,
        id=result.id,
        prompt_token_ids=tuple(result.prompt_token_ids),
        token_ids=tuple(result.token_ids),
        logprobs=array("f", result.logprobs),
        kept_mass=array("f", result.kept_mass),
        finish_reason=_FINISH_REASONS.get(result.finish_reason, "unknown"),
        weight_versions=tuple(
            WeightSpan(s.version, s.start, s.end) for s in result.weight_versions
        ),
        seed=result.response_seed,
        numerics_profile=result.numerics_profile,
        sequence=result.sequence,
        routed_experts=_experts_from_wire(result),
    )


def _same_names(kind: Any, message: Any, but: Iterable[str] = ()) -> Dict[str, Any]:
    """The fields of a dataclass, read from the message that has the same names."""
    return {f.name: getattr(message, f.name) for f in fields(kind) if f.name not in but}


def summary_from_wire(summary: wire.Summary) -> Summary:
    return Summary(
        **_same_names(Summary, summary, but=("workers",)),
        workers=tuple(WorkerSummary(**_same_names(WorkerSummary, w)) for w in summary.workers),
    )


def status_from_wire(status: wire.Status) -> Status:
    return Status(
        **_same_names(Status, status, but=("workers", "batches", "weights")),
        workers=tuple(WorkerStatus(**_same_names(WorkerStatus, w)) for w in status.workers),
        batches=tuple(BatchStatus(**_same_names(BatchStatus, b)) for b in status.batches),
        weights=WeightsStatus(
            **_same_names(WeightsStatus, status.weights, but=("workers",)),
            workers=tuple(
                WorkerWeights(**_same_names(WorkerWeights, w)) for w in status.weights.workers
            ),
        ),
    )


def served_from_wire(served: wire.WeightsServed) -> WeightsServed:
    return WeightsServed(
        **_same_names(WeightsServed, served, but=("phases",)),
        phases={p.phase: p.seconds for p in served.phases},
    )


def score_to_wire(sequences: Iterable[AnySequence], weight_version: Optional[int]) -> wire.Score:
    try:
        score = wire.Score(weight_version=weight_version)
    except (TypeError, ValueError) as error:
        raise RollcastError("bad_config", f"weight_version: {error}") from None
    for number, given in enumerate(sequences):
        s = given if isinstance(given, ScoreSequence) else ScoreSequence(list(given[0]), given[1])
        try:
            score.sequences.add(
                token_ids=[index(t) for t in s.token_ids],
                prompt_tokens=s.prompt_tokens,
                temperature=s.temperature,
            )
        except (TypeError, ValueError) as error:
            raise RollcastError("bad_prompt", f"sequence {number}: {error}") from None
    return score


def scored_from_wire(asked: wire.Score, scored: wire.Scored) -> Scored:
    wanted = [len(s.token_ids) - s.prompt_tokens for s in asked.sequences]
    if [len(row.logprobs) for row in scored.rows] != wanted:
        raise RollcastError(
            "frame_malformed",
            f"{len(scored.rows)} rows of scores came that do not fit the {len(wanted)} sequences",
        )
    return Scored(
        rows=tuple(array("f", row.logprobs) for row in scored.rows),
        weight_version=scored.weight_version,
        numerics_profile=scored.numerics_profile,
    )


def error_of(error: wire.Error) -> RollcastError:
    detail = f" ({error.detail})" if error.detail else ""
    return RollcastError(error.code, error.message + detail)
