//! A running service takes up a file that was changed. What a connection or a cache was built from
//! cannot be changed under it; what can is taken up together, so that no query meets a class that
//! is not there yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use steadfast_cache::{Cache, Ttl};

use crate::active_config::ActiveConfig;
use crate::config::{Config, GuardConfig};
use crate::observe::Observations;
use crate::telemetry;

/// The parts of the service that a reload changes.
pub(crate) struct Reload {
    pub(crate) in_force: Arc<ActiveConfig>,
    pub(crate) cache: Cache,
    pub(crate) observations: Arc<Observations>,
}

impl Reload {
    /// Takes up what may change while the service runs, all of it or nothing, and names what else
    /// differs and needs a restart.
    ///
    /// # Errors
    /// Why the file cannot be taken up while this process runs.
    pub(crate) fn take_up(&self, new: &Config) -> Result<Vec<&'static str>, String> {
        let started = self.in_force.started();
        let (dialect, other) = (started.database.dialect(), new.database.dialect());
        if dialect != other {
            return Err(format!(
                "its SQL is for {}, but this process is connected to {}; restart it",
                other.name(),
                dialect.name()
            ));
        }
        // The only step that can be refused comes first; what it adds, nobody asks for before the
        // queries are there.
        let changed = self.cache.change_classes(self.classes_of(new));
        changed.map_err(|error| error.to_string())?;
        telemetry::change_level(&new.log.level);
        let mut config = started.clone();
        config.ttl = new.ttl.clone();
        for (name, class) in &mut config.ttl {
            // The cache was built with these.
            class.guard = started.ttl.get(name).and_then(|class| class.guard.clone());
        }
        config.queries = new.queries.clone();
        config.statements = new.statements.clone();
        config.log.level = new.log.level.clone();
        self.in_force.replace(config);
        let needs_restart = differing(started, new);
        let told = serde_json::json!({ "needs_restart": needs_restart });
        self.observations.feed.tell("reloaded", told);
        Ok(needs_restart)
    }

    /// Every class of `new`. Those that it takes out are as they are where nobody has set them.
    fn classes_of(&self, new: &Config) -> BTreeMap<Box<str>, Ttl> {
        let in_force = self.in_force.config();
        let before = in_force.ttl.keys().map(String::as_str);
        let mut classes: BTreeMap<Box<str>, Ttl> = before
            .chain(["default"])
            .map(|name| (name.into(), Ttl::default()))
            .collect();
        let named = new.ttl.iter();
        classes.extend(named.map(|(name, class)| (name.as_str().into(), class.into())));
        classes
    }
}

/// The sections in which two configurations differ, of those that a running service cannot change.
fn differing(old: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("namespace", old.namespace == new.namespace),
        ("server", old.server == new.server),
        ("log.format", old.log.format == new.log.format),
        ("redis", old.redis == new.redis),
        ("database", old.database == new.database),
        ("ttl.*.guard", guards(old).eq(guards(new))),
        ("cache", old.cache == new.cache),
        ("limits", old.limits == new.limits),
        ("auth", old.auth == new.auth),
        ("drill", old.drill == new.drill),
        ("metrics", old.metrics == new.metrics),
        ("tracing", old.tracing == new.tracing),
    ]
    .into_iter()
    .filter_map(|(name, same)| (!same).then_some(name))
    .collect()
}

fn guards(config: &Config) -> impl Iterator<Item = (&String, &GuardConfig)> {
    let classes = config.ttl.iter();
    classes.filter_map(|(name, class)| Some((name, class.guard.as_ref()?)))
}
