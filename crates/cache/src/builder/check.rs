//! Refusal of settings with which a cache cannot work. Each is named by itself.

use std::time::Duration;

use steadfast_core::policy::InvalidSetting;

use super::CacheBuilder;
use crate::classes::{check_apart, check_classes};
use crate::error::BuildError;

impl CacheBuilder {
    pub(super) fn check(&self) -> Result<(), BuildError> {
        if self.classes.is_empty() {
            return Err(BuildError::NoClass);
        }
        check_classes(&self.classes)?;
        let names: Vec<_> = self.classes.iter().map(|(name, _)| name.clone()).collect();
        check_apart(&names)?;
        let is_class = |name: &str| self.classes.iter().any(|(class, _)| **class == *name);
        for (name, guard) in &self.class_guards {
            let class = || name.to_string();
            guard.validate().map_err(|setting| BuildError::ClassGuard {
                class: class(),
                setting,
            })?;
            if !is_class(name) {
                return Err(BuildError::GuardWithoutClass { class: class() });
            }
        }
        if let Some((name, _)) = self.class_tags.iter().find(|(name, _)| !is_class(name)) {
            return Err(BuildError::TagsWithoutClass {
                class: name.to_string(),
            });
        }
        self.guard.validate()?;
        self.check_amounts()?;
        Ok(self.check_times()?)
    }

    fn check_amounts(&self) -> Result<(), InvalidSetting> {
        if self.outbox_rows == 0 {
            return refuse("outbox_rows", "must be above zero");
        }
        if self.pending_names == 0 {
            return refuse("pending_names", "must be above zero");
        }
        let namespace = &self.namespace;
        if namespace.is_empty() || namespace.len() > 64 || namespace.contains(['{', '}']) {
            return refuse("namespace", "must have 1 to 64 bytes and no braces");
        }
        if self.value_max > 512 << 20 {
            return refuse(
                "value_max",
                "must be at most 512 MiB, which is what Redis can hold",
            );
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), InvalidSetting> {
        for (setting, time) in [
            ("redis_limit", self.redis_limit),
            ("lease_wait", self.lease_wait),
            ("outbox_poll", self.outbox_poll),
            ("outbox_lag_max", self.outbox_lag_max),
            ("guard.wait", self.guard.wait),
            ("guard.ramp", self.guard.ramp),
        ] {
            if time > LONGEST {
                return refuse(setting, "must be at most 1 day");
            }
        }
        for (setting, time) in [
            ("redis_limit", self.redis_limit),
            ("outbox_poll", self.outbox_poll),
            ("outbox_lag_max", self.outbox_lag_max),
        ] {
            if time.is_zero() {
                return refuse(setting, "must be above zero");
            }
        }
        Ok(())
    }
}

fn refuse(setting: &'static str, why: &'static str) -> Result<(), InvalidSetting> {
    Err(InvalidSetting::new(setting, why))
}

const LONGEST: Duration = Duration::from_secs(86_400);
