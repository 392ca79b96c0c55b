"""Thin adapters between Airflow and `batch`: hook, operators, triggers, the DAG factory, pages of the web UI.

Also starts a real Airflow for demos and tests. Nothing heavy is imported when a DAG file is parsed.
"""
