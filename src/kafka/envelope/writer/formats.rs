//! Changes as the other formats have them: the row alone, or the envelope beside its schema.
//!
//! Neither has a word for TRUNCATE: Debezium's connector leaves it out by default, and so it is here.

use super::{EnvelopeWriter, OutRecord, Outcome, Records};
use crate::change::{Change, Tuple};
use crate::kafka::envelope::connect::Schemas;
use crate::kafka::envelope::row::Row;
use crate::kafka::envelope::table::Written;
use crate::kafka::envelope::{ChangeAt, EnvelopeError, NEW_KEY_HEADER, OLD_KEY_HEADER, TableShape};

impl EnvelopeWriter {
    /// As [`EnvelopeWriter::write`], in the shape's format.
    ///
    /// # Errors
    /// As there.
    pub fn write_formatted<'a>(
        &'a mut self,
        shape: &'a TableShape,
        change: &Change,
        at: ChangeAt,
    ) -> Result<Records<'a>, EnvelopeError> {
        match &shape.written {
            Written::Json => self.write(shape, change, at),
            _ if matches!(change, Change::Truncate { .. }) => Ok(none()),
            Written::Flat => self.write_flat(shape, change),
            Written::WithSchema(schemas) => {
                let outcome = self.fill(shape, change, at)?;
                self.wrap(schemas);
                Ok(self.records(shape, &outcome))
            }
        }
    }

    /// As [`EnvelopeWriter::write_read`], in the shape's format.
    ///
    /// # Errors
    /// As there.
    pub fn write_read_formatted<'a>(
        &'a mut self,
        shape: &'a TableShape,
        row: &Tuple,
        at: ChangeAt,
    ) -> Result<Records<'a>, EnvelopeError> {
        match &shape.written {
            Written::Json => self.write_read(shape, row, at),
            Written::Flat => {
                self.clear();
                let row = Row::new(shape, row);
                row.write_key(&mut self.key)?;
                row.write(&mut self.value)?;
                Ok(self.records(shape, &Outcome::Row))
            }
            Written::WithSchema(schemas) => {
                let outcome = self.fill_read(shape, row, at)?;
                self.wrap(schemas);
                Ok(self.records(shape, &outcome))
            }
        }
    }

    fn write_flat<'a>(
        &'a mut self,
        shape: &'a TableShape,
        change: &Change,
    ) -> Result<Records<'a>, EnvelopeError> {
        super::check_shape(shape, change)?;
        self.clear();
        let (new, old) = match change {
            Change::Insert { new, .. } => (Some(Row::new(shape, new)), None),
            Change::Update { old, new, .. } => {
                let new = Row { old: old.as_ref(), ..Row::new(shape, new) };
                (Some(new), old.as_ref().map(|it| Row::old(shape, it)))
            }
            Change::Delete { old, .. } => (None, Some(Row::old(shape, old))),
            Change::Truncate { .. } => (None, None),
        };
        if let Some(new) = new {
            new.write_key(&mut self.key)?;
            new.write(&mut self.value)?;
        }
        if let Some(old) = old {
            old.write_key(&mut self.old_key)?;
        }
        let keyed = !shape.key_columns.is_empty();
        let Self { key, old_key, value, .. } = &*self;
        let moved = new.is_some() && old.is_some() && key != old_key;
        let header = |name, key| moved.then_some((name, key));
        let gone = (old.is_some() && keyed && (new.is_none() || moved)).then_some(OutRecord {
            topic: &shape.topic,
            key: Some(old_key),
            value: None,
            header: header(NEW_KEY_HEADER, key.as_slice()),
        });
        let row = new.is_some().then_some(OutRecord {
            topic: &shape.topic,
            key: keyed.then_some(key.as_slice()),
            value: Some(value),
            header: header(OLD_KEY_HEADER, old_key.as_slice()),
        });
        Ok([gone, row, None].into_iter().flatten())
    }

    /// Puts the schema before what was written, and what was written into its payload.
    fn wrap(&mut self, schemas: &Schemas) {
        let Self { key, old_key, value, delete_value, .. } = self;
        let all = [
            (key, &schemas.key),
            (old_key, &schemas.key),
            (value, &schemas.value),
            (delete_value, &schemas.value),
        ];
        for (buffer, head) in all {
            if !buffer.is_empty() {
                buffer.splice(0..0, head.iter().copied());
                buffer.push(b'}');
            }
        }
    }
}

fn none<'a>() -> Records<'a> {
    [None, None, None].into_iter().flatten()
}
