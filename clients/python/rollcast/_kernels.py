"""librollcast_kernels.so (clients/kernels) through ctypes; needs no package but this one."""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

ABI = 1
F32, BF16, F16 = 0, 1, 2
_NAME = "librollcast_kernels.so"


class KernelError(RuntimeError):
    """A kernel refused its arguments, or the library cannot be had. One line says why."""


class Rope(ctypes.Structure):
    """struct rollcast_rope."""

    _fields_ = [
        ("head_dim", c_size_t),
        ("theta", c_double),
        ("scaling", c_int32),
        ("factor", c_double),
        ("low_freq_factor", c_double),
        ("high_freq_factor", c_double),
        ("original_max_position", c_double),
    ]


class Attention(ctypes.Structure):
    """struct rollcast_attention."""

    _fields_ = [
        ("heads", c_size_t),
        ("kv_heads", c_size_t),
        ("head_dim", c_size_t),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("eps", c_float),
        ("cos_sin", c_void_p),
        ("positions", c_size_t),
        ("lengths", c_void_p),
        ("sequences", c_size_t),
    ]


# Arguments of the functions that return 0 or 1. Arrays are passed as addresses.
_CALLS: dict[str, list[Any]] = {
    "rollcast_kernels_use_instruction_set": [c_char_p],
    "rollcast_kernels_set_threads": [c_uint32],
    "rollcast_pack_weights": [
        c_void_p,
        c_int,
        c_size_t,
        c_size_t,
        c_size_t,
        c_void_p,
        c_int,
        c_size_t,
    ],
    "rollcast_linear": [
        c_void_p,
        c_int,
        c_size_t,
        c_size_t,
        c_void_p,
        c_size_t,
        c_void_p,
        c_int,
        c_void_p,
    ],
    "rollcast_rms_norm": [c_void_p, c_void_p, c_float, c_size_t, c_size_t, c_void_p],
    "rollcast_silu_mul": [c_void_p, c_size_t, c_size_t, c_void_p],
    "rollcast_embed": [c_void_p, c_int, c_size_t, c_size_t, c_void_p, c_size_t, c_void_p],
    "rollcast_rope_table": [POINTER(Rope), c_size_t, c_void_p],
    "rollcast_attend": [POINTER(Attention), c_void_p, c_void_p],
    "rollcast_token_logprobs": [c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_void_p],
    "rollcast_hash": [c_void_p, c_size_t, POINTER(c_uint64)],
}


def _candidates() -> list[Path]:
    named = os.environ.get("ROLLCAST_KERNELS")
    if named:
        return [Path(named)]
    package = Path(__file__).resolve().parent
    # Installed: beside this file. In a checkout: where `make` leaves it.
    return [package / _NAME, package.parents[2] / "build" / _NAME]


class Kernels:
    """The library. `call("linear", ...)` is rollcast_linear; failures raise KernelError."""

    def __init__(self, path: os.PathLike[str] | str | None = None) -> None:
        tried = [Path(path)] if path is not None else _candidates()
        found = next((p for p in tried if p.is_file()), None)
        if found is None:
            raise KernelError(
                f"no {_NAME} at {' or '.join(map(str, tried))}: build it with "
                "`make kernels-library`, or name it in ROLLCAST_KERNELS"
            )
        try:
            self._library = ctypes.CDLL(str(found))
        except OSError as failure:
            raise KernelError(f"{found} cannot be loaded: {failure}") from None
        library = self._library
        abi = library.rollcast_kernels_abi
        abi.restype = c_uint32
        if abi() != ABI:
            raise KernelError(
                f"{found} has interface {abi()}, this package needs {ABI}: "
                "build both from one commit"
            )
        for name in ("profile", "profile_hash", "error", "instruction_set"):
            getattr(library, f"rollcast_kernels_{name}").restype = c_char_p
        library.rollcast_packed_bytes.restype = c_size_t
        library.rollcast_packed_bytes.argtypes = [c_int, c_size_t, c_size_t]
        for name, arguments in _CALLS.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = c_int

    def _text(self, name: str) -> str:
        value: bytes = getattr(self._library, f"rollcast_kernels_{name}")()
        return value.decode()

    @property
    def profile(self) -> str:
        """The numerics profile, "cpu-f32-v1"."""
        return self._text("profile")

    @property
    def profile_hash(self) -> str:
        """Its hash, as workers report it."""
        return self._text("profile_hash")

    @property
    def instruction_set(self) -> str:
        """What runs here; it changes no bit."""
        return self._text("instruction_set")

    def packed_bytes(self, dtype: int, n: int, k: int) -> int:
        """Bytes of a packed [n, k] matrix."""
        return int(self._library.rollcast_packed_bytes(dtype, n, k))

    def call(self, name: str, *arguments: Any) -> None:
        """Calls rollcast_<name>; raises KernelError with its reason if it refuses."""
        if getattr(self._library, f"rollcast_{name}")(*arguments) != 0:
            raise KernelError(self._text("error"))

    def hash(self, address: int, size: int) -> tuple[int, int]:
        """XXH3-128 of `size` bytes."""
        out = (c_uint64 * 2)()
        self.call("hash", address, size, out)
        return out[0], out[1]


_shared: Kernels | None = None


def kernels() -> Kernels:
    """The library, loaded once."""
    global _shared
    if _shared is None:
        _shared = Kernels()
    return _shared
