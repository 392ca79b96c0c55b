"""What a DAG task or a command does once: history import, quality, bootstrap, compare, promote, audit.

Each is a function that ends. Neighbours: `headrace.flow` and `headrace.store` below, `headrace.airflow` and
`headrace.cli` above.
"""
