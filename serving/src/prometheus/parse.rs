//! From text to what can be computed here. The grammar is `promql-parser`'s.

use lamina_core::Micros;
use lamina_metric::summary;
use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{
        self, AggregateExpr, BinModifier, BinaryExpr, Call, Expr, LabelModifier, MatrixSelector, Offset,
        VectorMatchCardinality, VectorSelector, token,
    },
};

use super::{
    Failure,
    expression::{
        Aggregator, Comparison, Function, Grouping, Matching, Node, Operator, Parsed, Selector, Take, Window,
    },
    names::NAME,
};
use crate::query::calendar::LATEST;

/// Longest query, in bytes.
const MAX_QUERY: usize = 8 << 10;
/// Most parentheses and operators: what they build is walked recursively.
const MAX_OPERATORS: usize = 250;

/// # Errors
/// If the text is no PromQL, or asks what is not computed here; says what.
pub(crate) fn parse(query: &str) -> Result<Parsed, Failure> {
    let expression = checked(query)?;
    let mut reader = Reader { selectors: Vec::new() };
    let root = reader.node(&expression)?;
    Ok(Parsed { root, selectors: reader.selectors })
}

/// The matchers of a selector such as `up{job="x"}`, as listings take it in `match[]`.
pub(crate) fn matchers(selector: &str) -> Result<Vec<Matcher>, Failure> {
    match checked(selector)? {
        Expr::VectorSelector(selector) if selector.offset.is_none() && selector.at.is_none() => of_selector(&selector),
        _ => Err(Failure::parameter("match[]", "a series selector such as added_count{channel=\"#en\"}")),
    }
}

fn checked(query: &str) -> Result<Expr, Failure> {
    if query.len() > MAX_QUERY {
        return Err(Failure::bad_data(format!(
            "the query is {} bytes long, at most {MAX_QUERY} are allowed",
            query.len()
        )));
    }
    let operators = operators(query);
    if operators > MAX_OPERATORS {
        let why = format!("the query has {operators} parentheses and operators, at most {MAX_OPERATORS} are allowed");
        return Err(Failure::bad_data(why));
    }
    parser::parse(query).map_err(|error| Failure::bad_data(format!("invalid parameter \"query\": {error}")))
}

/// Parentheses, signs and words that may be operators, outside of quotes.
fn operators(query: &str) -> usize {
    let (mut count, mut quote, mut escaped, mut word) = (0, None, false, String::new());
    for c in query.chars().chain([' ']) {
        if let Some(open) = quote {
            quote = if c == open && !escaped { None } else { Some(open) };
            escaped = c == '\\' && !escaped && open != '`';
            continue;
        }
        if c.is_alphanumeric() || c == '_' || c == ':' {
            word.push(c.to_ascii_lowercase());
            continue;
        }
        count += usize::from(["and", "or", "unless", "atan2", "offset"].contains(&word.as_str()));
        count += usize::from("()[]+-*/%^=<>!@".contains(c));
        word.clear();
        quote = "\"'`".contains(c).then_some(c);
    }
    count
}

struct Reader {
    selectors: Vec<Selector>,
}

impl Reader {
    fn node(&mut self, expression: &Expr) -> Result<Node, Failure> {
        match expression {
            Expr::NumberLiteral(literal) => Ok(Node::Number(literal.val)),
            Expr::StringLiteral(literal) => Ok(Node::Text(literal.val.clone())),
            Expr::Paren(paren) => self.node(&paren.expr),
            Expr::Unary(unary) => Ok(Node::Negated(Box::new(self.node(&unary.expr)?))),
            Expr::VectorSelector(selector) => self.select(selector, Take::Latest),
            Expr::Call(call) => self.call(call),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            Expr::Binary(binary) => self.binary(binary),
            Expr::MatrixSelector(_) => {
                Err(Failure::bad_data("a range vector is no result: take rate, increase or *_over_time of it"))
            }
            Expr::Subquery(_) => Err(Failure::unsupported("a subquery")),
            Expr::Extension(_) => Err(Failure::unsupported("an extension")),
        }
    }

    fn select(&mut self, selector: &VectorSelector, take: Take) -> Result<Node, Failure> {
        if selector.at.is_some() {
            return Err(Failure::unsupported("the @ modifier"));
        }
        let offset = match &selector.offset {
            None => 0,
            Some(Offset::Pos(by)) => micros(by)?,
            Some(Offset::Neg(by)) => -micros(by)?,
        };
        self.selectors.push(Selector { matchers: of_selector(selector)?, offset, take, then: None });
        Ok(Node::Selected(self.selectors.len() - 1))
    }

    fn window(&mut self, expression: &Expr, take: impl FnOnce(Micros) -> Take) -> Result<Node, Failure> {
        match expression {
            Expr::Paren(paren) => self.window(&paren.expr, take),
            Expr::MatrixSelector(MatrixSelector { vs, range }) => self.select(vs, take(micros(range)?)),
            Expr::Subquery(_) => Err(Failure::unsupported("a subquery")),
            _ => Err(Failure::bad_data("a range vector is expected, such as added_count[5m]")),
        }
    }

    fn call(&mut self, call: &Call) -> Result<Node, Failure> {
        let (name, arguments) = (call.func.name, &call.args.args);
        let first = arguments.first().map(AsRef::as_ref);
        if let (Some(window), Some(first)) = (simple_window(name), first) {
            return self.window(first, |length| Take::Window(window, length));
        }
        match (name, arguments.as_slice()) {
            ("time", []) => return Ok(Node::Time),
            ("pi", []) => return Ok(Node::Number(std::f64::consts::PI)),
            ("quantile_over_time", [rank, of]) => {
                let rank = number(rank)
                    .ok_or_else(|| Failure::unsupported("a rank of quantile_over_time that is no number"))?;
                return self.window(of, |length| Take::Window(Window::Quantile(rank), length));
            }
            ("histogram_quantile", [rank, of]) => return self.histogram_quantile(rank, of),
            _ => {}
        }
        let function = match name {
            "scalar" => Function::Scalar,
            "vector" => Function::Vector,
            "absent" => Function::Absent,
            "sort" => Function::Sort { descending: false },
            "sort_desc" => Function::Sort { descending: true },
            "round" => Function::Round,
            "clamp" => Function::Clamp,
            "clamp_min" => Function::ClampMin,
            "clamp_max" => Function::ClampMax,
            _ => Function::Math(math(name).ok_or_else(|| Failure::unsupported(format!("{name}()")))?),
        };
        let arguments = arguments.iter().map(|argument| self.node(argument)).collect::<Result<_, _>>()?;
        Ok(Node::Call(function, arguments))
    }

    /// `histogram_quantile(0.95, sum by (label) (rate(added_bucket[5m])))`: of the sketches of a window, merged by the labels.
    fn histogram_quantile(&mut self, rank: &Expr, of: &Expr) -> Result<Node, Failure> {
        let shape = || {
            Failure::unsupported(
                "histogram_quantile of anything but [sum [by (...)]] (rate(NAME_bucket[RANGE])) or increase, with a number from \
                 0 to 1 of at most eight decimals first,",
            )
        };
        let percents = number(rank).and_then(summary::percents).ok_or_else(shape)?;
        let (of, grouping) = match unwrapped(of) {
            Expr::Aggregate(AggregateExpr { op, expr, modifier, .. }) if op.id() == token::T_SUM => {
                (unwrapped(expr), Some(grouping(modifier.as_ref())))
            }
            other => (other, None),
        };
        let Expr::Call(Call { func, args }) = of else { return Err(shape()) };
        let ([range], "rate" | "increase") = (args.args.as_slice(), func.name) else { return Err(shape()) };
        let node = self.window(range, |length| Take::Quantile(percents, length))?;
        if let Some(selector) = self.selectors.last_mut() {
            selector.then = grouping.map(|grouping| (Aggregator::Sum, grouping));
        }
        Ok(node)
    }

    fn aggregate(&mut self, aggregate: &AggregateExpr) -> Result<Node, Failure> {
        let operator = match aggregate.op.id() {
            token::T_SUM => Aggregator::Sum,
            token::T_AVG => Aggregator::Avg,
            token::T_MIN => Aggregator::Min,
            token::T_MAX => Aggregator::Max,
            token::T_COUNT => Aggregator::Count,
            token::T_GROUP => Aggregator::Group,
            token::T_STDDEV => Aggregator::Stddev,
            token::T_STDVAR => Aggregator::Stdvar,
            token::T_TOPK => Aggregator::TopK,
            token::T_BOTTOMK => Aggregator::BottomK,
            token::T_QUANTILE => Aggregator::Quantile,
            _ => return Err(Failure::unsupported(format!("the aggregation {}", aggregate.op))),
        };
        let grouping = grouping(aggregate.modifier.as_ref());
        let parameter = aggregate.param.as_ref().map(|parameter| self.node(parameter)).transpose()?.map(Box::new);
        let of = self.node(&aggregate.expr)?;
        if let Node::Selected(index) = of {
            self.selectors[index].then = Some((operator, grouping.clone()));
        }
        Ok(Node::Aggregate { operator, grouping, parameter, of: Box::new(of) })
    }

    fn binary(&mut self, binary: &BinaryExpr) -> Result<Node, Failure> {
        let modifier = binary.modifier.as_ref();
        let returns_bool = modifier.is_some_and(|modifier| modifier.return_bool);
        let compare = |comparison| Operator::Compare(comparison, returns_bool);
        let operator = match binary.op.id() {
            token::T_ADD => Operator::Add,
            token::T_SUB => Operator::Subtract,
            token::T_MUL => Operator::Multiply,
            token::T_DIV => Operator::Divide,
            token::T_MOD => Operator::Modulo,
            token::T_POW => Operator::Power,
            token::T_ATAN2 => Operator::Atan2,
            token::T_EQLC => compare(Comparison::Equal),
            token::T_NEQ => compare(Comparison::NotEqual),
            token::T_LSS => compare(Comparison::Less),
            token::T_LTE => compare(Comparison::LessOrEqual),
            token::T_GTR => compare(Comparison::Greater),
            token::T_GTE => compare(Comparison::GreaterOrEqual),
            token::T_LAND => Operator::And,
            token::T_LOR => Operator::Or,
            token::T_LUNLESS => Operator::Unless,
            _ => return Err(Failure::unsupported(format!("the operator {}", binary.op))),
        };
        let matching = modifier.map_or_else(|| Ok(Matching::Ignoring(Vec::new())), matching)?;
        let (left, right) = (Box::new(self.node(&binary.lhs)?), Box::new(self.node(&binary.rhs)?));
        Ok(Node::Binary { operator, left, right, matching })
    }
}

fn of_selector(selector: &VectorSelector) -> Result<Vec<Matcher>, Failure> {
    if !selector.matchers.or_matchers.is_empty() {
        return Err(Failure::unsupported("`or` between label matchers"));
    }
    let name = selector.name.as_ref().map(|name| Matcher::new(MatchOp::Equal, NAME, name));
    Ok(name.into_iter().chain(selector.matchers.matchers.iter().cloned()).collect())
}

fn matching(modifier: &BinModifier) -> Result<Matching, Failure> {
    match &modifier.card {
        VectorMatchCardinality::ManyToOne(_) => return Err(Failure::unsupported("group_left")),
        VectorMatchCardinality::OneToMany(_) => return Err(Failure::unsupported("group_right")),
        VectorMatchCardinality::OneToOne | VectorMatchCardinality::ManyToMany => {}
    }
    Ok(match &modifier.matching {
        None => Matching::Ignoring(Vec::new()),
        Some(LabelModifier::Include(labels)) => Matching::On(labels.labels.clone()),
        Some(LabelModifier::Exclude(labels)) => Matching::Ignoring(labels.labels.clone()),
    })
}

fn grouping(modifier: Option<&LabelModifier>) -> Grouping {
    match modifier {
        None => Grouping::By(Vec::new()),
        Some(LabelModifier::Include(labels)) => Grouping::By(labels.labels.clone()),
        Some(LabelModifier::Exclude(labels)) => Grouping::Without(labels.labels.clone()),
    }
}

fn unwrapped(expression: &Expr) -> &Expr {
    match expression {
        Expr::Paren(paren) => unwrapped(&paren.expr),
        other => other,
    }
}

fn number(expression: &Expr) -> Option<f64> {
    match unwrapped(expression) {
        Expr::NumberLiteral(literal) => Some(literal.val),
        Expr::Unary(unary) => number(&unary.expr).map(|value| -value),
        _ => None,
    }
}

fn micros(length: &std::time::Duration) -> Result<Micros, Failure> {
    let micros = Micros::try_from(length.as_micros()).ok().filter(|micros| *micros <= LATEST);
    micros.ok_or_else(|| Failure::bad_data("a duration is longer than 8,000 years"))
}

fn simple_window(name: &str) -> Option<Window> {
    Some(match name {
        "increase" => Window::Increase,
        "rate" => Window::Rate,
        "sum_over_time" => Window::Sum,
        "avg_over_time" => Window::Avg,
        "min_over_time" => Window::Min,
        "max_over_time" => Window::Max,
        "count_over_time" => Window::Count,
        "last_over_time" => Window::Last,
        "present_over_time" => Window::Present,
        "stddev_over_time" => Window::Stddev,
        "stdvar_over_time" => Window::Stdvar,
        _ => return None,
    })
}

fn math(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "ceil" => f64::ceil,
        "floor" => f64::floor,
        "sqrt" => f64::sqrt,
        "exp" => f64::exp,
        "ln" => f64::ln,
        "log2" => f64::log2,
        "log10" => f64::log10,
        "sgn" => |value: f64| if value == 0.0 || value.is_nan() { value } else { value.signum() },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prometheus::FailureKind;

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (query, named) in [
            ("rate(a_count[5m:1m])", "subquery"),
            ("a_count @ 5", "@ modifier"),
            ("predict_linear(a_count[5m], 1)", "predict_linear"),
            ("label_replace(a, \"b\", \"c\", \"d\", \"e\")", "label_replace"),
            ("a * on (x) group_left b", "group_left"),
            ("count_values(\"x\", a)", "count_values"),
            ("histogram_quantile(0.9, a)", "histogram_quantile"),
            ("histogram_quantile(2, rate(a_bucket[5m]))", "histogram_quantile"),
        ] {
            let failure = parse(query).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Execution, "{query}: {}", failure.message);
            assert!(
                failure.message.contains(named) && failure.message.contains("not supported"),
                "{}",
                failure.message
            );
        }
    }

    #[test]
    fn what_is_no_promql_or_too_much_is_bad_data() {
        let deep = format!("{}1{}", "(".repeat(200), ")".repeat(200));
        let (chain, long) = (format!("1{}", "+1".repeat(400)), "a".repeat(9000));
        for query in ["", "1+", "{}", "a[5m]", "rate(a)", "{a=~\"(\"}", "sum(1", &deep, &chain, &long] {
            let failure = parse(query).err().map(|failure| failure.kind);
            assert_eq!(failure, Some(FailureKind::BadData), "{query:.40}");
        }
        parse("1+1").unwrap();
        parse(&format!("1{}", "+1".repeat(200))).unwrap();
    }

    #[test]
    fn only_what_is_outside_of_quotes_counts_as_an_operator() {
        assert_eq!(operators(r#"a{b="((\"((", c='+', d=`\`} and b or(c)"#), 3 + 1 + 1 + 2);
    }
}
