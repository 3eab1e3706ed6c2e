//! The names of everything the cache keeps in Redis.
//!
//! Every question of a read names the epoch and the watermark beside the value, and a script that
//! invalidates names whatever it likes of the namespace. In a cluster all of it has to lie in one
//! slot, so there the namespace stands in braces: it is the hash tag of every name, and the cache
//! lives on one shard.

/// Makes names within one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The beginning of every name.
    beginning: Box<str>,
    epoch: Box<[u8]>,
    watermark: Box<[u8]>,
    delivery: Box<[u8]>,
    recent: [Box<[u8]>; 2],
    in_one_slot: bool,
}

impl Names {
    /// Names on one server, or in one slot of a cluster.
    pub(crate) fn new(namespace: &str, in_one_slot: bool) -> Self {
        let beginning = match in_one_slot {
            true => format!("{{{namespace}}}"),
            false => namespace.to_owned(),
        };
        let name = |end: &str| format!("{beginning}:{end}").into_bytes().into();
        Self {
            epoch: name("epoch"),
            watermark: name("watermark"),
            delivery: name("delivery"),
            recent: [name("recent:0"), name("recent:1")],
            beginning: beginning.into(),
            in_one_slot,
        }
    }

    /// Whether they lie in one slot of a cluster. Then channels are those of that slot's shard.
    pub(crate) fn are_in_one_slot(&self) -> bool {
        self.in_one_slot
    }

    /// Returns the command that publishes on their channels.
    pub(crate) fn publish(&self) -> &'static str {
        match self.in_one_slot {
            true => "SPUBLISH",
            false => "PUBLISH",
        }
    }

    pub(crate) fn value(&self, epoch: &str, key: &[u8]) -> Vec<u8> {
        self.join(&[b":v:", epoch.as_bytes(), b":{", key, b"}"])
    }

    /// Appends the name of a value.
    pub(crate) fn add_value(&self, epoch: &str, key: &[u8], out: &mut Vec<u8>) {
        self.join_to(out, &[b":v:", epoch.as_bytes(), b":{", key, b"}"]);
    }

    pub(crate) fn lease(&self, epoch: &str, key: &[u8]) -> Vec<u8> {
        self.join(&[b":l:", epoch.as_bytes(), b":{", key, b"}"])
    }

    pub(crate) fn tag(&self, tag: &[u8]) -> Vec<u8> {
        self.join(&[b":t:", tag])
    }

    pub(crate) fn epoch(&self) -> &[u8] {
        &self.epoch
    }

    pub(crate) fn watermark(&self) -> &[u8] {
        &self.watermark
    }

    /// The record of the last delivery from the outbox.
    pub(crate) fn delivery(&self) -> &[u8] {
        &self.delivery
    }

    /// The two logs of names that were invalidated lately, which take turns.
    pub(crate) fn recent(&self) -> [&[u8]; 2] {
        let [one, other] = &self.recent;
        [one, other]
    }

    /// Returns the name of a key in the log.
    pub(crate) fn logged_key(key: &[u8]) -> Vec<u8> {
        [b"k".as_slice(), key].concat()
    }

    /// Returns the name of a tag in the log.
    pub(crate) fn logged_tag(tag: &[u8]) -> Vec<u8> {
        [b"t".as_slice(), tag].concat()
    }

    pub(crate) fn channel(&self) -> Vec<u8> {
        self.join(&[b":inv"])
    }

    /// A channel on which a process hears only itself.
    pub(crate) fn own_channel(&self, id: &str) -> Vec<u8> {
        self.join(&[b":inv:", id.as_bytes()])
    }

    /// A channel on which the processes of a database are found to be there; without a number, how
    /// all of them begin.
    pub(crate) fn presence(&self, database: &str) -> Vec<u8> {
        self.join(&[b":inv:of:", database.as_bytes()])
    }

    fn join(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut name = Vec::with_capacity(
            self.beginning.len() + parts.iter().map(|part| part.len()).sum::<usize>(),
        );
        self.join_to(&mut name, parts);
        name
    }

    fn join_to(&self, out: &mut Vec<u8>, parts: &[&[u8]]) {
        out.extend_from_slice(self.beginning.as_bytes());
        parts.iter().for_each(|part| out.extend_from_slice(part));
    }
}

#[cfg(test)]
mod tests {
    use steadfast_core::slot::Slot;

    use super::*;

    fn all(names: &Names) -> Vec<Vec<u8>> {
        let mut all = vec![
            names.epoch().to_vec(),
            names.watermark().to_vec(),
            names.delivery().to_vec(),
            names.value("e1", b"a{b}"),
            names.lease("e1", b"a{b}"),
            names.tag(b"{t}"),
            names.channel(),
            names.own_channel("7"),
            names.presence("8"),
        ];
        all.extend(names.recent().map(<[u8]>::to_vec));
        all
    }

    #[test]
    fn k6_in_a_cluster_all_names_of_a_namespace_lie_in_one_slot() {
        let names = Names::new("shop", true);
        let slots = all(&names).into_iter().map(|name| Slot::of_key(&name));
        let slots: std::collections::BTreeSet<_> = slots.map(Slot::number).collect();
        assert_eq!(slots.len(), 1);
        assert_eq!(names.epoch(), b"{shop}:epoch");
    }

    #[test]
    fn k6_on_one_server_names_are_those_of_earlier_versions() {
        let names = Names::new("shop", false);
        assert_eq!(names.value("e1", b"a"), b"shop:v:e1:{a}");
        assert_eq!(names.channel(), b"shop:inv");
    }
}
