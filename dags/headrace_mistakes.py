"""Shows the mistakes of stream definitions as an import error in Airflow's web UI; makes no DAG.

A file of its own, since Airflow drops all DAGs of a file that raises: the streams without mistakes go on.
"""

from headrace import settings
from headrace.definition.load import load_folder

load_folder(settings.from_env().streams)
