"""What goes into and comes out of the client: plain, immutable values."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Sequence, Tuple


class RollcastError(Exception):
    """The scheduler refused, or said something that cannot be.

    `code` is the stable name (`bad_prompt`, `unknown_batch`, ...), `message` one line that says
    what, where, the numbers and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> Tuple[object, ...]:
        """Arguments of its own would be lost between processes."""
        return (RollcastError, (self.code, self.message))


class Timeout(RollcastError):
    """The scheduler was not heard of in time. Code `timed_out`."""

    def __init__(self, message: str) -> None:
        super().__init__("timed_out", message)

    def __reduce__(self) -> Tuple[object, ...]:
        return (Timeout, (self.message,))


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None takes the batch's value in a prompt, and the value in brackets in
    a batch."""

    temperature: Optional[float] = None  # [1] 0 is greedy
    top_p: Optional[float] = None  # [1]
    top_k: Optional[int] = None  # [0] 0 is off
    min_p: Optional[float] = None  # [0]
    max_new_tokens: Optional[int] = None  # [none: a batch must give it]
    min_new_tokens: Optional[int] = None  # [0]
    stop_token_ids: Optional[Sequence[int]] = None  # [none] beside the model's own
    ignore_eos: Optional[bool] = None  # [False]


@dataclass(frozen=True)
class Prompt:
    """One prompt; what is None comes from `Client.submit`."""

    token_ids: Sequence[int]
    id: str = ""  # given back with each response
    group_size: Optional[int] = None
    seed: Optional[int] = None
    sampling: Optional[Sampling] = None


@dataclass(frozen=True)
class WeightSpan:
    """The weight version that made tokens [start, end) of a response."""

    version: int
    start: int
    end: int


@dataclass(frozen=True)
class RoutedExperts:
    """The experts that the model's router chose for positions `start`, `start` + 1, ... of a
    response (its prompt's first token is at 0), when the token there was fed to the model. The
    response's last token was fed to nothing, so that it has none."""

    start: int
    positions: int
    layers: int  # with experts, in the order of the model; dense layers are left out
    per_token: int  # slots of a layer, best first
    data: bytes  # [positions, layers, per_token] of `dtype`
    dtype: str  # "uint8" or "uint16", little-endian

    @property
    def shape(self) -> Tuple[int, int, int]:
        return (self.positions, self.layers, self.per_token)

    def numpy(self) -> Any:
        """The ids as a numpy array of `shape` over the same bytes. Needs numpy."""
        import numpy

        dtype = numpy.dtype(self.dtype).newbyteorder("<")
        return numpy.frombuffer(self.data, dtype).reshape(self.shape)


@dataclass(frozen=True)
class Response:
    """One finished response."""

    group: int  # place of its prompt in the batch, from 0
    index: int  # within the group, from 0
    id: str  # of its prompt
    prompt_token_ids: Tuple[int, ...]  # empty in a batch from `attach`, which was not told
    token_ids: Tuple[int, ...]
    logprobs: array[float]  # array("f"), one a token, the very bits that the engine computed
    kept_mass: array[float]  # array("f"), one a token when a filter is on, else empty
    finish_reason: str  # "stop", "length" or "cancelled"
    weight_versions: Tuple[WeightSpan, ...]
    seed: int
    numerics_profile: str  # that made the bits
    sequence: int  # place in the batch's stream, from 1
    routed_experts: Optional[RoutedExperts] = None  # when `routed_experts_from` was given


@dataclass(frozen=True)
class WorkerSummary:
    """What one worker did for a batch."""

    worker: int
    name: str
    tokens: int
    tokens_per_s: float
    busy_s: float
    idle_fraction: float
    chunks: int
    migrations: int
    migrated_bytes: int
    recomputed_tokens: int
    preemptions: int
    draft_tokens: int
    accepted_tokens: int
    mean_acceptance_length: float


@dataclass(frozen=True)
class Summary:
    """What a batch cost; the fields of summary.json."""

    responses: int
    tokens: int
    wall_s: float
    tokens_per_s: float
    makespan_s: float
    tail_s: float  # time with at most 10 % of the responses unfinished
    worker_idle_fraction: float
    chunks: int
    migrations: int
    migrated_bytes: int
    recomputed_tokens: int
    preemptions: int
    draft_tokens: int
    accepted_tokens: int
    mean_acceptance_length: float
    numerics_profile: str
    policy: str
    speculate: str
    workers: Tuple[WorkerSummary, ...] = field(default=())


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, as the scheduler sees it."""

    worker: int
    name: str
    state: str
    pid: int
    endpoint: str
    running: int
    waiting: int
    kv_blocks_total: int
    kv_blocks_used: int
    kv_blocks_parked: int
    kv_tokens_spilled: int
    generated_tokens: int
    steps: int
    busy_s: float
    epoch: int


@dataclass(frozen=True)
class BatchStatus:
    """One batch, as the scheduler sees it."""

    batch_key: str
    policy: str
    responses: int
    finished: int
    running: int
    waiting: int
    generated_tokens: int


@dataclass(frozen=True)
class WorkerWeights:
    """How far one worker is with the update under way."""

    worker: int
    bytes: int  # received
    prepared: bool


@dataclass(frozen=True)
class WeightsStatus:
    """The weights that are served, and the update under way."""

    phase: str  # "idle", "receiving", "distributing", "waiting" or "flipping"
    epoch: int
    next_epoch: int  # of the update under way; 0: none
    bytes_total: int  # of the update, to each worker
    seconds: float  # since it began
    workers: Tuple[WorkerWeights, ...]
    previous_epoch: int  # held for a rollback; 0: none
    paused: bool


@dataclass(frozen=True)
class WeightsServed:
    """An epoch that every live worker serves, and what it took."""

    epoch: int
    content_hash: str  # 32 hexadecimal digits
    tensors: int
    bytes: int
    phases: Dict[str, float]  # seconds, in order
    pause_s: float  # how long serving paused for the flip
    workers: int


@dataclass(frozen=True)
class ScoreSequence:
    """Tokens to score: those from `prompt_tokens` on."""

    token_ids: Sequence[int]
    prompt_tokens: int = 1
    temperature: float = 1.0  # the one that they were drawn with


@dataclass(frozen=True)
class Scored:
    """Log-probabilities, one row a sequence."""

    rows: Tuple[array[float], ...]  # array("f"), the very bits that the engine computed
    weight_version: int
    numerics_profile: str


@dataclass(frozen=True)
class Status:
    """The cluster, as the scheduler sees it."""

    numerics_profile: str
    weight_version: int
    model: str
    workers: Tuple[WorkerStatus, ...]
    batches: Tuple[BatchStatus, ...]
    live_groups: int
    uptime_s: float
    weights: WeightsStatus
