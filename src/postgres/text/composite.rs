//! A composite type's attributes, as they are and as they may have been.
//!
//! A value is printed with the attributes that its type had at its place in the WAL, while the
//! catalog knows those of now only, and nothing in the stream tells of ALTER TYPE. What the text
//! does tell is *how many* attributes it has, and whether they are of the right form: that decides
//! which definition it is read by.
//!
//! Two changes that leave both as they were can't be told apart by it: a value of before is then
//! written under the names of now. Whoever reads the catalog again at once after each change
//! (`source::Shapes`) has this for what was in flight during the change only.

use super::Kind;

/// How many earlier definitions are kept: more changes than a type sees while capture is behind by
/// one of them.
const EARLIER_MAX: usize = 8;

type Attributes = Vec<(String, Kind)>;

/// What is known of a composite type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composite {
    /// Those that are there now, in order.
    attributes: Attributes,
    /// As earlier looks at the catalog found it, newest first.
    earlier: Vec<Attributes>,
    /// With those that were dropped, whose names and types the catalog has forgotten.
    with_dropped: Attributes,
}

impl Composite {
    /// A type that was never altered.
    pub fn new(attributes: Vec<(String, Kind)>) -> Self {
        Self { with_dropped: attributes.clone(), attributes, earlier: Vec::new() }
    }

    /// What the catalog says now, and `before`; `dropped` has a place for each attribute there
    /// ever was.
    pub(super) fn read(attributes: Attributes, dropped: Vec<bool>, before: Option<&Self>) -> Self {
        let mut live = attributes.iter();
        let with_dropped = dropped
            .iter()
            .enumerate()
            .filter_map(|(nth, dropped)| match dropped {
                // As pg_attribute names them.
                true => Some((format!("........pg.dropped.{}........", nth + 1), Kind::Text)),
                false => live.next().cloned(),
            })
            .collect();
        let mut earlier = before.map_or_else(Vec::new, |it| it.earlier.clone());
        if let Some(before) = before.filter(|it| it.attributes != attributes) {
            earlier.insert(0, before.attributes.clone());
            earlier.truncate(EARLIER_MAX);
        }
        Self { attributes, earlier, with_dropped }
    }

    /// How many attributes it has now.
    pub(super) fn len(&self) -> usize {
        self.attributes.len()
    }

    /// What a value with `count` attributes may be made of, the likeliest first: what there is
    /// now; what there was when we last looked; what there was before attributes were added, or
    /// when we looked before that; and with attributes that were dropped since, whose values must
    /// not be lost for the lack of a name.
    pub(super) fn of_length(&self, count: usize) -> impl Iterator<Item = &[(String, Kind)]> {
        let mut earlier = self.earlier.iter().map(Vec::as_slice);
        let likely =
            [Some(self.attributes.as_slice()), earlier.next(), self.attributes.get(..count)];
        let rest = earlier.chain(self.with_dropped.get(..count));
        likely.into_iter().flatten().chain(rest).filter(move |it| it.len() == count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(names: &str) -> Attributes {
        names.split(' ').map(|it| (it.to_owned(), Kind::Number)).collect()
    }

    fn names(composite: &Composite, count: usize) -> String {
        let found = composite.of_length(count).next().unwrap_or_default();
        found.iter().map(|it| it.0.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_number_of_attributes_says_which_definition() {
        let first = Composite::read(attributes("a b c"), vec![false; 3], None);
        assert_eq!(names(&first, 3), "a b c");
        assert_eq!(names(&first, 2), "a b", "c was added since");
        assert_eq!(first.of_length(4).next(), None);

        let dropped = vec![false, true, false];
        let fresh = Composite::read(attributes("a c"), dropped.clone(), None);
        assert_eq!(names(&fresh, 2), "a c");
        assert_eq!(names(&fresh, 3), "a ........pg.dropped.2........ c");

        let seen = Composite::read(attributes("a c"), dropped.clone(), Some(&first));
        assert_eq!(names(&seen, 3), "a b c", "its name is remembered");
        let again = Composite::read(attributes("a c"), dropped, Some(&seen));
        assert_eq!(again, seen, "the same as before is no change");

        let older = Composite::read(attributes("x y"), vec![false; 2], None);
        let newer = Composite::read(attributes("a b c"), vec![false; 3], Some(&older));
        let twice =
            Composite::read(attributes("b c d"), vec![true, false, false, false], Some(&newer));
        let all: Vec<_> = twice.of_length(2).map(|it| it[0].0.as_str()).collect();
        assert_eq!(
            all,
            ["b", "x", "........pg.dropped.1........"],
            "between two looks, then long ago"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut composite = Composite::new(attributes("a"));
        for nth in 0..3 * EARLIER_MAX {
            let next = attributes(&format!("a{nth}"));
            composite = Composite::read(next, vec![false], Some(&composite));
        }
        assert_eq!(composite.earlier.len(), EARLIER_MAX);
    }
}
