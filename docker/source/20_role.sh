#!/bin/sh
# The role that headrace connects as: it may replicate and, with the grants of 30_publication.sql, read two tables.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$SOURCE_PASSWORD" --username postgres --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE headrace LOGIN REPLICATION PASSWORD :'password';
SQL
