"""One batch: the stream of its results, in order and each once, whatever is lost on the way."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Deque, Iterator, Optional, Set, Tuple

from . import rollcast_pb2 as wire
from ._convert import error_of, response_from_wire, summary_from_wire
from ._types import Response, RollcastError, Summary, Timeout

if TYPE_CHECKING:
    from ._client import Client

_BUSY_S = 0.05  # a scheduler that has much to do is asked again after


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
        # That it started at; while it waits to start the one that it requires, if any.
        self.weight_version: Optional[int] = (
            accepted.weight_version if accepted.HasField("weight_version") else None
        )
        self.summary: Optional[Summary] = None  # there once iteration has ended
        self.lost = False  # the scheduler did not answer for all of the client's patience
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
        self._silent_since = time.monotonic()  # nothing came for it, and nothing was asked
        self._asking = 0  # request that is not answered: to resume, to submit or cancel again
        self._unanswered_since: Optional[float] = None  # by how many requests it may be
        self._refusal: Optional[RollcastError] = None  # of the request, to be raised once
        self._not_before = 0.0  # a busy scheduler is not asked earlier
        self._again = False  # the request is to submit it again, after it was forgotten
        self._cancel_again = False  # it was submitted again after it was cancelled
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
            if self._submitted is not None and result.group < len(self._submitted.groups):
                # Known here, so it need not travel with every response.
                prompt = self._submitted.groups[result.group].prompt_token_ids
                del result.prompt_token_ids[:]
                result.prompt_token_ids.extend(prompt)
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
        self._heard()
        if not self._in_turn(result.sequence):
            return
        place = (result.group, result.index)
        if place in self._seen:  # the batch was submitted again
            self._skipped = result.sequence
        else:
            self._seen.add(place)
            self._ready.append(result)

    def _take_done(self, done: wire.BatchDone) -> None:
        self._heard()
        if self._in_turn(done.sequence):
            self._done = done

    def _take_failure(self, error: RollcastError) -> None:
        if self._in_turn(self.responses + 1):  # it stands in the place of BatchDone
            self._failure = error
            self._failed = True

    def _reconnected(self) -> None:
        if self._done is None:
            self._behind = True
            self._asking = 0  # whatever was asked, its answer went to the old connection

    def _refused_ack(self, error: RollcastError) -> None:
        if error.code in ("unknown_batch", "queue_full"):  # asked again, or covered by the next
            self._behind = True
        else:
            self._failure = error

    def _take_answer(self, answer: wire.Envelope) -> None:
        """What the scheduler says to `_ask`."""
        self._heard()
        self._asking = 0
        kind = answer.WhichOneof("body")
        if kind == "error":
            self._take_refusal(error_of(answer.error))
        elif kind == "batch_accepted":
            first = answer.batch_accepted.first_sequence
            self._behind = False
            if first > self._expected:
                self._failure = self._taken_by_another(first)
                return
            if self._again:  # what was pushed before the answer comes again, known by its place
                self._expected = first
            if self._cancel_again:
                self._request(wire.Envelope(cancel_batch=wire.CancelBatch(batch_key=self.key)))
        else:
            self._cancel_again = False

    def _taken_by_another(self, first: int) -> RollcastError:
        """We acknowledge only what came here, so another client has acknowledged what is missing,
        and the scheduler has dropped it."""
        here = self._expected - 1
        if first > self.responses + 1:
            told = f"batch {self.key} was collected or discarded elsewhere after result {here} came"
        else:
            told = (
                f"the scheduler goes on with result {first} of batch {self.key} after result "
                f"{here}: another client collects the same batch"
            )
        return RollcastError("batch_conflict", f"{told}; one client at a time may collect a batch")

    def _take_refusal(self, error: RollcastError) -> None:
        if error.code == "queue_full":  # it lives, and has much to do
            self._behind = True
            self._not_before = time.monotonic() + _BUSY_S
        elif error.code == "unknown_batch" and self._submitted is not None:
            self._again = True
            self._expected = 1  # it is numbered anew; what came is known by its place
            self._in_hand = self._skipped = 0
            for result in self._ready:
                result.sequence = 0
            self._cancel_again = self._cancelled
            self._request(wire.Envelope(submit_batch=self._submitted))
        else:
            self._refusal = error

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
        """Waits for the next item, at most until `deadline`; takes in at least what is there. The
        stream may be silent for long while tokens are made, so after each silence of the client's
        timeout the scheduler is asked to go on from here. Silence goes on between calls."""
        while not self._ready and self._done is None:
            if self._skipped:  # or the scheduler would wait for it
                self._client._acknowledge(self.key, self._skipped)
                self._skipped = 0
            self._raise_what_failed()
            ask_at = self._ask_at()
            until = ask_at if deadline is None else min(ask_at, deadline)
            heard = self._client._pump(max(0.0, until - time.monotonic()))
            if self._ready or self._done is not None or self._failure or self._refusal:
                continue
            now = time.monotonic()
            if not heard and now >= self._ask_at():
                self._ask(now)
            if deadline is not None and now >= deadline:
                raise Timeout(f"batch {self.key}: no response in the time given")

    def _raise_what_failed(self) -> None:
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal
        if self._failure is not None:
            if self._failed:  # told; its key may be used again
                self._failed = False
                self._client._acknowledge(self.key, self.responses + 1)
            raise self._failure

    def _heard(self) -> None:
        self._silent_since = time.monotonic()
        self._unanswered_since = None
        self.lost = False

    def _ask_at(self) -> float:
        """When the scheduler is to be asked, unless something comes before."""
        if self._behind and not self._asking:
            return self._not_before
        return self._silent_since + self._client.timeout

    def _ask(self, now: float) -> None:
        """Asks the scheduler to go on from here; does not wait for the answer."""
        if self._asking and self._unanswered_since is None:
            self._unanswered_since = self._silent_since
        since = self._unanswered_since
        if since is not None and now >= since + self._client.patience:
            self._unanswered_since = None  # who tries again has patience again
            self._asking = 0
            self._silent_since = now
            self.lost = True
            raise Timeout(
                f"batch {self.key}: no answer from {self._client.endpoint} within "
                f"{self._client.patience:g} s: is a Rollcast scheduler running there?"
            )
        self._again = False
        resume = wire.ResumeResults(batch_key=self.key, after_sequence=self._expected - 1)
        self._request(wire.Envelope(resume_results=resume))

    def _request(self, request: wire.Envelope) -> None:
        self._silent_since = time.monotonic()
        self._asking = self._client._ask(self.key, request, self._asking)
