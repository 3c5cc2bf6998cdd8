"""Numbers that files store in fewer than eight bits, or in half precision, as arrays that can be compared.

    unpacked(packed, 4)          # of type int4, which takes a byte each here
    stored_bytes(array)          # and half a byte in the file
    comparable(array)            # int8, as in the torch model

numpy has no such types; ml_dtypes, which comes with onnx, adds them.
"""

from typing import Any

import ml_dtypes
import numpy

Array = numpy.typing.NDArray[Any]

BFLOAT16 = numpy.dtype(ml_dtypes.bfloat16)
_SIGNED = {4: numpy.dtype(ml_dtypes.int4), 2: numpy.dtype(ml_dtypes.int2)}
_BITS = {dtype: bits for bits, dtype in _SIGNED.items()}
_HALVES = (BFLOAT16, numpy.dtype(numpy.float16))


def unpacked(packed: Array, bits: int) -> Array:
    """Return the integers in bytes that hold each of them 2**(bits - 1) higher, in some order.

    >>> unpacked(numpy.array([0x8F, 0x09], "uint8"), 4).tolist()
    [7, 1, 0, -8]
    """
    parts = [(packed.reshape(-1) >> shift) & 2**bits - 1 for shift in range(0, 8, bits)]
    integers: Array = (numpy.concatenate(parts).astype(numpy.int8) - 2 ** (bits - 1)).astype(_SIGNED[bits])
    return integers


def stored_bytes(array: Array) -> int:
    """
    >>> stored_bytes(unpacked(numpy.zeros(10, "uint8"), 2)), stored_bytes(numpy.zeros(10, "float32"))
    (10, 40)
    """
    return -(-array.size * _BITS[array.dtype] // 8) if array.dtype in _BITS else array.nbytes


def comparable(array: Array) -> Array:
    """Return the same numbers in the type that a torch model has for them."""
    if array.dtype in _BITS:
        return array.astype(numpy.int8)
    return array.astype(numpy.float32) if array.dtype in _HALVES else array
