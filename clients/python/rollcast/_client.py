"""The client: one DEALER socket, requests with answers, and a stream of results per batch."""

from __future__ import annotations

import time
import uuid
import weakref
from collections import deque
from types import TracebackType
from typing import Deque, Dict, Iterable, Iterator, Optional, Set, Tuple, Type

import zmq
from google.protobuf.message import DecodeError

from . import rollcast_pb2 as wire
from ._convert import (
    AnyPrompt,
    batch_to_wire,
    group_to_wire,
    response_from_wire,
    sampling_to_wire,
    status_from_wire,
    summary_from_wire,
)
from ._types import Response, RollcastError, Sampling, Status, Summary, Timeout

PROTOCOL_VERSION = 1
MESSAGE_BYTES_MAX = 64 << 20
_LINGER_MS = 1000  # how long close() waits for the last acknowledgements to leave
_HEARTBEAT_MS = 2000  # a connection that died silently is noticed and made anew


class Client:
    """A connection to a Rollcast scheduler. For one thread at a time.

    `timeout` (seconds) bounds every request. While a batch is iterated, a scheduler that does not
    answer is asked again until `patience` (seconds) is over; then `Timeout` is raised, and
    iterating may be tried again later. Failures are `RollcastError` with the scheduler's code.
    """

    def __init__(self, endpoint: str, timeout: float = 10.0, patience: float = 60.0) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.patience = patience
        self._last_request_id = 0
        self._awaited = 0
        self._answer: Optional[wire.Envelope] = None
        self._acks: Dict[int, str] = {}
        # Weak, so that the results of a batch that nobody holds any more are dropped.
        self._batches: weakref.WeakValueDictionary[str, Batch] = weakref.WeakValueDictionary()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        try:
            self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
            self._socket.setsockopt(zmq.RCVHWM, 0)  # what is dropped would be sent again
            self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
            self._socket.connect(endpoint)
            self.status()
        except zmq.ZMQError as error:
            self.close()
            raise RollcastError(
                "bad_config", f'cannot connect to "{endpoint}": {error}; give tcp://host:port'
            ) from None
        except BaseException:
            self.close()
            raise

    def submit(
        self,
        prompts: Iterable[AnyPrompt],
        group_size: int = 1,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        batch_key: Optional[str] = None,
        required_weight_version: Optional[int] = None,
        policy: str = "",
        chunk_tokens: Optional[int] = None,
    ) -> Batch:
        """Submits a batch: `group_size` responses to each prompt.

        A prompt is a sequence of token ids, or a `Prompt` for values of its own. `batch_key` makes
        submitting twice run once; by default a new one is drawn. `sampling.max_new_tokens` must be
        given. Absent values are the scheduler's.
        """
        message = batch_to_wire(
            uuid.uuid4().hex if batch_key is None else batch_key,
            [group_to_wire(number, prompt, group_size) for number, prompt in enumerate(prompts)],
            sampling_to_wire(sampling, "batch"),
            seed,
            required_weight_version,
            policy,
            chunk_tokens,
        )
        answer = self._call(wire.Envelope(submit_batch=message))
        return self._start(answer.batch_accepted, message)

    def attach(self, batch_key: str, after_sequence: int = 0) -> Batch:
        """Goes on with a batch submitted earlier, perhaps by another process, after the response
        with that sequence number, which it acknowledges. What was acknowledged does not come
        again."""
        request = wire.ResumeResults(batch_key=batch_key, after_sequence=after_sequence)
        accepted = self._call(wire.Envelope(resume_results=request)).batch_accepted
        accepted.first_sequence = max(accepted.first_sequence, after_sequence + 1)
        return self._start(accepted, None)

    def status(self) -> Status:
        """Returns workers, batches and queues as the scheduler sees them."""
        answer = self._call(wire.Envelope(get_status=wire.GetStatus()))
        return status_from_wire(answer.status)

    def close(self) -> None:
        """Closes the connection; batches go on. May be called twice."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    # -- used by Batch --------------------------------------------------------------------------

    def _start(self, accepted: wire.BatchAccepted, submitted: Optional[wire.SubmitBatch]) -> Batch:
        batch = Batch(self, accepted, submitted)
        self._batches[batch.key] = batch
        return batch

    def _acknowledge(self, batch_key: str, sequence: int) -> None:
        ack = wire.AckResults(batch_key=batch_key, sequence=sequence)
        self._acks[self._send(wire.Envelope(ack_results=ack))] = batch_key

    def _call(self, request: wire.Envelope) -> wire.Envelope:
        """Sends a request and returns its answer; what is pushed meanwhile goes to its batch."""
        kind = request.WhichOneof("body")
        self._answer = None
        self._awaited = self._send(request)
        deadline = time.monotonic() + self.timeout
        try:
            while self._answer is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._pump(left):
                    raise Timeout(
                        f"no answer to {kind} from {self.endpoint} within {self.timeout:g} s: is a "
                        "Rollcast scheduler running there?"
                    )
        finally:
            self._awaited = 0
        answer = self._answer
        if answer.WhichOneof("body") == "error":
            raise _error_of(answer.error)
        wanted = {"ack_results": "ok", "cancel_batch": "ok", "get_status": "status"}
        if answer.WhichOneof("body") != wanted.get(str(kind), "batch_accepted"):
            raise RollcastError(
                "frame_malformed", f"{self.endpoint} gave an answer to {kind} of the wrong kind"
            )
        return answer

    def _pump(self, wait: float) -> bool:
        """Takes in one message. Returns False when none came within `wait` seconds."""
        if not self._socket.poll(max(0, int(wait * 1000) + 1)):
            return False
        parts = self._socket.recv_multipart()
        envelope = wire.Envelope()
        try:
            if len(parts) != 1:
                raise DecodeError("several parts")
            envelope.ParseFromString(parts[0])
        except DecodeError:
            raise RollcastError(
                "frame_malformed", f"{self.endpoint} is no Rollcast scheduler"
            ) from None
        if envelope.version != PROTOCOL_VERSION:
            raise RollcastError(
                "frame_malformed",
                f"{self.endpoint} speaks protocol version {envelope.version}, this client "
                f"{PROTOCOL_VERSION}: use a matching release",
            )
        self._dispatch(envelope)
        return True

    # -- inside ---------------------------------------------------------------------------------

    def _send(self, envelope: wire.Envelope) -> int:
        self._last_request_id += 1
        envelope.version = PROTOCOL_VERSION
        envelope.request_id = self._last_request_id
        data = envelope.SerializeToString()
        if len(data) > MESSAGE_BYTES_MAX:
            raise RollcastError(
                "frame_too_large",
                f"the request takes {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are allowed: "
                "split the batch",
            )
        if not self._socket.poll(int(self.timeout * 1000), zmq.POLLOUT):
            raise Timeout(f"{self.endpoint} took nothing for {self.timeout:g} s")
        self._socket.send(data)
        return self._last_request_id

    def _dispatch(self, envelope: wire.Envelope) -> None:
        kind = envelope.WhichOneof("body")
        if envelope.request_id:
            if envelope.request_id == self._awaited:
                self._answer = envelope
                return
            batch = self._batches.get(self._acks.pop(envelope.request_id, ""))
            if batch is not None and kind == "error":
                batch._refused_ack(_error_of(envelope.error))
            return
        if kind == "result":
            batch = self._batches.get(envelope.result.batch_key)
            if batch is not None:
                batch._take_result(envelope.result)
        elif kind == "batch_done":
            batch = self._batches.get(envelope.batch_done.batch_key)
            if batch is not None:
                batch._take_done(envelope.batch_done)
        elif kind == "error":
            batch = self._batches.get(envelope.error.batch_key)
            if batch is None:
                raise _error_of(envelope.error)
            batch._take_failure(_error_of(envelope.error))


class Batch(Iterator[Response]):
    """A submitted batch. Iterating it yields each response once, in order of finishing.

    A response is acknowledged when the next one is asked for: what is in the caller's hands when
    its process dies comes again to `Client.attach`. After a lost connection the stream goes on
    where it stood; a scheduler that has forgotten the batch is given it again, which changes no
    response.
    """

    def __init__(
        self, client: Client, accepted: wire.BatchAccepted, submitted: Optional[wire.SubmitBatch]
    ) -> None:
        self.key: str = accepted.batch_key
        self.responses: int = accepted.responses
        self.numerics_profile: str = accepted.numerics_profile
        self.weight_version: int = accepted.weight_version
        self.summary: Optional[Summary] = None  # there once iteration has ended
        self._client = client
        self._submitted = submitted
        self._expected: int = accepted.first_sequence
        self._ready: Deque[wire.Result] = deque()
        self._seen: Set[Tuple[int, int]] = set()
        self._done: Optional[wire.BatchDone] = None
        self._in_hand = 0  # sequence number that the caller works on
        self._skipped = 0  # sequence number of a repetition, not acknowledged yet
        self._behind = False  # something is missing from the stream
        self._failure: Optional[RollcastError] = None
        self._cancelled = False
        self._failed = False  # the batch itself, and not the way to it
        if accepted.first_sequence > accepted.responses + 1:
            raise RollcastError(
                "batch_conflict",
                f"batch {self.key} was collected and acknowledged before: use another batch key "
                "to run it again",
            )

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> Response:
        response = self.next()
        if response is None:
            raise StopIteration
        return response

    def next(self, timeout: Optional[float] = None) -> Optional[Response]:
        """Returns the next response, or None when the batch is done. Raises `Timeout` when none
        came within `timeout` seconds (default: as long as the scheduler lives)."""
        if self.summary is not None:
            return None
        if self._in_hand:
            self._client._acknowledge(self.key, self._in_hand)
            self._in_hand = 0
        if not self._ready and self._done is None:
            self._wait(None if timeout is None else time.monotonic() + timeout)
        if self._ready:
            result = self._ready.popleft()
            self._in_hand = result.sequence
            return response_from_wire(result)
        assert self._done is not None
        self._client._acknowledge(self.key, self._done.sequence)
        self.summary = summary_from_wire(self._done.summary)
        return None

    def cancel(self) -> None:
        """Ends what is unfinished; those responses still come, with finish reason "cancelled"."""
        if self._done is None:
            self._cancelled = True
            request = wire.CancelBatch(batch_key=self.key)
            self._client._call(wire.Envelope(cancel_batch=request))

    # -- used by Client -------------------------------------------------------------------------

    def _take_result(self, result: wire.Result) -> None:
        if not self._in_turn(result.sequence):
            return
        place = (result.group, result.index)
        if place in self._seen:  # the batch was submitted again
            self._skipped = result.sequence
        else:
            self._seen.add(place)
            self._ready.append(result)

    def _take_done(self, done: wire.BatchDone) -> None:
        if self._in_turn(done.sequence):
            self._done = done

    def _take_failure(self, error: RollcastError) -> None:
        if self._in_turn(self.responses + 1):  # it stands in the place of BatchDone
            self._failure = error
            self._failed = True

    def _refused_ack(self, error: RollcastError) -> None:
        if error.code in ("unknown_batch", "queue_full"):  # asked again, or covered by the next
            self._behind = True
        else:
            self._failure = error

    # -- inside ---------------------------------------------------------------------------------

    def _in_turn(self, sequence: int) -> bool:
        """Whether this is the next item. An earlier one is a repetition; a later one tells that
        something was lost with a connection."""
        if sequence > self._expected:
            self._behind = True
        if sequence != self._expected:
            return False
        self._expected += 1
        return True

    def _wait(self, deadline: Optional[float]) -> None:
        """Waits for the next item. The stream may be silent for long while tokens are made, so
        after each silence of the client's timeout the scheduler is asked to go on from here."""
        heard = asked = time.monotonic()
        while not self._ready and self._done is None:
            if self._skipped:  # or the scheduler would wait for it
                self._client._acknowledge(self.key, self._skipped)
                self._skipped = 0
            now = time.monotonic()
            if self._failure is not None:
                if self._failed:  # told; its key may be used again
                    self._failed = False
                    self._client._acknowledge(self.key, self.responses + 1)
                raise self._failure
            if deadline is not None and now >= deadline:
                raise Timeout(f"batch {self.key}: no response in the time given")
            if self._behind or now >= asked + self._client.timeout:
                try:
                    self._resume()
                    heard = time.monotonic()
                except RollcastError as error:
                    if error.code not in ("timed_out", "queue_full"):
                        raise
                    if time.monotonic() >= heard + self._client.patience:
                        raise
                    if error.code == "queue_full":  # it lives, and has much to do
                        time.sleep(0.05)
                asked = time.monotonic()
                continue
            until = asked + self._client.timeout
            if self._client._pump((until if deadline is None else min(until, deadline)) - now):
                heard = asked = time.monotonic()

    def _resume(self) -> None:
        request = wire.ResumeResults(batch_key=self.key, after_sequence=self._expected - 1)
        try:
            answer = self._client._call(wire.Envelope(resume_results=request))
            # Pushed before the answer, something may have moved us on meanwhile.
            self._expected = max(self._expected, answer.batch_accepted.first_sequence)
        except RollcastError as error:
            if error.code != "unknown_batch" or self._submitted is None:
                raise
            answer = self._client._call(wire.Envelope(submit_batch=self._submitted))
            self._expected = answer.batch_accepted.first_sequence
            if self._cancelled:
                self.cancel()
        self._behind = False


def _error_of(error: wire.Error) -> RollcastError:
    detail = f" ({error.detail})" if error.detail else ""
    return RollcastError(error.code, error.message + detail)
