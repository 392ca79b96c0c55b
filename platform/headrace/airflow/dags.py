"""The DAG factory: what Airflow does for a stream, as five DAGs of thin tasks over headrace's command line.

`<stream>__quality` checks the log, `<stream>__bootstrap` trains challengers, `<stream>__compare` judges them on a schedule,
`<stream>__rollback` puts a former champion back, `<stream>__housekeeping` lets go of what nobody needs. Tasks only steer:
what they decide is written to the registry, and long-running learners make it so. Parsing imports the stream definitions
and nothing heavier.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, DeltaTriggerTimetable, Param, task

from headrace import settings
from headrace.airflow import docs
from headrace.airflow.operators import Compare, HeadraceCommand, WaitUntilCaughtUp
from headrace.definition.load import definition_files, load_file
from headrace.definition.stream import Stream
from headrace.errors import DefinitionError

RUN_ID = "--run-id={{ run_id }}"


def sound_streams(folder: Path) -> list[Stream]:
    """The streams whose definitions have no mistake, by their files' names; of two with one name the first counts.

    `headrace.definition.load.load_folder` names the mistakes of the others: a broken file must not stop the streams
    that are well, and Airflow would drop all DAGs of a file that raises.
    """
    streams: dict[str, Stream] = {}
    for path in definition_files(folder):
        try:
            stream = load_file(path)
        except DefinitionError:
            continue
        streams.setdefault(stream.name, stream)
    return list(streams.values())


def build(stream: Stream) -> list[DAG]:
    """A stream's DAGs. `__bootstrap` is missing where no challenger is trained offline."""
    made = [_quality(stream), _compare(stream), _rollback(stream), _housekeeping(stream)]
    if any(recipe.bootstraps for recipe in stream.challengers):
        made.append(_bootstrap(stream))
    return made


def quality_asset(stream: str) -> Asset:
    """Updated when a stream's log has passed its checks."""
    return Asset(f"headrace://{stream}/quality", group="headrace")


def challengers_asset(stream: str) -> Asset:
    """Updated when new challengers are in shadow."""
    return Asset(f"headrace://{stream}/challengers", group="headrace")


def champion_asset(stream: str) -> Asset:
    """Updated when another version serves."""
    return Asset(f"headrace://{stream}/champion", group="headrace")


def _dag(stream: Stream, what: str, doc: str, **kwargs: Any) -> DAG:
    return DAG(
        f"{stream.name}__{what}",
        doc_md=doc.format(stream=stream.name),
        tags=["headrace", stream.name],
        catchup=False,
        max_active_runs=1,
        default_args={"owner": "headrace", "retries": 0},
        **kwargs,
    )


def _check(stream: Stream) -> HeadraceCommand:
    return HeadraceCommand(
        task_id="quality",
        doc_md=docs.TASK_QUALITY,
        words=["quality", stream.name, RUN_ID],
        conn_id=stream.source.conn_id,
        must="success",
        retries=1,  # a lost connection, not bad data, which fails for good at once
        retry_delay=timedelta(seconds=10),
        execution_timeout=timedelta(minutes=30),
        outlets=[quality_asset(stream.name)],
    )


def _result(task: Any, key: str) -> Any:
    """One key of what a task will have returned; of a mapped task, that key of each."""
    return task.output[key]


def _quality(stream: Stream) -> DAG:
    with _dag(
        stream,
        "quality",
        docs.QUALITY,
        description="Checks the training log against the contract, expectation by expectation",
        schedule=DeltaTriggerTimetable(timedelta(days=1)),
    ) as dag:
        _check(stream)
    return dag


def _bootstrap(stream: Stream) -> DAG:
    names = [recipe.name for recipe in stream.challengers if recipe.bootstraps]
    recipes_param = Param(
        names,
        title="Recipes",
        description="Which challengers to train on the log as it is now.",
        type="array",
        items={"type": "string", "enum": names},
        examples=names,  # makes the form a multi-select
        minItems=1,
        uniqueItems=True,
    )
    with _dag(
        stream,
        "bootstrap",
        docs.BOOTSTRAP,
        description="Trains challengers on the checked log and brings them to its leading edge",
        schedule=None,
        params={"recipes": recipes_param},
    ) as dag:
        checked = _check(stream)

        @task(doc_md=docs.TASK_RECIPES)
        def recipes(params: Any = None) -> list[list[str]]:
            return [["--recipe", name] for name in params["recipes"]]

        chosen = recipes()
        candidates = HeadraceCommand.partial(
            task_id="candidates",
            doc_md=docs.TASK_CANDIDATES,
            words=["bootstrap", stream.name, "--seq-last", _result(checked, "seq_last"), RUN_ID],
            conn_id=stream.source.conn_id,
            map_index_template="{{ task.more[-1] }}",
            execution_timeout=timedelta(hours=2),
        ).expand(more=chosen)
        admit = HeadraceCommand(
            task_id="admit",
            doc_md=docs.TASK_ADMIT,
            words=["admit", stream.name, _result(candidates, "version")],
            must="admitted",
            execution_timeout=timedelta(minutes=10),
        )
        catch_up = WaitUntilCaughtUp(
            task_id="catch_up",
            doc_md=docs.TASK_CATCH_UP,
            stream=stream.name,
            versions=_result(admit, "admitted"),
            execution_timeout=timedelta(hours=12),
        )

        @task(doc_md=docs.TASK_SHADOW, outlets=[challengers_asset(stream.name)])
        def shadow(stream_name: str) -> list[str]:
            from headrace.airflow.operators import versions

            now = [f"{version} ({recipe})" for version, status, recipe in versions(stream_name) if status == "shadow"]
            print(f"in shadow now, scored on every label and serving nobody: {', '.join(now) or 'nobody'}")
            return now

        checked >> chosen
        admit >> catch_up >> shadow(stream.name)
    return dag


def _compare(stream: Stream) -> DAG:
    every = settings.from_env().compare_every or stream.policy.compare_every
    with _dag(
        stream,
        "compare",
        docs.COMPARE,
        description="Compares champion and challengers, and promotes, keeps or retires",
        # Runs of type `scheduled`, the first one right after unpausing, then one every `every`.
        schedule=DeltaTriggerTimetable(every),
    ) as dag:
        compare = Compare(
            task_id="compare",
            doc_md=docs.TASK_COMPARE,
            stream=stream.name,
            words=[
                "compare",
                stream.name,
                RUN_ID,
                "--run-type={{ 'scheduled' if dag_run.run_type == 'scheduled' else 'manual' }}",
            ],
            conn_id=stream.source.conn_id,
            inlets=[challengers_asset(stream.name)],
            execution_timeout=timedelta(minutes=10),  # no retry: the next run comes by itself and sees more
        )

        @task(doc_md=docs.TASK_PROMOTED, outlets=[champion_asset(stream.name)])
        def promoted(version: str) -> str:
            print(f"{version} serves from now on")
            return version

        promoted(_result(compare, "promoted"))
    return dag


def _rollback(stream: Stream) -> DAG:
    params = {
        "reason": Param(
            type="string",
            title="Reason",
            description="Why, in a sentence: it stays in metrics.decisions and in the serving history.",
            minLength=3,
            examples=["Predictions for JFK went wrong after the promotion of this morning."],
        ),
        "to": Param(
            None,
            type=["null", "string"],
            title="Version",
            description="Which version is to serve. Empty: the former champion.",
            examples=[f"{stream.name}-1"],
        ),
    }
    with _dag(
        stream,
        "rollback",
        docs.ROLLBACK,
        description="Lets a former champion serve again",
        schedule=None,
        params=params,
    ) as dag:
        HeadraceCommand(
            task_id="rollback",
            doc_md=docs.TASK_ROLLBACK,
            words=[
                "rollback",
                stream.name,
                "{{ '--to=' ~ params.to if params.to else '' }}",
                "--reason={{ params.reason }}",
                "--by={{ dag_run.triggering_user_name or 'airflow' }}",
                RUN_ID,
            ],
            conn_id=stream.source.conn_id,
            outlets=[champion_asset(stream.name)],
            execution_timeout=timedelta(minutes=10),
        )
    return dag


def _housekeeping(stream: Stream) -> DAG:
    with _dag(
        stream,
        "housekeeping",
        docs.HOUSEKEEPING,
        description="Drops what the policy lets go of the log and nothing needs, and thins checkpoints",
        schedule=DeltaTriggerTimetable(timedelta(days=1)),
    ) as dag:
        HeadraceCommand(
            task_id="housekeeping",
            doc_md=docs.TASK_HOUSEKEEPING,
            words=["housekeep", stream.name],
            conn_id=stream.source.conn_id,
            retries=1,  # a lost connection; what is in use now is left to the next run
            retry_delay=timedelta(minutes=1),
            execution_timeout=timedelta(hours=1),
        )
    return dag
