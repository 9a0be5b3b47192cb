//! The walk over the canonical SQL: occurrences of base tables, and the links between them, each
//! with the scope in which it holds (A3).
//!
//! Default deny (A6): whatever shape is not positively understood becomes a poll reason. A set
//! operation is walked one branch at a time ([`Choices`]); `impact` analyses every combination.
//! The walk only collects. Which equality may be an edge for whom is decided in `tree`.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use pg_query::NodeEnum;
use pg_query::protobuf::{Alias, JoinExpr, JoinType, Node, RangeVar, SelectStmt, SetOperation};

use super::AnalysisInput;
use super::carried::generated_from;
use super::key::columns_of;
use super::level::{FIRST_MARK, Features, features};
use super::link::Link;
use super::occurrence::Occurrence;
use super::scope::{Collapsed, ColumnOf, Merged, Origin, Output, Range, Scope};
use crate::mapping::plan::TableName;

/// Deeper SQL than this is denied rather than walked: the walk is recursive, and so is the stack.
const DEPTH_MAX: usize = 40;

/// A nesting that restricts equalities: a nullable side, a subquery, a level with a barrier.
pub(super) type Region = usize;

/// When an equality may be an edge that leaves occurrence p, the key being in occurrence κ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Constraint {
    /// p or κ lies in the region: the nullable side of an outer join.
    Touches(Region),
    /// p lies in the region: NOT EXISTS, a scalar subquery, LATERAL under an outer join.
    Inside(Region),
    /// p and κ lie in one region each: FULL JOIN.
    Opposite(Region, Region),
    /// p or κ is this occurrence, one of several whose COALESCE was compared: only where its row
    /// is there is the value its own.
    Ends(usize),
}

/// Which branch of each set operation is walked, in the order in which they are met.
#[derive(Debug, Clone, Default)]
pub(super) struct Choices {
    right: Vec<bool>,
    met: usize,
}

impl Choices {
    fn next_is_right(&mut self) -> bool {
        if self.met == self.right.len() {
            self.right.push(false);
        }
        self.met += 1;
        self.right[self.met - 1]
    }

    /// The next combination; None after the last.
    pub(super) fn advance(mut self) -> Option<Self> {
        self.met = 0;
        while let Some(right) = self.right.pop() {
            if !right {
                self.right.push(true);
                return Some(self);
            }
        }
        None
    }
}

/// What a walk collects.
pub(super) struct Walk<'a> {
    pub(super) input: &'a AnalysisInput<'a>,
    pub(super) views: &'a BTreeMap<TableName, SelectStmt>,
    pub(super) choices: Choices,
    pub(super) occurrences: Vec<Occurrence>,
    pub(super) links: Vec<Link>,
    /// Reasons to poll, whatever the paths are.
    pub(super) reasons: BTreeSet<String>,
    pub(super) columns_read: BTreeMap<TableName, BTreeSet<String>>,
    pub(super) whole_rows: BTreeSet<TableName>,
    regions_made: usize,
    /// The regions and constraints around the place where the walk is.
    pub(super) open: Vec<Region>,
    pub(super) constraints: Vec<Constraint>,
    /// The last mark given to set-returning calls; below all locations.
    pub(super) marks: i32,
    pub(super) nullable: usize,
    depth: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        input: &'a AnalysisInput<'a>,
        views: &'a BTreeMap<TableName, SelectStmt>,
        choices: Choices,
    ) -> Self {
        Self {
            input,
            views,
            choices,
            occurrences: Vec::new(),
            links: Vec::new(),
            marks: FIRST_MARK,
            reasons: BTreeSet::new(),
            columns_read: BTreeMap::new(),
            whole_rows: BTreeSet::new(),
            regions_made: 0,
            open: Vec::new(),
            constraints: Vec::new(),
            nullable: 0,
            depth: 0,
        }
    }

    pub(super) fn deny(&mut self, reason: impl Into<String>) {
        self.reasons.insert(reason.into());
    }

    pub(super) fn new_region(&mut self) -> Region {
        self.regions_made += 1;
        self.regions_made
    }

    /// Walks `body` with a region open and a constraint on everything in it.
    pub(super) fn within<T>(
        &mut self,
        region: Region,
        constraint: Constraint,
        body: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.open.push(region);
        self.constraints.push(constraint);
        let result = body(self);
        self.constraints.pop();
        self.open.pop();
        result
    }

    /// Walks `body` with one more constraint on its equalities.
    pub(super) fn constrained<T>(
        &mut self,
        constraint: Option<Constraint>,
        body: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let before = self.constraints.len();
        self.constraints.extend(constraint);
        let result = body(self);
        self.constraints.truncate(before);
        result
    }

    /// A subquery that does not restrict the rows around it: p must lie inside.
    pub(super) fn apart<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let region = self.new_region();
        self.within(region, Constraint::Inside(region), body)
    }

    /// A SELECT with all its parts: what its columns are.
    pub(super) fn select(&mut self, stmt: &SelectStmt, parent: Option<&Scope<'_>>) -> Vec<Output> {
        if self.depth >= DEPTH_MAX {
            self.deny("it is nested too deeply to be analysed");
            return Vec::new();
        }
        self.depth += 1;
        let mut scope = Scope::inside(parent);
        self.open_ctes(stmt, &mut scope);
        let outputs = match SetOperation::try_from(stmt.op) {
            Ok(SetOperation::SetopNone) => self.level(stmt, scope),
            Ok(
                op @ (SetOperation::SetopUnion
                | SetOperation::SetopIntersect
                | SetOperation::SetopExcept),
            ) => self.branch(stmt, op, &scope),
            _ => {
                self.deny("it has a set operation that onelog does not know");
                Vec::new()
            }
        };
        self.depth -= 1;
        outputs
    }

    fn open_ctes(&mut self, stmt: &SelectStmt, scope: &mut Scope<'_>) {
        let Some(with) = &stmt.with_clause else { return };
        if with.recursive {
            self.deny("it uses WITH RECURSIVE: a changed row can matter at any depth");
        }
        for cte in &with.ctes {
            match &cte.node {
                Some(NodeEnum::CommonTableExpr(cte)) => scope.ctes.push(Rc::new((**cte).clone())),
                _ => self.deny("it has a WITH clause that onelog does not understand"),
            }
        }
    }

    /// The chosen branch of a set operation, under the names of the first.
    fn branch(&mut self, stmt: &SelectStmt, op: SetOperation, scope: &Scope<'_>) -> Vec<Output> {
        let (Some(left), Some(right)) = (&stmt.larg, &stmt.rarg) else {
            self.deny("it has a set operation without two sides");
            return Vec::new();
        };
        let merges = op != SetOperation::SetopUnion || !stmt.all;
        let limited = stmt.limit_count.is_some() || stmt.limit_offset.is_some();
        let chosen = if self.choices.next_is_right() { right } else { left };
        let mut outputs = self.select(chosen, Some(scope));
        for (nth, output) in outputs.iter_mut().enumerate() {
            if let Some(name) = output_names(stmt).get(nth) {
                output.name.clone_from(name);
            }
            let merged = if merges { Collapsed::ByItself } else { Collapsed::No };
            output.collapsed = output.collapsed.max(merged);
            if limited {
                output.origin = Origin::Opaque;
            }
        }
        outputs
    }

    /// One level: FROM, WHERE, GROUP BY and so on.
    fn level(&mut self, stmt: &SelectStmt, scope: Scope<'_>) -> Vec<Output> {
        let features = features(stmt, &self.input.aggregates());
        if !stmt.locking_clause.is_empty() || stmt.into_clause.is_some() {
            self.deny("it has a clause that a view cannot have");
        }
        if features.is_barrier() {
            self.apart(|walk| walk.level_body(stmt, scope, &features))
        } else {
            self.level_body(stmt, scope, &features)
        }
    }

    fn level_body(
        &mut self,
        stmt: &SelectStmt,
        mut scope: Scope<'_>,
        features: &Features,
    ) -> Vec<Output> {
        for node in &stmt.from_clause {
            self.range_item(node, &mut scope);
        }
        if let Some(condition) = &stmt.where_clause {
            self.condition(condition, &scope, true);
        }
        self.level_outputs(stmt, &scope, features)
    }

    fn range_item(&mut self, node: &Node, scope: &mut Scope<'_>) {
        match &node.node {
            Some(NodeEnum::RangeVar(range)) => self.range_var(range, scope),
            Some(NodeEnum::JoinExpr(join)) => self.join(join, scope),
            Some(NodeEnum::RangeSubselect(range)) => {
                let Some(NodeEnum::SelectStmt(stmt)) =
                    range.subquery.as_ref().and_then(|it| it.node.as_ref())
                else {
                    return self.deny("it has a subquery in FROM that is not a SELECT");
                };
                let columns = if range.lateral && self.nullable > 0 {
                    let columns = self.apart(|walk| walk.select(stmt, Some(scope)));
                    columns.into_iter().map(|it| self.unless_outer(it)).collect()
                } else if range.lateral {
                    self.select(stmt, Some(scope))
                } else {
                    self.select(stmt, Some(&scope.beside()))
                };
                self.add_range((range.alias.as_ref(), ""), columns, None, scope);
            }
            Some(NodeEnum::RangeFunction(range)) => self.range_function(range, scope),
            _ => self.deny("it has something in FROM that onelog does not understand"),
        }
    }

    /// A column of a nullable LATERAL that copies a row from outside is NULL where the LATERAL has
    /// no row, though the copied row is there.
    fn unless_outer(&self, column: Output) -> Output {
        let outer = column.origin.alternatives().iter().any(|it| match it {
            Origin::Column(ColumnOf { occurrence, .. }) | Origin::Expression { occurrence, .. } => {
                !self.occurrences[*occurrence].nullable
            }
            Origin::OneOf { .. } | Origin::Opaque => false,
        });
        if outer { Output { name: column.name, ..Output::opaque() } } else { column }
    }

    fn add_range(
        &mut self,
        (alias, name): (Option<&Alias>, &str),
        mut columns: Vec<Output>,
        occurrence: Option<usize>,
        scope: &mut Scope<'_>,
    ) {
        let aliases = alias.map(|it| it.colnames.as_slice()).unwrap_or_default();
        for (column, alias) in columns.iter_mut().zip(aliases) {
            if let Some(alias) = text_of(alias) {
                column.name = alias.to_owned();
            }
        }
        let alias = alias.map_or(name, |it| it.aliasname.as_str()).to_owned();
        scope.ranges.push(Range { alias, columns, occurrence });
    }

    fn range_var(&mut self, range: &RangeVar, scope: &mut Scope<'_>) {
        if range.schemaname.is_empty()
            && let Some((defining, nth)) = scope.cte(&range.relname)
        {
            let mut around = Scope::inside(defining.parent);
            around.ctes = defining.ctes.iter().take(nth).cloned().collect();
            let cte = Rc::clone(&defining.ctes[nth]);
            let columns = self.cte_columns(&cte, &around);
            return self.add_range((range.alias.as_ref(), &range.relname), columns, None, scope);
        }
        let namespace =
            if range.schemaname.is_empty() { "pg_catalog" } else { range.schemaname.as_str() };
        let table = TableName { namespace: namespace.to_owned(), name: range.relname.clone() };
        let views = self.views;
        if let Some(view) = views.get(&table) {
            let columns = self.select(view, None);
            return self.add_range((range.alias.as_ref(), &range.relname), columns, None, scope);
        }
        self.base_table(range, table, scope);
    }

    fn cte_columns(
        &mut self,
        cte: &pg_query::protobuf::CommonTableExpr,
        around: &Scope<'_>,
    ) -> Vec<Output> {
        let query = cte.ctequery.as_ref().and_then(|it| it.node.as_ref());
        let Some(NodeEnum::SelectStmt(stmt)) = query else {
            self.deny("it has a WITH clause that is not a SELECT");
            return Vec::new();
        };
        if cte.search_clause.is_some() || cte.cycle_clause.is_some() {
            self.deny("it uses SEARCH or CYCLE");
        }
        let mut columns = self.select(stmt, Some(around));
        for (column, alias) in columns.iter_mut().zip(&cte.aliascolnames) {
            if let Some(alias) = text_of(alias) {
                column.name = alias.to_owned();
            }
        }
        columns
    }

    fn base_table(&mut self, range: &RangeVar, table: TableName, scope: &mut Scope<'_>) {
        let tables = self.input.tables;
        let Some(facts) = tables.get(&table) else {
            self.deny(format!("it reads {table}, of which onelog knows nothing"));
            return self.add_range((range.alias.as_ref(), &range.relname), Vec::new(), None, scope);
        };
        let alias = range.alias.as_ref().map_or(&range.relname, |it| &it.aliasname);
        let occurrence = self.add_occurrence(table, alias, None);
        let columns = facts.columns.iter().map(|it| Output {
            name: it.name.clone(),
            origin: Origin::Column(ColumnOf { occurrence, column: it.name.clone() }),
            collapsed: Collapsed::No,
        });
        let columns = columns.collect();
        self.add_range((range.alias.as_ref(), &range.relname), columns, Some(occurrence), scope);
    }

    /// Walks a side of a join; a nullable one is a region. Returns its place among the ranges.
    fn side(
        &mut self,
        node: Option<&Node>,
        nullable: Option<Region>,
        scope: &mut Scope<'_>,
    ) -> std::ops::Range<usize> {
        let start = scope.ranges.len();
        match (node, nullable) {
            (None, _) => self.deny("it has a join without two sides"),
            (Some(node), None) => self.range_item(node, scope),
            (Some(node), Some(region)) => {
                self.nullable += 1;
                self.within(region, Constraint::Touches(region), |walk| {
                    walk.range_item(node, scope);
                });
                self.nullable -= 1;
            }
        }
        start..scope.ranges.len()
    }

    fn join(&mut self, join: &JoinExpr, scope: &mut Scope<'_>) {
        let (left, right) = (self.new_region(), self.new_region());
        let (nullable_left, nullable_right, on) = match JoinType::try_from(join.jointype) {
            Ok(JoinType::JoinInner) => (None, None, None),
            Ok(JoinType::JoinLeft) => (None, Some(right), Some(Constraint::Touches(right))),
            Ok(JoinType::JoinRight) => (Some(left), None, Some(Constraint::Touches(left))),
            Ok(JoinType::JoinFull) => {
                (Some(left), Some(right), Some(Constraint::Opposite(left, right)))
            }
            _ => return self.deny("it has a kind of join that onelog does not know"),
        };
        if join.alias.is_some() || join.join_using_alias.is_some() || join.is_natural {
            self.deny("it gives a join an alias of its own: write the tables' aliases instead");
        }
        let left = self.side(join.larg.as_deref(), nullable_left, scope);
        let right = self.side(join.rarg.as_deref(), nullable_right, scope);
        let restricts = on.is_none();
        self.constrained(on, |walk| {
            if let Some(condition) = &join.quals {
                walk.condition(condition, scope, restricts);
            }
            for column in join.using_clause.iter().filter_map(text_of) {
                walk.using(column, (&left, &right), join.jointype, scope);
            }
        });
    }

    fn using(
        &mut self,
        column: &str,
        (left, right): (&std::ops::Range<usize>, &std::ops::Range<usize>),
        jointype: i32,
        scope: &mut Scope<'_>,
    ) {
        let (Some(u), Some(v)) = (scope.in_ranges(column, left), scope.in_ranges(column, right))
        else {
            return self.deny(format!("it joins USING ({column}), which onelog cannot follow"));
        };
        self.equality(&u.origin, &v.origin);
        for output in [&u, &v] {
            self.read(&output.origin);
        }
        let (name, collapsed) = (column.to_owned(), u.collapsed.max(v.collapsed));
        let origin = match JoinType::try_from(jointype) {
            Ok(JoinType::JoinInner | JoinType::JoinLeft) => u.origin,
            Ok(JoinType::JoinRight) => v.origin,
            _ => Origin::one_of(vec![u.origin, v.origin], true),
        };
        let column = Output { name, origin, collapsed };
        scope.merged.push(Merged { column, ranges: left.start..right.end });
    }

    /// Counts a column as read, and those that it is generated from.
    pub(super) fn read(&mut self, origin: &Origin) {
        if let Origin::Column(of) = origin
            && self.occurrences[of.occurrence].constants.is_none()
        {
            let table = self.occurrences[of.occurrence].table.clone();
            let facts = self.facts(of.occurrence).and_then(|it| it.column(&of.column));
            let from = facts.and_then(generated_from).map(|it| columns_of(&it)).unwrap_or_default();
            let read = self.columns_read.entry(table).or_default();
            read.insert(of.column.clone());
            read.extend(from);
        }
    }
}

/// The text of a String node.
pub(super) fn text_of(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(text)) => Some(&text.sval),
        _ => None,
    }
}

/// The names of a SELECT's columns: those of its first branch.
pub(super) fn output_names(stmt: &SelectStmt) -> Vec<String> {
    if let Some(left) = &stmt.larg {
        return output_names(left);
    }
    if let Some(Some(NodeEnum::List(row))) = stmt.values_lists.first().map(|it| &it.node) {
        return (1..=row.items.len()).map(|nth| format!("column{nth}")).collect();
    }
    let name = |node: &Node| match &node.node {
        Some(NodeEnum::ResTarget(target)) if !target.name.is_empty() => target.name.clone(),
        Some(NodeEnum::ResTarget(target)) => match target.val.as_ref().map(|it| &it.node) {
            Some(Some(NodeEnum::ColumnRef(column))) => {
                column.fields.last().and_then(text_of).unwrap_or("?column?").to_owned()
            }
            _ => "?column?".to_owned(),
        },
        _ => "?column?".to_owned(),
    };
    stmt.target_list.iter().map(name).collect()
}
