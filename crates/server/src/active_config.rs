//! The configuration in force: that of the start, with what a reload has changed.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::config::Config;
use crate::query::Programs;

/// The configuration and the queries compiled from it.
pub(crate) struct ActiveConfig {
    /// The configuration that the service was started with.
    started: Arc<Config>,
    config: ArcSwap<Config>,
    programs: ArcSwap<Programs>,
}

impl ActiveConfig {
    pub(crate) fn new(started: Arc<Config>) -> Self {
        let programs = Programs::compile(&started, &Programs::default());
        Self {
            config: ArcSwap::new(Arc::clone(&started)),
            programs: ArcSwap::from_pointee(programs),
            started,
        }
    }

    /// The configuration that the service was started with.
    pub(crate) fn started(&self) -> &Config {
        &self.started
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    pub(crate) fn programs(&self) -> Guard<Arc<Programs>> {
        self.programs.load()
    }

    /// Takes up a configuration, with its queries and statements.
    pub(crate) fn replace(&self, config: Config) {
        let programs = Programs::compile(&config, &self.programs());
        self.programs.store(Arc::new(programs));
        self.config.store(Arc::new(config));
    }
}
