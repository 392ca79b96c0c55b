-- Prepares a database for the stream flights. Run it as the tables' owner; wal_level must be logical
-- (ALTER SYSTEM SET wal_level = logical, then restart). Bound what a forgotten slot may cost:
-- ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';
CREATE PUBLICATION "headrace_flights" FOR TABLE
    "public"."departures" ("flight_id", "scheduled_at", "carrier", "origin", "dest", "tailnum", "distance", "scheduled_minutes", "plane_year", "plane_seats", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visibility"),
    "public"."arrivals" ("flight_id", "arr_delay", "landed_at")
    WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);
-- The role that headrace connects as, if it is not there yet:
-- CREATE ROLE "headrace" LOGIN REPLICATION PASSWORD '...';
GRANT USAGE ON SCHEMA "public" TO "headrace";
GRANT SELECT ON "public"."departures" TO "headrace";
GRANT SELECT ON "public"."arrivals" TO "headrace";
