//! A certificate is renewed every few weeks by something that never restarts its users, so the
//! files are looked at again and again and what they hold is used from the next connection on. A
//! pair that cannot be used (half written, of two different renewals, expired) changes nothing: the
//! old one stays in force and the trouble is told, long before it is an outage.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use parking_lot::Mutex;
use rustls::server::ServerConfig;

use crate::clock::unix_ms;
use crate::config::ServerTlsConfig;
use crate::health::{Check, Status};
use crate::observe::Observations;
use crate::tls_files::LoadedTls;

/// The pair in force, and how it fares.
pub(crate) struct Certificates {
    settings: ServerTlsConfig,
    loaded: ArcSwap<LoadedTls>,
    trouble: Mutex<RefusedRenewal>,
}

/// The reason why the pair in the files is not in force.
#[derive(Default)]
struct RefusedRenewal {
    /// A reason that was seen once: perhaps the other half of a renewal is written a moment later.
    seen: Option<String>,
    /// A reason that was seen twice, and told.
    told: Option<String>,
}

/// The result of reading the files again.
#[derive(Debug, PartialEq, Eq)]
enum Reread {
    /// The files are as they were.
    Same,
    /// A new pair is in force.
    Renewed,
    /// Something new is there that cannot be used as it is now.
    Doubtful,
    /// A new pair is there still, and cannot be used.
    Refused(String),
}

/// The health says so when the certificate has no longer to live than this.
const SOON: i64 = 7 * 86_400;

/// The time that whoever writes the two files one after the other has before they are told not
/// to belong together.
const SETTLING: Duration = Duration::from_secs(1);

impl Certificates {
    /// The pair as the files have it now. One that is out of its time is used all the same, for
    /// callers that do not mind, and told.
    pub(crate) fn start(settings: &ServerTlsConfig) -> Result<Self, String> {
        let certificates = Self {
            loaded: ArcSwap::from_pointee(settings.files().load()?),
            settings: settings.clone(),
            trouble: Mutex::default(),
        };
        let loaded = certificates.loaded.load();
        if let Some(why) = loaded.unfit(unix_seconds()) {
            tracing::error!(
                certificate = %settings.certificate.display(),
                "the certificate of the service {why}: callers will refuse it"
            );
        }
        certificates.warn_of_others(&loaded);
        drop(loaded);
        certificates.set_gauges();
        Ok(certificates)
    }

    /// Returns the settings for the next connection.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded.load().config)
    }

    /// Seconds until the certificate in force expires.
    fn left(&self) -> i64 {
        self.loaded.load().valid.1.saturating_sub(unix_seconds())
    }

    fn warn_of_others(&self, loaded: &LoadedTls) {
        if loaded.others_expire.is_some_and(|at| at <= unix_seconds()) {
            tracing::warn!(
                certificate = %self.settings.certificate.display(),
                "a certificate of the chain, not the service's own, has expired: callers that need it will refuse the service"
            );
        }
    }

    /// Reads the files again; takes up a pair that is new and can be used.
    fn look(&self) -> Reread {
        match self.settings.files().load() {
            Ok(loaded) if loaded.digest == self.loaded.load().digest => {
                // Whatever was wrong in between is undone.
                *self.trouble.lock() = RefusedRenewal::default();
                Reread::Same
            }
            Ok(loaded) => {
                if let Some(why) = loaded.unfit(unix_seconds()) {
                    let path = self.settings.certificate.display();
                    return self.refuse(format!("{path} {why}"));
                }
                self.warn_of_others(&loaded);
                self.loaded.store(Arc::new(loaded));
                *self.trouble.lock() = RefusedRenewal::default();
                Reread::Renewed
            }
            Err(why) => self.refuse(why),
        }
    }

    /// Records a pair that cannot be used; the same reason is told once, at its second sight.
    fn refuse(&self, why: String) -> Reread {
        let mut trouble = self.trouble.lock();
        if trouble.told.as_ref() == Some(&why) {
            return Reread::Same;
        }
        if trouble.seen.replace(why.clone()) != Some(why.clone()) {
            return Reread::Doubtful;
        }
        trouble.told = Some(why.clone());
        Reread::Refused(why)
    }

    pub(crate) fn set_gauges(&self) {
        gauge!("steadfast_tls_certificate_expiry_seconds").set(self.left() as f64);
    }

    /// As `/health` shows it.
    pub(crate) fn check(&self) -> Check {
        let left = self.left();
        let days = left / 86_400;
        if let Some(why) = &self.trouble.lock().told {
            let message = format!("the old one is in force, because {why}");
            return Check::new(Status::Degraded, message);
        }
        if self.loaded.load().valid.0 > unix_seconds() {
            return Check::new(Status::Degraded, "is not valid yet: callers will refuse it");
        }
        match left {
            ..=0 => Check::new(Status::Degraded, "has expired: callers will refuse it"),
            1..=SOON => Check::new(
                Status::Degraded,
                format!("expires within {} days", days + 1),
            ),
            _ => Check::new(Status::Healthy, format!("expires in {days} days")),
        }
    }

    /// Looks at the files for ever, and tells of each change.
    pub(crate) async fn keep(self: Arc<Self>, observations: Arc<Observations>) {
        loop {
            tokio::time::sleep(self.settings.look_every).await;
            self.look_and_tell(&observations).await;
        }
    }

    /// Looks at the files now, and tells what came of it.
    pub(crate) async fn look_and_tell(self: &Arc<Self>, observations: &Observations) {
        let look = || {
            let certificates = Arc::clone(self);
            tokio::task::spawn_blocking(move || certificates.look())
        };
        let mut looked = look().await;
        if matches!(looked, Ok(Reread::Doubtful)) {
            tokio::time::sleep(SETTLING.min(self.settings.look_every)).await;
            looked = look().await;
        }
        let told = |outcome: &'static str| {
            counter!("steadfast_tls_reloads_total", "outcome" => outcome).increment(1);
        };
        let feed = &observations.feed;
        match looked {
            Ok(Reread::Renewed) => {
                told("renewed");
                tracing::info!("a renewed certificate is in force for new connections");
                feed.tell("certificate_renewed", serde_json::json!({}));
            }
            Ok(Reread::Refused(why)) => {
                told("refused");
                tracing::error!(
                    why,
                    "a new certificate cannot be used; the old one stays in force"
                );
                feed.tell("certificate_refused", serde_json::json!({ "why": why }));
            }
            Ok(Reread::Same | Reread::Doubtful) | Err(_) => {}
        }
    }
}

fn unix_seconds() -> i64 {
    i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX)
}

/// Lets what is counted here begin at 0.
pub(crate) fn begin_counters() {
    for outcome in ["renewed", "refused"] {
        counter!("steadfast_tls_reloads_total", "outcome" => outcome).increment(0);
    }
    for reason in ["plain_http", "timeout", "failed"] {
        counter!("steadfast_tls_refused_total", "reason" => reason).increment(0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Sources};

    fn settings(folder: &Path, extra: &str) -> Result<ServerTlsConfig, String> {
        let text = format!(
            "[server.tls]\ncertificate = '{0}/c.pem'\nkey = '{0}/k.pem'\n{extra}",
            folder.display()
        );
        Config::load(&Sources::new().text("t", &text))
            .map(|config| config.server.tls.unwrap())
            .map_err(|error| error.to_string())
    }

    /// A certificate that is valid between the first days of two years, with its key.
    fn pair(years: (i32, i32)) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn write(folder: &Path, last_year: i32) {
        let (certificate, key) = pair((2001, last_year));
        std::fs::write(folder.join("c.pem"), certificate).unwrap();
        std::fs::write(folder.join("k.pem"), key).unwrap();
    }

    #[test]
    fn s6_a_pair_that_cannot_be_used_leaves_the_old_one_in_force_and_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, 2998);
        let certificates = Certificates::start(&settings(folder, "").unwrap()).unwrap();
        let first = certificates.current();
        assert_eq!(certificates.look(), Reread::Same);
        assert_eq!(certificates.check().status, Status::Healthy);

        // Half of a renewal: the key is not there yet.
        let old_key = std::fs::read(folder.join("k.pem")).unwrap();
        write(folder, 2999);
        let new_key = std::fs::read(folder.join("k.pem")).unwrap();
        std::fs::write(folder.join("k.pem"), old_key).unwrap();
        assert_eq!(certificates.look(), Reread::Doubtful);
        assert_eq!(certificates.check().status, Status::Healthy, "not yet told");
        let Reread::Refused(why) = certificates.look() else {
            panic!("two halves were taken for a pair");
        };
        assert!(why.contains("do not belong together"), "{why}");
        assert_eq!(certificates.look(), Reread::Same, "told once");
        assert_eq!(certificates.check().status, Status::Degraded);
        assert!(Arc::ptr_eq(&first, &certificates.current()));

        std::fs::write(folder.join("k.pem"), new_key).unwrap();
        assert_eq!(certificates.look(), Reread::Renewed);
        assert!(!Arc::ptr_eq(&first, &certificates.current()));
        assert_eq!(certificates.check().status, Status::Healthy);
        let second = certificates.current();

        for broken in [
            "",
            "not a certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(folder.join("c.pem"), broken).unwrap();
            let looked = certificates.look();
            assert_ne!(looked, Reread::Renewed, "{broken:?}");
        }
        let refused = |words: &str| {
            assert_eq!(certificates.look(), Reread::Doubtful, "{words}");
            let looked = certificates.look();
            assert!(
                matches!(&looked, Reread::Refused(why) if why.contains(words)),
                "{looked:?}"
            );
            assert!(Arc::ptr_eq(&second, &certificates.current()));
        };
        write(folder, 2002);
        refused("expired");
        let (early, its_key) = pair((2900, 2999));
        std::fs::write(folder.join("c.pem"), early).unwrap();
        std::fs::write(folder.join("k.pem"), its_key).unwrap();
        refused("not valid yet");
        std::fs::remove_file(folder.join("c.pem")).unwrap();
        refused("cannot be read");
    }

    #[test]
    fn s6_an_expired_certificate_that_only_stands_beside_ones_own_keeps_no_renewal_out() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, 2998);
        let certificates = Certificates::start(&settings(folder, "").unwrap()).unwrap();
        let (own, key) = pair((2001, 2999));
        let (other, _) = pair((2001, 2002));
        std::fs::write(folder.join("c.pem"), own + &other).unwrap();
        std::fs::write(folder.join("k.pem"), key).unwrap();
        assert_eq!(certificates.look(), Reread::Renewed);
        assert_eq!(certificates.check().status, Status::Healthy);
    }

    #[test]
    fn s6_files_that_make_no_service_are_named_before_it_starts() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let refused = |extra: &str| settings(folder, extra).unwrap_err();
        assert!(refused("").contains("cannot be read"));
        write(folder, 2999);
        assert!(settings(folder, "min_version = '1.3'").is_ok());
        assert!(refused("client_ca = '/nowhere/ca.pem'").contains("/nowhere/ca.pem"));
        assert!(refused("client_certificates = 'optional'").contains("client_ca"));
        let missing = Config::load(&Sources::new().text("t", "[server.tls]\nkey = 'k'"));
        let missing = missing.unwrap_err().to_string();
        assert!(
            missing.contains("`server.tls.certificate` is missing"),
            "{missing}"
        );
        std::fs::write(folder.join("k.pem"), "hunter2").unwrap();
        let told = refused("");
        assert!(
            told.contains("no private key") && !told.contains("hunter2"),
            "{told}"
        );
    }
}
