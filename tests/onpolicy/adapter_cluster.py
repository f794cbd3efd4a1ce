"""What the tests of the adapters share: a real cluster, the client used directly to compare with, a
tokenizer in the manner of transformers, and a record of what was published.
"""

import sys
import unittest.mock
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "clients" / "python")]

from cluster import COLLATZ, ClusterTest  # noqa: E402, F401

from rollcast import Client  # noqa: E402
from rollcast.adapters._common import groups_of, rollout  # noqa: E402

from rollouts import bits, parameters  # noqa: E402, F401


class ByteTokenizer:
    """As the example's: a token is a byte, above 255 they are special."""

    pad_token_id, eos_token_id = 257, 256

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, messages, **_):
        return {"input_ids": [list("".join(m["content"] for m in c).encode()) for c in messages]}

    def decode(self, ids, skip_special_tokens=False):
        return bytes(i for i in ids if i < 256).decode()


NAMES = sorted(name for name, _ in parameters())


class AdapterTest(ClusterTest):
    """A test with a cluster of one worker; `sent` has the names of each set of weights that the
    cluster took."""

    def setUp(self):
        super().setUp()
        self.sent = []
        self.cluster = self.up(workers=1)
        sent, update, load = self.sent, Client.update_weights, Client.load_weights

        def update_weights(client, tensors, **how):
            names = []

            def noted():
                for name, tensor in tensors:
                    names.append(name)
                    yield name, tensor

            served = update(client, noted(), **how)
            sent.append(sorted(names))
            return served

        def load_weights(client, directory, **how):
            served = load(client, directory, **how)
            sent.append(directory)
            return served

        for method in (update_weights, load_weights):
            patch = unittest.mock.patch.object(Client, method.__name__, method)
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
