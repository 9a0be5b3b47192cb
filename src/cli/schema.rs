//! `onelog schema`: the JSON Schema of mapping files, by which editors complete and check them.

use std::io::Write;

use crate::cli::CommandError;

/// The file beside the sample mappings; `tests/mapping_schema.rs` holds it to the parser.
pub const MAPPING_SCHEMA: &str = include_str!("../../connectors/mapping.schema.json");

/// Prints it.
pub fn schema(out: &mut dyn Write) -> Result<u8, CommandError> {
    out.write_all(MAPPING_SCHEMA.as_bytes())?;
    Ok(0)
}
