"""A picture of where the time goes: each process by its CPU seconds for a million changes, and within ours each function.

Widths of processes are what the system counted; within them they are py-spy's samples of running threads. py-spy is put into
a folder of its own, since nothing of headrace needs it. It must be allowed to look at other processes: on Linux be root, or
set kernel.yama.ptrace_scope to 0.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tests.bench.stream.contenders import headrace
from tests.bench.stream.stage import Cpu, Stage

_PACKAGE = "py-spy==0.4.3"
_FOLDER = Path("build/py-spy").absolute()
_FILE = Path(__file__).parents[3] / "docs" / "stream-flame.svg"
_SAMPLES = 250  # a second
_WIDTH, _ROW, _DEPTH, _LEGIBLE = 1200, 18, 12, 3  # pixels, levels below a process, pixels below which nothing is drawn
_LETTER = 6.2  # pixels
_SHADES = ("#4e79a7", "#e15759", "#59a14f", "#9c755f", "#b07aa1", "#76736e")


@dataclass
class Frame:
    """A function below its caller, or a process."""

    samples: float = 0.0
    callees: dict[str, Frame] = field(default_factory=dict)

    def add(self, stack: list[str], samples: float) -> None:
        """Samples of a stack, outermost function first."""
        self.samples += samples
        if stack:
            self.callees.setdefault(stack[0], Frame()).add(stack[1:], samples)


def install() -> str:
    """Install py-spy where it is not there yet; gives what is missing, in words, or nothing."""
    if not (_FOLDER / "bin" / "py-spy").exists():
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(_FOLDER), "--no-deps", _PACKAGE]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{_PACKAGE} cannot be installed: {done.stderr.strip().splitlines()[-1]}"
    return ""


def flame(stage: Stage) -> Path:
    """Run headrace once more, under py-spy, and draw it; gives the picture's file."""
    spies: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    def watch(pids: Mapping[str, int]) -> None:
        for name in ("intake", "learner"):
            file = stage.home / f"{name}.samples"
            argv = [str(_FOLDER / "bin" / "py-spy"), "record", "--pid", str(pids[name]), "--rate", str(_SAMPLES)]
            argv += ["--format", "raw", "--threads", "--output", str(file)]
            spies[name] = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE), file

    took = headrace(stage, watch)
    stacks = {}
    for name, (spy, file) in spies.items():
        _, said = spy.communicate(timeout=60)  # it ends with its process
        if not file.exists():
            raise RuntimeError(f"py-spy did not look at the {name}: {said.decode().strip()}")
        stacks[name] = file.read_text()
    _FILE.write_text(draw(took.per_million(), stacks))
    return _FILE


def draw(cpu: Cpu, stacks: Mapping[str, str]) -> str:
    """An SVG of processes side by side, and below those that have samples what they call."""
    total, x, parts = sum(cpu.values()), 0.0, list[str]()
    for shade, (name, seconds) in zip(_SHADES, cpu.items(), strict=True):
        width = _WIDTH * seconds / total
        process = Frame()
        for stack, samples in _stacks(stacks.get(name, "")):
            process.add(stack, samples)
        label = f"{name}: {seconds:.1f} s of CPU for a million changes"
        parts += _boxes(label, process, x, 0, width, shade)
        x += width
    size = f'width="{_WIDTH}" height="{_ROW * (_DEPTH + 1)}"'
    style = 'font-family="Verdana, sans-serif" font-size="11" fill="#fff"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def _stacks(text: str) -> Iterator[tuple[list[str], int]]:
    """py-spy's samples, a thread's own functions from the loop of `headrace` on that it is in."""
    counts = Counter[tuple[str, ...]]()
    for line in text.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [frame.rsplit(":", 1)[0].rstrip(")") for frame in stack.split(";")]
        begins = [at for at, frame in enumerate(frames) if "(headrace/live/" in frame or "(headrace/store/" in frame]
        if begins and frames[-1] != "wait (threading.py":  # py-spy takes it for work
            names = (frame.replace(" (headrace/", " in ").replace(" (", " in ") for frame in frames[begins[0] :])
            counts[tuple(names)] += int(samples)
    return ((list(stack), samples) for stack, samples in counts.items())


def _boxes(name: str, frame: Frame, x: float, depth: int, width: float, shade: str) -> Iterator[str]:
    if width < _LEGIBLE or depth > _DEPTH:
        return
    short = name.split(" in ")[0] if depth else name
    letters = int((width - 6) / _LETTER)
    text = short if len(short) <= letters else f"{short[: letters - 1]}…" if letters > 2 else ""
    strength = 1.0 if depth == 0 else 0.9 - 0.05 * (depth % 6)
    y = depth * _ROW
    yield (
        f'<g><title>{escape(name)}</title><rect x="{x:.1f}" y="{y}" width="{width - 1:.1f}" height="{_ROW - 1}" fill="{shade}" '
        f'fill-opacity="{strength:.2f}"/><text x="{x + 3:.1f}" y="{y + 13}">{escape(text)}</text></g>'
    )
    for callee, below in sorted(frame.callees.items(), key=lambda each: -each[1].samples):
        wide = width * below.samples / frame.samples
        yield from _boxes(callee, below, x, depth + 1, wide, shade)
        x += wide
