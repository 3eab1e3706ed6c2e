//! The answer to: is Redis well, and how quick is it?

use std::time::Duration;

use redis::Value;

use crate::client::Client;
use crate::clock;
use crate::options::CallOptions;
use crate::wire::words::own_version;

/// The result of a health check. Fields that the server's ACL does not let us see are absent.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Health {
    /// Whether it answered a PING in time.
    pub healthy: bool,
    /// The time that the PING took, in milliseconds.
    pub latency_ms: Option<f64>,
    /// The result in one line, for a person.
    pub message: String,
    /// `master` or `slave`, as Redis words it.
    pub role: Option<String>,
    /// The server's version; its own where it says which version of Redis it is compatible with
    /// besides (Valkey).
    pub version: Option<String>,
    /// Clients connected to the server.
    pub clients: Option<u64>,
    /// Memory that the server uses, in bytes.
    pub memory_bytes: Option<u64>,
}

impl Client {
    /// Pings the server, then asks what it says of itself. Takes `timeout` at most, and never
    /// fails: what went wrong is the message.
    pub async fn health(&self, timeout: Duration) -> Health {
        let began = clock::now();
        let scoped = self.with(CallOptions::new().deadline(timeout));
        let mut health = Health {
            healthy: false,
            latency_ms: None,
            message: String::new(),
            role: None,
            version: None,
            clients: None,
            memory_bytes: None,
        };
        match scoped.send(&redis::cmd("PING")).await {
            Ok(_) => {
                let took = clock::now().saturating_duration_since(began);
                health.healthy = true;
                health.latency_ms = Some(clock::as_ms(took));
                health.message = "redis answers".into();
            }
            Err(error) => {
                health.message = error.to_string();
                return health;
            }
        }
        let left = timeout.saturating_sub(clock::now().saturating_duration_since(began));
        let scoped = self.with(CallOptions::new().deadline(left));
        if let Ok(info) = scoped.send(&redis::cmd("INFO")).await {
            health.read(&text(&info));
        }
        health
    }
}

impl Health {
    fn read(&mut self, info: &str) {
        self.version = own_version(info);
        for line in info.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            match name {
                "role" => self.role = Some(value.to_owned()),
                "connected_clients" => self.clients = value.parse().ok(),
                "used_memory" => self.memory_bytes = value.parse().ok(),
                _ => {}
            }
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c14_a_server_is_known_by_its_own_version_not_by_that_which_it_is_compatible_with() {
        let redis = "redis_version:7.0.15\r\nredis_mode:standalone\r\n";
        let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n";
        let renamed = "other_version:3\r\nserver_name:other\r\nredis_version:7.2.4\r\n";
        let nameless = "valkey_version:8.0.0\r\nredis_version:7.2.4\r\n";
        let unversioned = "server_name:other\r\nredis_version:7.2.4\r\n";
        for (info, version) in [
            (redis, Some("7.0.15")),
            (valkey, Some("8.1.1")),
            (renamed, Some("3")),
            (nameless, Some("8.0.0")),
            (unversioned, Some("7.2.4")),
            ("role:master\r\n", None),
        ] {
            let mut health = Health {
                healthy: true,
                latency_ms: None,
                message: String::new(),
                role: None,
                version: None,
                clients: None,
                memory_bytes: None,
            };
            health.read(info);
            assert_eq!(health.version.as_deref(), version, "{info}");
        }
    }
}
