"""Registers headrace's page with the web UI, where the installed distribution has not done so by its entry point."""

from importlib.metadata import entry_points

if "headrace" not in entry_points(group="airflow.plugins").names:
    from headrace.airflow.plugin import HeadracePlugin  # noqa: F401 - Airflow looks for the class in this module
