"""CURVE keys of a controller: given as text or in files, which may change while it runs."""

from __future__ import annotations

import os
import stat
from os import PathLike, fspath
from typing import List, Optional, Tuple, Union

import zmq

from ._types import RollcastError

AnyFile = Union[str, "PathLike[str]"]
_Z85 = frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
)
_KEY_CHARACTERS = 40


def is_key(text: str) -> bool:
    return len(text) == _KEY_CHARACTERS and _Z85.issuperset(text)


def _key_of(text: str, path: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    keys = [line for line in lines if line and (is_key(line) or not line.startswith("#"))]
    if len(keys) != 1 or not is_key(keys[0]):
        raise RollcastError(
            "bad_config",
            f"key file {path} has no single line of 40 characters of Z85: make one with "
            "`rollcast keys new`",
        )
    return keys[0]


def load_public_key(key_or_file: AnyFile) -> str:
    """Returns a public key, given as its 40 characters or as a file that has them."""
    path = fspath(key_or_file)
    if is_key(path):
        return path
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return _key_of(file.read(4096), path)
    except OSError as error:
        raise RollcastError("io_failed", f"public key {path}: {error.strerror}") from None


def load_secret_key(file_name: AnyFile) -> str:
    """Returns the secret key of a file that only its owner may read."""
    path = fspath(file_name)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            found = os.fstat(file.fileno())
            mode = stat.S_IMODE(found.st_mode)
            # What root lends to a group of this process, as Kubernetes mounts secrets, is private.
            lent = (
                found.st_uid == 0
                and os.geteuid() != 0
                and mode & 0o077 == 0o040
                and found.st_gid in (os.getegid(), *os.getgroups())
            )
            if mode & 0o077 and not lent:
                raise RollcastError(
                    "bad_config",
                    f"key file {path} has mode {mode:04o}, so others may use it; wanted is 0600: "
                    f"chmod 600 {path}",
                )
            if found.st_uid not in (os.geteuid(), 0):
                raise RollcastError(
                    "bad_config",
                    f"key file {path} belongs to user {found.st_uid}, wanted is {os.geteuid()} "
                    "or root",
                )
            return _key_of(file.read(4096), path)
    except OSError as error:
        raise RollcastError("io_failed", f"key file {path}: {error.strerror}") from None


class Keys:
    """What a client dials with: the scheduler's public key and its own secret key file."""

    def __init__(self, server: Optional[AnyFile], key: Optional[AnyFile]) -> None:
        server = server or os.environ.get("ROLLCAST_CURVE_SERVER") or None
        key = key or os.environ.get("ROLLCAST_CURVE_KEY") or None
        if (server is None) != (key is None):
            raise RollcastError("bad_config", "curve_server and curve_key must be given together")
        self._server = server
        self._key = key
        self._stamps: Optional[List[Tuple[int, ...]]] = self._look()

    def _look(self) -> List[Tuple[int, ...]]:
        stamps: List[Tuple[int, ...]] = []
        for name in (self._server, self._key):
            try:
                found = os.stat(name) if name is not None else None
                stamps.append((found.st_ino, found.st_size, found.st_ctime_ns) if found else ())
            except OSError:
                stamps.append(())
        return stamps

    def changed(self) -> bool:
        """True if a file is another than was applied last, or could not be read."""
        return self._look() != self._stamps

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Has the socket dial with the keys as they are now."""
        self._stamps = self._look()
        if self._server is None or self._key is None:
            return
        try:
            server = load_public_key(self._server)
            secret = load_secret_key(self._key).encode()
        except RollcastError as error:
            if error.code == "io_failed":
                self._stamps = None  # it may pass by itself
            raise
        socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
