"""Operators: one runs a headrace command in a child process, one waits for learners, deferred.

Model code never runs in a task's own process: the child has its hash seed and BLAS threads set, and cannot leave
anything behind in Airflow's memory. It prints one JSON document on stdout, which becomes the task's XCom, and its log on
stderr, which reaches the task's log line by line while it runs. It ends when the task ends, however that happens: by
its own end, by a time-out, or by a kill.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from headrace.airflow import connections
from headrace.airflow.triggers import CaughtUpTrigger
from headrace.errors import DefinitionError, HeadraceError

GRACE = 3.0  # seconds from SIGTERM to SIGKILL: less than Airflow itself gives a task
_LOG_LINE = re.compile(r"^\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)$")
_ERROR = "headrace: "


class HeadraceCommand(BaseOperator):
    """Run `headrace WORD... --json`; the document that it prints is the task's result, one XCom per key.

    Parameters
    ----------
    words
        The command and its arguments. Rendered; a sequence among them (another task's result) is spread out, and what
        renders to nothing is left out.
    more
        Further words: what a mapped task expands over.
    conn_id
        The stream's source: this Airflow connection, if there is one, is given to the child.
    must
        Name of a key of the result that must hold something; else the task fails with the result's sentence, at once,
        since another try would say the same.
    """

    template_fields = ("words", "more")
    ui_color = "#d7eef2"

    def __init__(
        self,
        *,
        words: Sequence[Any],
        more: Sequence[Any] = (),
        conn_id: str | None = None,
        must: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=True, **kwargs)
        self.words = words
        self.more = more
        self.conn_id = conn_id
        self.must = must
        self._child: subprocess.Popen[str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the command; fails with its sentence, and for good where another try cannot help."""
        from headrace.live.supervisor import command, environment

        try:
            settings = connections.task_settings(self.conn_id)
        except HeadraceError as error:
            raise AirflowFailException(str(error)) from error
        assert settings.dsn is not None  # task_settings sets it
        words = list(_spread((self.words, self.more)))
        self.log.info("headrace %s", " ".join(words))
        result = self._run(command(*words, "--json"), environment(settings, settings.dsn))
        if sentence := result.get("sentence"):
            self.log.info("%s", sentence)
        if self.must is not None and not result[self.must]:
            raise AirflowFailException(result["sentence"])
        return result

    def _run(self, argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
        # In the task's own process group, which Airflow signals as a whole: not even a kill -9 leaves the child behind.
        child = subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._child = child
        assert child.stdout is not None
        assert child.stderr is not None
        output: list[str] = []
        reader = threading.Thread(target=lambda stream: output.append(stream.read()), args=(child.stdout,), daemon=True)
        reader.start()
        last = ""
        try:
            for line in child.stderr:
                last = self._tell(line.rstrip("\n")) or last
            reader.join()
            code = child.wait()
        finally:
            self._child = None
            if child.poll() is None:  # the task was interrupted, by its time-out for one
                child.kill()
                child.wait()
            for pipe in (child.stdout, child.stderr):
                pipe.close()
        if code != 0:
            # What is wrong with a definition or setting stays wrong until somebody edits it.
            kind = AirflowFailException if code == DefinitionError.exit_code else AirflowException
            raise kind(last or f"headrace ended with {code} and said no reason; the log above has what it said")
        return _document("".join(output))

    def _tell(self, line: str) -> str | None:
        """Log a line of the child's; gives the sentence, if it is the line that says why the command failed."""
        if line.startswith(_ERROR):
            self.log.error("%s", line)
            return line.removeprefix(_ERROR)
        level, text = found.groups() if (found := _LOG_LINE.match(line)) else ("INFO", line)
        tell: Callable[..., None] = getattr(self.log, level.lower())
        tell("%s", text)
        return None

    def on_kill(self) -> None:
        """End the child: SIGTERM now, SIGKILL soon. Runs in a signal handler, so it waits for nothing."""
        if (child := self._child) is not None and child.poll() is None:
            child.terminate()
            killer = threading.Timer(GRACE, child.kill)
            killer.daemon = True
            killer.start()


class Compare(HeadraceCommand):
    """`headrace compare`: skipped, without a child, while there is nobody to compare; skips what follows unless promoted.

    Parameters
    ----------
    stream
        Name of the stream.
    """

    def __init__(self, *, stream: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare; the verdicts are in the database before this returns."""
        if not any(status in ("shadow", "probation") for _, status, _ in versions(self.stream)):
            raise AirflowSkipException(f"the stream {self.stream} has no challengers yet")
        result = super().execute(context)
        if result["promoted"]:
            return result
        for key, value in {"return_value": result, **result}.items():
            context["ti"].xcom_push(key=key, value=value)
        raise DownstreamTasksSkipped(tasks=sorted(self.downstream_task_ids))  # type: ignore[no-untyped-call]


class WaitUntilCaughtUp(BaseOperator):
    """Wait, without occupying a worker, until the learners of some versions are at the log's end.

    Parameters
    ----------
    stream
        Name of the stream.
    versions
        Names of the versions. Rendered.
    patience
        Fail when none of them has moved for so long.
    """

    template_fields = ("versions",)
    ui_color = "#e7e3f4"

    def __init__(
        self, *, stream: str, versions: Sequence[str], patience: timedelta = timedelta(minutes=10), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.stream = stream
        self.versions = versions
        self.patience = patience

    def execute(self, context: Context) -> None:
        """Hand over to the triggerer."""
        trigger = CaughtUpTrigger(
            stream=self.stream, versions=list(self.versions), patience=self.patience.total_seconds()
        )
        self.defer(trigger=trigger, method_name="resume", timeout=self.execution_timeout)

    def resume(self, context: Context, event: Mapping[str, Any]) -> str:
        """End with what the trigger found out."""
        if not event["caught_up"]:
            raise AirflowFailException(event["sentence"])
        self.log.info("%s", event["sentence"])
        return str(event["sentence"])


def versions(stream: str) -> list[tuple[str, str, str]]:
    """(version, status, recipe) of a stream's versions, oldest first, as the platform's database has them now."""
    from contextlib import closing

    from headrace.store import db

    with closing(
        db.connect(connections.platform_dsn(), role="headrace_reader", application="headrace airflow task")
    ) as conn:
        return [(row[0], row[1], row[2]) for row in db.rows(conn, "version_statuses", {"stream": stream})]


def _spread(value: Any) -> Iterator[str]:
    """Words of nested sequences, without empty ones.

    >>> list(_spread(["admit", "ads", ["ads-2", "ads-3"], "", 7]))
    ['admit', 'ads', 'ads-2', 'ads-3', '7']
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from _spread(one)
    elif str(value):
        yield str(value)


def _document(text: str) -> dict[str, Any]:
    """The JSON object that a command printed; numbers that JSON has no name for become null.

    >>> _document('{"loss": NaN}')
    {'loss': None}
    """
    try:
        document = json.loads(text, parse_constant=lambda _: None)
    except ValueError as error:
        raise AirflowException(f"found {text[:200]!r} on the command's stdout, expected one JSON document") from error
    if not isinstance(document, dict):
        raise AirflowException(f"found {text[:200]!r} on the command's stdout, expected a JSON object")
    return document
