-- One moment of the business directory's life, for pgbench: what happens is drawn by lot.
-- Run by the script "traffic" beside this file.
--
-- Nothing here can fail for another client's doings: whoever writes a row that refers to a company
-- locks the company first (FOR KEY SHARE), so that it can't be deleted in between, and does nothing
-- when there is none. Deadlocks, rare as they are, are tried again by pgbench (--max-tries).
--
-- A random row: the first one at or after a random uuid. In a subselect of its own, so that it is
-- drawn once per statement and found by the primary key.

\set lot random(1, 1000)
\set n random(1, 1000000000)

\if :lot <= 130
-- A company comes with its websites and its chair, in one transaction.
SELECT gen_random_uuid() AS company \gset
BEGIN;
INSERT INTO company_profile (id, name, clean_name, clean_name2, headquarters_city,
        headquarters_country_code, industry_id, page_views_rank, founded_on, annual_revenue, tags, social)
    VALUES (':company', 'Nouvelle ' || CASE WHEN :n % 40 = 0 THEN '"Étoile"' ELSE 'Entreprise' END || ' N° ' || :n,
        'nouvelleentreprise' || :n, 'nouvelle-entreprise-' || :n, 'Montréal',
        (SELECT code FROM country WHERE code = 'CA' FOR KEY SHARE),
        (SELECT id FROM industry WHERE id = 1 + :n % 40 FOR KEY SHARE),
        :n % 1000000, date '2000-01-01' + :n % 9000, (:n % 100000000) / 100.0,
        '{new,"N° 1"}', jsonb_build_object('mastodon', '@n' || :n, 'followers', 0));
INSERT INTO company_websites (id, profile_id, url, title, is_primary, last_checked)
    SELECT gen_random_uuid(), ':company', 'https://www' || at || '.n' || :n || '.example', 'Bienvenue', at = 1, now()
    FROM generate_series(1, 1 + :n % 3) AS at;
INSERT INTO company_board_members (id, profile_id, full_name, role, appointed_on)
    VALUES (gen_random_uuid(), ':company', 'Zoë O''Connor', 'Chair', current_date);
END;

\elif :lot <= 250
-- A company goes, with all that is its own.
DELETE FROM company_profile
    WHERE id = (SELECT id FROM company_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1);

\elif :lot <= 450
-- A company gets another name; now and then none.
UPDATE company_profile SET name = CASE WHEN :n % 50 = 0 THEN '' ELSE 'Renamed & Söhne ' || :n END,
        clean_name = 'renamedsohne' || :n, clean_name2 = 'renamed-sohne-' || :n
    WHERE id = (SELECT id FROM company_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1);

\elif :lot <= 580
-- Visitors come.
UPDATE company_profile SET page_views_rank = :n % 1000000
    WHERE id = (SELECT id FROM company_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1);

\elif :lot <= 690
-- A website moves to another company.
WITH taker AS (
    SELECT id FROM company_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1 FOR KEY SHARE)
UPDATE company_websites AS w SET profile_id = taker.id, is_primary = false
    FROM taker
    WHERE w.id = (SELECT id FROM company_websites WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1);

\elif :lot <= 840
-- Two investors put money into a new round, in one transaction.
BEGIN;
WITH company AS (
    SELECT id FROM company_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1 FOR KEY SHARE),
investors AS (
    SELECT id FROM investor_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 2 FOR KEY SHARE),
round AS (
    INSERT INTO investment_round (profile_id, stage, target_amount, announced_on)
    SELECT id, CASE :n % 3 WHEN 0 THEN 'seed' WHEN 1 THEN 'series A' ELSE 'growth' END, :n % 90000000, current_date
    FROM company RETURNING id, profile_id)
INSERT INTO company_investors (id, profile_id, investor_profile_id, investment_round_id, amount, invested_at)
    SELECT gen_random_uuid(), round.profile_id, investors.id, round.id, (:n % 500000000) / 100.0, now()
    FROM round, investors;
END;

\elif :lot <= 880
-- A round is closed, or called off; its investments stay, without a round.
\if :n % 2 = 0
UPDATE investment_round SET closed = true WHERE id =
    (SELECT id FROM investment_round WHERE id >= :n % (SELECT max(id) FROM investment_round) ORDER BY id LIMIT 1);
\else
DELETE FROM investment_round WHERE id =
    (SELECT id FROM investment_round WHERE id >= :n % (SELECT max(id) FROM investment_round) ORDER BY id LIMIT 1);
\endif

\elif :lot <= 930
-- An investment is sold to another investor.
WITH taker AS (
    SELECT id FROM investor_profile WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1 FOR KEY SHARE)
UPDATE company_investors AS held SET investor_profile_id = taker.id
    FROM taker
    WHERE held.id = (SELECT id FROM company_investors WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1);

\elif :lot <= 960
-- An advisor takes another name, and the old one is remembered.
BEGIN;
WITH advisor AS (
    SELECT id, name FROM advisor_profile
    WHERE id >= (SELECT gen_random_uuid()) AND name <> '' ORDER BY id LIMIT 1 FOR UPDATE),
remembered AS (
    INSERT INTO advisor_former_name (advisor_profile_id, name, used_until)
    SELECT id, name, current_date FROM advisor)
UPDATE advisor_profile SET name = 'D''Angelo & Partners No. ' || :n FROM advisor WHERE advisor_profile.id = advisor.id;
END;

\elif :lot <= 997
-- A board member leaves, another comes.
BEGIN;
WITH leaving AS (
    DELETE FROM company_board_members
    WHERE id = (SELECT id FROM company_board_members WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1)
    RETURNING profile_id, role)
INSERT INTO company_board_members (id, profile_id, full_name, role, appointed_on)
    SELECT gen_random_uuid(), company.id, 'Søren Čapek ' || :n, leaving.role, current_date
    FROM leaving, LATERAL (
        SELECT id FROM company_profile WHERE id = leaving.profile_id FOR KEY SHARE) AS company;
END;

\elif :lot <= 999
-- An industry is renamed: hundreds of pages change.
UPDATE industry SET name = CASE WHEN name LIKE '% (renamed)' THEN left(name, -10) ELSE name || ' (renamed)' END
    WHERE id = 1 + :n % 40;

\else
-- A country's region is renamed, and back the next time.
UPDATE country SET region = CASE WHEN region LIKE 'Greater %' THEN substr(region, 9) ELSE 'Greater ' || region END
    WHERE code = 'CH';
\endif
