//! The certificates of a server whose certificate is to go bad. All are of one authority, which the
//! subjects are told to believe, so that what is wrong with a bad one is that one thing.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::process::{ProcessError, Tls};

/// PEM files in a folder of the drill's.
pub(crate) struct Certificates {
    /// The authority to believe.
    pub(crate) authority: PathBuf,
    /// The certificate of a server that is well.
    pub(crate) good: Tls,
    /// A certificate of the right name whose time is over.
    pub(crate) expired: Tls,
    /// A certificate in force, of another name.
    pub(crate) wrong: Tls,
}

impl Certificates {
    /// Makes them, for a server that is connected to as `name`.
    pub(crate) fn make(folder: &Path, name: &str) -> Result<Self, ProcessError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        let authority = folder.join("ca.pem");
        write(&authority, &issuer.as_ref().pem())?;
        let show = |file: &str, name: &str, until: i32| -> Result<Tls, ProcessError> {
            let key_pair = KeyPair::generate().map_err(failed)?;
            let mut params = CertificateParams::new([name.to_owned()]).map_err(failed)?;
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let made = params.signed_by(&key_pair, &issuer).map_err(failed)?;
            let cert = folder.join(format!("{file}.pem"));
            let key = folder.join(format!("{file}.key"));
            write(&cert, &made.pem())?;
            write(&key, &key_pair.serialize_pem())?;
            let ca = authority.clone();
            Ok(Tls {
                cert,
                key,
                ca,
                client_certificates: false,
            })
        };
        Ok(Self {
            good: show("good", name, IN_FORCE)?,
            expired: show("expired", name, OVER)?,
            wrong: show("wrong", "elsewhere.example", IN_FORCE)?,
            authority,
        })
    }
}

const IN_FORCE: i32 = 2999;
const OVER: i32 = 2002;

fn write(path: &Path, text: &str) -> Result<(), ProcessError> {
    std::fs::write(path, text).map_err(|cause| ProcessError::Folder {
        path: path.to_owned(),
        cause,
    })
}

fn failed(error: rcgen::Error) -> ProcessError {
    ProcessError::Setup {
        program: "the making of certificates".to_owned(),
        line: error.to_string(),
    }
}
