"""What the tests of the adapters share: a real cluster, the client used directly to compare with, a
tokenizer in the manner of transformers, and a record of the weights that are published.

Weights are recorded instead of sent: the record answers with the version that the cluster serves.
"""

import sys
import types
import unittest.mock
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "clients" / "python")]

from cluster import COLLATZ, ClusterTest  # noqa: E402, F401

from rollcast import Client  # noqa: E402
from rollcast.adapters._common import groups_of, rollout  # noqa: E402

from rollouts import bits  # noqa: E402, F401


class ByteTokenizer:
    """As the example's: a token is a byte, above 255 they are special."""

    pad_token_id, eos_token_id = 257, 256

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, messages, **_):
        return {"input_ids": [list("".join(m["content"] for m in c).encode()) for c in messages]}

    def decode(self, ids, skip_special_tokens=False):
        return bytes(i for i in ids if i < 256).decode()


class Tensor:
    """As much of a tensor as the adapters touch."""

    def __init__(self, name):
        self.name = name

    def detach(self):
        return self

    cpu = contiguous = detach


class AdapterTest(ClusterTest):
    """A test with a cluster of one worker; `sent` has the names of each set of weights."""

    def setUp(self):
        super().setUp()
        self.sent = []
        self.cluster = self.up(workers=1)
        sent = self.sent

        def update_weights(client, tensors, **_):
            sent.append([name for name, _ in tensors])
            return types.SimpleNamespace(epoch=client.status().weight_version, content_hash="")

        def load_weights(client, directory, **_):
            sent.append(directory)
            return types.SimpleNamespace(epoch=client.status().weight_version, content_hash="")

        for method in (update_weights, load_weights):
            patch = unittest.mock.patch.object(Client, method.__name__, method, create=True)
            patch.start()
            self.addCleanup(patch.stop)

    def version(self):
        with Client(self.cluster.endpoint) as client:
            return client.status().weight_version

    def direct(self, prompts, sampling, seed):
        """The responses that the client gets without an adapter, in one row."""
        with Client(self.cluster.endpoint) as client:
            groups = rollout(client, groups_of(prompts), sampling, seed, None)
        return [response for group in groups for response in group]
