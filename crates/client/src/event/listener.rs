//! For tests of what is done while a line of the log is written: by whoever writes it slowly, or
//! asks the client something each time.

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber};

/// Does something at each line that is told in this thread, until it is dropped.
pub(crate) fn listen(act: impl Fn() + Send + Sync + 'static) -> DefaultGuard {
    tracing::subscriber::set_default(Listener(act))
}

struct Listener<F>(F);

impl<F: Fn() + Send + Sync + 'static> Subscriber for Listener<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("steadfast")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        (self.0)();
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
