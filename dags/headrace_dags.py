"""The DAGs of every stream of HEADRACE_STREAMS: wiring only. A definition with mistakes shows in headrace_mistakes.py."""

from headrace import settings
from headrace.airflow.dags import build, sound_streams

for stream in sound_streams(settings.from_env().streams):
    for dag in build(stream):
        globals()[dag.dag_id] = dag
