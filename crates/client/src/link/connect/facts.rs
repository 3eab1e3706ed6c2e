//! A server's word about itself while it is greeted.

use std::sync::Arc;

use redis::Value;
use steadfast_core::report::ServerMode;

use super::Location;
use crate::target::Protocol;
use crate::wire::identity::Identity;
use crate::wire::words::{info_field, own_version, text};

/// The facts that a server told of itself.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) address: String,
    /// The address at which it was found.
    pub(crate) place: Option<Location>,
    /// The primary's time of office in which it was looked for, where sentinels name it; else 0.
    pub(crate) term: u64,
    pub(crate) version: String,
    pub(crate) role: String,
    /// `standalone`, `cluster` or `sentinel`, where it says so.
    pub(crate) mode: Option<ServerMode>,
    /// The protocol that is spoken: RESP2 where RESP3 was asked for, if the server is too old for
    /// it.
    pub(crate) protocol: Protocol,
    pub(crate) tls: Option<String>,
    pub(crate) identity: Option<Identity>,
    /// The name of the server process, until it is restarted; `None` where the ACL does not allow
    /// INFO.
    pub(crate) run_id: Option<Arc<str>>,
    /// Whether this user may kill connections, and if not, why.
    pub(crate) fencing: Result<(), String>,
}

impl Default for ServerFacts {
    fn default() -> Self {
        Self {
            address: String::new(),
            place: None,
            term: 0,
            version: String::new(),
            role: String::new(),
            mode: None,
            protocol: Protocol::Resp2,
            tls: None,
            identity: None,
            run_id: None,
            fencing: Ok(()),
        }
    }
}

pub(super) fn read_hello(hello: &Value, facts: &mut ServerFacts) {
    let pairs: Vec<(&Value, &Value)> = match hello {
        Value::Map(pairs) => pairs.iter().map(|(key, value)| (key, value)).collect(),
        Value::Array(items) => items
            .chunks_exact(2)
            .map(|pair| (&pair[0], &pair[1]))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in pairs {
        match text(key).as_str() {
            "version" => facts.version = text(value),
            "role" => facts.role = text(value),
            "mode" => facts.mode = ServerMode::read(&text(value)),
            _ => {}
        }
    }
}

/// The role as ROLE tells it; where that is not allowed, as INFO does. Where neither is, it cannot
/// be known and stays `unknown`.
pub(super) fn read_role(role: &Value, info: &Value, facts: &mut ServerFacts) {
    let info = text(info);
    facts.version = own_version(&info).unwrap_or_default();
    facts.mode = info_field(&info, "redis_mode").and_then(|mode| ServerMode::read(&mode));
    facts.role = match role {
        Value::Array(parts) => parts.first().map(text),
        _ => info_field(&info, "role"),
    }
    .unwrap_or_else(|| "unknown".into());
}

pub(super) fn parse_identity(info: &str, run_id: Option<Arc<str>>) -> Option<Identity> {
    let field = |name: &str| {
        info.split_whitespace()
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Identity {
        id: field("id")?.parse().ok()?,
        addr: field("addr")?.to_owned(),
        run_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error reply")
    }

    #[test]
    fn c8_a_role_is_known_from_whichever_question_is_allowed() {
        let role = Value::Array(vec![Value::BulkString(b"slave".to_vec())]);
        let info = Value::BulkString(b"redis_version:5.0.7\r\nrole:master\r\n".to_vec());
        let no = error("NOPERM this user has no permissions");
        for (role, info, want) in [
            (&role, &no, ("slave", "")),
            (&no, &info, ("master", "5.0.7")),
            (&no, &no, ("unknown", "")),
        ] {
            let mut facts = ServerFacts::default();
            read_role(role, info, &mut facts);
            assert_eq!((facts.role.as_str(), facts.version.as_str()), want);
        }
    }

    #[test]
    fn an_identity_is_read_from_client_info() {
        let info = "id=7 addr=127.0.0.1:5 laddr=127.0.0.1:6379 fd=8 name=";
        let identity = parse_identity(info, Some("one run".into())).expect("it has both");
        assert_eq!(identity.id, 7);
        assert_eq!(identity.addr, "127.0.0.1:5");
        assert!(!identity.is_elsewhere(Some("one run")) && !identity.is_elsewhere(None));
        assert!(identity.is_elsewhere(Some("another")));
    }
}
