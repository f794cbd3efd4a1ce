"""A fake scheduler: a ROUTER in a thread that numbers, keeps and pushes results as the real one
does, and fails on request. It makes no tokens; a response is a function of its place."""

import struct
import threading
from typing import Callable, Dict, List, Optional, Set, Tuple

import zmq

from rollcast import rollcast_pb2 as wire


def float_of(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def experts_of(start: int) -> wire.RoutedExperts:
    """Ids of five positions in a model of two sparse layers and more than 256 experts."""
    ids = b"".join(struct.pack("<H", 300 + i) for i in range(5 * 2 * 3))
    return wire.RoutedExperts(start=start, layers=2, per_token=3, id_bytes=2, ids=ids)


def result_of(key: str, sequence: int, number: int, size: int) -> wire.Result:
    """The `number`-th response of a batch; log-probabilities with awkward bits."""
    tokens = [number, 100 + number, 7]
    return wire.Result(
        batch_key=key,
        sequence=sequence,
        group=number // size,
        index=number % size,
        id=f"prompt {number // size}",
        token_ids=tokens,
        logprobs=[float_of(0xBF7FFFFF - number), float_of(0x80000001), float_of(0x80000000)],
        finish_reason=wire.FINISH_REASON_STOP,
        weight_versions=[wire.WeightSpan(version=4, start=0, end=len(tokens))],
        response_seed=2**63 + number,
        numerics_profile="fake-f32",
    )


class FakeBatch:
    def __init__(self, submitted: wire.SubmitBatch, peer: bytes) -> None:
        self.submitted = submitted
        self.peer = peer
        self.responses = sum(g.group_size for g in submitted.groups)
        self.acknowledged = 0
        self.sent = 0
        self.items: List[wire.Envelope] = []


class FakeScheduler:
    """Context manager. What a test may set: `drop` (does not push what it says true to, once per
    item), `order` (the order of finishing), `window` (how much it pushes beyond what is
    acknowledged), `held` (push nothing by itself), `deaf` (answer nothing), `failing` (batches end
    with an Error), `busy` (how many requests about results are refused as too many), `refused` (the
    Error that answers a kind of request), `unheard` (kinds of request that get no answer),
    `refused_bucket` (the number of the one that gets an Error), `buckets_held` (answers buckets
    only when it is false again), `bucket_bytes_max`.

    Of a weight update it keeps the bytes of each tensor by name in `tensors`, and `served` tells
    their dtypes and shapes once it is committed; nothing is checked as a real one does."""

    def __init__(self) -> None:
        self.batches: Dict[str, FakeBatch] = {}
        self.requests: List[wire.Envelope] = []
        self.drop: Callable[[wire.Envelope], bool] = lambda item: False
        self.order: Callable[[List[int]], List[int]] = lambda numbers: numbers
        self.window = 1000
        self.held = False
        self.deaf = False
        self.failing = False
        self.busy = 0
        self.refused: Dict[str, wire.Error] = {}
        self.unheard: Set[str] = set()
        self.refused_bucket = 0
        self.buckets_held = False
        self.bucket_bytes_max = 1 << 20
        self.tensors: Dict[str, bytearray] = {}
        self.slices: List[wire.TensorSlice] = []
        self.served: Dict[str, Tuple[str, List[int], bytes]] = {}
        self._held_answers: List[Tuple[bytes, int]] = []
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self.port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._answering = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "FakeScheduler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._router.close()
        self._context.term()

    def kinds(self) -> List[Optional[str]]:
        return [r.WhichOneof("body") for r in self.requests]

    def forget(self) -> None:
        """Loses every batch, as a restart without a journal, between two requests."""
        with self._answering:
            self.batches.clear()

    def _serve(self) -> None:
        while not self._stop.is_set():
            while self._held_answers and not self.buckets_held:
                self._send(*self._held_answers.pop(0), wire.Envelope(ok=wire.Ok()))
            if not self._router.poll(5):
                continue
            peer, data = self._router.recv_multipart()
            request = wire.Envelope.FromString(data)
            self.requests.append(request)
            if not self.deaf:
                with self._answering:
                    self._answer(peer, request)

    def _send(self, peer: bytes, request_id: int, envelope: wire.Envelope) -> None:
        envelope.version = 1
        envelope.request_id = request_id
        self._router.send_multipart([peer, envelope.SerializeToString()])

    def _answer(self, peer: bytes, request: wire.Envelope) -> None:
        kind = request.WhichOneof("body")
        if self.busy and kind in ("ack_results", "resume_results"):
            self.busy -= 1
            error = wire.Error(code="queue_full", message="ask again later")
            return self._send(peer, request.request_id, wire.Envelope(error=error))
        if kind in self.refused:
            return self._send(peer, request.request_id, wire.Envelope(error=self.refused[kind]))
        if kind in self.unheard:
            return
        if kind == "weight_bucket" and self.buckets_held:
            return self._held_answers.append((peer, request.request_id))
        answer, batch = getattr(self, f"_on_{kind}")(peer, getattr(request, kind))
        self._send(peer, request.request_id, answer)
        if batch:
            self._push(batch)

    def _push(self, batch: FakeBatch) -> None:
        until = batch.acknowledged + self.window
        for item in batch.items[batch.sent : until]:
            batch.sent += 1
            if not self.drop(item):
                self._send(batch.peer, 0, item)

    Answered = Tuple[wire.Envelope, Optional[FakeBatch]]

    def _on_get_status(self, peer: bytes, _: wire.GetStatus) -> Answered:
        worker = wire.WorkerStatus(worker=9, name="w", state="ready", kv_blocks_total=64)
        status = wire.Status(model="fake", weight_version=4, workers=[worker])
        status.weights.CopyFrom(
            wire.WeightsStatus(phase="distributing", epoch=4, next_epoch=5, bytes_total=100)
        )
        status.weights.workers.add(worker=9, bytes=60, prepared=False)
        status.batches.extend(
            wire.BatchStatus(batch_key=key, responses=b.responses)
            for key, b in self.batches.items()
        )
        return wire.Envelope(status=status), None

    def _on_submit_batch(self, peer: bytes, submitted: wire.SubmitBatch) -> Answered:
        key = submitted.batch_key
        if not submitted.groups[0].prompt_token_ids:
            error = wire.Error(code="bad_prompt", message="group 0: the prompt is empty")
            return wire.Envelope(error=error), None
        if key not in self.batches:
            batch = self.batches[key] = FakeBatch(submitted, peer)
            size = submitted.groups[0].group_size
            for number in self.order(list(range(batch.responses))):
                result = result_of(key, len(batch.items) + 1, number, size)
                if submitted.HasField("routed_experts_from"):
                    result.routed_experts.CopyFrom(experts_of(submitted.routed_experts_from))
                batch.items.append(wire.Envelope(result=result))
            summary = wire.Summary(
                responses=batch.responses, tokens=3 * batch.responses, policy="fake"
            )
            summary.workers.add(worker=9, tokens=3 * batch.responses)
            done = wire.BatchDone(batch_key=key, sequence=len(batch.items) + 1, summary=summary)
            error = wire.Error(code="queue_full", message="no worker took it", batch_key=key)
            batch.items.append(
                wire.Envelope(error=error) if self.failing else wire.Envelope(batch_done=done)
            )
        return self._attached(peer, self.batches[key], 0)

    def _on_resume_results(self, peer: bytes, request: wire.ResumeResults) -> Answered:
        if request.batch_key not in self.batches:
            return self._unknown(request.batch_key), None
        return self._attached(peer, self.batches[request.batch_key], request.after_sequence)

    def _attached(self, peer: bytes, batch: FakeBatch, after: int) -> Answered:
        batch.peer = peer
        batch.acknowledged = batch.sent = after = max(after, batch.acknowledged)
        accepted = wire.BatchAccepted(
            batch_key=batch.submitted.batch_key,
            responses=batch.responses,
            first_sequence=after + 1,
            numerics_profile="fake-f32",
            weight_version=4,
        )
        return wire.Envelope(batch_accepted=accepted), None if self.held else batch

    def _on_ack_results(self, peer: bytes, request: wire.AckResults) -> Answered:
        batch = self.batches.get(request.batch_key)
        if batch is None:
            return self._unknown(request.batch_key), None
        batch.acknowledged = max(batch.acknowledged, request.sequence)
        return wire.Envelope(ok=wire.Ok()), None if self.held else batch

    def _on_cancel_batch(self, peer: bytes, request: wire.CancelBatch) -> Answered:
        batch = self.batches.get(request.batch_key)
        if batch is None:
            return self._unknown(request.batch_key), None
        for item in batch.items[batch.acknowledged : -1]:
            item.result.finish_reason = wire.FINISH_REASON_CANCELLED
        return wire.Envelope(ok=wire.Ok()), batch

    def _unknown(self, key: str) -> wire.Envelope:
        return wire.Envelope(error=wire.Error(code="unknown_batch", message=f"no batch {key}"))

    # -- weights and scores ---------------------------------------------------------------------

    def _done(self) -> Answered:
        return wire.Envelope(ok=wire.Ok()), None

    def _on_begin_weights(self, peer: bytes, begin: wire.BeginWeights) -> Answered:
        self.tensors.clear()
        self.slices.clear()
        begun = wire.WeightsBegun(epoch=begin.epoch or 5, bucket_bytes_max=self.bucket_bytes_max)
        return wire.Envelope(weights_begun=begun), None

    def _on_weight_bucket(self, peer: bytes, bucket: wire.WeightBucket) -> Answered:
        if bucket.bucket == self.refused_bucket:
            error = wire.Error(code="bad_checkpoint", message=f"bucket {bucket.bucket}: NaN in it")
            return wire.Envelope(error=error), None
        for part in bucket.slices:
            data = self.tensors.setdefault(part.name, bytearray())
            data[part.offset : part.offset + len(part.data)] = part.data
            self.slices.append(part)
        return self._done()

    def _on_commit_weights(self, peer: bytes, commit: wire.CommitWeights) -> Answered:
        self.served = {
            part.name: (part.dtype, list(part.shape), bytes(self.tensors[part.name]))
            for part in self.slices
        }
        return self._served(commit.epoch)

    def _served(self, epoch: int) -> Answered:
        served = wire.WeightsServed(
            epoch=epoch,
            content_hash="0123456789abcdef" * 2,
            tensors=len(self.served),
            bytes=sum(len(data) for data in self.tensors.values()),
            pause_s=0.25,
            workers=2,
        )
        served.phases.add(phase="distributing", seconds=1.5)
        served.phases.add(phase="flipping", seconds=0.5)
        return wire.Envelope(weights_served=served), None

    def _on_load_weights(self, peer: bytes, load: wire.LoadWeights) -> Answered:
        return self._served(load.epoch or 5)

    def _on_rollback_weights(self, peer: bytes, _: wire.RollbackWeights) -> Answered:
        return self._served(4)

    def _on_abort_weights(self, peer: bytes, _: wire.AbortWeights) -> Answered:
        return self._done()

    def _on_pause(self, peer: bytes, _: wire.Pause) -> Answered:
        return self._done()

    def _on_resume(self, peer: bytes, _: wire.Resume) -> Answered:
        return self._done()

    def _on_score(self, peer: bytes, score: wire.Score) -> Answered:
        scored = wire.Scored(weight_version=score.weight_version or 4, numerics_profile="fake-f32")
        for number, sequence in enumerate(score.sequences):
            scored_tokens = len(sequence.token_ids) - sequence.prompt_tokens
            scored.rows.add(logprobs=[float_of(0xBF7FFFFF - number)] * scored_tokens)
        return wire.Envelope(scored=scored), None
