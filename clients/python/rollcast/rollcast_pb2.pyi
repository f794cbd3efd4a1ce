from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_UNSPECIFIED: FinishReason
WEIGHT_FLIP_BETWEEN_BATCHES: WeightFlip
WEIGHT_FLIP_CHUNK_EDGE: WeightFlip

class AbortWeights(_message.Message):
    __slots__ = ["epoch"]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class AckResults(_message.Message):
    __slots__ = ["batch_key", "sequence"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    sequence: int
    def __init__(self, batch_key: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class BatchAccepted(_message.Message):
    __slots__ = ["batch_key", "first_sequence", "numerics_profile", "responses", "weight_version"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_PROFILE_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    first_sequence: int
    numerics_profile: str
    responses: int
    weight_version: int
    def __init__(self, batch_key: _Optional[str] = ..., responses: _Optional[int] = ..., first_sequence: _Optional[int] = ..., numerics_profile: _Optional[str] = ..., weight_version: _Optional[int] = ...) -> None: ...

class BatchDone(_message.Message):
    __slots__ = ["batch_key", "sequence", "summary"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    sequence: int
    summary: Summary
    def __init__(self, batch_key: _Optional[str] = ..., sequence: _Optional[int] = ..., summary: _Optional[_Union[Summary, _Mapping[str, object]]] = ...) -> None: ...

class BatchStatus(_message.Message):
    __slots__ = ["batch_key", "finished", "generated_tokens", "policy", "responses", "running", "waiting"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    finished: int
    generated_tokens: int
    policy: str
    responses: int
    running: int
    waiting: int
    def __init__(self, batch_key: _Optional[str] = ..., policy: _Optional[str] = ..., responses: _Optional[int] = ..., finished: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class BeginWeights(_message.Message):
    __slots__ = ["allow_non_finite", "changed_only", "epoch", "flip"]
    ALLOW_NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_ONLY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FLIP_FIELD_NUMBER: _ClassVar[int]
    allow_non_finite: bool
    changed_only: bool
    epoch: int
    flip: WeightFlip
    def __init__(self, epoch: _Optional[int] = ..., changed_only: bool = ..., flip: _Optional[_Union[WeightFlip, str]] = ..., allow_non_finite: bool = ...) -> None: ...

class CancelBatch(_message.Message):
    __slots__ = ["batch_key"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    def __init__(self, batch_key: _Optional[str] = ...) -> None: ...

class CommitWeights(_message.Message):
    __slots__ = ["content_hash", "epoch", "tensors"]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    content_hash: str
    epoch: int
    tensors: int
    def __init__(self, epoch: _Optional[int] = ..., content_hash: _Optional[str] = ..., tensors: _Optional[int] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ["abort_weights", "ack_results", "batch_accepted", "batch_done", "begin_weights", "cancel_batch", "commit_weights", "error", "get_status", "load_weights", "ok", "pause", "request_id", "result", "resume", "resume_results", "rollback_weights", "score", "scored", "status", "submit_batch", "version", "weight_bucket", "weights_begun", "weights_served"]
    ABORT_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ACK_RESULTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    BATCH_DONE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_BATCH_FIELD_NUMBER: _ClassVar[int]
    COMMIT_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    GET_STATUS_FIELD_NUMBER: _ClassVar[int]
    LOAD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    RESUME_RESULTS_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_BATCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BEGUN_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SERVED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BUCKET_FIELD_NUMBER: _ClassVar[int]
    abort_weights: AbortWeights
    ack_results: AckResults
    batch_accepted: BatchAccepted
    batch_done: BatchDone
    begin_weights: BeginWeights
    cancel_batch: CancelBatch
    commit_weights: CommitWeights
    error: Error
    get_status: GetStatus
    load_weights: LoadWeights
    ok: Ok
    pause: Pause
    request_id: int
    result: Result
    resume: Resume
    resume_results: ResumeResults
    rollback_weights: RollbackWeights
    score: Score
    scored: Scored
    status: Status
    submit_batch: SubmitBatch
    version: int
    weight_bucket: WeightBucket
    weights_begun: WeightsBegun
    weights_served: WeightsServed
    def __init__(self, version: _Optional[int] = ..., request_id: _Optional[int] = ..., submit_batch: _Optional[_Union[SubmitBatch, _Mapping[str, object]]] = ..., cancel_batch: _Optional[_Union[CancelBatch, _Mapping[str, object]]] = ..., ack_results: _Optional[_Union[AckResults, _Mapping[str, object]]] = ..., resume_results: _Optional[_Union[ResumeResults, _Mapping[str, object]]] = ..., get_status: _Optional[_Union[GetStatus, _Mapping[str, object]]] = ..., score: _Optional[_Union[Score, _Mapping[str, object]]] = ..., begin_weights: _Optional[_Union[BeginWeights, _Mapping[str, object]]] = ..., weight_bucket: _Optional[_Union[WeightBucket, _Mapping[str, object]]] = ..., commit_weights: _Optional[_Union[CommitWeights, _Mapping[str, object]]] = ..., abort_weights: _Optional[_Union[AbortWeights, _Mapping[str, object]]] = ..., load_weights: _Optional[_Union[LoadWeights, _Mapping[str, object]]] = ..., pause: _Optional[_Union[Pause, _Mapping[str, object]]] = ..., resume: _Optional[_Union[Resume, _Mapping[str, object]]] = ..., rollback_weights: _Optional[_Union[RollbackWeights, _Mapping[str, object]]] = ..., batch_accepted: _Optional[_Union[BatchAccepted, _Mapping[str, object]]] = ..., ok: _Optional[_Union[Ok, _Mapping[str, object]]] = ..., status: _Optional[_Union[Status, _Mapping[str, object]]] = ..., error: _Optional[_Union[Error, _Mapping[str, object]]] = ..., weights_begun: _Optional[_Union[WeightsBegun, _Mapping[str, object]]] = ..., weights_served: _Optional[_Union[WeightsServed, _Mapping[str, object]]] = ..., scored: _Optional[_Union[Scored, _Mapping[str, object]]] = ..., result: _Optional[_Union[Result, _Mapping[str, object]]] = ..., batch_done: _Optional[_Union[BatchDone, _Mapping[str, object]]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ["batch_key", "code", "detail", "message"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    code: str
    detail: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., detail: _Optional[str] = ..., batch_key: _Optional[str] = ...) -> None: ...

class GetStatus(_message.Message):
    __slots__: list[str] = []
    def __init__(self) -> None: ...

class Group(_message.Message):
    __slots__ = ["group_size", "id", "prompt_token_ids", "sampling", "seed"]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    group_size: int
    id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    seed: int
    def __init__(self, id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., group_size: _Optional[int] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping[str, object]]] = ...) -> None: ...

class LoadWeights(_message.Message):
    __slots__ = ["allow_non_finite", "directory", "epoch", "flip"]
    ALLOW_NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FLIP_FIELD_NUMBER: _ClassVar[int]
    allow_non_finite: bool
    directory: str
    epoch: int
    flip: WeightFlip
    def __init__(self, directory: _Optional[str] = ..., epoch: _Optional[int] = ..., flip: _Optional[_Union[WeightFlip, str]] = ..., allow_non_finite: bool = ...) -> None: ...

class Ok(_message.Message):
    __slots__: list[str] = []
    def __init__(self) -> None: ...

class Pause(_message.Message):
    __slots__: list[str] = []
    def __init__(self) -> None: ...

class PhaseSeconds(_message.Message):
    __slots__ = ["phase", "seconds"]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    seconds: float
    def __init__(self, phase: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ["batch_key", "finish_reason", "group", "id", "index", "kept_mass", "logprobs", "numerics_profile", "prompt_token_ids", "response_seed", "routed_experts", "sequence", "token_ids", "weight_versions"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KEPT_MASS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_PROFILE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SEED_FIELD_NUMBER: _ClassVar[int]
    ROUTED_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    finish_reason: FinishReason
    group: int
    id: str
    index: int
    kept_mass: _containers.RepeatedScalarFieldContainer[float]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    numerics_profile: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    response_seed: int
    routed_experts: RoutedExperts
    sequence: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    weight_versions: _containers.RepeatedCompositeFieldContainer[WeightSpan]
    def __init__(self, batch_key: _Optional[str] = ..., sequence: _Optional[int] = ..., group: _Optional[int] = ..., index: _Optional[int] = ..., id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., kept_mass: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., weight_versions: _Optional[_Iterable[_Union[WeightSpan, _Mapping[str, object]]]] = ..., response_seed: _Optional[int] = ..., numerics_profile: _Optional[str] = ..., routed_experts: _Optional[_Union[RoutedExperts, _Mapping[str, object]]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__: list[str] = []
    def __init__(self) -> None: ...

class ResumeResults(_message.Message):
    __slots__ = ["after_sequence", "batch_key"]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    batch_key: str
    def __init__(self, batch_key: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class RollbackWeights(_message.Message):
    __slots__: list[str] = []
    def __init__(self) -> None: ...

class RoutedExperts(_message.Message):
    __slots__ = ["id_bytes", "ids", "layers", "per_token", "start"]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    id_bytes: int
    ids: bytes
    layers: int
    per_token: int
    start: int
    def __init__(self, start: _Optional[int] = ..., layers: _Optional[int] = ..., per_token: _Optional[int] = ..., id_bytes: _Optional[int] = ..., ids: _Optional[bytes] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ["ignore_eos", "max_new_tokens", "min_new_tokens", "min_p", "stop_token_ids", "temperature", "top_k", "top_p"]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    ignore_eos: bool
    max_new_tokens: int
    min_new_tokens: int
    min_p: float
    stop_token_ids: TokenIds
    temperature: float
    top_k: int
    top_p: float
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., max_new_tokens: _Optional[int] = ..., min_new_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Union[TokenIds, _Mapping[str, object]]] = ..., ignore_eos: bool = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ["sequences", "weight_version"]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[Sequence]
    weight_version: int
    def __init__(self, sequences: _Optional[_Iterable[_Union[Sequence, _Mapping[str, object]]]] = ..., weight_version: _Optional[int] = ...) -> None: ...

class Scored(_message.Message):
    __slots__ = ["numerics_profile", "rows", "weight_version"]
    NUMERICS_PROFILE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    numerics_profile: str
    rows: _containers.RepeatedCompositeFieldContainer[ScoredRow]
    weight_version: int
    def __init__(self, rows: _Optional[_Iterable[_Union[ScoredRow, _Mapping[str, object]]]] = ..., weight_version: _Optional[int] = ..., numerics_profile: _Optional[str] = ...) -> None: ...

class ScoredRow(_message.Message):
    __slots__ = ["logprobs"]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Sequence(_message.Message):
    __slots__ = ["prompt_tokens", "temperature", "token_ids"]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    temperature: float
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ["batches", "live_groups", "model", "numerics_profile", "uptime_s", "weight_version", "weights", "workers"]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    LIVE_GROUPS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_PROFILE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[BatchStatus]
    live_groups: int
    model: str
    numerics_profile: str
    uptime_s: float
    weight_version: int
    weights: WeightsStatus
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    def __init__(self, numerics_profile: _Optional[str] = ..., weight_version: _Optional[int] = ..., model: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping[str, object]]]] = ..., batches: _Optional[_Iterable[_Union[BatchStatus, _Mapping[str, object]]]] = ..., live_groups: _Optional[int] = ..., uptime_s: _Optional[float] = ..., weights: _Optional[_Union[WeightsStatus, _Mapping[str, object]]] = ...) -> None: ...

class SubmitBatch(_message.Message):
    __slots__ = ["batch_key", "chunk_tokens", "echo_prompts", "force_migration", "groups", "policy", "required_weight_version", "routed_experts_from", "sampling", "seed"]
    BATCH_KEY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ECHO_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    FORCE_MIGRATION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_WEIGHT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTED_EXPERTS_FROM_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    batch_key: str
    chunk_tokens: int
    echo_prompts: bool
    force_migration: bool
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    policy: str
    required_weight_version: int
    routed_experts_from: int
    sampling: Sampling
    seed: int
    def __init__(self, batch_key: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping[str, object]]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping[str, object]]] = ..., seed: _Optional[int] = ..., required_weight_version: _Optional[int] = ..., policy: _Optional[str] = ..., chunk_tokens: _Optional[int] = ..., force_migration: bool = ..., echo_prompts: bool = ..., routed_experts_from: _Optional[int] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ["accepted_tokens", "chunks", "draft_tokens", "makespan_s", "mean_acceptance_length", "migrated_bytes", "migrations", "numerics_profile", "policy", "preemptions", "recomputed_tokens", "responses", "speculate", "tail_s", "tokens", "tokens_per_s", "wall_s", "worker_idle_fraction", "workers"]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAKESPAN_S_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTANCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MIGRATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_PROFILE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    SPECULATE_FIELD_NUMBER: _ClassVar[int]
    TAIL_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDLE_FRACTION_FIELD_NUMBER: _ClassVar[int]
    accepted_tokens: int
    chunks: int
    draft_tokens: int
    makespan_s: float
    mean_acceptance_length: float
    migrated_bytes: int
    migrations: int
    numerics_profile: str
    policy: str
    preemptions: int
    recomputed_tokens: int
    responses: int
    speculate: str
    tail_s: float
    tokens: int
    tokens_per_s: float
    wall_s: float
    worker_idle_fraction: float
    workers: _containers.RepeatedCompositeFieldContainer[WorkerSummary]
    def __init__(self, responses: _Optional[int] = ..., tokens: _Optional[int] = ..., wall_s: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., makespan_s: _Optional[float] = ..., tail_s: _Optional[float] = ..., worker_idle_fraction: _Optional[float] = ..., chunks: _Optional[int] = ..., migrations: _Optional[int] = ..., migrated_bytes: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., mean_acceptance_length: _Optional[float] = ..., numerics_profile: _Optional[str] = ..., policy: _Optional[str] = ..., speculate: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerSummary, _Mapping[str, object]]]] = ...) -> None: ...

class TensorSlice(_message.Message):
    __slots__ = ["data", "dtype", "name", "offset", "shape"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dtype: str
    name: str
    offset: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ["ids"]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class WeightBucket(_message.Message):
    __slots__ = ["bucket", "epoch", "slices"]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    bucket: int
    epoch: int
    slices: _containers.RepeatedCompositeFieldContainer[TensorSlice]
    def __init__(self, epoch: _Optional[int] = ..., bucket: _Optional[int] = ..., slices: _Optional[_Iterable[_Union[TensorSlice, _Mapping[str, object]]]] = ...) -> None: ...

class WeightSpan(_message.Message):
    __slots__ = ["end", "start", "version"]
    END_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    end: int
    start: int
    version: int
    def __init__(self, version: _Optional[int] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class WeightsBegun(_message.Message):
    __slots__ = ["bucket_bytes_max", "epoch"]
    BUCKET_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    bucket_bytes_max: int
    epoch: int
    def __init__(self, epoch: _Optional[int] = ..., bucket_bytes_max: _Optional[int] = ...) -> None: ...

class WeightsServed(_message.Message):
    __slots__ = ["bytes", "content_hash", "epoch", "pause_s", "phases", "tensors", "workers"]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PAUSE_S_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    content_hash: str
    epoch: int
    pause_s: float
    phases: _containers.RepeatedCompositeFieldContainer[PhaseSeconds]
    tensors: int
    workers: int
    def __init__(self, epoch: _Optional[int] = ..., content_hash: _Optional[str] = ..., tensors: _Optional[int] = ..., bytes: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[PhaseSeconds, _Mapping[str, object]]]] = ..., pause_s: _Optional[float] = ..., workers: _Optional[int] = ...) -> None: ...

class WeightsStatus(_message.Message):
    __slots__ = ["bytes_total", "epoch", "next_epoch", "paused", "phase", "previous_epoch", "seconds", "workers"]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    bytes_total: int
    epoch: int
    next_epoch: int
    paused: bool
    phase: str
    previous_epoch: int
    seconds: float
    workers: _containers.RepeatedCompositeFieldContainer[WorkerWeights]
    def __init__(self, phase: _Optional[str] = ..., epoch: _Optional[int] = ..., next_epoch: _Optional[int] = ..., bytes_total: _Optional[int] = ..., seconds: _Optional[float] = ..., workers: _Optional[_Iterable[_Union[WorkerWeights, _Mapping[str, object]]]] = ..., previous_epoch: _Optional[int] = ..., paused: bool = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ["busy_s", "endpoint", "epoch", "generated_tokens", "kv_blocks_parked", "kv_blocks_total", "kv_blocks_used", "kv_tokens_spilled", "name", "pid", "running", "state", "steps", "waiting", "worker"]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_PARKED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_SPILLED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    busy_s: float
    endpoint: str
    epoch: int
    generated_tokens: int
    kv_blocks_parked: int
    kv_blocks_total: int
    kv_blocks_used: int
    kv_tokens_spilled: int
    name: str
    pid: int
    running: int
    state: str
    steps: int
    waiting: int
    worker: int
    def __init__(self, worker: _Optional[int] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., pid: _Optional[int] = ..., endpoint: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_blocks_total: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ..., kv_blocks_parked: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., steps: _Optional[int] = ..., busy_s: _Optional[float] = ..., epoch: _Optional[int] = ..., kv_tokens_spilled: _Optional[int] = ...) -> None: ...

class WorkerSummary(_message.Message):
    __slots__ = ["accepted_tokens", "busy_s", "chunks", "draft_tokens", "idle_fraction", "mean_acceptance_length", "migrated_bytes", "migrations", "name", "preemptions", "recomputed_tokens", "tokens", "tokens_per_s", "worker"]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IDLE_FRACTION_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTANCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MIGRATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    accepted_tokens: int
    busy_s: float
    chunks: int
    draft_tokens: int
    idle_fraction: float
    mean_acceptance_length: float
    migrated_bytes: int
    migrations: int
    name: str
    preemptions: int
    recomputed_tokens: int
    tokens: int
    tokens_per_s: float
    worker: int
    def __init__(self, worker: _Optional[int] = ..., name: _Optional[str] = ..., tokens: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., busy_s: _Optional[float] = ..., idle_fraction: _Optional[float] = ..., chunks: _Optional[int] = ..., migrations: _Optional[int] = ..., migrated_bytes: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., mean_acceptance_length: _Optional[float] = ...) -> None: ...

class WorkerWeights(_message.Message):
    __slots__ = ["bytes", "prepared", "worker"]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    prepared: bool
    worker: int
    def __init__(self, worker: _Optional[int] = ..., bytes: _Optional[int] = ..., prepared: bool = ...) -> None: ...

class WeightFlip(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__: list[str] = []

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__: list[str] = []
