-- The application's tables: what its streams publish, what they do not, and where it notes which transactions it committed.
CREATE TABLE public.visits (visit_id bigint PRIMARY KEY, seen_at timestamptz, colour text, place text, size double precision);
CREATE TABLE public.outcomes (visit_id bigint PRIMARY KEY, score integer, known_at timestamptz);
CREATE TABLE public.payments (
    payment_id text PRIMARY KEY, paid_at timestamptz, card text, amount numeric(12, 2), is_fraud boolean, labeled_at timestamptz);
ALTER TABLE public.payments REPLICA IDENTITY FULL;
CREATE TABLE public.committed (number bigint PRIMARY KEY);
CREATE TABLE public.clicks (click_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, page text);
