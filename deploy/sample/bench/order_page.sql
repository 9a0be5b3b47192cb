-- The bed of the search-side benchmark: 60,000 order pages, each an order with its customer and its
-- items, each item with its product and category. Five tables.
--
--   psql -f order_page.sql URL                    (the sizes below; -v orders=6000 for a small one)
--
-- How many pages one changed row touches: an order or an item 1, a customer 3, a product about 38, a
-- category about 870. Sizes keep these ratios. Deterministic: every value is a hash of its row.

\set ON_ERROR_STOP on
\if :{?orders}
\else
    \set orders 60000
\endif
SELECT :orders / 3 AS customers, :orders * 3 AS items,
       greatest(1, (:orders * 3 / 38.4)::integer) AS products,
       greatest(1, (:orders * 3 / 876.0)::integer) AS categories \gset

SET client_min_messages = warning;
BEGIN;

CREATE TABLE bench_category (
    id bigint PRIMARY KEY,
    name text NOT NULL
);

CREATE TABLE bench_product (
    id bigint PRIMARY KEY,
    category_id bigint NOT NULL REFERENCES bench_category,
    name text NOT NULL,
    price numeric(12,2) NOT NULL
);
CREATE INDEX ON bench_product (category_id);

CREATE TABLE bench_customer (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    city text NOT NULL
);

CREATE TABLE bench_order (
    id bigint PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES bench_customer,
    status text NOT NULL,
    placed_at timestamptz NOT NULL,
    total numeric(12,2) NOT NULL,
    note text
);
CREATE INDEX ON bench_order (customer_id);

CREATE TABLE bench_order_item (
    id bigint PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES bench_order ON DELETE CASCADE,
    product_id bigint NOT NULL REFERENCES bench_product,
    quantity integer NOT NULL,
    price numeric(12,2) NOT NULL
);
CREATE INDEX ON bench_order_item (order_id);
CREATE INDEX ON bench_order_item (product_id);
-- The page is found by order_id, and items move between orders.
ALTER TABLE bench_order_item REPLICA IDENTITY FULL;

CREATE FUNCTION pg_temp.dice(what text, n bigint, sides bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT
    RETURN (hashtextextended(what || ':' || n, 1) & 9007199254740991) % sides;

INSERT INTO bench_category
SELECT n, 'Category ' || n FROM generate_series(1, :categories) AS n;

INSERT INTO bench_product
SELECT n, 1 + n % :categories, 'Product "' || n || '" für Größe ' || pg_temp.dice('size', n, 60),
       (1 + pg_temp.dice('price', n, 50000) / 100.0)::numeric(12,2)
FROM generate_series(1, :products) AS n;

INSERT INTO bench_customer
SELECT n, 'Customer ' || n || ' O''Neil', 'customer' || n || '@example.com',
       (ARRAY['Berlin', 'São Paulo', '東京', 'New York', 'Łódź'])[1 + pg_temp.dice('city', n, 5)]
FROM generate_series(1, :customers) AS n;

INSERT INTO bench_order
SELECT n, 1 + n % :customers, (ARRAY['new', 'paid', 'sent', 'done'])[1 + pg_temp.dice('status', n, 4)],
       timestamptz '2025-01-01 00:00:00+00' + pg_temp.dice('placed', n, 31536000) * interval '1 second',
       (pg_temp.dice('total', n, 200000) / 100.0)::numeric(12,2),
       CASE WHEN pg_temp.dice('note', n, 4) = 0 THEN 'Please ring "twice"' END
FROM generate_series(1, :orders) AS n;

INSERT INTO bench_order_item
SELECT n, 1 + n % :orders, 1 + pg_temp.dice('product', n, :products),
       1 + pg_temp.dice('quantity', n, 9), (1 + pg_temp.dice('item', n, 50000) / 100.0)::numeric(12,2)
FROM generate_series(1, :items) AS n;

COMMIT;
ANALYZE bench_category, bench_product, bench_customer, bench_order, bench_order_item;
