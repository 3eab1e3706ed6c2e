//! The rights of each role, in one table, so that the code, the description of the interface and
//! the manual cannot say different things: all three are held against [`RULES`] by tests. What the
//! table does not name is refused.

use axum::http::Method;
use serde::Serialize;

/// A set of rights. Each role may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Reads: queries, state, history, events, metrics, drills and their reports.
    Viewer,
    /// Changes data by statements; starts and stops drills.
    Operator,
    /// Sees the configuration in force.
    Admin,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Returns the name as it stands in tokens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The method; HEAD goes with GET.
    pub method: &'static str,
    /// The path as it is routed.
    pub path: &'static str,
    /// The least role that may; `None`: anyone, without a token.
    pub needs: Option<Role>,
    /// Whether it is written to the audit log also when it is allowed.
    pub audited: bool,
}

const fn rule(method: &'static str, path: &'static str, needs: Option<Role>) -> Rule {
    let audited =
        !matches!(method.as_bytes(), b"GET" | b"OPTIONS") || matches!(needs, Some(Role::Admin));
    Rule {
        method,
        path,
        needs,
        audited,
    }
}

const ANYONE: Option<Role> = None;
const VIEWER: Option<Role> = Some(Role::Viewer);
const OPERATOR: Option<Role> = Some(Role::Operator);
const ADMIN: Option<Role> = Some(Role::Admin);

/// Every address and what it takes.
pub const RULES: &[Rule] = &[
    rule("GET", "/", ANYONE),
    rule("OPTIONS", "/", ANYONE),
    rule("GET", "/assets/{*path}", ANYONE),
    rule("GET", "/docs", ANYONE),
    rule("GET", "/docs/{*path}", ANYONE),
    rule("GET", "/health", ANYONE),
    rule("GET", "/health/live", ANYONE),
    rule("GET", "/health/ready", ANYONE),
    rule("GET", "/metrics", VIEWER),
    rule("GET", "/openapi.json", VIEWER),
    rule("GET", "/v1/drills", VIEWER),
    rule("POST", "/v1/drills", OPERATOR),
    rule("GET", "/v1/drills/{id}", VIEWER),
    rule("DELETE", "/v1/drills/{id}", OPERATOR),
    rule("GET", "/v1/drills/{id}/events", VIEWER),
    rule("GET", "/v1/drills/{id}/report", VIEWER),
    rule("GET", "/v1/events", VIEWER),
    rule("GET", "/v1/history", VIEWER),
    rule("GET", "/v1/minutes", VIEWER),
    rule("GET", "/v1/queries/{name}", VIEWER),
    rule("GET", "/v1/settings", ADMIN),
    rule("POST", "/v1/statements/{name}", OPERATOR),
    rule("GET", "/v1/status", VIEWER),
];

/// The rule for a request, if the table has one.
#[must_use]
pub fn rule_for(method: &Method, path: &str) -> Option<&'static Rule> {
    let method = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    RULES
        .iter()
        .find(|rule| rule.method == method.as_str() && rule.path == path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s6_each_role_may_do_what_those_before_it_may() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
        for role in Role::ALL {
            assert_eq!(Role::of_name(role.name()), Some(role));
        }
        assert_eq!(Role::of_name("root"), None);
        assert_eq!(Role::of_name("Admin"), None);
    }

    #[test]
    fn s6_every_route_of_the_router_has_a_rule() {
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let router = include_str!("router.rs").lines().filter(is_code);
        let router = router.collect::<Vec<_>>().join("\n");
        let mut routes = 0;
        for line in router.split(".route(").skip(1) {
            let path = line.split('"').nth(1).unwrap();
            routes += 1;
            for (call, method) in [
                ("get(", "GET"),
                ("post(", "POST"),
                ("delete(", "DELETE"),
                ("options(", "OPTIONS"),
            ] {
                if line.split('\n').next().unwrap().contains(call) {
                    let found = RULES
                        .iter()
                        .any(|rule| rule.path == path && rule.method == method);
                    assert!(found, "{method} {path} has no rule");
                }
            }
        }
        assert!(routes > 10, "the router is written otherwise: {routes}");
        for rule in RULES {
            assert!(
                router.contains(&format!("\"{}\"", rule.path)),
                "{} is routed nowhere",
                rule.path
            );
        }
    }

    #[test]
    fn s6_the_manual_says_what_the_table_says() {
        let manual = include_str!("../../../docs/security.md");
        for rule in RULES {
            let needs = rule.needs.map_or("anyone", Role::name);
            let row = format!("| `{} {}` | {needs} |", rule.method, rule.path);
            assert!(manual.contains(&row), "docs/security.md lacks: {row}");
        }
        let rows = manual
            .lines()
            .filter(|line| {
                line.starts_with("| `GET ")
                    || line.starts_with("| `POST ")
                    || line.starts_with("| `OPTIONS ")
                    || line.starts_with("| `DELETE ")
            })
            .count();
        assert_eq!(rows, RULES.len(), "docs/security.md has rows of its own");
    }

    #[test]
    fn s6_what_the_table_does_not_name_has_no_rule() {
        assert!(rule_for(&Method::HEAD, "/v1/status").is_some());
        assert!(rule_for(&Method::DELETE, "/v1/status").is_none());
        assert!(rule_for(&Method::GET, "/v1/new").is_none());
    }
}
