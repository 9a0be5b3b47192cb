//! Postgres' refusal of an entry's SQL, said to a person who does not know Postgres' insides: the
//! server's own words, and the cure.
//!
//! Which cure is decided by SQLSTATE and by what stands at the error's position, never by the
//! server's words, which may be in another language.

use pg_query::NodeRef;
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, ErrorPosition, SqlState};

use super::place::{at_character, in_sql};
use crate::mapping::Entry;
use crate::mapping::plan::quote_identifier;
use crate::mistake::Mistake;
use crate::mistake::written::nearest;

/// The names among which a misspelled table is looked for; more would only slow the message.
const TABLES_SQL: &str = "\
    SELECT CASE WHEN pg_catalog.pg_table_is_visible(c.oid) THEN c.relname::text \
      ELSE n.nspname || '.' || c.relname END \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema' \
      AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1 LIMIT 5000";

const COLUMNS_SQL: &str = "\
    SELECT DISTINCT a.attname::text FROM pg_catalog.unnest($1::text[]) AS named(name) \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = pg_catalog.to_regclass(named.name) \
    WHERE a.attnum > 0 AND NOT a.attisdropped ORDER BY 1";

/// Case that Postgres folds away is the commonest reason why a name that is there is not found.
const FOLDED: &str = "Postgres reads a name without double quotes in lower case. Put the sql \
                      between ''' and ''', where double quotes may stand";

/// Postgres' refusal as a mistake. `before`: characters of our statement before the SQL. The
/// client must be outside a transaction, as the failed one answers nothing more.
pub(super) async fn mistake(
    client: &Client,
    entry: &Entry,
    error: &DbError,
    before: usize,
) -> Mistake {
    let nth = match error.position() {
        Some(ErrorPosition::Original(position)) => {
            usize::try_from(*position).ok().map(|it| it.saturating_sub(before + 1))
        }
        _ => None,
    };
    let found = Found { entry, error, here: nth.map_or(String::new(), |it| rest_of(entry, it)) };
    let cure = match found.cure(client).await {
        Some(cure) => format!("; {cure}"),
        None => found.said_besides(),
    };
    let message = format!("{}{cure}", error.message());
    match nth.or_else(|| second_of_its_name(entry, error)) {
        Some(nth) => at_character(entry, nth, message),
        None => in_sql(entry, message),
    }
}

struct Found<'e> {
    entry: &'e Entry,
    error: &'e DbError,
    /// The SQL from the error's position on.
    here: String,
}

impl Found<'_> {
    /// What to do; None: Postgres' own detail and hint say more.
    async fn cure(&self, client: &Client) -> Option<String> {
        let code = self.error.code();
        let fixed = match code {
            it if *it == SqlState::UNDEFINED_TABLE => return self.cure_of_table(client).await,
            it if *it == SqlState::UNDEFINED_COLUMN => return self.cure_of_column(client).await,
            it if *it == SqlState::SYNTAX_ERROR => self.cure_of_syntax(),
            it if *it == SqlState::INSUFFICIENT_PRIVILEGE => {
                return Some(self.cure_of_privilege(client).await);
            }
            it if *it == SqlState::DUPLICATE_COLUMN => "give each column its own name with AS",
            it if *it == SqlState::UNDEFINED_PARAMETER => {
                "write no parameters: the sql says what all documents hold, and onelog itself adds \
                 the condition for one key"
            }
            it if *it == SqlState::FEATURE_NOT_SUPPORTED => {
                "onelog reads through a view, which cannot have it: leave it out"
            }
            it if *it == SqlState::AMBIGUOUS_COLUMN => {
                "several of its tables have this column: write which one you mean, as in table.column"
            }
            it if *it == SqlState::INVALID_TABLE_DEFINITION => {
                "cast it to a type that can be stored, such as jsonb"
            }
            _ => return None,
        };
        Some(fixed.to_owned())
    }

    /// Postgres' detail and hint, as sentences.
    fn said_besides(&self) -> String {
        let more = [self.error.detail(), self.error.hint()].into_iter().flatten();
        more.map(|it| format!(". {it}")).collect()
    }

    async fn cure_of_table(&self, client: &Client) -> Option<String> {
        let written = names_at(&self.here)?;
        // `x.id` without x in FROM has the same SQLSTATE as a table that is not there.
        if !tables_of(&self.entry.sql).contains(&written.join(".")) {
            let hint = self.error.hint().map(|it| format!(". {it}")).unwrap_or_default();
            let name = written.first()?;
            return Some(format!(
                "no table or alias in FROM is called {name}: add it there, or write the alias that \
                 it has{hint}"
            ));
        }
        let names: Vec<String> = column_of(client, TABLES_SQL, &[]).await;
        let wanted = written.join(".");
        let last = written.last()?;
        let elsewhere = names.iter().find(|it| it.rsplit('.').next() == Some(last));
        let meant = elsewhere.or_else(|| near(&wanted, &names));
        Some(match meant {
            Some(name) => did_you_mean(name),
            None => format!(
                "no table is called so in this database that onelog may see: {}",
                listed(&names)
            ),
        })
    }

    async fn cure_of_column(&self, client: &Client) -> Option<String> {
        let written = names_at(&self.here)?;
        let tables = tables_of(&self.entry.sql);
        let names = column_of(client, COLUMNS_SQL, &[&tables]).await;
        let meant = near(written.last()?, &names);
        Some(match meant {
            Some(name) => did_you_mean(name),
            None if names.is_empty() => return None,
            None => format!("its tables have {}", listed(&names)),
        })
    }

    fn cure_of_syntax(&self) -> &'static str {
        let before = self.entry.sql.chars().count().saturating_sub(self.here.chars().count());
        let before: String = self.entry.sql.chars().take(before).collect();
        let word: String = self.here.chars().take_while(|it| it.is_alphanumeric()).collect();
        let reserved = ["from", "where", "group", "order", "join", "left", "on", "and", "or"];
        let word = word.to_lowercase();
        if self.here.trim_end_matches([';', ' ', '\n', '\t']).is_empty() {
            "the sql ends too early: see what is missing at its end"
        } else if before.trim_end().ends_with(',') || self.here.starts_with(',') {
            "there is a comma too many"
        } else if !word.is_empty() && !reserved.contains(&word.as_str()) {
            "Postgres did not expect this word here: is a comma, an operator or a keyword missing \
             before it, or is one misspelled?"
        } else {
            "Postgres did not expect this here: see what stands before it"
        }
    }

    async fn cure_of_privilege(&self, client: &Client) -> String {
        let role = column_of(client, "SELECT pg_catalog.quote_ident(current_user)", &[]).await;
        let role = role.first().map_or("onelog's role", String::as_str);
        match names_at(&self.here).as_deref() {
            Some([namespace, _]) => {
                let namespace = quote_identifier(namespace);
                format!("run as its owner: GRANT USAGE ON SCHEMA {namespace} TO {role};")
            }
            _ => format!("GRANT what it lacks (USAGE on the schema, EXECUTE, SELECT) to {role}"),
        }
    }
}

fn rest_of(entry: &Entry, nth: usize) -> String {
    entry.sql.chars().skip(nth).collect()
}

/// The dotted name that a text begins with, as Postgres reads it.
fn names_at(text: &str) -> Option<Vec<String>> {
    let (mut names, mut rest) = (Vec::new(), text);
    loop {
        let name = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (name, after) = quoted.split_once('"')?;
                rest = after;
                name.to_owned()
            }
            None => {
                let of_name = |it: char| it.is_alphanumeric() || it == '_' || it == '$';
                let end = rest.find(|it| !of_name(it)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                rest = after;
                name.to_lowercase()
            }
        };
        if name.is_empty() {
            return None;
        }
        names.push(name);
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => return Some(names),
        }
    }
}

/// The tables that the SQL names, as it names them.
fn tables_of(sql: &str) -> Vec<String> {
    pg_query::parse(sql, pg_query::ParserOptions::default())
        .map(|it| it.tables())
        .unwrap_or_default()
}

async fn column_of(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Vec<String> {
    // Without suggestions the message is still whole.
    let rows = client.query(sql, parameters).await.unwrap_or_default();
    rows.iter().filter_map(|it| it.try_get(0).ok()).collect()
}

fn near<'n>(written: &str, names: &'n [String]) -> Option<&'n String> {
    let folded = names.iter().find(|it| it.to_lowercase() == written.to_lowercase());
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    folded.or_else(|| {
        let found = nearest(written, &all)?;
        names.iter().find(|it| *it == found)
    })
}

/// A name that must be quoted comes with the reason why.
fn did_you_mean(name: &str) -> String {
    let plain = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_' || it == '.';
    if name.chars().all(plain) {
        return format!("did you mean {name}?");
    }
    let parts: Vec<String> = name.split('.').map(quote_identifier).collect();
    format!("did you mean {}? {FOLDED}", parts.join("."))
}

/// Some of the names; a wide table has more than a person reads.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let rest = names.len().saturating_sub(SHOWN);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Postgres gives a repeated column no position: the second output of that name, in characters.
fn second_of_its_name(entry: &Entry, error: &DbError) -> Option<usize> {
    if *error.code() != SqlState::DUPLICATE_COLUMN {
        return None;
    }
    let parsed = pg_query::parse(&entry.sql, pg_query::ParserOptions::default()).ok()?;
    let nodes = parsed.protobuf.nodes();
    let select = nodes.into_iter().find_map(|(node, ..)| match node {
        NodeRef::SelectStmt(select) => Some(select),
        _ => None,
    })?;
    let mut seen = Vec::new();
    for target in &select.target_list {
        let Some(pg_query::NodeEnum::ResTarget(target)) = &target.node else { continue };
        let name = output_name(target)?;
        if seen.contains(&name) {
            let bytes = usize::try_from(target.location).ok()?;
            return Some(entry.sql.get(..bytes)?.chars().count());
        }
        seen.push(name);
    }
    None
}

/// The name of an output column, where the SQL's text tells it.
fn output_name(target: &pg_query::protobuf::ResTarget) -> Option<String> {
    use pg_query::NodeEnum;

    if !target.name.is_empty() {
        return Some(target.name.clone());
    }
    let value = target.val.as_ref()?.node.as_ref()?;
    let last = match value {
        NodeEnum::ColumnRef(column) => column.fields.last(),
        NodeEnum::FuncCall(call) => call.funcname.last(),
        _ => return Some("?column?".to_owned()),
    };
    match last?.node.as_ref()? {
        NodeEnum::String(name) => Some(name.sval.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_postgres_reads_them() {
        let cases: [(&str, Option<&[&str]>); 5] = [
            ("Shop.ID, x", Some(&["shop", "id"])),
            ("\"Shop\".\"userId\" FROM", Some(&["Shop", "userId"])),
            ("nam", Some(&["nam"])),
            (", x", None),
            ("\"open", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|it| it.iter().map(|it| (*it).to_owned()).collect());
            assert_eq!(names_at(text), expected, "{text}");
        }
    }

    #[test]
    fn a_name_with_capitals_is_found_and_comes_with_the_reason_for_quotes() {
        let names = ["userId".to_owned(), "usual".to_owned()];
        assert_eq!(near("userid", &names), Some(&names[0]));
        assert_eq!(did_you_mean("audit.shop"), "did you mean audit.shop?");
        assert!(did_you_mean("userId").starts_with("did you mean \"userId\"? Postgres reads"));
    }
}
