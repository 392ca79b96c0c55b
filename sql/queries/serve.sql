-- newest_checkpoint: where a version's newest checkpoint stands, and the engine that wrote it; no row before its first
SELECT seq, engine FROM headrace.checkpoints WHERE stream = %(stream)s AND version = %(version)s ORDER BY seq DESC LIMIT 1;
