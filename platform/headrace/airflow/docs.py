"""What Airflow shows people about each DAG and task: what it does, and what to look at in SQL. `{stream}` is filled in."""

QUALITY = """
### Is the log of **{stream}** fit to learn from?

Checks a window of the training log against the stream's contract with Great Expectations, on a view of the window inside
Postgres. Each expectation's result is stored with this run's id. What fails here stops a bootstrap, never the learners:
rows that break a row-level expectation were put into quarantine before they reached any model.

```sql
SELECT expectation, success, rows_checked, rows_unexpected, observed, exception
FROM metrics.quality WHERE stream = '{stream}' ORDER BY checked_at DESC, expectation LIMIT 20;

SELECT expectation, count(*), max(found) FROM metrics.quarantine WHERE stream = '{stream}' GROUP BY 1 ORDER BY 2 DESC;
```
"""

BOOTSTRAP = """
### New challengers for **{stream}**

`quality` → `candidates` (one mapped task per recipe) → `admit` → `catch_up` → `shadow`.

Trains the chosen recipes on the log up to the last checked entry, judges each on its held-out end, and lets those that
pass read on from where their training data ended. Once at the log's end they are scored on every label, in shadow: they
serve nobody until `{stream}__compare` promotes them. Nothing is missed between training and stream, and nothing is
learned twice.

```sql
SELECT version, recipe, status, heldout_loss, first_seq, dag_run_id FROM metrics.versions WHERE stream = '{stream}';

SELECT worker, entries_behind, time_behind FROM metrics.lag WHERE stream = '{stream}';
```
"""

COMPARE = """
### Who should serve **{stream}**?

Looks at every challenger in shadow with the anytime-valid decision rule: it may look as often as it likes and still
promotes a model that is no better in at most 2% of all cases. Verdicts are promote, keep and retire, each with a sentence
and its numbers; after a promotion it also watches whether the new champion must give way. While there are no challengers
the run is skipped.

```sql
SELECT challenger, labels, gain, gain_low, gain_high, log_e, log_e_needed, missing
FROM metrics.comparisons WHERE stream = '{stream}' AND closed_at IS NULL;

SELECT decided_at, verdict, champion, challenger, reason, dag_run_id
FROM metrics.decisions WHERE stream = '{stream}' ORDER BY decided_at DESC LIMIT 20;
```
"""

ROLLBACK = """
### Back to a former champion of **{stream}**

Trigger it with a reason. The former champion, or the version that you name, serves from the next entry of the log on;
it has been learning all the time. Both versions go on learning.

```sql
SELECT version, recipe, during, why FROM metrics.serving_history WHERE stream = '{stream}' ORDER BY seq_first DESC;

SELECT version, status, labels, loss FROM metrics.leaderboard WHERE stream = '{stream}' ORDER BY loss;
```
"""

HOUSEKEEPING = """
### What of the log of **{stream}** may go

Drops whole partitions of the training log, oldest first, when the policy's `keep` or `keep_bytes` asks for it and nothing
needs them: no event that waits for its label, no version that starts again from a checkpoint, no comparison, no probation.
What stays although it should go is named, with who needs it. Versions that can no longer be rebuilt from their base say so.
Checkpoints of versions that nobody runs are thinned.

```sql
SELECT partition, seq_first, seq_last, bytes, why, dropped_at FROM metrics.retention WHERE stream = '{stream}' ORDER BY 1 DESC;

SELECT version, status, rebuildable, why_not_rebuildable FROM metrics.versions WHERE stream = '{stream}';
```
"""

TASK_QUALITY = """
Runs Great Expectations in a child process and writes one row per expectation. Fails, naming the expectations, when the
data does; a check that could not be made fails too, and is told apart in `metrics.quality.exception`. One retry covers a
lost connection; failed data is not tried again.
"""

TASK_RECIPES = """
Turns the form's recipes into one mapped task each.
"""

TASK_CANDIDATES = """
Trains one recipe in a child process: split by time, the last part held out, early stopping, then a refit on the whole
window. Registers the result as a candidate, with its training curve in `metrics.training_curves`. Recipes are trained side
by side, each on one core: as many as Airflow runs tasks at a time.
"""

TASK_ADMIT = """
The held-out gate: a candidate whose held-out loss is no worse than the champion's starts to catch up, the others are
rejected. Fails when none passes, with the numbers.
"""

TASK_CATCH_UP = """
Waits, deferred, until the learners of the admitted versions are at the end of the log; the log shows how far they are
behind and how long it will take. Needs `headrace up`, which runs the learners. Fails when a version is retired meanwhile,
or when nothing moves for ten minutes.
"""

TASK_SHADOW = """
Says who is in shadow now, and updates the stream's asset `challengers`.
"""

TASK_COMPARE = """
Runs the decision rule in a child process and stores its verdicts. A promotion takes effect with the next entry of the
log. Not retried: the next run sees all of the evidence of this one, and more. Skipped while nobody is in shadow.
"""

TASK_PROMOTED = """
Runs only after a promotion: updates the stream's asset `champion`, for your own DAGs to be scheduled on.
"""

TASK_HOUSEKEEPING = """
Runs `headrace housekeep` in a child process: one short transaction per partition, so an interrupted run has done a part. It
locks the log for a moment at the end of each, and gives up after half a second rather than make the intake wait; the next
run tries again.
"""

TASK_ROLLBACK = """
Changes who serves, in one transaction that also closes the open comparisons. Fails with a sentence when there is no
former champion, or when the version asked for does not run.
"""
