//! The language of filters: a condition over dimensions, from text to DataFusion's expression.
//!
//! ```text
//! condition  = conjunction { OR conjunction }
//! conjunction = negation { AND negation }
//! negation   = NOT negation | predicate
//! predicate  = operand { comparison operand | IS [NOT] (NULL | TRUE | FALSE | UNKNOWN) | IS [NOT] DISTINCT FROM operand
//!              | [NOT] IN (operand, ...) | [NOT] BETWEEN operand AND operand | [NOT] (LIKE | ILIKE) operand [ESCAPE 'c'] }
//! operand    = literal | -number | dimension | (condition)
//! ```
//!
//! The tokens are the SQL parser's; the grammar is our own because that parser tries again and again what begins with a
//! parenthesis: a few dozen of them kept it busy for more than ten minutes. This one never goes back; nesting is bounded by [`MAX_DEPTH`], and chains
//! of AND or OR become balanced trees, so outside text can neither run long nor overflow a stack. A dimension may be named
//! like a word of SQL that the grammar does not know, such as `user`.

use datafusion::{
    common::Column,
    logical_expr::{
        BinaryExpr, Expr, Like, Operator,
        expr::{Between, InList},
        lit,
    },
    scalar::ScalarValue,
    sql::sqlparser::{
        dialect::GenericDialect,
        keywords::Keyword,
        tokenizer::{Token, Tokenizer, Word},
    },
};

use crate::metric::Dimension;

/// Longest filter, in bytes.
pub(super) const MAX_LENGTH: usize = 4096;
/// Deepest nesting of parentheses and NOT, and longest row of predicates upon one another.
const MAX_DEPTH: usize = 32;

/// The condition, and the indexes of the dimensions that it reads, ascending.
pub(super) fn parse(sql: &str, dimensions: &[Dimension]) -> Result<(Expr, Vec<usize>), String> {
    if sql.len() > MAX_LENGTH {
        return Err(format!("the filter is {} bytes long, at most {MAX_LENGTH} are allowed", sql.len()));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().map_err(|error| error.to_string())?;
    let mut tokens: Vec<_> = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    tokens.reverse();
    let mut reader = Reader { tokens, dimensions, used: Vec::new(), depth: 0 };
    let condition = reader.condition()?;
    if let Some(token) = reader.tokens.last() {
        return Err(format!("`{token}` is not expected there in a filter"));
    }
    reader.used.sort_unstable();
    reader.used.dedup();
    Ok((condition, reader.used))
}

struct Reader<'a> {
    /// Those still to be read, the next one last.
    tokens: Vec<Token>,
    dimensions: &'a [Dimension],
    used: Vec<usize>,
    depth: usize,
}

impl Reader<'_> {
    fn condition(&mut self) -> Result<Expr, String> {
        let mut links = vec![self.conjunction()?];
        while self.takes(Keyword::OR) {
            links.push(self.conjunction()?);
        }
        balanced(links, Operator::Or)
    }

    fn conjunction(&mut self) -> Result<Expr, String> {
        let mut links = vec![self.negation()?];
        while self.takes(Keyword::AND) {
            links.push(self.negation()?);
        }
        balanced(links, Operator::And)
    }

    fn negation(&mut self) -> Result<Expr, String> {
        if self.takes(Keyword::NOT) {
            let negated = self.nested(Self::negation)?;
            return Ok(Expr::Not(Box::new(negated)));
        }
        self.predicate()
    }

    fn predicate(&mut self) -> Result<Expr, String> {
        let mut left = self.operand()?;
        for _ in 0..MAX_DEPTH {
            let negated = self.takes(Keyword::NOT);
            left = if self.takes(Keyword::IN) {
                Expr::InList(InList::new(Box::new(left), self.list()?, negated))
            } else if self.takes(Keyword::BETWEEN) {
                let low = self.operand()?;
                self.expect(Keyword::AND)?;
                Expr::Between(Between::new(Box::new(left), negated, Box::new(low), Box::new(self.operand()?)))
            } else if self.takes(Keyword::LIKE) {
                self.like(left, negated, false)?
            } else if self.takes(Keyword::ILIKE) {
                self.like(left, negated, true)?
            } else if negated {
                return Err("after NOT must come IN, BETWEEN, LIKE or ILIKE".to_owned());
            } else if self.takes(Keyword::IS) {
                self.is(left)?
            } else if let Some(operator) = self.comparison() {
                binary(left, operator, self.operand()?)
            } else {
                return Ok(left);
            };
        }
        Err(format!("more than {MAX_DEPTH} predicates upon one another"))
    }

    fn operand(&mut self) -> Result<Expr, String> {
        let Some(token) = self.tokens.pop() else { return Err("the filter ends too early".to_owned()) };
        match token {
            Token::LParen => {
                let inner = self.nested(Self::condition)?;
                self.expect_token(&Token::RParen)?;
                Ok(inner)
            }
            Token::Minus => match self.tokens.pop() {
                Some(Token::Number(digits, false)) => number(&format!("-{digits}")),
                other => Err(format!("`-` is allowed before a number only, not before {}", shown(other.as_ref()))),
            },
            Token::Number(digits, false) => number(&digits),
            Token::SingleQuotedString(text) => Ok(lit(text)),
            Token::Word(word) => self.word(word),
            other => Err(format!("`{other}` is not allowed in a filter")),
        }
    }

    /// A literal that is a word, or a dimension: quoted or not, dotted or not, exactly as it is called.
    fn word(&mut self, word: Word) -> Result<Expr, String> {
        let mut name = word.value;
        while self.tokens.last() == Some(&Token::Period) {
            self.tokens.pop();
            match self.tokens.pop() {
                Some(Token::Word(part)) => name = format!("{name}.{}", part.value),
                other => return Err(format!("a name is expected after `{name}.`, not {}", shown(other.as_ref()))),
            }
        }
        if let Some(at) = self.dimensions.iter().position(|dimension| dimension.name == name) {
            self.used.push(at);
            return Ok(Expr::Column(Column::new_unqualified(name)));
        }
        match word.keyword {
            Keyword::TRUE => Ok(lit(true)),
            Keyword::FALSE => Ok(lit(false)),
            Keyword::NULL => Ok(Expr::Literal(ScalarValue::Null, None)),
            _ if word.quote_style.is_none() && self.tokens.last() == Some(&Token::LParen) => {
                Err(format!("functions are not allowed in a filter: `{name}(`"))
            }
            _ => Err(unknown(&name, self.dimensions)),
        }
    }

    fn list(&mut self) -> Result<Vec<Expr>, String> {
        self.expect_token(&Token::LParen)?;
        let mut items = vec![self.operand()?];
        while self.tokens.last() == Some(&Token::Comma) {
            self.tokens.pop();
            items.push(self.operand()?);
        }
        self.expect_token(&Token::RParen)?;
        Ok(items)
    }

    fn like(&mut self, left: Expr, negated: bool, ignore_case: bool) -> Result<Expr, String> {
        let pattern = self.operand()?;
        let escape = if self.takes(Keyword::ESCAPE) { Some(self.escape()?) } else { None };
        Ok(Expr::Like(Like::new(negated, Box::new(left), Box::new(pattern), escape, ignore_case)))
    }

    fn escape(&mut self) -> Result<char, String> {
        let token = self.tokens.pop();
        if let Some(Token::SingleQuotedString(text)) = &token {
            let mut characters = text.chars();
            if let (Some(escape), None) = (characters.next(), characters.next()) {
                return Ok(escape);
            }
        }
        Err(format!("ESCAPE takes one character in quotes, not {}", shown(token.as_ref())))
    }

    fn is(&mut self, left: Expr) -> Result<Expr, String> {
        let negated = self.takes(Keyword::NOT);
        if self.takes(Keyword::DISTINCT) {
            self.expect(Keyword::FROM)?;
            let operator = if negated { Operator::IsNotDistinctFrom } else { Operator::IsDistinctFrom };
            return Ok(binary(left, operator, self.operand()?));
        }
        let left = Box::new(left);
        let token = self.tokens.pop();
        let keyword = if let Some(Token::Word(word)) = &token { word.keyword } else { Keyword::NoKeyword };
        Ok(match (keyword, negated) {
            (Keyword::NULL, false) => Expr::IsNull(left),
            (Keyword::NULL, true) => Expr::IsNotNull(left),
            (Keyword::TRUE, false) => Expr::IsTrue(left),
            (Keyword::TRUE, true) => Expr::IsNotTrue(left),
            (Keyword::FALSE, false) => Expr::IsFalse(left),
            (Keyword::FALSE, true) => Expr::IsNotFalse(left),
            (Keyword::UNKNOWN, false) => Expr::IsUnknown(left),
            (Keyword::UNKNOWN, true) => Expr::IsNotUnknown(left),
            _ => return Err(format!("after IS must come NULL, TRUE or FALSE, not {}", shown(token.as_ref()))),
        })
    }

    fn comparison(&mut self) -> Option<Operator> {
        let operator = match self.tokens.last()? {
            Token::Eq | Token::DoubleEq => Operator::Eq,
            Token::Neq => Operator::NotEq,
            Token::Lt => Operator::Lt,
            Token::LtEq => Operator::LtEq,
            Token::Gt => Operator::Gt,
            Token::GtEq => Operator::GtEq,
            _ => return None,
        };
        self.tokens.pop();
        Some(operator)
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Expr, String>) -> Result<Expr, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("the filter is nested deeper than {MAX_DEPTH}"));
        }
        self.depth += 1;
        let inner = read(self)?;
        self.depth -= 1;
        Ok(inner)
    }

    fn takes(&mut self, keyword: Keyword) -> bool {
        let next = matches!(self.tokens.last(), Some(Token::Word(word)) if word.keyword == keyword);
        if next {
            self.tokens.pop();
        }
        next
    }

    fn expect(&mut self, keyword: Keyword) -> Result<(), String> {
        if self.takes(keyword) {
            return Ok(());
        }
        Err(format!("{keyword:?} is expected, not {}", shown(self.tokens.last())))
    }

    fn expect_token(&mut self, token: &Token) -> Result<(), String> {
        if self.tokens.last() == Some(token) {
            self.tokens.pop();
            return Ok(());
        }
        Err(format!("`{token}` is expected, not {}", shown(self.tokens.last())))
    }
}

fn shown(token: Option<&Token>) -> String {
    token.map_or_else(|| "the end".to_owned(), |token| format!("`{token}`"))
}

fn unknown(name: &str, dimensions: &[Dimension]) -> String {
    if dimensions.is_empty() {
        return format!("`{name}` is not a dimension: the metric has none");
    }
    let known: Vec<_> = dimensions.iter().map(|dimension| dimension.name.as_str()).collect();
    format!("`{name}` is not a dimension; the metric has {}", known.join(", "))
}

fn number(digits: &str) -> Result<Expr, String> {
    match (digits.parse::<i64>(), digits.parse::<f64>()) {
        (Ok(value), _) => Ok(lit(value)),
        (_, Ok(value)) if value.is_finite() => Ok(lit(value)),
        _ => Err(format!("`{digits}` is not a number that a filter can hold")),
    }
}

fn binary(left: Expr, operator: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right)))
}

/// The links of an AND or OR chain as a tree as shallow as can be.
fn balanced(mut links: Vec<Expr>, operator: Operator) -> Result<Expr, String> {
    while links.len() > 1 {
        let mut singles = links.into_iter();
        let mut pairs = Vec::new();
        while let Some(left) = singles.next() {
            pairs.push(match singles.next() {
                Some(right) => binary(left, operator, right),
                None => left,
            });
        }
        links = pairs;
    }
    links.pop().ok_or_else(|| "the filter is empty".to_owned())
}
