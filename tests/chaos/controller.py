# A controller that may be killed at any moment and started again: collects batches with the Python
# client and writes down each delivery before it asks for the next, so that its log is what it has
# been given. Arguments: endpoint, the batches as a JSON file, the log.

import json
import os
import sys
import time

from rollcast import Client, Prompt, RollcastError, Sampling

# What a cluster in trouble may say; anything else ends the controller with a line.
PASSING = ("timed_out", "queue_full", "peer_lost")
ATTEMPTS_S = 90.0


class Log:
    """Lines of JSON, each written in one piece."""

    def __init__(self, path):
        self.deliveries = {}  # batch: [delivery]
        self.over = set()
        whole = b""
        if os.path.exists(path):
            data = open(path, "rb").read()
            whole = data[: data.rfind(b"\n") + 1]  # a kill may cut the last line
            for line in whole.splitlines():
                self._take(json.loads(line))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)

    def _take(self, line):
        if line["what"] == "delivery":
            self.deliveries.setdefault(line["batch"], []).append(line)
        elif line["what"] == "over":
            self.over.add(line["batch"])

    def write(self, **line):
        self._take(line)
        os.write(self._file, json.dumps(line).encode() + b"\n")


def open_batch(client, log, batch):
    """Goes on with a batch, or submits it; a scheduler that has forgotten it is told again."""
    held = log.deliveries.get(batch["key"], [])
    if held:
        try:
            return client.attach(batch["key"], held[-1]["sequence"])
        except RollcastError as error:
            if error.code != "unknown_batch":
                raise
            log.write(what="forgotten", batch=batch["key"])
    prompts = [Prompt(token_ids=ids) for ids in batch["prompts"]]
    return client.submit(
        prompts, group_size=batch["group_size"], seed=batch["seed"], batch_key=batch["key"],
        sampling=Sampling(max_new_tokens=batch["max_new_tokens"]),
        chunk_tokens=batch["chunk_tokens"])


def collect(endpoint, log, batch):
    with Client(endpoint, timeout=1.0, patience=30.0) as client:
        results = open_batch(client, log, batch)
        log.write(what="open", batch=batch["key"])
        for r in results:
            log.write(
                what="delivery", batch=batch["key"], sequence=r.sequence, group=r.group,
                index=r.index, token_ids=list(r.token_ids), logprobs=r.logprobs.tobytes().hex(),
                finish_reason=r.finish_reason, numerics_profile=r.numerics_profile,
                weight_versions=[[s.version, s.start, s.end] for s in r.weight_versions])
    log.write(what="over", batch=batch["key"])


def main():
    endpoint, batches, path = sys.argv[1:]
    log = Log(path)
    with open(batches, encoding="utf-8") as file:
        wanted = json.load(file)
    for batch in wanted:
        deadline = time.monotonic() + ATTEMPTS_S
        size = len(batch["prompts"]) * batch["group_size"]
        while batch["key"] not in log.over:
            if len(log.deliveries.get(batch["key"], [])) >= size:
                log.write(what="over", batch=batch["key"])  # killed between the last and the end
                break
            try:
                collect(endpoint, log, batch)
            except RollcastError as error:
                log.write(what="trouble", batch=batch["key"], code=error.code,
                          message=error.message)
                if error.code not in PASSING or time.monotonic() > deadline:
                    print(f"controller: {batch['key']}: {error}", file=sys.stderr)
                    return 1
                time.sleep(0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
