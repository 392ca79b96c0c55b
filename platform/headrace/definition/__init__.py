"""The room of stream definitions: what a user writes, as frozen dataclasses that validate as a whole.

Airflow parses definition files every few seconds, so nothing here imports river, LightGBM, numba, NumPy or Airflow.
Neighbours: `headrace.errors` below; every other room reads definitions.
"""
