"""Every error that headrace raises on purpose, under one root.

A message names what was found, what was expected and what to do next; the command line prints it as one line and exits
with the class's `exit_code`. Anything that is not a `HeadraceError` is a bug and keeps its traceback.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """The root of all errors that headrace raises on purpose.

    Attributes
    ----------
    state
        Name of the state that a worker is in while it lasts, as `headrace status` and metrics.incidents show it.
    """

    exit_code = 1

    def __init__(self, message: str, *, state: str | None = None) -> None:
        super().__init__(message)
        self.state = state or type(self).__name__.removesuffix("Error").lower()


class DefinitionError(HeadraceError):
    """A stream definition has mistakes; the message lists every one of them."""

    exit_code = 2


class SettingsError(HeadraceError):
    """A setting from the environment is missing or wrong."""

    exit_code = 2


class ServerError(HeadraceError):
    """A database server cannot be reached, started or used as headrace needs it."""

    exit_code = 3


class ForgottenError(ServerError):
    """Entries that a reader needs next were dropped by retention; a newer checkpoint does not need them."""


class SourceError(ServerError):
    """The source database is not ready: a privilege, setting, table, column or replica identity is missing."""


class SlotError(SourceError):
    """The replication slot is in use, lost, or does not fit the stored position."""


class SeamError(SlotError):
    """Changes cannot be read any more: nothing goes on before `headrace resync`."""

    exit_code = 6


class DecodeError(HeadraceError):
    """The change stream holds something that headrace cannot decode; nothing is skipped."""


class LeaseError(HeadraceError):
    """Another process holds the role, or took it over while this one worked."""

    exit_code = 4


class ModelError(HeadraceError):
    """A model breaks its contract or cannot be trained, saved or loaded."""


class DivergedError(ModelError):
    """Two processes that learned the same version from the same log, on the same engine, came to different digests.

    Attributes
    ----------
    version, epoch
        What was learned in two ways, and the first epoch whose digests differ.
    """

    def __init__(self, message: str, *, version: str, epoch: int) -> None:
        super().__init__(message)
        self.version, self.epoch = version, epoch


class SnapshotError(ModelError):
    """A stored state is damaged, unsigned, or holds a class that may not be loaded."""


class BatchError(HeadraceError):
    """A bootstrap, comparison, promotion or rollback cannot go on."""


class InvariantError(HeadraceError):
    """An audit found a broken invariant; the message names it."""

    exit_code = 5
