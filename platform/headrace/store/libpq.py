"""libpq's own functions on a connection of psycopg2's, from Python and from kernels.

psycopg2 makes a Python object of every message of a COPY. Where there are a million of them, `headrace.store.copyboth` and
`headrace.store.copyout` go over them in compiled code, on the connection that psycopg2 has opened (`pgconn_ptr` is there for
that); the library is the one that psycopg2 itself has loaded. It knows nothing of what messages mean.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numpy.typing import NDArray
from psycopg2 import _psycopg

_SQLSTATE, _PRIMARY = ord("C"), ord("M")
_library = ctypes.CDLL(_psycopg.__file__)
_pointer, _int, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


send_query = _function("PQsendQuery", _int, _pointer, _text)
put_copy_data = _function("PQputCopyData", _int, _pointer, _pointer, _int)
put_copy_end = _function("PQputCopyEnd", _int, _pointer, _text)
flush = _function("PQflush", _int, _pointer)
get_result = _function("PQgetResult", _pointer, _pointer)
result_status = _function("PQresultStatus", _int, _pointer)
_status = _function("PQstatus", _int, _pointer)
clear = _function("PQclear", None, _pointer)
_field = _function("PQresultErrorField", _text, _pointer, _int)
_said = _function("PQerrorMessage", _text, _pointer)


def is_broken(conn: int | None) -> bool:
    """Whether a connection has ended."""
    return bool(_status(conn) != 0)


def what_failed(conn: int | None, result: int | None) -> tuple[str | None, str]:
    """(SQLSTATE, or None when there is none; what is said) of a result that is an error, or of a connection that ended."""
    code = _field(result, _SQLSTATE) if result else None
    said = _field(result, _PRIMARY) if code else _said(conn)
    return None if code is None else code.decode(), " ".join((said or b"").decode(errors="replace").split())


def addresses(*names: str) -> NDArray[np.int64]:
    """int64[n]: where functions are, for `call`."""
    found = [ctypes.cast(getattr(_library, name), ctypes.c_void_p).value or 0 for name in names]
    return np.array(found, dtype=np.int64)


def _build_call(typing: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Call the C function at an address with a pointer, another one and an int; pointers are numbers here.

    A function that takes fewer arguments ignores the others, which the caller alone clears up, on all of our machines.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, number = ir.IntType(64), ir.IntType(32)
        function = builder.inttoptr(arguments[0], ir.FunctionType(number, [word, word, number]).as_pointer())
        return builder.call(function, arguments[1:])

    return types.int32(types.uint64, types.uint64, types.uint64, types.int32), build


def _build_bytes(typing: Any, address: Any) -> Any:
    """A pointer to bytes, from its number."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return _BYTES(types.uint64), build


# numba has no types: these are called in kernels only.
_BYTES: Any = types.CPointer(types.uint8)  # type: ignore[no-untyped-call]
call: Any = intrinsic(_build_call)
bytes_at: Any = intrinsic(_build_bytes)
array_at: Any = carray
