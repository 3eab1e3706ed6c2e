//! The names of everything the cache keeps in Redis.
//!
//! The key stands in braces, so that a cluster puts a value and its lease, which one script touches, on one node.

/// Makes names within one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    namespace: Box<str>,
}

impl Names {
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
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

    pub(crate) fn epoch(&self) -> Vec<u8> {
        self.join(&[b":epoch"])
    }

    pub(crate) fn watermark(&self) -> Vec<u8> {
        self.join(&[b":watermark"])
    }

    pub(crate) fn channel(&self) -> Vec<u8> {
        self.join(&[b":inv"])
    }

    /// A channel on which a process hears only itself.
    pub(crate) fn own_channel(&self, id: &str) -> Vec<u8> {
        self.join(&[b":inv:", id.as_bytes()])
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
