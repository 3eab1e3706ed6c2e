//! The translation of announced addresses into those that can be reached.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use steadfast_core::node::Endpoint;

/// Turns the addresses that sentinels announce into those that can be reached from here.
#[derive(Clone, Default)]
pub(crate) struct Translation(Option<Arc<Translate>>);

type Translate = dyn Fn(&str, u16) -> (String, u16) + Send + Sync;

impl Translation {
    pub(crate) fn new(by: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(by)))
    }

    /// Translates an address. One whose translation panics stays as it was announced.
    pub(crate) fn of(&self, announced: Endpoint) -> Endpoint {
        let Some(translate) = &self.0 else {
            return announced;
        };
        let translate = AssertUnwindSafe(|| translate(&announced.host, announced.port));
        match catch_unwind(translate) {
            Ok((host, port)) => Endpoint::new(&host, port),
            Err(_) => {
                tracing::warn!(address = %announced, "the translation of an address panicked");
                announced
            }
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl std::fmt::Debug for Translation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "by a function"
        } else {
            "none"
        })
    }
}
