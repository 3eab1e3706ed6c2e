//! Where the addresses that sentinels and nodes of a cluster announce can be reached.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::section::Section;

/// Addresses as they are announced, each with the one that it stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressMap(BTreeMap<AnnouncedPlace, AnnouncedPlace>);

/// A host, of one port or of whatever port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct AnnouncedPlace {
    host: String,
    port: Option<u16>,
}

impl AddressMap {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let mut map = BTreeMap::new();
        for announced in section.keys() {
            let Some(reached) = section.string(&announced) else {
                continue;
            };
            let refuse = |message: &str| {
                let mistake = section.mistake(&announced, message);
                section.refuse(mistake.help(
                    "write \"10.0.0.5:6379\" = \"redis-a.example:6379\", or both without a port",
                ));
            };
            match (
                AnnouncedPlace::parse(&announced),
                AnnouncedPlace::parse(&reached),
            ) {
                (None, _) => refuse("is announced by nobody: it is no host, and no host and port"),
                (_, None) => refuse("stands for what is no host, and no host and port"),
                (Some(from), Some(to)) if from.port.is_some() != to.port.is_some() => {
                    refuse("must have a port on both sides, or on neither");
                }
                (Some(from), Some(to)) => match map.get(&from) {
                    // In another case, or written in another way.
                    Some(other) if *other != to => {
                        refuse("is given twice, and stands for two addresses");
                    }
                    _ => {
                        map.insert(from, to);
                    }
                },
            }
        }
        Self(map)
    }

    /// Returns whether nothing is translated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the address that the announced one stands for; the same if none is given for it.
    #[must_use]
    pub fn translate(&self, host: &str, port: u16) -> (String, u16) {
        let place = |port| AnnouncedPlace {
            host: host.to_ascii_lowercase(),
            port,
        };
        let found = self.0.get(&place(Some(port)));
        match found.or_else(|| self.0.get(&place(None))) {
            Some(to) => (to.host.clone(), to.port.unwrap_or(port)),
            None => (host.to_owned(), port),
        }
    }
}

impl Serialize for AddressMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = self.0.iter();
        serializer.collect_map(shown.map(|(from, to)| (from.to_string(), to.to_string())))
    }
}

impl AnnouncedPlace {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (
                    host,
                    rest.strip_prefix(':').or(rest.is_empty().then_some(""))?,
                )
            }
            // Several colons and no brackets: an IPv6 address without a port.
            None if text.matches(':').count() > 1 => (text, ""),
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        let port = match port {
            "" if text.ends_with(':') && !text.contains("::") => return None,
            "" => None,
            digits => Some(digits.parse().ok().filter(|port| *port != 0)?),
        };
        let is_host = !host.is_empty() && host.len() < 256 && host.chars().all(plain);
        is_host.then(|| Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

impl fmt::Display for AnnouncedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}
