//! An account as text, for a reader who does not know Postgres' insides. Pure.

use std::fmt::{Result, Write};

use crate::cli::account::{
    ChangeAccount, CollectionAccount, EntryAccount, MissingIndex, QueryAccount, TableAccount,
};

/// The whole account of one collection.
pub fn write(account: &CollectionAccount, out: &mut impl Write) -> Result {
    let key = account.entries.first().map_or("key", |it| it.key.as_str());
    writeln!(
        out,
        "collection {}: one document for each {key} ({})",
        account.collection, account.key_type
    )?;
    for (nth, entry) in account.entries.iter().enumerate() {
        write_entry(nth + 1, entry, out)?;
    }
    for table in account.tables.iter().filter(|it| !it.old_row_lacks.is_empty()) {
        write_identity(table, out)?;
    }
    for warning in &account.warnings {
        let (file, line, column) = (&warning.file, warning.line, warning.column);
        writeln!(out, "\n  warning  {file}:{line}:{column}: {}", warning.message)?;
    }
    let verdict = if account.live {
        "every change reaches its documents at once"
    } else {
        "not every change reaches its documents at once; the collection is swept on a timer too"
    };
    writeln!(out, "\n  {verdict}\n")
}

fn write_entry(nth: usize, entry: &EntryAccount, out: &mut impl Write) -> Result {
    let what = match (&entry.nest_as, entry.nest_one) {
        (None, _) => "fields of the document itself".to_owned(),
        (Some(field), false) => format!("the array {field}"),
        (Some(field), true) => format!("the object {field}"),
    };
    let optional = if entry.optional { ", which alone makes no document" } else { "" };
    let (file, line, column) = (&entry.file, entry.line, entry.column);
    writeln!(out, "\n  {nth}. {what}{optional} ({file}:{line}:{column}), by {}", entry.key)?;
    if !entry.changes.is_empty() {
        writeln!(out, "     How a changed row finds its documents:")?;
    }
    for change in &entry.changes {
        write_change(change, out)?;
    }
    write!(out, "     Reading this part of a document")?;
    write_query(&entry.read, "     ", out)?;
    for swept in &entry.swept_because {
        writeln!(out, "     Swept on a timer: {}", swept.reason)?;
        if let Some(cure) = &swept.cure {
            writeln!(out, "       To have it at once: {cure}")?;
        }
    }
    Ok(())
}

fn write_change(change: &ChangeAccount, out: &mut impl Write) -> Result {
    let bare = change.table.rsplit('.').next().unwrap_or(&change.table);
    let named = if bare == change.alias {
        change.table.clone()
    } else {
        format!("{} (as {})", change.table, change.alias)
    };
    let way = match (&change.key_column, change.steps.is_empty()) {
        (Some(column), _) => format!("its {column} is the document's key"),
        (None, true) => "the key is computed from the row itself".to_owned(),
        (None, false) => format!("by {}", change.steps.join(", then ")),
    };
    writeln!(out, "     - {named}: {way}")?;
    if let Some(query) = &change.query {
        let documents = match change.documents_per_change {
            Some(1.0) => "about 1 document a change; finding it".to_owned(),
            Some(documents) => format!("about {documents:.0} documents a change; finding them"),
            None => "finding the documents".to_owned(),
        };
        write!(out, "         {documents}")?;
        write_query(query, "         ", out)?;
    }
    let columns = match &change.columns {
        None => "an update of any column counts".to_owned(),
        Some(columns) if columns.is_empty() => "only new and deleted rows count".to_owned(),
        Some(columns) => format!("columns that count: {}", columns.join(", ")),
    };
    writeln!(out, "         {columns}")
}

/// Continues a line whose subject is the query.
fn write_query(query: &QueryAccount, indent: &str, out: &mut impl Write) -> Result {
    if !query.planned {
        return writeln!(out, " could not be planned by Postgres");
    }
    match (query.indexes.is_empty(), query.missing_indexes.is_empty()) {
        (false, true) => writeln!(out, " uses {}", query.indexes.join(", "))?,
        (true, true) => writeln!(out, " reads no table")?,
        (_, false) => writeln!(out, " lacks an index:")?,
    }
    for missing in &query.missing_indexes {
        let said = missing_index(missing).replace('\n', &format!("\n{indent}    "));
        writeln!(out, "{indent}  it reads {said}")?;
    }
    for name in &query.computed_whole {
        writeln!(out, "{indent}  {}", computed_whole(name))?;
    }
    Ok(())
}

/// `all of public.item (120000 rows) …`, and the statement on a line of its own.
pub fn missing_index(missing: &MissingIndex) -> String {
    let rows = match missing.rows {
        Some(rows) => format!("{rows:.0} rows"),
        None => "not counted yet: run ANALYZE".to_owned(),
    };
    let table = &missing.table;
    let when = if missing.slow { "slow already" } else { "slow once the table is large" };
    match &missing.create_index {
        Some(sql) => format!("all of {table} ({rows}), which is {when}; run:\n{sql}"),
        None => format!(
            "all of {table} ({rows}), which is {when}, and no index can help: the sql does not let \
             Postgres look for one key's rows only"
        ),
    }
}

/// What is said of a WITH query that is computed whole.
pub fn computed_whole(name: &str) -> String {
    format!(
        "WITH {name} is computed as a whole for each read: write WITH {name} AS NOT MATERIALIZED, \
         so that Postgres looks for the key's rows only"
    )
}

fn write_identity(table: &TableAccount, out: &mut impl Write) -> Result {
    writeln!(
        out,
        "\n  {}: the old row lacks {}, so a row that moves or goes is missed until the next sweep. \
         Run:",
        table.table,
        table.old_row_lacks.join(", ")
    )?;
    writeln!(out, "    {}", table.cure.as_deref().unwrap_or_default())
}
