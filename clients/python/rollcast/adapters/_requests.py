"""Single responses, asked for by many coroutines at once, over one client in its own thread."""

from __future__ import annotations

import queue
import threading
import uuid
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Tuple, Union

from .._batch import Batch
from .._client import Client
from .._types import Prompt, Response, RollcastError, Sampling, Timeout
from ._common import check

_POLL_S = 0.005
_CANCEL, _CLOSE = "cancel", "close"  # what else stands in the queue
_Request = Tuple[Dict[str, Any], int, "Future[Response]"]


@dataclass
class _Running:
    version: int
    answer: Future[Response]
    batch: Batch
    lost: bool = False


class Requests:
    """Each request is a batch of its own, so that its response depends on nothing else.

    `served` is the weight version at the start.
    """

    def __init__(self, endpoint: str) -> None:
        self._waiting: queue.Queue[Union[_Request, str]] = queue.Queue()
        self._running: List[_Running] = []
        self._client = Client(endpoint)
        self.served = self._client.status().weight_version
        # From here on the client belongs to the thread.
        self._thread = threading.Thread(target=self._run, name="rollcast", daemon=True)
        self._thread.start()

    def ask(
        self, prompt: List[int], sampling: Sampling, seed: int, version: int
    ) -> Future[Response]:
        """The response by that weight version; a cancelled one comes as far as it got."""
        answer: Future[Response] = Future()
        arguments = {
            "prompts": [Prompt(prompt)],
            "sampling": sampling,
            "seed": seed,
            "batch_key": uuid.uuid4().hex,
            "required_weight_version": version,
        }
        self._waiting.put((arguments, version, answer))
        return answer

    def cancel_all(self) -> None:
        """Cancels what was asked for so far; the answers come soon, as cancelled."""
        self._waiting.put(_CANCEL)

    def close(self) -> None:
        """Ends the thread. What is still asked for fails with `cancelled`."""
        self._waiting.put(_CLOSE)
        self._thread.join()

    # -- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while self._take():
            wait = _POLL_S  # by the first; what comes meanwhile for others is kept for them
            for running in list(self._running):
                self._guarded(running, lambda r: self._poll(r, wait))
                wait = 0.0
            self._running = [r for r in self._running if r.batch.summary is None and not r.lost]
        self._client.close()
        for running in self._running:
            _fail(running.answer, RollcastError("cancelled", "the client was closed"))

    def _take(self) -> bool:
        """Submits what waits; sleeps when there is nothing else to do. False at the end."""
        while True:
            try:
                item = self._waiting.get(block=not self._running)
            except queue.Empty:
                return True
            if isinstance(item, str):
                if item == _CLOSE:
                    return False
                for running in self._running:
                    self._guarded(running, lambda r: r.batch.cancel())
                continue
            arguments, version, answer = item
            try:
                batch = self._client.submit(**arguments)
            except RollcastError as error:
                _fail(answer, error)
                continue
            self._running.append(_Running(version, answer, batch))

    def _poll(self, running: _Running, wait: float) -> None:
        try:
            response = running.batch.next(wait)
        except Timeout:
            if running.batch.lost:
                raise
            return
        if running.answer.done():
            return  # only the end of its batch was still to come
        if response is None:
            raise RollcastError("frame_malformed", f"batch {running.batch.key} ended empty")
        check(response, running.version, cancelled=True)
        running.answer.set_result(response)

    @staticmethod
    def _guarded(running: _Running, act: Callable[[_Running], None]) -> None:
        """A failure is that request's, not the thread's."""
        try:
            act(running)
        except RollcastError as error:
            _fail(running.answer, error)
            running.lost = True


def _fail(answer: Future[Response], error: RollcastError) -> None:
    if not answer.done():
        answer.set_exception(error)
