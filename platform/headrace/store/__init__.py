"""The only room that runs SQL on the platform's database: connections, migrations, log, registry, checkpoints, leases.

Neighbours: `headrace.flow` beside it computes; `headrace.live` and `headrace.batch` above call both.
"""
