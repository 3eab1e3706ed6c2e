//! The names of everything the cache keeps in Redis.
//!
//! The key stands in braces, so that a cluster puts a value and its lease, which one script
//! touches, on one node.

/// Makes names within one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    namespace: Box<str>,
    epoch: Box<[u8]>,
    watermark: Box<[u8]>,
    recent: [Box<[u8]>; 2],
}

impl Names {
    pub(crate) fn new(namespace: &str) -> Self {
        let name = |end: &str| format!("{namespace}:{end}").into_bytes().into();
        Self {
            namespace: namespace.into(),
            epoch: name("epoch"),
            watermark: name("watermark"),
            recent: [name("recent:0"), name("recent:1")],
        }
    }

    pub(crate) fn value(&self, epoch: &str, key: &[u8]) -> Vec<u8> {
        self.join(&[b":v:", epoch.as_bytes(), b":{", key, b"}"])
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

    /// The two logs of names that were invalidated lately, which take turns.
    pub(crate) fn recent(&self) -> [&[u8]; 2] {
        let [one, other] = &self.recent;
        [one, other]
    }

    /// How the log calls a key.
    pub(crate) fn logged_key(key: &[u8]) -> Vec<u8> {
        [b"k".as_slice(), key].concat()
    }

    /// How the log calls a tag.
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
            self.namespace.len() + parts.iter().map(|part| part.len()).sum::<usize>(),
        );
        name.extend_from_slice(self.namespace.as_bytes());
        parts.iter().for_each(|part| name.extend_from_slice(part));
        name
    }
}
