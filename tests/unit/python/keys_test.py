# Goal: the client uses no secret that others may read, and dials with what its files say now.
# Method: key files of every mode and content, and a CURVE socket that answers only its own key.

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import zmq
from rollcast import RollcastError
from rollcast._keys import Keys, load_public_key, load_secret_key


class KeyFiles(unittest.TestCase):
    def setUp(self):
        where = tempfile.TemporaryDirectory()
        self.addCleanup(where.cleanup)
        self.where = Path(where.name)
        self.public, self.secret = (key.decode() for key in zmq.curve_keypair())

    def put(self, name, text, mode=0o600):
        path = self.where / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def test_a_key_is_read_with_its_comments(self):
        path = self.put("k", f"# comment\n\n{self.secret}\n")
        self.assertEqual(load_secret_key(path), self.secret)
        self.assertEqual(load_public_key(self.public), self.public)
        self.assertEqual(load_public_key(self.put("p", self.public, 0o644)), self.public)

    def test_loose_modes_are_refused(self):
        for mode in (0o640, 0o604, 0o622, 0o777):
            with self.assertRaisesRegex(RollcastError, "chmod 600") as refused:
                load_secret_key(self.put("k", self.secret, mode))
            self.assertNotIn(self.secret, str(refused.exception))

    def test_what_root_lends_to_a_group_of_ours_is_read(self):
        if os.geteuid() != 0:
            self.skipTest("only root may lend")
        group, pod = os.getegid(), 23456
        self.where.chmod(0o755)
        for mode, owner, read in ((0o440, 0, True), (0o444, 0, False), (0o460, 0, False),
                                  (0o440, 12345, False)):
            path = self.put("k", self.secret, mode)
            os.chown(path, owner, pod)
            path.chmod(mode)
            os.setegid(pod)
            os.seteuid(12345)
            try:
                if read:
                    self.assertEqual(load_secret_key(path), self.secret)
                else:
                    with self.assertRaisesRegex(RollcastError, "chmod 600"):
                        load_secret_key(path)
            finally:
                os.seteuid(0)
                os.setegid(group)
                path.unlink()

    def test_what_is_no_key_is_refused_without_showing_it(self):
        for text in ("", "# only", self.secret[1:], self.secret + "0", f"{self.secret}\n" * 2):
            with self.assertRaises(RollcastError) as refused:
                load_secret_key(self.put("k", text))
            self.assertNotIn(self.secret[1:30], str(refused.exception))
        with self.assertRaises(RollcastError):
            load_secret_key(self.where / "none")

    def test_both_keys_or_none(self):
        with mock.patch.dict(os.environ, {}, clear=True):
            self.assertFalse(Keys(None, None).changed())
            with self.assertRaises(RollcastError):
                Keys(self.public, None)

    def test_files_that_could_not_be_read_are_tried_again(self):
        path = self.put("k", self.secret)
        keys = Keys(self.public, path)
        context = zmq.Context()
        self.addCleanup(context.destroy, 0)
        dealer = context.socket(zmq.DEALER)
        with mock.patch("builtins.open", side_effect=OSError(24, "Too many open files")):
            with self.assertRaises(RollcastError):
                keys.apply(dealer)
        self.assertTrue(keys.changed())
        keys.apply(dealer)
        self.assertFalse(keys.changed())
        path.chmod(0o644)
        with self.assertRaises(RollcastError):
            keys.apply(dealer)
        self.assertFalse(keys.changed(), "wrong until it changes")

    def test_the_environment_counts_and_changes_are_seen(self):
        path = self.put("k", self.secret)
        variables = {"ROLLCAST_CURVE_SERVER": self.public, "ROLLCAST_CURVE_KEY": str(path)}
        server_public, server_secret = zmq.curve_keypair()
        context = zmq.Context()
        self.addCleanup(context.destroy, 0)
        router = context.socket(zmq.ROUTER)
        router.curve_server = True
        router.curve_secretkey = server_secret
        port = router.bind_to_random_port("tcp://127.0.0.1")
        for server, through in ((self.public, 0), (server_public.decode(), zmq.POLLIN)):
            with mock.patch.dict(os.environ, {**variables, "ROLLCAST_CURVE_SERVER": server}):
                keys = Keys(None, None)
            dealer = context.socket(zmq.DEALER)
            keys.apply(dealer)
            dealer.connect(f"tcp://127.0.0.1:{port}")
            dealer.send(b"hello")
            self.assertEqual(router.poll(5000 if through else 300), through)
            dealer.close(0)
        router.close(0)
        self.assertFalse(keys.changed())
        os.replace(self.put("fresh", zmq.curve_keypair()[1].decode()), path)
        self.assertTrue(keys.changed())


if __name__ == "__main__":
    unittest.main()
