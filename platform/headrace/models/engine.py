"""The engine: what equality to the bit depends on. Digests compare within one engine only."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from headrace.events import Engine

_LIBRARIES = ("numpy", "numba", "lightgbm", "river")


@cache
def engine() -> Engine:
    """This process's engine: hash of headrace's own code, library versions, CPU features."""
    package = Path(__file__).parent.parent
    code = hashlib.sha256()
    for room in ("definition", "flow", "models"):  # what computes; the other rooms only carry data
        for path in sorted((package / room).glob("*.py")):
            code.update(path.read_bytes())
    parts = {name: version(name) for name in _LIBRARIES}
    parts["python"] = platform.python_version()
    parts["machine"] = platform.machine()
    features: dict[str, bool] = import_module("numpy._core._multiarray_umath").__cpu_features__
    parts["cpu"] = hashlib.sha256(" ".join(sorted(f for f, there in features.items() if there)).encode()).hexdigest()[
        :12
    ]
    sha = code.hexdigest()[:16]
    text = " ".join([sha, *(f"{k}={v}" for k, v in sorted(parts.items()))])
    return Engine(id=hashlib.sha256(text.encode()).hexdigest()[:12], code_sha=sha, parts=parts)
