"""The client: one DEALER socket, requests with answers; what is pushed goes to its batch."""

from __future__ import annotations

import time
import uuid
import weakref
from contextlib import suppress
from os import PathLike, fspath
from types import TracebackType
from typing import Dict, Iterable, List, Optional, Set, Type, Union

import zmq
from google.protobuf.message import DecodeError

from . import rollcast_pb2 as wire
from ._batch import Batch
from ._convert import (
    AnyPrompt,
    AnySequence,
    batch_to_wire,
    error_of,
    flip_to_wire,
    group_to_wire,
    sampling_to_wire,
    score_to_wire,
    scored_from_wire,
    served_from_wire,
    status_from_wire,
)
from ._keys import AnyFile, Keys
from ._types import (
    RollcastError,
    Sampling,
    Scored,
    Status,
    Timeout,
    WeightsServed,
)
from ._weights import AnyTensors, Bucket, cut, frame_of

PROTOCOL_VERSION = 1
MESSAGE_BYTES_MAX = 64 << 20
_LINGER_MS = 1000  # how long close() waits for the last acknowledgements to leave
_SILENCE_S = 8  # a connection that died silently is noticed, by the kernel, and made anew
_BUCKETS_UNDERWAY = 4  # sent and not answered: the wire stays busy, the scheduler's memory small
# What answers each request that may succeed.
_ANSWERS = {
    "submit_batch": "batch_accepted",
    "resume_results": "batch_accepted",
    "get_status": "status",
    "begin_weights": "weights_begun",
    "commit_weights": "weights_served",
    "load_weights": "weights_served",
    "rollback_weights": "weights_served",
    "score": "scored",
}  # all others: ok


_KEYS_LOOKED_AT_S = 1.0


def _close(sockets: List[zmq.Socket[bytes]]) -> None:
    if len(sockets) > 1:
        sockets[0].disable_monitor()
    for socket in reversed(sockets):
        socket.close()


def _end(sockets: List[zmq.Socket[bytes]], context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Ends a connection and its monitor, then their context."""
    _close(sockets)
    context.term()


class Client:
    """A connection to a Rollcast scheduler. For one thread at a time.

    `timeout` (seconds) bounds every request. While a batch is iterated, a scheduler that does not
    answer is asked again until `patience` (seconds) is over; then `Timeout` is raised, and
    iterating may be tried again later. A scheduler that was started again at the same address is
    found at once, and batches go on where they stood. Failures are
    `RollcastError` with the scheduler's code.

    A scheduler with keys wants `curve_server`, its public key or a file with it, and `curve_key`,
    our secret key file; without them ROLLCAST_CURVE_SERVER and ROLLCAST_CURVE_KEY count. When such
    a file changes the client connects anew with what is in it.
    """

    def __init__(
        self,
        endpoint: str,
        timeout: float = 10.0,
        patience: float = 60.0,
        curve_server: Optional[AnyFile] = None,
        curve_key: Optional[AnyFile] = None,
    ) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.patience = patience
        self._last_request_id = 0
        self._awaited = 0
        self._answer: Optional[wire.Envelope] = None
        self._acks: Dict[int, str] = {}
        self._asks: Dict[int, str] = {}
        self._buckets: Set[int] = set()  # requests that are not answered yet
        self._bucket_refused: Optional[RollcastError] = None
        # Weak, so that the results of a batch that nobody holds any more are dropped.
        self._batches: weakref.WeakValueDictionary[str, Batch] = weakref.WeakValueDictionary()
        self._keys = Keys(curve_server, curve_key)
        self._keys_looked_at = time.monotonic()
        self._context = zmq.Context()
        self._sockets: List[zmq.Socket[bytes]] = []  # the connection and its monitor
        # Ends them in this order. A garbage collector that finds both in a cycle has none, and a
        # context waits for its sockets for ever.
        self._connections = 0
        self._end = weakref.finalize(self, _end, self._sockets, self._context)
        self._end.atexit = False  # a thread may use it until then
        try:
            self._open()
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
        routed_experts_from: Optional[int] = None,
    ) -> Batch:
        """Submits a batch: `group_size` responses to each prompt.

        A prompt is a sequence of token ids, or a `Prompt` for values of its own. `batch_key` makes
        submitting twice run once; by default a new one is drawn. `sampling.max_new_tokens` must be
        given. Absent values are the scheduler's. With `routed_experts_from` each response has the
        ids of the experts that the model's router chose from that position on (0 is the prompt's
        first token), for routing replay; a model without experts refuses it.
        """
        message = batch_to_wire(
            uuid.uuid4().hex if batch_key is None else batch_key,
            [group_to_wire(number, prompt, group_size) for number, prompt in enumerate(prompts)],
            sampling_to_wire(sampling, "batch"),
            seed,
            required_weight_version,
            policy,
            chunk_tokens,
            routed_experts_from,
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

    def score(
        self,
        sequences: Iterable[AnySequence],
        weight_version: Optional[int] = None,
        timeout: float = 600.0,
    ) -> Scored:
        """Returns the log-probabilities of given tokens, the bits that generating them would give.

        A sequence is a `ScoreSequence`, or token ids and how many of them are prompt. By default
        the weights served now; others only while the workers hold them.
        """
        request = score_to_wire(sequences, weight_version)
        answer = self._call(wire.Envelope(score=request), timeout)
        return scored_from_wire(request, answer.scored)

    def pause(self) -> None:
        """Places no more chunks until `resume`."""
        self._call(wire.Envelope(pause=wire.Pause()))

    def resume(self) -> None:
        """Ends a `pause`."""
        self._call(wire.Envelope(resume=wire.Resume()))

    def load_weights(
        self,
        directory: Union[str, PathLike[str]],
        *,
        epoch: Optional[int] = None,
        flip: str = "between_batches",
        allow_non_finite: bool = False,
        timeout: float = 600.0,
    ) -> WeightsServed:
        """Has the fleet serve the checkpoint in `directory`, which the scheduler must be able to
        read under that name. Returns when every live worker serves it; see `update_weights`."""
        request = wire.LoadWeights(
            directory=fspath(directory),
            epoch=epoch or 0,
            flip=flip_to_wire(flip),
            allow_non_finite=allow_non_finite,
        )
        answer = self._call(wire.Envelope(load_weights=request), timeout)
        return served_from_wire(answer.weights_served)

    def update_weights(
        self,
        tensors: AnyTensors,
        *,
        epoch: Optional[int] = None,
        changed_only: bool = False,
        flip: str = "between_batches",
        allow_non_finite: bool = False,
        dtype: Optional[str] = None,
        bucket_bytes: int = 16 << 20,
        timeout: float = 600.0,
    ) -> WeightsServed:
        """Sends new weights and returns when every live worker serves them.

        `tensors` is a mapping, such as a `state_dict`, or an iterable of (name, tensor); tensors
        are torch's, or numpy arrays (uint16 with `dtype="bfloat16"` holds bfloat16). An iterable
        may make each when it is asked for and reuse its memory for the next.

        `changed_only`: what is not sent stays as it is. `flip`: "between_batches", so that no
        response has two epochs, or "chunk_edge". `epoch` is by default the next. `timeout`
        (seconds) bounds the time from the last bucket until the new epoch is served; each bucket
        has the client's own. If anything fails before the flip, the update is aborted and
        the old epoch serves on; after a timeout `status().weights` tells which is served.
        """
        begin = wire.BeginWeights(
            epoch=epoch or 0,
            changed_only=changed_only,
            flip=flip_to_wire(flip),
            allow_non_finite=allow_non_finite,
        )
        begun = self._call(wire.Envelope(begin_weights=begin)).weights_begun
        try:
            size = min(bucket_bytes, begun.bucket_bytes_max or bucket_bytes)
            sent = self._send_buckets(cut(tensors, begun.epoch, size, dtype))
            commit = wire.CommitWeights(epoch=begun.epoch, tensors=sent)
            answer = self._call(wire.Envelope(commit_weights=commit), timeout)
        except BaseException:
            with suppress(RollcastError, zmq.ZMQError):  # what went wrong first is what counts
                self.abort_weights(begun.epoch)
            raise
        return served_from_wire(answer.weights_served)

    def abort_weights(self, epoch: int = 0) -> None:
        """Ends the update to `epoch`, by default whichever is under way: for a controller that
        died in the middle of one. The epoch that is served stays."""
        self._call(wire.Envelope(abort_weights=wire.AbortWeights(epoch=epoch)))

    def rollback_weights(self, timeout: float = 600.0) -> WeightsServed:
        """Has the fleet serve the epoch before again, which is held until an update begins."""
        request = wire.Envelope(rollback_weights=wire.RollbackWeights())
        return served_from_wire(self._call(request, timeout).weights_served)

    def close(self) -> None:
        """Closes the connection; batches go on. May be called twice."""
        self._end()

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

    def _ask(self, batch_key: str, request: wire.Envelope, instead_of: int) -> int:
        """Sends a request whose answer goes to the batch, in place of an earlier one."""
        self._asks.pop(instead_of, None)
        number = self._send(request)
        self._asks[number] = batch_key
        return number

    def _call(self, request: wire.Envelope, timeout: Optional[float] = None) -> wire.Envelope:
        """Sends a request and returns its answer; what is pushed meanwhile goes to its batch."""
        kind = request.WhichOneof("body")
        patience = self.timeout if timeout is None else timeout
        self._answer = None
        self._look_at_keys(span=0.0)  # afterwards the request would be lost with the connection
        self._awaited = self._send(request)
        deadline = time.monotonic() + patience
        try:
            while self._answer is None:
                left = deadline - time.monotonic()
                if left > 0:
                    self._pump(left)
                else:
                    raise Timeout(
                        f"no answer to {kind} from {self.endpoint} within {patience:g} s: is a "
                        "Rollcast scheduler running there?"
                    )
        finally:
            self._awaited = 0
        answer = self._answer
        if answer.WhichOneof("body") == "error":
            raise error_of(answer.error)
        if answer.WhichOneof("body") != _ANSWERS.get(str(kind), "ok"):
            raise RollcastError(
                "frame_malformed", f"{self.endpoint} gave an answer to {kind} of the wrong kind"
            )
        return answer

    def _pump(self, wait: float) -> bool:
        """Takes in one message. Returns False when none came within `wait` seconds, or the
        connection was made anew."""
        if not self._awaited and not self._buckets:  # whose answers would be lost
            self._look_at_keys(span=_KEYS_LOOKED_AT_S)
        sockets = zmq.Poller()
        sockets.register(self._socket, zmq.POLLIN)
        sockets.register(self._monitor, zmq.POLLIN)
        ready = dict(sockets.poll(int(wait * 1000) + 1 if wait > 0 else 0))
        if self._monitor in ready:
            self._note_connections()
        if self._socket not in ready:
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

    def _note_connections(self) -> None:
        """What was pushed to a connection that is lost does not come again by itself."""
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
            self._connections += 1
            if self._connections > 1:
                for batch in self._batches.values():
                    batch._reconnected()

    @property
    def _socket(self) -> zmq.Socket[bytes]:
        return self._sockets[0]

    @property
    def _monitor(self) -> zmq.Socket[bytes]:
        return self._sockets[1]

    def _open(self) -> None:
        """Connects, in place of the connection that is there."""
        socket = self._context.socket(zmq.DEALER)
        fresh: List[zmq.Socket[bytes]] = [socket]
        try:
            socket.setsockopt(zmq.LINGER, _LINGER_MS)
            socket.setsockopt(zmq.RCVHWM, 0)  # what is dropped would be sent again
            socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
            # Not ZeroMQ's heartbeats: cluster/transport/silent_peers.hpp says why.
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _SILENCE_S // 3)
            socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _SILENCE_S // 3)
            socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 2)
            socket.setsockopt(zmq.TCP_MAXRT, 1000 * _SILENCE_S)
            self._keys.apply(socket)
            fresh.append(socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED))
            socket.connect(self.endpoint)
        except BaseException:
            _close(fresh)
            raise
        _close(self._sockets)
        self._sockets[:] = fresh

    def _look_at_keys(self, span: float) -> None:
        """Connects anew with changed key files, if the last look is `span` seconds ago; batches ask
        again for what was on its way. Files that are wrong change nothing: the connection stays as
        it is."""
        now = time.monotonic()
        if now - self._keys_looked_at < span:
            return
        self._keys_looked_at = now
        if self._keys.changed():
            with suppress(RollcastError, zmq.ZMQError):
                self._open()

    def _send_buckets(self, buckets: Iterable[Bucket]) -> int:
        """Sends buckets, a few of them ahead of their answers. Returns how many tensors it were."""
        self._buckets.clear()
        self._bucket_refused = None
        tensors = 0
        try:
            for bucket in buckets:
                self._await_buckets(_BUCKETS_UNDERWAY - 1)
                self._last_request_id += 1
                self._send_frame(frame_of(self._last_request_id, PROTOCOL_VERSION, bucket))
                self._buckets.add(self._last_request_id)
                tensors += bucket.tensors
            self._await_buckets(0)
        finally:
            self._buckets.clear()  # nobody waits for the rest
        return tensors

    def _await_buckets(self, most: int) -> None:
        """Waits until no more than `most` buckets are unanswered."""
        silent_since = time.monotonic()
        while True:
            while self._socket.poll(0):  # a refusal ends the sending at once
                self._pump(0)
            if self._bucket_refused is not None:
                raise self._bucket_refused
            if len(self._buckets) <= most:
                return
            left = silent_since + self.timeout - time.monotonic()
            if self._pump(max(0.0, left)):
                silent_since = time.monotonic()
            elif left <= 0:
                raise Timeout(
                    f"no answer to weight_bucket from {self.endpoint} within {self.timeout:g} s"
                )

    def _send(self, envelope: wire.Envelope) -> int:
        self._last_request_id += 1
        envelope.version = PROTOCOL_VERSION
        envelope.request_id = self._last_request_id
        self._send_frame(envelope.SerializeToString())
        return self._last_request_id

    def _send_frame(self, data: bytes) -> None:
        if len(data) > MESSAGE_BYTES_MAX:
            raise RollcastError(
                "frame_too_large",
                f"the request takes {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are allowed: "
                "split the batch",
            )
        if not self._socket.poll(int(self.timeout * 1000), zmq.POLLOUT):
            raise Timeout(f"{self.endpoint} took nothing for {self.timeout:g} s")
        self._socket.send(data, copy=False)

    def _dispatch(self, envelope: wire.Envelope) -> None:
        kind = envelope.WhichOneof("body")
        if envelope.request_id:
            if envelope.request_id == self._awaited:
                self._answer = envelope
                return
            if envelope.request_id in self._buckets:
                self._buckets.remove(envelope.request_id)
                if kind == "error" and self._bucket_refused is None:
                    self._bucket_refused = error_of(envelope.error)
                return
            batch = self._batches.get(self._asks.pop(envelope.request_id, ""))
            if batch is not None:
                batch._take_answer(envelope)
                return
            batch = self._batches.get(self._acks.pop(envelope.request_id, ""))
            if batch is not None and kind == "error":
                batch._refused_ack(error_of(envelope.error))
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
            if batch is not None:
                batch._take_failure(error_of(envelope.error))
            elif not envelope.error.batch_key:  # else the end of a batch that nobody holds any more
                raise error_of(envelope.error)
