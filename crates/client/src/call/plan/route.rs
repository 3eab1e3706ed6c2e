//! The connection that serves a call, by its keys.

use steadfast_core::command::{self, Class};
use steadfast_core::redis_rs::CommandRef;
use steadfast_core::split::Portion;

use crate::link::crossing::LinkSet;

/// The connection that serves a call, and those that its keys belong to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Route {
    pub(crate) link: usize,
    pub(crate) links: LinkSet,
    /// Whether the keys belong to several connections, or are not all known.
    pub(crate) crosses: bool,
}

/// Finds the route of commands that go together.
#[derive(Default)]
pub(super) struct Router {
    first: Option<usize>,
    links: LinkSet,
    crosses: bool,
}

impl Router {
    pub(super) fn add<'a>(
        self,
        cmd: impl Into<CommandRef<'a>>,
        class: &Class,
        links: usize,
    ) -> Self {
        if links == 1 {
            return self;
        }
        self.add_arguments(command::arguments(cmd), class, links)
    }

    fn add_arguments<'a>(
        mut self,
        arguments: impl Iterator<Item = &'a [u8]> + Clone,
        class: &Class,
        links: usize,
    ) -> Self {
        if command::reaches_further(class) {
            self.links = LinkSet::ALL;
            self.crosses = true;
        }
        for key in command::key_names(arguments) {
            let link = link_of_key(key, links);
            self.links = self.links.with(link);
            self.crosses |= *self.first.get_or_insert(link) != link;
        }
        self
    }

    /// A key always takes the same connection; commands without keys, and those that cross, take
    /// the first.
    pub(super) fn route(self) -> Route {
        let link = self.first.filter(|_| !self.crosses).unwrap_or(0);
        Route {
            link,
            links: self.links.with(link),
            crosses: self.crosses,
        }
    }
}

/// Returns the connection of a key: always the same one, so that its commands keep their order.
/// Keys with the same hash tag (`{…}`) go together, as in a cluster.
pub(super) fn link_of_key(key: &[u8], links: usize) -> usize {
    let tag = hash_tag(key);
    // FNV-1a: short, spreads well enough over a handful of connections.
    let hash = tag.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % links as u64) as usize
}

pub(super) fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        Some(length) if length > 0 => &key[open + 1..open + 1 + length],
        _ => key,
    }
}

/// The route of what goes to one node together.
pub(super) fn route_of(portions: &[Portion<'_>], links: usize) -> Route {
    let mut router = Router::default();
    if links > 1 {
        for portion in portions {
            let arguments = portion.arguments().into_iter();
            router = router.add_arguments(arguments, &portion.classify(), links);
        }
    }
    router.route()
}
