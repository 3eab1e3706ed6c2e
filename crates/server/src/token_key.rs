//! A key that signs or checks tokens, read from where it is configured. The configuration reads
//! each key once to refuse a wrong one, and the service reads it again to use it, so this lies
//! below both.

use std::path::Path;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use secrecy::{ExposeSecret, SecretSlice};

/// A key and the one algorithm it is for.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) algorithm: Algorithm,
    pub(crate) decoding: DecodingKey,
}

/// The names under which algorithms are configured.
pub(crate) const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// The name of an algorithm, as tokens have it.
pub(crate) fn algorithm_name(algorithm: Algorithm) -> &'static str {
    ALGORITHMS
        .iter()
        .find(|(_, known)| *known == algorithm)
        .map_or("none", |(name, _)| name)
}

/// The place that a key is read from, and the one algorithm it is for.
#[derive(Clone, Copy)]
pub(crate) struct KeySource<'a> {
    pub(crate) algorithm: Algorithm,
    /// The shared secret itself.
    pub(crate) secret: Option<&'a str>,
    /// A file with the shared secret, or with a public key in PEM.
    pub(crate) file: Option<&'a Path>,
}

impl KeySource<'_> {
    /// Reads the key. An error never holds any of it.
    pub(crate) fn load(self) -> Result<Key, String> {
        choose_cryptography();
        let algorithm = self.algorithm;
        let bytes = self.material()?;
        let bytes = bytes.expose_secret();
        let decoding = match algorithm.family() {
            jsonwebtoken::AlgorithmFamily::Hmac => {
                let least = least_secret(algorithm).unwrap_or(32);
                if bytes.len() < least {
                    return Err(format!(
                        "has a secret of {} bytes, but {} needs {least} at least",
                        bytes.len(),
                        algorithm_name(algorithm)
                    ));
                }
                return Ok(Key {
                    algorithm,
                    decoding: DecodingKey::from_secret(bytes),
                });
            }
            jsonwebtoken::AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(bytes),
            jsonwebtoken::AlgorithmFamily::Ec => DecodingKey::from_ec_pem(bytes),
            _ => DecodingKey::from_ed_pem(bytes),
        };
        let decoding = decoding.map_err(|_| {
            let name = algorithm_name(algorithm);
            format!("is not a public key in PEM that {name} could use")
        })?;
        Ok(Key {
            algorithm,
            decoding,
        })
    }

    /// Reads the key to sign with: the shared secret, or a private key from the file `private`.
    pub(crate) fn signing(
        self,
        private: Option<&Path>,
    ) -> Result<(Algorithm, EncodingKey), String> {
        choose_cryptography();
        let algorithm = self.algorithm;
        if least_secret(algorithm).is_some() {
            self.load()?;
            let key = EncodingKey::from_secret(self.material()?.expose_secret());
            return Ok((algorithm, key));
        }
        let Some(path) = private else {
            return Err("is a public key; give the private one to sign with".to_owned());
        };
        let bytes = read(path)?;
        let bytes = bytes.expose_secret();
        let key = match algorithm.family() {
            jsonwebtoken::AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(bytes),
            jsonwebtoken::AlgorithmFamily::Ec => EncodingKey::from_ec_pem(bytes),
            _ => EncodingKey::from_ed_pem(bytes),
        };
        let key = key.map_err(|_| {
            format!(
                "{} is not a private key in PEM (PKCS #8) that {} could use",
                path.display(),
                algorithm_name(algorithm)
            )
        })?;
        Ok((algorithm, key))
    }

    fn material(self) -> Result<SecretSlice<u8>, String> {
        match (self.secret, self.file) {
            (Some(secret), None) => Ok(SecretSlice::from(secret.as_bytes().to_vec())),
            (None, Some(file)) => read(file),
            _ => Err("needs either `secret` or `file`".to_owned()),
        }
    }
}

/// Bytes that a shared secret must have at least (RFC 7518, 3.2: as many as the hash).
fn least_secret(algorithm: Algorithm) -> Option<usize> {
    match algorithm {
        Algorithm::HS256 => Some(32),
        Algorithm::HS384 => Some(48),
        Algorithm::HS512 => Some(64),
        _ => None,
    }
}

fn read(path: &Path) -> Result<SecretSlice<u8>, String> {
    let mut bytes = std::fs::read(path).map_err(|error| {
        format!(
            "has a file that cannot be read: {}: {error}",
            path.display()
        )
    })?;
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(SecretSlice::from(bytes))
}

/// Says by which library keys are used, unless the program that embeds the service has said so:
/// jsonwebtoken panics where another crate of that program has made it ready for two.
pub(crate) fn choose_cryptography() {
    // An error says that it was chosen before.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}
