"""Tensors of numpy or torch, cut into the buckets of a weight update. Imports neither."""

from __future__ import annotations

import ctypes
from typing import Any, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from . import rollcast_pb2 as wire
from ._types import RollcastError

AnyTensors = Union[Mapping[str, Any], Iterable[Tuple[str, Any]]]

SLICES_MAX = 4096  # of a bucket, as cluster/wire/validate.hpp
_TORCH_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NUMPY_DTYPES = {"<f4": "F32", "<f2": "F16"}
_LENGTH_DELIMITED = 2


class TensorBytes(NamedTuple):
    dtype: str  # as on the wire
    shape: Tuple[int, ...]
    data: memoryview  # little-endian elements, row-major
    owner: Any  # keeps the data where it is


class Bucket(NamedTuple):
    """A WeightBucket as the pieces of its encoding: joining them is the only copy of large data."""

    pieces: List[Union[bytes, memoryview]]
    tensors: int  # that began with this bucket


def _refuse(name: str, why: str) -> RollcastError:
    return RollcastError("bad_checkpoint", f"tensor {name}: {why}")


def _torch_bytes(name: str, tensor: Any) -> TensorBytes:
    # Torch has no buffer protocol, and numpy, through which it gives its bytes, has no bfloat16.
    here = tensor.detach().cpu().contiguous()
    kind = str(here.dtype).rpartition(".")[2]
    if kind not in _TORCH_DTYPES:
        raise _refuse(name, f"dtype {here.dtype}, give float32, bfloat16 or float16")
    size = here.numel() * here.element_size()
    address = here.data_ptr()
    if size and not address:
        raise _refuse(name, "it has no memory: materialise it first")
    data = (ctypes.c_ubyte * size).from_address(address) if size else bytearray()
    return TensorBytes(_TORCH_DTYPES[kind], tuple(here.shape), memoryview(data).cast("B"), here)


def _numpy_bytes(name: str, array: Any, dtype: Optional[str]) -> TensorBytes:
    kind = _NUMPY_DTYPES.get(array.dtype.str)
    if array.dtype.name == "bfloat16" or (array.dtype.str == "<u2" and dtype == "bfloat16"):
        kind = "BF16"
    if kind is None:
        raise _refuse(
            name,
            f"dtype {array.dtype.name} ({array.dtype.str}), give float32 or float16, "
            'or uint16 and dtype="bfloat16"',
        )
    flat = array.reshape(-1).view("uint8")  # copies only what is not contiguous
    return TensorBytes(kind, tuple(array.shape), memoryview(flat), flat)


def bytes_of(name: str, tensor: Any, dtype: Optional[str] = None) -> TensorBytes:
    """The bytes of a tensor of torch, or of an array of numpy, without a copy where they lie on
    this machine in one piece. `dtype` "bfloat16" says what uint16 arrays hold."""
    if hasattr(tensor, "detach"):
        return _torch_bytes(name, tensor)
    if hasattr(tensor, "reshape") and hasattr(tensor, "dtype"):
        return _numpy_bytes(name, tensor, dtype)
    raise _refuse(name, f"{type(tensor).__name__} is neither a torch tensor nor a numpy array")


# -- encoding -------------------------------------------------------------------------------------
# By hand around the data, so that tens of megabytes are not copied into a message and out again.


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _begin_field(number: int, length: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _slice_head(name: str, tensor: TensorBytes, offset: int, size: int) -> bytes:
    """All of a repeated TensorSlice but its data, which must follow."""
    try:
        head: bytes = wire.TensorSlice(
            name=name, dtype=tensor.dtype, shape=tensor.shape, offset=offset
        ).SerializeToString()
    except (TypeError, ValueError) as error:
        raise _refuse(repr(name), str(error)) from None
    head += _begin_field(wire.TensorSlice.DATA_FIELD_NUMBER, size)
    return _begin_field(wire.WeightBucket.SLICES_FIELD_NUMBER, len(head) + size) + head


def frame_of(request_id: int, version: int, bucket: Bucket) -> bytes:
    """The Envelope with this bucket."""
    head: bytes = wire.Envelope(version=version, request_id=request_id).SerializeToString()
    body = sum(len(piece) for piece in bucket.pieces)
    begin = _begin_field(wire.Envelope.WEIGHT_BUCKET_FIELD_NUMBER, body)
    return b"".join([head, begin, *bucket.pieces])


# -- cutting --------------------------------------------------------------------------------------


class _Filling:
    """The bucket that is being filled."""

    def __init__(self, epoch: int, number: int) -> None:
        head: bytes = wire.WeightBucket(epoch=epoch, bucket=number).SerializeToString()
        self.pieces: List[Union[bytes, memoryview]] = [head]
        self.number = number
        self.size = 0
        self.slices = 0
        self.tensors = 0

    def add(self, name: str, tensor: TensorBytes, offset: int, size: int) -> None:
        self.pieces.append(_slice_head(name, tensor, offset, size))
        self.pieces.append(tensor.data[offset : offset + size])
        self.size += size
        self.slices += 1
        self.tensors += offset == 0

    def keep(self) -> None:
        """Copies what was added last: the caller may now reuse the memory of its tensor."""
        self.pieces[-1] = bytes(self.pieces[-1])


def cut(
    tensors: AnyTensors, epoch: int, bucket_bytes: int, dtype: Optional[str] = None
) -> Iterator[Bucket]:
    """Yields full buckets, each to be sent before the next is asked for. A tensor's memory is not
    looked at any more once the one after it was asked for."""
    items: Iterable[Tuple[str, Any]] = tensors.items() if isinstance(tensors, Mapping) else tensors
    room = max(4, bucket_bytes)
    filling = _Filling(epoch, 1)
    for name, given in items:
        tensor = bytes_of(name, given, dtype)
        total = len(tensor.data)
        if total == 0:
            raise _refuse(name, f"shape {list(tensor.shape)} has no elements")
        offset = 0
        while offset < total:
            size = min(total - offset, (room - filling.size) // 4 * 4)  # whole elements
            filling.add(name, tensor, offset, size)
            offset += size
            # Four bytes at least must fit beside what is there.
            if filling.size > room - 4 or filling.slices == SLICES_MAX:
                yield Bucket(filling.pieces, filling.tensors)
                filling = _Filling(epoch, filling.number + 1)
        if filling.slices:
            filling.keep()
    if filling.slices:
        yield Bucket(filling.pieces, filling.tensors)
