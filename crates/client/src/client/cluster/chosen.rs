//! A node that the caller has chosen by its address.

use std::sync::Arc;
use std::time::Instant;

use steadfast_core::conn::Reply;
use steadfast_core::node::Endpoint;
use steadfast_core::topology::Trigger;

use super::limits::Limits;
use super::node::Node;
use super::{Aim, Cluster};
use crate::call::plan::{Payload, Plan};
use crate::error::{Error, ErrorKind};
use crate::options::CallOptions;

/// The most addresses that an error names.
const NAMED: usize = 16;

impl Cluster {
    /// Makes a call to the node at this address, whoever that is now.
    pub(crate) async fn call_at(
        &self,
        address: &str,
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let node = self.chosen(address, limits.deadline).await?;
        let times = limits.of_attempt(0);
        self.writes.note(payload, false);
        let answer = node.attempt(payload, plan, options, times).await;
        self.writes.note(payload, true);
        answer.map_err(|error| node.blame(error))
    }

    async fn chosen(&self, address: &str, deadline: Instant) -> Result<Arc<Node>, Error> {
        let heard = self.known.lock().heard;
        if heard.is_none() {
            // Nobody is known yet.
            self.reach(self.any_slot(), &Aim::Owner, &Limits::until(deadline))
                .await?;
        }
        let node = match self.find_named(address) {
            Some((number, true)) => self.node(number)?,
            Some((number, false)) => self.replica(number)?,
            None => None,
        };
        node.ok_or_else(|| {
            // It may have joined since.
            self.trigger(Trigger::Doubt);
            Error::not_sent(ErrorKind::UnknownNode {
                asked: address.into(),
                known: self.members_in_words().into(),
            })
        })
    }

    /// The place of the member at an address, as it is dialled or as it is announced, and whether
    /// it is a primary.
    fn find_named(&self, address: &str) -> Option<(u16, bool)> {
        let asked = endpoint(address)?;
        let translated = self.settings().translation.of(asked.clone());
        let known = self.known.lock();
        let by_hostname = || {
            let mut members = known.topology.members();
            members.find_map(|(index, member)| {
                let port = member.endpoint.as_ref()?.port;
                let named = member.hostname.as_ref() == Some(&asked.host) && port == asked.port;
                (named && member.is_present).then_some(index)
            })
        };
        let index = (known.topology.find_at(&asked))
            .or_else(|| known.topology.find_at(&translated))
            .or_else(by_hostname)?;
        let member = known.topology.member(index);
        member
            .is_present
            .then(|| (index.number(), member.is_primary))
    }

    fn members_in_words(&self) -> String {
        let known = self.known.lock();
        let members = known.topology.members();
        let mut named: Vec<String> = members
            .filter(|(_, member)| member.is_present)
            .filter_map(|(_, member)| member.endpoint.as_ref().map(ToString::to_string))
            .collect();
        named.sort_unstable();
        if named.len() > NAMED {
            let more = named.len() - NAMED;
            named.truncate(NAMED);
            named.push(format!("and {more} more"));
        }
        named.join(", ")
    }
}

/// Reads `host:port`, with an IPv6 address in brackets.
fn endpoint(address: &str) -> Option<Endpoint> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Some(Endpoint::new(host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t12_an_address_is_read_as_it_is_told() {
        for (text, host, port) in [
            ("10.0.0.1:6379", "10.0.0.1", 6379),
            ("[::1]:7000", "::1", 7000),
            ("node.internal:1", "node.internal", 1),
        ] {
            let read = endpoint(text).expect(text);
            assert_eq!((&*read.host, read.port), (host, port));
            assert_eq!(read.to_string(), text);
        }
        for text in ["", "host", "host:", "host:70000"] {
            assert_eq!(endpoint(text), None, "{text}");
        }
    }
}
