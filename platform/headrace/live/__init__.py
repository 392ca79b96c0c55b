"""Long-running loops: intake, learner, endpoint, supervisor, and the processes they run in; each on one page.

They do what the registry says should be true. Below it are `flow`, `store` and `models`; it knows nothing of Airflow.
"""
