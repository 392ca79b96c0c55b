#!/bin/sh
# A database for headrace, whose owner may create its group roles, and one for Airflow's metadata.
set -eu
psql -v ON_ERROR_STOP=1 -v headrace="$PLATFORM_PASSWORD" -v airflow="$AIRFLOW_PASSWORD" --username postgres --dbname postgres <<'SQL'
CREATE ROLE headrace LOGIN CREATEROLE PASSWORD :'headrace';
CREATE DATABASE headrace OWNER headrace;
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE DATABASE airflow OWNER airflow;
SQL
