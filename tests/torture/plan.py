"""The sequence of faults, a pure function of seed, number and kinds: what is done to whom, and for how long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.torture.stage import STREAMS

KINDS = {
    "kill_intake": "SIGKILL of the intake that writes",
    "kill_champion": "SIGKILL of the champion's learner",
    "kill_learner": "SIGKILL of a challenger's learner",
    "kill_standby": "SIGKILL of a process that stands by, or of one that starts",
    "stop_intake": "SIGSTOP of the intake, SIGCONT when another one has taken over",
    "stop_champion": "SIGSTOP of the champion's learner, SIGCONT when another one has taken over",
    "cut_source": "all connections to the source are cut, and refused for a while",
    "cut_platform": "all connections to the platform are cut, and refused for a while",
    "slow": "one of the networks delays and throttles",
    "half_open": "the present connections of one network are silent in one direction, some for long, then cut",
    "restart": "one of the servers is restarted (fast)",
    "crash_source": "kill -9 of the source's postmaster",
    "crash_platform": "kill -9 of the platform's postmaster",
    "terminate": "pg_terminate_backend of a worker's connection",
}
_MORE = ("kill_intake", "kill_champion")  # in turn: one card more, so that enough takeovers are measured
_RESTS = 0.2  # share of the faults that find the intakes idle: longer than they take to move an idle slot


@dataclass(frozen=True)
class Fault:
    """One fault."""

    number: int
    kind: str
    stream: str
    cluster: str  # "source" or "platform", for kinds that leave it open
    seconds: float  # how long what lasts lasts
    chance: float  # 0 to 1, for what is left to choose
    into: float  # seconds after the application went on
    rest: float  # or: seconds without a change, after all that there were have arrived; 0 for most
    alone: bool  # whether other tables of the source are at rest too


def deal(seed: int, count: int, kinds: Sequence[str] = tuple(KINDS), *, silence: float = 8.0) -> list[Fault]:
    """So many faults, in rounds in which each kind comes once and one of the kills twice.

    Parameters
    ----------
    silence
        Seconds that every third half-open network is silent, at least.

    Examples
    --------
    >>> [fault.kind for fault in deal(7, 3, ["slow", "restart"])]
    ['slow', 'restart', 'slow']
    >>> deal(7, 300)[:5] == deal(7, 5)
    True
    """
    dice = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    rounds = 0
    while len(faults) < count:
        cards = list(kinds)
        if (more := _MORE[rounds % 2]) in kinds:
            cards.append(more)
        dice.shuffle(cards)
        for kind in cards:
            stream, cluster = dice.choice(STREAMS), ("source", "platform")[(rounds + len(kind)) % 2]
            seconds, chance, into = dice.uniform(0.3, 1.5), dice.random(), dice.uniform(0.0, 0.6)
            if kind == "half_open":
                seconds = silence + seconds if rounds % 3 == 0 else 2 * seconds
            rest, alone = dice.uniform(2.5, 4.0) if dice.random() < _RESTS else 0.0, dice.random() < 0.5
            faults.append(Fault(len(faults) + 1, kind, stream, cluster, seconds, chance, into, rest, alone))
        rounds += 1
    return faults[:count]
