//! A condition's text -> [`Condition`], by Postgres' grammar; whatever is not known is refused.

use pg_query::NodeEnum;
use pg_query::protobuf::a_const::Val;
use pg_query::protobuf::{
    AConst, AExpr, AExprKind, BoolExpr, BoolExprType, Node, NullTestType, SelectStmt,
};

use super::{Condition, Literal, Operator};

const HEAD: &str = "SELECT 1 WHERE ";

const LANGUAGE: &str = "a filter is made of a column compared with literals: =, <>, <, <=, >, >=, \
                        IN, BETWEEN, IS NULL, and AND, OR, NOT";

type Parsed = Result<Condition<String>, String>;

pub(super) fn condition(text: &str) -> Parsed {
    let given = select(&format!("{HEAD}{text}"))?;
    // Nothing but a WHERE: whatever else the text has brought would be silently ignored.
    let mut plain = select(&format!("{HEAD}true"))?;
    plain.where_clause.clone_from(&given.where_clause);
    if plain != given {
        return Err(format!("where is one condition and nothing more: {LANGUAGE}"));
    }
    node(given.where_clause.as_deref())
}

fn select(sql: &str) -> Result<SelectStmt, String> {
    let parsed = pg_query::parse(sql, pg_query::ParserOptions::default());
    let parsed = parsed.map_err(|error| format!("where is not SQL: {error}"))?;
    let [statement] = &parsed.protobuf.stmts[..] else {
        return Err("where is one condition, not several statements".to_owned());
    };
    match statement.stmt.as_ref().and_then(|it| it.node.as_ref()) {
        Some(NodeEnum::SelectStmt(select)) => Ok((**select).clone()),
        _ => Err(format!("where is no condition: {LANGUAGE}")),
    }
}

fn node(node: Option<&Node>) -> Parsed {
    match node.and_then(|it| it.node.as_ref()) {
        Some(NodeEnum::BoolExpr(it)) => boolean(it),
        Some(NodeEnum::AExpr(it)) => comparison(it),
        Some(NodeEnum::NullTest(it)) => {
            let null = Condition::IsNull(column(it.arg.as_deref())?);
            match it.nulltesttype() {
                NullTestType::IsNull => Ok(null),
                NullTestType::IsNotNull => Ok(Condition::Not(Box::new(null))),
                NullTestType::Undefined => unknown(),
            }
        }
        Some(NodeEnum::ColumnRef(_)) => column(node).map(Condition::IsTrue),
        _ => unknown(),
    }
}

fn unknown<T>() -> Result<T, String> {
    Err(format!("where has something that is not understood: {LANGUAGE}"))
}

fn boolean(it: &BoolExpr) -> Parsed {
    let mut all = it.args.iter().map(|it| node(Some(it))).collect::<Result<Vec<_>, _>>()?;
    match it.boolop() {
        BoolExprType::AndExpr => Ok(Condition::And(all)),
        BoolExprType::OrExpr => Ok(Condition::Or(all)),
        BoolExprType::NotExpr if all.len() == 1 => Ok(Condition::Not(Box::new(all.remove(0)))),
        BoolExprType::NotExpr | BoolExprType::Undefined => unknown(),
    }
}

fn comparison(it: &AExpr) -> Parsed {
    let name = match &it.name[..] {
        [name] => match name.node.as_ref() {
            Some(NodeEnum::String(name)) => name.sval.as_str(),
            _ => return unknown(),
        },
        _ => return unknown(),
    };
    let column = column(it.lexpr.as_deref())?;
    let negated = |condition, negate| match negate {
        true => Condition::Not(Box::new(condition)),
        false => condition,
    };
    match it.kind() {
        AExprKind::AexprOp => {
            let operator = match name {
                "=" => Operator::Equal,
                "<>" => Operator::NotEqual,
                "<" => Operator::Less,
                "<=" => Operator::LessOrEqual,
                ">" => Operator::Greater,
                ">=" => Operator::GreaterOrEqual,
                _ => return unknown(),
            };
            let literal = literal(it.rexpr.as_deref())?;
            Ok(Condition::Compare { column, operator, literal })
        }
        AExprKind::AexprIn => {
            let literals = list(it.rexpr.as_deref())?;
            Ok(negated(Condition::In { column, literals }, name == "<>"))
        }
        kind @ (AExprKind::AexprBetween | AExprKind::AexprNotBetween) => {
            let Ok([least, most]) = <[Literal; 2]>::try_from(list(it.rexpr.as_deref())?) else {
                return unknown();
            };
            let side = |column, operator, literal| Condition::Compare { column, operator, literal };
            let between = Condition::And(vec![
                side(column.clone(), Operator::GreaterOrEqual, least),
                side(column, Operator::LessOrEqual, most),
            ]);
            Ok(negated(between, kind == AExprKind::AexprNotBetween))
        }
        _ => unknown(),
    }
}

fn column(node: Option<&Node>) -> Result<String, String> {
    if let Some(NodeEnum::ColumnRef(it)) = node.and_then(|it| it.node.as_ref())
        && let [name] = &it.fields[..]
        && let Some(NodeEnum::String(name)) = &name.node
    {
        return Ok(name.sval.clone());
    }
    Err(format!("where compares something but a column, by its name alone: {LANGUAGE}"))
}

fn list(node: Option<&Node>) -> Result<Vec<Literal>, String> {
    match node.and_then(|it| it.node.as_ref()) {
        Some(NodeEnum::List(it)) => it.items.iter().map(|it| literal(Some(it))).collect(),
        _ => unknown(),
    }
}

fn literal(node: Option<&Node>) -> Result<Literal, String> {
    let Some(NodeEnum::AConst(AConst { isnull, val, .. })) = node.and_then(|it| it.node.as_ref())
    else {
        return Err(format!("where compares a column with something but a literal: {LANGUAGE}"));
    };
    match val {
        _ if *isnull => Err("where compares with NULL, which is never true: write IS NULL".into()),
        Some(Val::Ival(it)) => Ok(Literal::Number(it.ival.to_string())),
        Some(Val::Fval(it)) => Ok(Literal::Number(it.fval.clone())),
        Some(Val::Boolval(it)) => Ok(Literal::Bool(it.boolval)),
        Some(Val::Sval(it)) => Ok(Literal::Text(it.sval.clone())),
        Some(Val::Bsval(_)) | None => unknown(),
    }
}
