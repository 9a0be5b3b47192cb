-- Believable data for schema.sql, made inside Postgres.
--
--   psql -v companies=20000 -v seed=1 -f data.sql URL        (the defaults)
--
-- The same seed and number always give the same rows, on every Postgres version: nothing is drawn
-- from random(), whose values depend on the order in which a plan evaluates it. Each value is a
-- hash of the seed, what the value is for, and the row's number.
--
-- Expects empty tables. All or nothing: one transaction.

\set ON_ERROR_STOP on
\if :{?companies}
\else
    \set companies 20000
\endif
\if :{?seed}
\else
    \set seed 1
\endif

SELECT greatest(1, :companies / 4) AS advisors, greatest(1, :companies / 5) AS investors \gset

SET client_min_messages = warning;
SET timezone = 'UTC';
BEGIN;

-- A number from 0 to sides - 1.
CREATE FUNCTION pg_temp.dice(what text, n bigint, sides integer) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT
    RETURN ((hashtextextended(what || ':' || n, :seed) & 9007199254740991) % sides)::integer;

-- One of the texts.
CREATE FUNCTION pg_temp.pick(texts text[], what text, n bigint) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT
    RETURN texts[1 + pg_temp.dice(what, n, cardinality(texts))];

-- Row n's uuid (version 4), as a browser would make it.
CREATE FUNCTION pg_temp.id(what text, n bigint) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT
    RETURN overlay(overlay(md5(:seed || what || ':' || n) PLACING '4' FROM 13) PLACING 'a' FROM 17)::uuid;

-- A name for searching: lower case, no accents, words joined by the separator.
CREATE FUNCTION pg_temp.clean(name text, separator text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT
    RETURN trim(BOTH separator FROM regexp_replace(
        translate(lower(name COLLATE "C"), 'ÁÄÅÇÉÍÖØÓÜČŁŠŽáàãäåçéèíñöøóüčłšž',
                                           'aaaceiooouclszaaaaaceeinooouclsz'),
        '[^a-z0-9]+', separator, 'g'));

-- Words. Every fourth or so needs care somewhere: quotes, apostrophes, other alphabets.

CREATE FUNCTION pg_temp.places() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'New York|NY|US|+1 212', 'San Francisco|CA|US|+1 415', 'Austin|TX|US|+1 512',
    'Boston|MA|US|+1 617', 'Chicago|IL|US|+1 312', 'Seattle|WA|US|+1 206',
    'Coeur d''Alene|ID|US|+1 208', 'Denver|CO|US|+1 303', 'Toronto|ON|CA|+1 416',
    'Montréal|QC|CA|+1 514', 'London||GB|+44 20', 'Leeds||GB|+44 113', 'Dublin||IE|+353 1',
    'Berlin|BE|DE|+49 30', 'München|BY|DE|+49 89', 'Köln|NW|DE|+49 221', 'Zürich|ZH|CH|+41 44',
    'Wien|9|AT|+43 1', 'Paris||FR|+33 1', 'L''Haÿ-les-Roses||FR|+33 1', 'Lyon||FR|+33 4',
    'Madrid|MD|ES|+34 91', 'A Coruña|C|ES|+34 981', 'Lisboa||PT|+351 21', 'Milano|MI|IT|+39 02',
    'Stockholm|AB|SE|+46 8', 'Malmö|M|SE|+46 40', 'København||DK|+45', 'Århus||DK|+45',
    'Oslo||NO|+47', 'Helsinki||FI|+358 9', 'Łódź|LD|PL|+48 42', 'Kraków|MA|PL|+48 12',
    'Praha||CZ|+420', 'Plzeň||CZ|+420', '東京|13|JP|+81 3', '大阪|27|JP|+81 6', '서울|11|KR|+82 2',
    'Singapore||SG|+65', 'Bengaluru|KA|IN|+91 80', 'मुंबई|MH|IN|+91 22', 'São Paulo|SP|BR|+55 11',
    'Ciudad de México|CMX|MX|+52 55', 'تونس||TN|+216 71', 'Nairobi||KE|+254 20',
    'Cape Town|WC|ZA|+27 21', 'Sydney|NSW|AU|+61 2', 'Ōtautahi Christchurch||NZ|+64 3'];

CREATE FUNCTION pg_temp.first_words() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'Acorn', 'Alpine', 'Amber', 'Ångström', 'Anchor', 'Arctic', 'Argo', 'Atlas', 'Aurora', 'Beacon',
    'Birch', 'Blue', 'Bonsai', 'Brasserie', 'Bright', 'Café', 'Canyon', 'Čapek', 'Cedar', 'Cobalt',
    'Comet', 'Copper', 'Coral', 'Crystal', 'Delta', 'Drift', 'Echo', 'Eagle', 'Élan', 'Ember',
    'Falcon', 'Fjord', 'Flint', 'Fox', 'Garnet', 'Glacier', 'Golden', 'Granite', 'Green', 'Harbor',
    'Hazel', 'Helix', 'Horizon', 'Indigo', 'Iron', 'Island', 'Ivory', 'Jade', 'Juniper', 'Kestrel',
    'Keystone', 'Lantern', 'Larch', 'Lighthouse', 'Linden', 'Lotus', 'Łukasz', 'Lunar', 'Maple',
    'Marble', 'Meridian', 'Midnight', 'Mosaic', 'Müller', 'Nimbus', 'Nordlys', 'North', 'O''Brien',
    'Oak', 'Ocean', 'Olive', 'Onyx', 'Opal', 'Orbit', 'Otter', 'Pebble', 'Pine', 'Pioneer', 'Prairie',
    'Quartz', 'Quill', 'Raven', 'Red', 'Ridge', 'River', 'Robin', 'Saffron', 'Sage', 'Salt',
    'São Jorge', 'Sequoia', 'Silver', 'Sparrow', 'Spruce', 'Stone', 'Summit', 'Swift', 'Tern',
    'Tidal', 'Timber', 'Topaz', 'Tundra', 'Umber', 'Vega', 'Velvet', 'Violet', 'Vista', 'Walnut',
    'West', 'Willow', 'Winter', 'Wren', 'Yarrow', 'Zenith', 'Zephyr', 'Žižka', '桜', '富士', 'Δέλτα'];

CREATE FUNCTION pg_temp.second_words() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'Analytics', 'Apparel', 'Bakery', 'Batteries', 'Biotech', 'Books', 'Brewing', 'Capital',
    'Carpets', 'Ceramics', 'Cloud', 'Coffee', 'Components', 'Cosmetics', 'Dairy', 'Data', 'Dental',
    'Design', 'Diagnostics', 'Energy', 'Farms', 'Finance', 'Fitness', 'Foods', 'Freight', 'Games',
    'Gardens', 'Glass', 'Health', 'Homes', 'Instruments', 'Insurance', 'Kitchens', 'Labs',
    'Learning', 'Logistics', 'Media', 'Mobility', 'Motors', 'Music', 'Networks', 'Optics', 'Paper',
    'Payments', 'Pharma', 'Plastics', 'Power', 'Press', 'Robotics', 'Security', 'Semiconductors',
    'Shipping', 'Software', 'Solar', 'Sports', 'Steel', 'Studios', 'Systems', 'Textiles', 'Tools',
    'Travel', 'Water', 'Wines'];

CREATE FUNCTION pg_temp.legal_forms() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'Inc.', 'LLC', 'Ltd', 'GmbH', 'AG', 'S.A.', 'S.à r.l.', 'AB', 'ApS', 'Oy', 's.r.o.', 'K.K.', 'Pty Ltd'];

CREATE FUNCTION pg_temp.given_names() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'Ada', 'Aiko', 'Amina', 'André', 'Anika', 'Arjun', 'Beatriz', 'Björn', 'Carlos', 'Chloé', 'Daan',
    'Elif', 'Emeka', 'Émilie', 'Fatima', 'Freya', 'Giulia', 'Grace', 'Hanna', 'Hiroshi', 'Ingrid',
    'Jakub', 'James', 'José', 'Kofi', 'Lena', 'Liam', 'Lucía', 'Mei', 'Mikael', 'Nadia', 'Noah',
    'Olga', 'Omar', 'Priya', 'Rachel', 'Robert "Bob"', 'Sean', 'Søren', 'Thomas', 'Tomáš', 'Wei',
    'Yuki', 'Zoë', '結衣', '민준'];

CREATE FUNCTION pg_temp.family_names() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'Adeyemi', 'Andersson', 'Becker', 'Bianchi', 'Brown', 'Chen', 'Costa', 'D''Angelo', 'Dubois',
    'Evans', 'Fischer', 'García', 'Haddad', 'Hansen', 'Horváth', 'Ivanov', 'Jensen', 'Johnson', 'Kaya',
    'Kim', 'Kowalski', 'Kumar', 'Lindqvist', 'Mbeki', 'Moreau', 'Müller', 'Nakamura', 'Nguyen',
    'Novák', 'O''Connor', 'Okafor', 'Patel', 'Peña', 'Rossi', 'Sato', 'Schäfer', 'Silva', 'Singh',
    'Smith', 'Svensson', 'Tanaka', 'van der Berg', 'Virtanen', 'Wang', 'Weiß', 'Wójcik', '田中', '김'];

CREATE FUNCTION pg_temp.streets() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    'Main Street', 'Market Street', 'King''s Road', 'Hauptstraße', 'Rue de l''Église', 'Calle Mayor',
    'Storgatan', 'Dlouhá', 'Via Roma', 'Harbour Quay', 'Mill Lane', 'Station Road', 'Park Avenue',
    'Elm Street', 'Bahnhofstrasse', 'Ulica Piotrkowska'];

CREATE FUNCTION pg_temp.third_words() RETURNS text[] LANGUAGE sql IMMUTABLE RETURN ARRAY[
    '', ' Group', ' International', ' & Sons', ' Brothers', ' Partners', ' Europe', ' Holding',
    ' & Töchter', ' Asia', ' Cooperative', ' Works'];

-- A company's name: no two rows have the same one. The words are the digits of a number that runs
-- through all the pairs in a shuffled order (the step has no factor in common with their count),
-- then through the third words (82,000 names in all), and then a number is added.
CREATE FUNCTION pg_temp.unique_name(n bigint) RETURNS text LANGUAGE sql IMMUTABLE STRICT
    RETURN (SELECT a[1 + at % cardinality(a)] || ' ' || b[1 + at / cardinality(a) % cardinality(b)]
                || c[1 + n / span % cardinality(c)]
                || CASE WHEN n >= span * cardinality(c) THEN ' ' || (1 + n / span / cardinality(c)) ELSE '' END
            FROM (SELECT a, b, c, span, (n * 4787 + abs(:seed::bigint) * 31) % span AS at
                  FROM (SELECT a, b, c, (cardinality(a) * cardinality(b))::bigint AS span
                        FROM (SELECT pg_temp.first_words() AS a, pg_temp.second_words() AS b,
                                     pg_temp.third_words() AS c) words
                       ) spans) steps);

INSERT INTO country (code, name, region) VALUES
    ('US', 'United States', 'North America'), ('CA', 'Canada', 'North America'),
    ('MX', 'México', 'North America'), ('BR', 'Brasil', 'South America'),
    ('GB', 'United Kingdom', 'Europe'), ('IE', 'Ireland', 'Europe'), ('DE', 'Deutschland', 'Europe'),
    ('CH', 'Schweiz', 'Europe'), ('AT', 'Österreich', 'Europe'), ('FR', 'France', 'Europe'),
    ('ES', 'España', 'Europe'), ('PT', 'Portugal', 'Europe'), ('IT', 'Italia', 'Europe'),
    ('SE', 'Sverige', 'Europe'), ('DK', 'Danmark', 'Europe'), ('NO', 'Norge', 'Europe'),
    ('FI', 'Suomi', 'Europe'), ('PL', 'Polska', 'Europe'), ('CZ', 'Česko', 'Europe'),
    ('JP', '日本', 'Asia'), ('KR', '대한민국', 'Asia'), ('SG', 'Singapore', 'Asia'),
    ('IN', 'India', 'Asia'), ('TN', 'تونس', 'Africa'), ('KE', 'Kenya', 'Africa'),
    ('ZA', 'South Africa', 'Africa'), ('AU', 'Australia', 'Oceania'), ('NZ', 'Aotearoa', 'Oceania'),
    ('CI', 'Côte d''Ivoire', 'Africa');

INSERT INTO industry (name, sector)
SELECT split_part(pair, '|', 1), split_part(pair, '|', 2)
FROM unnest(ARRAY[
    'Agriculture|Primary', 'Fishing|Primary', 'Forestry|Primary', 'Mining|Primary',
    'Aerospace|Manufacturing', 'Automotive|Manufacturing', 'Biotechnology|Manufacturing',
    'Chemicals|Manufacturing', 'Consumer electronics|Manufacturing', 'Food & drink|Manufacturing',
    'Furniture|Manufacturing', 'Machinery|Manufacturing', 'Medical devices|Manufacturing',
    'Paper & packaging|Manufacturing', 'Pharmaceuticals|Manufacturing', 'Semiconductors|Manufacturing',
    'Steel & metals|Manufacturing', 'Textiles|Manufacturing', 'Construction|Infrastructure',
    'Energy|Infrastructure', 'Real estate|Infrastructure', 'Shipping & ports|Infrastructure',
    'Telecommunications|Infrastructure', 'Water & waste|Infrastructure', 'Advertising|Services',
    'Banking|Services', 'Education|Services', 'Healthcare|Services', 'Hotels & restaurants|Services',
    'Insurance|Services', 'Law|Services', 'Logistics|Services', 'Media & publishing|Services',
    'Retail|Services', 'Sports & leisure|Services', 'Travel|Services', 'Artificial intelligence|Software',
    'Developer tools|Software', 'Financial technology|Software', 'Games|Software'
]) WITH ORDINALITY AS listed(pair, at)
ORDER BY at;

-- One company in 100 has no name yet, one in 100 an empty one.
INSERT INTO company_profile
SELECT pg_temp.id('company', n), name, pg_temp.clean(name, ''), pg_temp.clean(name, '-'),
       CASE WHEN pg_temp.dice('addr', n, 20) > 0 THEN
           (1 + pg_temp.dice('house', n, 240)) || ' ' || pg_temp.pick(pg_temp.streets(), 'street', n) END,
       split_part(place, '|', 1), nullif(split_part(place, '|', 2), ''), split_part(place, '|', 3),
       CASE WHEN pg_temp.dice('phone?', n, 10) > 0 THEN
           split_part(place, '|', 4) || ' ' || (1000000 + pg_temp.dice('phone', n, 9000000)) END,
       CASE WHEN pg_temp.dice('industry?', n, 50) > 0 THEN 1 + pg_temp.dice('industry', n, 40) END,
       CASE WHEN pg_temp.dice('rank?', n, 10) > 0 THEN 1 + pg_temp.dice('rank', n, 1000000) END,
       pg_temp.dice('visible', n, 10) > 0,
       CASE WHEN pg_temp.dice('founded?', n, 12) > 0 THEN date '1950-01-01' + pg_temp.dice('founded', n, 27000) END,
       CASE WHEN pg_temp.dice('revenue?', n, 3) > 0 THEN
           (pg_temp.dice('revenue', n, 2000000) * 137 + pg_temp.dice('cents', n, 100) / 100.0)::numeric(14,2) END,
       (ARRAY['b2b', 'b2c', 'family-owned', 'exports', 'hiring', 'remote', 'listed', 'ISO "9001"', 'größer', 'bio'])
           [1 + pg_temp.dice('tag', n, 10) : pg_temp.dice('tag', n, 10) + pg_temp.dice('tags', n, 4)],
       CASE WHEN pg_temp.dice('social?', n, 3) > 0 THEN
           jsonb_build_object('mastodon', '@' || pg_temp.clean(name, '_'),
                              'followers', pg_temp.dice('followers', n, 90000),
                              'verified', pg_temp.dice('verified', n, 4) = 0) ELSE '{}' END,
       timestamptz '2015-01-01 00:00:00+00' + pg_temp.dice('dtc', n, 315360000) * interval '1 second'
FROM (SELECT n, pg_temp.pick(pg_temp.places(), 'place', n) AS place,
             CASE pg_temp.dice('name?', n, 100) WHEN 0 THEN NULL WHEN 1 THEN ''
                 WHEN 2 THEN '"' || pg_temp.unique_name(n) || '"'
                 WHEN 3 THEN pg_temp.unique_name(n) || ' & ' || pg_temp.pick(pg_temp.family_names(), 'partner', n)
                 ELSE pg_temp.unique_name(n) || ' ' || pg_temp.pick(pg_temp.legal_forms(), 'form', n) END AS name
      FROM generate_series(0, :companies - 1) AS n OFFSET 0) AS made;

INSERT INTO advisor_profile
SELECT pg_temp.id('advisor', n), name, pg_temp.clean(name, ''), pg_temp.clean(name, '-'),
       (1 + pg_temp.dice('a house', n, 240)) || ' ' || pg_temp.pick(pg_temp.streets(), 'a street', n),
       split_part(place, '|', 1), nullif(split_part(place, '|', 2), ''), split_part(place, '|', 3),
       split_part(place, '|', 4) || ' ' || (1000000 + pg_temp.dice('a phone', n, 9000000)),
       (ARRAY['audit', 'tax', 'mergers & acquisitions', 'IT', 'people', 'law', 'market entry'])
           [1 + pg_temp.dice('speciality', n, 7) : 1 + pg_temp.dice('speciality', n, 7) + pg_temp.dice('specialities', n, 3)],
       CASE WHEN pg_temp.dice('rate?', n, 5) > 0 THEN (60 + pg_temp.dice('rate', n, 1000) * 0.5)::numeric(14,2) END,
       timestamptz '2015-01-01 00:00:00+00' + pg_temp.dice('a dtc', n, 315360000) * interval '1 second'
FROM (SELECT n, pg_temp.pick(pg_temp.places(), 'a place', n) AS place,
             CASE pg_temp.dice('a name?', n, 60) WHEN 0 THEN NULL WHEN 1 THEN ''
                 ELSE pg_temp.pick(pg_temp.family_names(), 'a family', n) || ' & '
                      || pg_temp.pick(pg_temp.given_names(), 'a given', n) || ' '
                      || pg_temp.pick(pg_temp.family_names(), 'a second', n) || ' Advisors No. ' || n END AS name
      FROM generate_series(1, :advisors) AS n OFFSET 0) AS made;

INSERT INTO investor_profile
SELECT pg_temp.id('investor', n), name, pg_temp.clean(name, ''), pg_temp.clean(name, '-'),
       (1 + pg_temp.dice('i house', n, 240)) || ' ' || pg_temp.pick(pg_temp.streets(), 'i street', n),
       split_part(place, '|', 1), nullif(split_part(place, '|', 2), ''),
       CASE WHEN pg_temp.dice('i country?', n, 30) > 0 THEN split_part(place, '|', 3) END,
       split_part(place, '|', 4) || ' ' || (1000000 + pg_temp.dice('i phone', n, 9000000)),
       (pg_temp.dice('fund', n, 5000) * 100000)::numeric(14,2),
       jsonb_build_object('stages', (ARRAY['seed', 'series A', 'series B', 'growth'])
                              [1 + pg_temp.dice('stage', n, 3) : 2 + pg_temp.dice('stage', n, 3)],
                          'ticket', jsonb_build_object('min', 50000 * (1 + pg_temp.dice('ticket', n, 20)),
                                                       'currency', pg_temp.pick('{EUR,USD,GBP,JPY}', 'currency', n))),
       timestamptz '2015-01-01 00:00:00+00' + pg_temp.dice('i dtc', n, 315360000) * interval '1 second'
FROM (SELECT n, pg_temp.pick(pg_temp.places(), 'i place', n) AS place,
             CASE pg_temp.dice('i name?', n, 60) WHEN 0 THEN NULL WHEN 1 THEN ''
                 ELSE pg_temp.pick(pg_temp.first_words(), 'i word', n) || ' '
                      || pg_temp.pick('{Ventures,Partners,Capital,"Growth Fund",Équité,"Kapital AB"}', 'i kind', n)
                      || ' ' || n END AS name
      FROM generate_series(1, :investors) AS n OFFSET 0) AS made;

-- 1 to 3 websites a company.
INSERT INTO company_websites
SELECT pg_temp.id('website', n * 4 + at), pg_temp.id('company', n),
       'https://' || (ARRAY['www', 'shop', 'blog'])[at] || '.'
           || coalesce(nullif(pg_temp.clean(pg_temp.unique_name(n), '-'), ''), 'company-' || n)
           || pg_temp.pick('{.example,.test,.example.com,.example.org}', 'domain', n),
       CASE WHEN pg_temp.dice('title?', n * 4 + at, 8) > 0 THEN
           (ARRAY['Welcome to ', 'The shop of ', 'What''s new at '])[at] || pg_temp.unique_name(n) END,
       at = 1,
       CASE WHEN pg_temp.dice('checked?', n * 4 + at, 5) > 0 THEN
           timestamptz '2025-01-01 00:00:00+00' + pg_temp.dice('checked', n * 4 + at, 30000000) * interval '1 second' END
FROM generate_series(0, :companies - 1) AS n,
     generate_series(1, 1 + pg_temp.dice('websites', n, 3)) AS at;

-- 0 to 5 board members.
INSERT INTO company_board_members
SELECT pg_temp.id('member', n * 8 + at), pg_temp.id('company', n),
       pg_temp.pick(pg_temp.given_names(), 'given', n * 8 + at) || ' '
           || pg_temp.pick(pg_temp.family_names(), 'family', n * 8 + at),
       pg_temp.pick('{Chair,Director,Treasurer,Secretary,"Employees'' representative","Vice-chair"}', 'role', n * 8 + at),
       CASE WHEN pg_temp.dice('appointed?', n * 8 + at, 6) > 0 THEN
           date '2005-01-01' + pg_temp.dice('appointed', n * 8 + at, 7500) END
FROM generate_series(0, :companies - 1) AS n,
     generate_series(1, pg_temp.dice('members', n, 6)) AS at;

-- Two advisors in five had another name.
INSERT INTO advisor_former_name (advisor_profile_id, name, used_until)
SELECT pg_temp.id('advisor', n),
       pg_temp.pick(pg_temp.family_names(), 'former', n * 4 + at) || ' '
           || pg_temp.pick('{Consulting,"& Daughters","Wirtschaftsprüfung","et Associés","Group"}', 'former kind', n * 4 + at),
       CASE WHEN pg_temp.dice('until?', n * 4 + at, 6) > 0 THEN date '1995-01-01' + pg_temp.dice('until', n * 4 + at, 9000) END
FROM generate_series(1, :advisors) AS n,
     generate_series(1, greatest(0, pg_temp.dice('formers', n, 5) - 2)) AS at
ORDER BY n, at;

-- 0 to 2 advisors a company.
INSERT INTO company_advisors
SELECT DISTINCT ON (1, 2)
       pg_temp.id('company', n), pg_temp.id('advisor', 1 + pg_temp.dice('advised by', n * 4 + at, :advisors)),
       date '2010-01-01' + pg_temp.dice('since', n * 4 + at, 5500)
FROM generate_series(0, :companies - 1) AS n,
     generate_series(1, pg_temp.dice('advisors', n, 3)) AS at
ORDER BY 1, 2, 3;

-- 0 to 3 investment rounds a company.
INSERT INTO investment_round (profile_id, stage, target_amount, announced_on, closed)
SELECT pg_temp.id('company', n), (ARRAY['seed', 'series A', 'series B'])[at],
       CASE WHEN pg_temp.dice('target?', n * 4 + at, 10) > 0 THEN
           ((1 + pg_temp.dice('target', n * 4 + at, 400)) * 25000 * at)::numeric(14,2) END,
       date '2014-01-01' + at * 700 + pg_temp.dice('announced', n * 4 + at, 1500),
       pg_temp.dice('closed', n * 4 + at, 3) > 0
FROM generate_series(0, :companies - 1) AS n,
     generate_series(1, greatest(0, pg_temp.dice('rounds', n, 5) - 1)) AS at
ORDER BY n, at;

-- 1 to 3 investors a round, and some investments outside of any round.
INSERT INTO company_investors
SELECT pg_temp.id('investment', r.id * 4 + at), r.profile_id,
       pg_temp.id('investor', 1 + pg_temp.dice('investor', r.id * 4 + at, :investors)),
       CASE WHEN pg_temp.dice('in round', r.id * 4 + at, 12) > 0 THEN r.id END,
       CASE WHEN pg_temp.dice('amount?', r.id * 4 + at, 15) > 0 THEN
           ((1 + pg_temp.dice('amount', r.id * 4 + at, 9000)) * 1000 + 0.5)::numeric(14,2) END,
       r.announced_on::timestamp AT TIME ZONE 'UTC' + pg_temp.dice('invested', r.id * 4 + at, 8000000) * interval '1 second',
       CASE pg_temp.dice('terms', r.id * 4 + at, 3) WHEN 0 THEN
           jsonb_build_object('board_seat', pg_temp.dice('seat', r.id, 2) = 1, 'note', 'pro rata, "as agreed"') END
FROM investment_round AS r,
     generate_series(1, 1 + pg_temp.dice('investors', r.id, 3)) AS at;

COMMIT;

ANALYZE country, industry, company_profile, advisor_profile, investor_profile, company_websites,
    company_board_members, advisor_former_name, company_advisors, investment_round, company_investors;
