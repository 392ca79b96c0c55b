-- checkpoint_seq: where a version's newest checkpoint stands; no row before its first
SELECT max(seq) FROM headrace.checkpoints WHERE stream = %(stream)s AND version = %(version)s HAVING count(*) > 0;
