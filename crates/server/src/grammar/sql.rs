//! Each database has its own sign for a parameter (`?`, `$1`), and one configuration shall do for
//! all. So statements name their parameters (`:name`), and are translated here, once, at the start,
//! by a reader that knows what is text, a comment or a cast in each dialect. Values never enter the
//! statement: they are bound.

use std::fmt;

use super::dialect::Dialect;

/// A statement ready to be prepared, and which parameter is bound at each of its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sql {
    /// In the dialect's own notation.
    pub(crate) text: String,
    /// Name of the parameter bound at each place, in order.
    pub(crate) places: Vec<String>,
    /// The first word, in capitals.
    pub(crate) verb: String,
    /// Whether `ESCAPE '!'` stands in it, which LIKE patterns need.
    pub(crate) escapes: bool,
    /// The first of the words outside of texts, names in quotes and comments that change data, in
    /// capitals.
    pub(crate) writes: Option<String>,
    /// Whether RETURNING is among those words.
    returning: bool,
}

/// The reason why a statement cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SqlMistake {
    Empty,
    Unclosed(&'static str),
    SecondStatement,
    Positional(char),
}

impl fmt::Display for SqlMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("holds no statement"),
            Self::Unclosed(what) => write!(f, "has {what} that is not closed"),
            Self::SecondStatement => f.write_str("holds more than one statement"),
            Self::Positional(sign) => {
                write!(f, "has a parameter `{sign}`; write parameters as `:name`")
            }
        }
    }
}

impl Sql {
    /// Reads `source`, written with `:name`, for `dialect`.
    pub(crate) fn parse(source: &str, dialect: Dialect) -> Result<Self, SqlMistake> {
        let mut reader = SqlReader {
            source,
            at: 0,
            dialect,
            out: String::with_capacity(source.len()),
            bare: String::with_capacity(source.len()),
            places: Vec::new(),
        };
        reader.run()?;
        let verb: String = reader
            .out
            .trim_start_matches(|c: char| c.is_whitespace() || c == '(')
            .chars()
            .take_while(char::is_ascii_alphabetic)
            .collect();
        if reader.out.trim().is_empty() {
            return Err(SqlMistake::Empty);
        }
        let compact: String = reader.out.split_whitespace().collect();
        let bare = reader.bare.to_ascii_uppercase();
        let mut keywords = keywords(&bare);
        Ok(Self {
            returning: keywords.clone().any(|word| word == "RETURNING"),
            writes: keywords
                .find(|word| CHANGES.contains(word))
                .map(str::to_owned),
            escapes: compact.to_ascii_uppercase().contains("ESCAPE'!'"),
            verb: verb.to_ascii_uppercase(),
            text: reader.out.trim().to_owned(),
            places: reader.places,
        })
    }

    /// Whether it hands rows back, as a statement with RETURNING does.
    pub(crate) fn returns(&self) -> bool {
        self.reads() || self.returning
    }

    /// Whether it only reads, as far as its words tell: a `WITH` may end in a DELETE, and a SELECT
    /// go INTO a table.
    pub(crate) fn reads(&self) -> bool {
        let verb = matches!(self.verb.as_str(), "SELECT" | "WITH" | "VALUES" | "TABLE");
        verb && self.writes.is_none()
    }
}

/// Words of statements that change data; a MERGE says INTO. Not each dialect reserves each of them,
/// so that a name may be one: it is taken for a change until it stands in quotes or behind a dot.
const CHANGES: [&str; 4] = ["INSERT", "UPDATE", "DELETE", "INTO"];

/// The words that may be keywords: none behind a dot, where each is a name, and no `INSERT(…)`,
/// which is a function of MySQL.
fn keywords(bare: &str) -> impl Iterator<Item = &str> + Clone {
    let mut end = 0;
    let words = bare.split(|c: char| !is_word(c)).map(move |word| {
        let start = end;
        // Words are parted by one character, which is ASCII: whatever is not counts as part of a
        // word.
        end += word.len() + 1;
        (bare[..start].trim_end(), word, &bare[start + word.len()..])
    });
    words
        .filter(|(before, word, behind)| {
            let is_function = *word == "INSERT" && behind.trim_start().starts_with('(');
            let is_name = before.strip_suffix('.').is_some_and(|owner| {
                // Behind `1.` it is none: that is a number.
                let owner = owner.trim_end().rsplit(|c: char| !is_word(c)).next();
                !owner.is_some_and(|owner| owner.starts_with(|c: char| c.is_ascii_digit()))
            });
            !is_name && !is_function
        })
        .map(|(_, word, _)| word)
}

/// Copies the statement, leaving comments out and putting the dialect's signs in.
struct SqlReader<'a> {
    source: &'a str,
    at: usize,
    dialect: Dialect,
    out: String,
    /// The same with a `"` for whatever stands in quotes.
    bare: String,
    places: Vec<String>,
}

impl SqlReader<'_> {
    fn run(&mut self) -> Result<(), SqlMistake> {
        let mut ended = false;
        while let Some(next) = self.rest().chars().next() {
            let start = self.at;
            if self.comment()? {
                self.out.push(' ');
                self.bare.push(' ');
                continue;
            }
            if ended && !next.is_whitespace() && next != ';' {
                return Err(SqlMistake::SecondStatement);
            }
            match next {
                '\'' => self.quoted('\'', "a text", self.backslashes(start))?,
                '"' => {
                    self.quoted('"', "a name in quotes", self.dialect == Dialect::Mysql)?;
                }
                '`' if self.dialect != Dialect::Postgres => {
                    self.quoted('`', "a name in back-quotes", false)?;
                }
                '[' if self.dialect == Dialect::Sqlite => {
                    self.quoted(']', "a name in brackets", false)?;
                }
                '$' if self.dialect == Dialect::Postgres => self.dollar()?,
                ':' => self.colon(),
                '?' if self.dialect != Dialect::Postgres => {
                    return Err(SqlMistake::Positional('?'));
                }
                ';' => {
                    ended = true;
                    self.at += 1;
                }
                other => {
                    self.out.push(other);
                    self.bare.push(other);
                    self.at += other.len_utf8();
                    continue;
                }
            }
            // A quote, a sign or a colon parts two words; a dollar within a name does not.
            let dollar = next == '$' && self.at == start + 1;
            self.bare.push(if dollar { '$' } else { '"' });
        }
        Ok(())
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    /// Steps over a comment, if one begins here.
    fn comment(&mut self) -> Result<bool, SqlMistake> {
        let rest = self.rest();
        let mysql = self.dialect == Dialect::Mysql;
        // For MySQL, `5--1` is 5 less -1: its comments begin with a space behind the dashes.
        let dashes = rest
            .strip_prefix("--")
            .is_some_and(|behind| !mysql || behind.chars().next().is_none_or(parts_from_dashes));
        if dashes || (mysql && rest.starts_with('#')) {
            self.at += rest.find('\n').unwrap_or(rest.len());
            return Ok(true);
        }
        if !rest.starts_with("/*") {
            return Ok(false);
        }
        let nests = self.dialect == Dialect::Postgres;
        let mut depth = 1_usize;
        let mut end = 2;
        while depth > 0 {
            let tail = &rest[end..];
            let close = tail.find("*/").ok_or(SqlMistake::Unclosed("a comment"))?;
            match tail.find("/*").filter(|open| nests && *open < close) {
                Some(open) => {
                    depth += 1;
                    end += open + 2;
                }
                None => {
                    depth -= 1;
                    end += close + 2;
                }
            }
        }
        self.at += end;
        Ok(true)
    }

    /// Whether a backslash in the text that begins at `start` takes the next character's meaning
    /// away.
    fn backslashes(&self, start: usize) -> bool {
        match self.dialect {
            Dialect::Mysql => true,
            Dialect::Sqlite => false,
            Dialect::Postgres => {
                let before = &self.source[..start];
                let mut backwards = before.chars().rev();
                let marked = backwards.next().is_some_and(|c| c == 'E' || c == 'e');
                marked && !backwards.next().is_some_and(is_name)
            }
        }
    }

    fn quoted(&mut self, quote: char, what: &'static str, escapes: bool) -> Result<(), SqlMistake> {
        let rest = &self.source[self.at..];
        let mut chars = rest.char_indices().skip(1);
        while let Some((index, c)) = chars.next() {
            if escapes && c == '\\' {
                chars.next();
            } else if c == quote {
                // A doubled quote closes and opens again, which copies the same.
                let end = index + c.len_utf8();
                self.out.push_str(&rest[..end]);
                self.at += end;
                return Ok(());
            }
        }
        Err(SqlMistake::Unclosed(what))
    }

    /// `$tag$ … $tag$` is a text, `$1` a parameter, and `a$b` a name.
    fn dollar(&mut self) -> Result<(), SqlMistake> {
        let rest = &self.source[self.at..];
        let inside_name = self.source[..self.at]
            .chars()
            .next_back()
            .is_some_and(is_name);
        let tag = rest[1..].find('$').map(|end| &rest[..end + 2]);
        let is_tag = |tag: &&str| {
            let name = &tag[1..tag.len() - 1];
            name.chars().all(is_name) && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        if let Some(tag) = tag.filter(|tag| !inside_name && is_tag(tag)) {
            let close = rest[tag.len()..]
                .find(tag)
                .ok_or(SqlMistake::Unclosed("a text in dollars"))?;
            let end = tag.len() + close + tag.len();
            self.out.push_str(&rest[..end]);
            self.at += end;
            return Ok(());
        }
        if !inside_name && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
            return Err(SqlMistake::Positional('$'));
        }
        self.out.push('$');
        self.at += 1;
        Ok(())
    }

    /// `:name` is a parameter; `::type`, `:=` and `a[1:2]` are not.
    fn colon(&mut self) {
        let rest = &self.source[self.at..];
        if rest.starts_with("::") {
            self.out.push_str("::");
            self.at += 2;
            return;
        }
        let name: String = rest[1..].chars().take_while(|c| is_name(*c)).collect();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            self.out.push(':');
            self.at += 1;
            return;
        }
        self.at += 1 + name.len();
        self.places.push(name);
        match self.dialect {
            Dialect::Postgres => {
                self.out.push('$');
                self.out.push_str(&self.places.len().to_string());
            }
            _ => self.out.push('?'),
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Whether it may be part of a word in some dialect.
fn is_word(c: char) -> bool {
    is_name(c) || c == '$' || !c.is_ascii()
}

fn parts_from_dashes(c: char) -> bool {
    c.is_ascii_whitespace() || c.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(source: &str, dialect: Dialect) -> String {
        Sql::parse(source, dialect).unwrap().text
    }

    #[test]
    fn names_become_the_dialects_own_signs_in_order() {
        let source = "SELECT a FROM t WHERE b = :b AND (c = :c OR d = :b)";
        let sqlite = Sql::parse(source, Dialect::Sqlite).unwrap();
        assert_eq!(
            sqlite.text,
            "SELECT a FROM t WHERE b = ? AND (c = ? OR d = ?)"
        );
        assert_eq!(sqlite.places, ["b", "c", "b"]);
        assert_eq!(
            text(source, Dialect::Postgres),
            "SELECT a FROM t WHERE b = $1 AND (c = $2 OR d = $3)"
        );
    }

    #[test]
    fn text_comments_and_casts_hold_no_parameters() {
        for (source, dialect) in [
            ("SELECT ':a', \":b\", 'it''s :c'", Dialect::Sqlite),
            ("SELECT `:a`, '\\' :b', \"\\\" :c\"", Dialect::Mysql),
            (
                "SELECT $$ :a $$, $x$ :b $$ $x$, E'\\' :c', 'a\\'",
                Dialect::Postgres,
            ),
            ("SELECT a::text, b[1:2], c$d", Dialect::Postgres),
        ] {
            let sql = Sql::parse(source, dialect).unwrap();
            assert_eq!(sql.text, source);
            assert_eq!(sql.places, Vec::<String>::new(), "{source}");
        }
        assert_eq!(
            text("SELECT 1 -- :a ?\n, 2 /* :b ? */", Dialect::Sqlite),
            "SELECT 1  \n, 2"
        );
        assert_eq!(text("SELECT 1 # it's :a\n", Dialect::Mysql), "SELECT 1");
        let less = "SELECT 5--1, 2 FROM t WHERE b = 3";
        assert_eq!(text(less, Dialect::Mysql), less);
        assert_eq!(
            text("SELECT 5 -- 1\n, 2 --", Dialect::Mysql),
            "SELECT 5  \n, 2"
        );
        assert_eq!(text(less, Dialect::Sqlite), "SELECT 5");
        assert_eq!(
            text("SELECT /* a /* b */ :c */ 1", Dialect::Postgres),
            "SELECT   1"
        );
    }

    #[test]
    fn what_cannot_be_prepared_is_named() {
        let refused = |source, dialect| Sql::parse(source, dialect).unwrap_err();
        assert_eq!(refused(" -- nothing", Dialect::Sqlite), SqlMistake::Empty);
        assert_eq!(
            refused("SELECT 1; DROP TABLE t", Dialect::Sqlite),
            SqlMistake::SecondStatement
        );
        assert_eq!(
            refused("SELECT ?", Dialect::Sqlite),
            SqlMistake::Positional('?')
        );
        assert_eq!(
            refused("SELECT $1", Dialect::Postgres),
            SqlMistake::Positional('$')
        );
        for source in ["SELECT 'a", "SELECT /* a", "SELECT \"a"] {
            assert!(matches!(
                refused(source, Dialect::Sqlite),
                SqlMistake::Unclosed(_)
            ));
        }
        assert!(Sql::parse("SELECT 1; -- the end", Dialect::Sqlite).is_ok());
        assert!(Sql::parse("SELECT a ? 'b' FROM t", Dialect::Postgres).is_ok());
    }

    #[test]
    fn the_first_word_tells_a_read_from_a_write() {
        assert!(
            Sql::parse("/* x */ (select 1)", Dialect::Sqlite)
                .unwrap()
                .reads()
        );
        assert!(
            !Sql::parse("DELETE FROM t", Dialect::Sqlite)
                .unwrap()
                .reads()
        );
    }

    #[test]
    fn a_change_behind_with_or_into_is_no_read_and_words_in_quotes_change_nothing() {
        let sql = |source| Sql::parse(source, Dialect::Sqlite).unwrap();
        for writes in [
            "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d",
            "WITH t AS (SELECT 1) update u SET a = 1",
            "SELECT a INTO b FROM t",
            "WITH t AS (SELECT 1) INSERT INTO u SELECT * FROM t",
        ] {
            assert!(!sql(writes).reads(), "{writes}");
        }
        for reads in [
            "WITH t AS (SELECT 1) SELECT * FROM t",
            "SELECT 'delete', \"update\", updated_at, replace(a, 'x', 'y') FROM t -- insert",
            "SELECT p.update, p . delete, \"p\".insert, p1.into, merge FROM t p",
            "SELECT insert('abc', 1, 1, 'x'), a$update, été_delete, éinsert",
        ] {
            for dialect in [Dialect::Sqlite, Dialect::Mysql, Dialect::Postgres] {
                let sql = Sql::parse(reads, dialect).unwrap();
                assert!(sql.reads(), "{reads} {:?}", sql.writes);
            }
        }
        assert!(sql("SELECT [into], [a:b] FROM t").reads());
        for writes in [
            "WITH t AS (SELECT 1) INSERT `t` (a) SELECT 1",
            "SELECT 1. INTO t",
            "WITH t AS (SELECT 1) MERGE INTO u USING t ON true WHEN MATCHED THEN DO NOTHING",
        ] {
            let sql = Sql::parse(writes, Dialect::Mysql).unwrap();
            assert!(!sql.reads(), "{writes}");
        }
        assert!(!sql("UPDATE t SET state = 'returning'").returns());
        assert!(!sql("WITH x AS (SELECT 1) UPDATE t SET a = 1").returns());
        assert!(sql("WITH x AS (SELECT 1) UPDATE t SET a = 1 RETURNING id").returns());
    }

    proptest! {
        #[test]
        fn no_text_panics_and_signs_match_places(source in "[ a:'\"`$1?;/*#\\-\\\\E\\né]{0,40}") {
            for dialect in [Dialect::Sqlite, Dialect::Mysql, Dialect::Postgres] {
                if let Ok(sql) = Sql::parse(&source, dialect) {
                    prop_assert!(sql.places.len() <= source.matches(':').count());
                }
            }
        }
    }
}
