-- The demo's application: flights that will depart, and those that arrived.
CREATE TABLE public.departures (
    flight_id bigint PRIMARY KEY,
    scheduled_at timestamptz NOT NULL,
    carrier text NOT NULL,
    flight integer NOT NULL,
    origin text NOT NULL,
    dest text NOT NULL,
    tailnum text,
    distance integer NOT NULL,
    scheduled_minutes integer NOT NULL,
    plane_year integer,
    plane_type text,
    plane_manufacturer text,
    plane_model text,
    plane_engines integer,
    plane_seats integer,
    plane_engine text,
    temp double precision,
    dewp double precision,
    humid double precision,
    wind_speed double precision,
    precip double precision,
    pressure double precision,
    visibility double precision
);

CREATE TABLE public.arrivals (
    flight_id bigint PRIMARY KEY,
    arr_delay integer NOT NULL,
    landed_at timestamptz NOT NULL
);
