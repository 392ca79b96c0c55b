"""States as bytes: arrays plus JSON in one container, and signed pickles for what cannot be arrays.

`dump` and `parse` hold any state without executing anything: an uncompressed npz that never carries objects, JSON, and
a SHA-256 over both. `sign` and `unsign` are for river models, which can only be pickled: the signature is checked
before a byte is unpickled, and then only exact (module, name) pairs load. This module never decides where the bytes are
kept.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import pickle
import struct
import weakref
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import SnapshotError
from headrace.models.allowed import ALLOWED
from headrace.models.contract import Arrays

MAGIC = b"headrace state 1\n"
_DIGEST = hashlib.sha256().digest_size

Pair = tuple[str, str]
"""A class or function by its exact module and qualified name."""


def dump(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> bytes:
    """Return a state as bytes: magic, SHA-256 of the rest, length of the JSON, JSON, npz.

    Equal states give equal bytes. Floats in `meta` keep every bit, since JSON writes their shortest exact form.

    >>> arrays, meta = parse(dump({"w": np.array([0.1, 0.2])}, {"D": 0.3}))
    >>> arrays["w"].tolist(), meta
    ([0.1, 0.2], {'D': 0.3})

    Raises
    ------
    SnapshotError
        An array holds objects, or `meta` is not JSON.
    """
    packed = io.BytesIO()
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise SnapshotError(
                f"found objects in the state's array {name!r}, expected numbers: keep text in the JSON part"
            )
    np.savez(packed, allow_pickle=False, **{name: np.asarray(arrays[name], order="C") for name in sorted(arrays)})
    try:
        text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise SnapshotError(
            f"found a state whose JSON part cannot be written ({error}), expected plain values"
        ) from error
    head, rest = struct.pack("<Q", len(text)) + text, packed.getbuffer()
    digest = hashlib.sha256(head)
    digest.update(rest)
    return b"".join((MAGIC, digest.digest(), head, rest))  # an array of open events is large: no copy but this one


def parse(state: bytes) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the JSON of a state that `dump` wrote.

    Raises
    ------
    SnapshotError
        The bytes are not such a state, or were damaged.
    """
    head = len(MAGIC) + _DIGEST
    if not state.startswith(MAGIC) or len(state) < head + 8:
        raise SnapshotError(f"found {len(state)} bytes that are not a state, expected them to begin with {MAGIC!r}")
    body = state[head:]
    if not hmac.compare_digest(hashlib.sha256(body).digest(), state[len(MAGIC) : head]):
        raise SnapshotError("found a state whose SHA-256 does not match: it was damaged; use an earlier checkpoint")
    (length,) = struct.unpack_from("<Q", body)
    with np.load(io.BytesIO(body[8 + length :]), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(body[8 : 8 + length])


class Digests:
    """SHA-256 of arrays by dtype, shape and bytes; those that nobody can write are read once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[NDArray[Any]], str]] = {}

    def of(self, array: NDArray[Any]) -> str:
        """Return the digest of one array, in hex."""
        if array.flags.writeable or array.base is not None:
            return _array_digest(array)
        known = self._known.get(id(array))
        if known is None or known[0]() is not array:
            here = id(array)
            known = weakref.ref(array, lambda _: self._known.pop(here, None)), _array_digest(array)
            self._known[here] = known
        return known[1]


def _array_digest(array: NDArray[Any]) -> str:
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    digest = hashlib.sha256(json.dumps([little.dtype.str, list(little.shape)]).encode())
    digest.update(little.data)
    return digest.hexdigest()


def state_digest(arrays: Mapping[str, NDArray[Any]], digests: Digests | None = None) -> str:
    """Return the SHA-256, in hex, of arrays by name, dtype, shape and bytes, whatever their order in the mapping.

    Arrays that hold a pickle do not belong here: equal models may pickle to different bytes.

    >>> a, b = np.zeros(2), np.ones(1)
    >>> state_digest({"a": a, "b": b}) == state_digest({"b": b, "a": a}) != state_digest({"a": a})
    True
    """
    digests = digests or Digests()
    named = {name: digests.of(array) for name, array in arrays.items()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def sign(model: object, key: bytes) -> bytes:
    """Return the model pickled, behind an HMAC-SHA256 of the pickle.

    Parameters
    ----------
    model
        Any object that pickles.
    key
        The installation's secret, at least 16 bytes.
    """
    pickled = pickle.dumps(model, protocol=5)
    return hmac.digest(_checked(key), pickled, "sha256") + pickled


def unsign(signed: bytes, key: bytes, declared: Collection[Pair] = ()) -> Any:
    """Return the model that `sign` wrote with the same key.

    Parameters
    ----------
    signed, key
        As given to and returned by `sign`.
    declared
        Pairs that the user's own model needs beside the built-in ones.

    Raises
    ------
    SnapshotError
        The signature does not match, or the pickle asks for a pair that is not allowed; the message names it.
    """
    signature, pickled = signed[:_DIGEST], signed[_DIGEST:]
    if not hmac.compare_digest(hmac.digest(_checked(key), pickled, "sha256"), signature):
        raise SnapshotError(
            "found a model state whose signature does not match: it was changed, or written under another key; "
            "restore the key, or rebuild the version from the log"
        )
    return _Unpickler(io.BytesIO(pickled), ALLOWED | frozenset(declared)).load()


def _checked(key: bytes) -> bytes:
    if len(key) < 16:
        raise SnapshotError(f"found a signing key of {len(key)} bytes, expected at least 16 random ones")
    return key


class _Unpickler(pickle.Unpickler):
    """An unpickler that looks up exact pairs and nothing else."""

    def __init__(self, file: io.BytesIO, allowed: Collection[Pair]) -> None:
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise SnapshotError(
                f"found {module}.{name} in a model state, expected only what the allow-list holds: a "
                "pipeline that is stored is made of river's estimators, without functions of its own"
            )
        return super().find_class(module, name)
