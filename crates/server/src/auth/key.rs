//! A token says by which algorithm it was signed; believing it is the oldest hole there is (RFC
//! 8725, 2.1). Here the key says it: each has one algorithm, and a token that names another is
//! refused before its signature is looked at.

use std::collections::HashMap;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::value::RawValue;

use crate::config::AuthConfig;
use crate::token_key::{Key, choose_cryptography};

/// Keys by their `kid`.
#[derive(Clone, Default)]
pub(crate) struct KeySet {
    keys: HashMap<String, Key>,
}

/// Keys of a set that are looked at; of a set that has more it is told.
const MOST_KEYS: usize = 64;

impl KeySet {
    /// The keys that the configuration names, read from their files.
    pub(crate) fn of_config(config: &AuthConfig) -> Result<Self, String> {
        let mut keys = HashMap::new();
        for (name, key) in &config.keys {
            let key = key
                .source()
                .load()
                .map_err(|why| format!("`auth.keys.{name}` {why}"))?;
            keys.insert(name.clone(), key);
        }
        Ok(Self { keys })
    }

    /// The usable public keys of a JWKS document, each judged for itself, and why others are passed
    /// over (RFC 7517, section 5): symmetric keys, keys to encrypt with, keys without a name, and
    /// what is no key at all. A set without a member says that every key is withdrawn; one of which
    /// nothing can be used says nothing.
    pub(crate) fn of_jwks(document: &[u8]) -> Result<(Self, Vec<String>), String> {
        choose_cryptography();
        #[derive(serde::Deserialize)]
        struct Document<'d> {
            #[serde(borrow)]
            keys: Vec<&'d RawValue>,
        }
        let document: Document<'_> =
            serde_json::from_slice(document).map_err(|error| format!("is not a JWKS: {error}"))?;
        let mut keys = HashMap::new();
        let mut passed_over = Vec::new();
        for (at, text) in document.keys.iter().enumerate() {
            if at == MOST_KEYS {
                passed_over.push(format!(
                    "{} keys behind the first {MOST_KEYS}, which are as many as are looked at",
                    document.keys.len() - MOST_KEYS
                ));
                break;
            }
            match named(text.get()) {
                Ok((kid, key)) => drop(keys.insert(kid, key)),
                Err(why) => passed_over.push(format!("key {}: {why}", at + 1)),
            }
        }
        if keys.is_empty() && !document.keys.is_empty() {
            return Err("holds no public key with a `kid` that could check a signature".to_owned());
        }
        Ok((Self { keys }, passed_over))
    }

    /// The key of that name; a token without a name fits the only key, if there is just one.
    pub(crate) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 => self.keys.values().next(),
            None => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// Reads one member of a set.
fn named(text: &str) -> Result<(String, Key), String> {
    let jwk: Jwk = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let kid = jwk.common.key_id.clone().ok_or("it has no `kid`")?;
    let key = public(&jwk).ok_or("it is no public key that could check a signature")?;
    Ok((kid, key))
}

fn public(jwk: &Jwk) -> Option<Key> {
    if matches!(&jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let natural = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        // A shared secret in a public document is no secret.
        _ => return None,
    };
    let algorithm = match jwk.common.key_algorithm {
        Some(named) => named.to_string().parse().ok()?,
        None => natural,
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    (decoding.family() == natural.family()
        && algorithm.family() == natural.family()
        && (natural.family() != jsonwebtoken::AlgorithmFamily::Ec || algorithm == natural))
        .then_some(Key {
            algorithm,
            decoding,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(kid: &str) -> String {
        // The point of RFC 7515, appendix A.3.
        format!(
            "{{\"kty\":\"EC\",\"crv\":\"P-256\",\"kid\":{kid},\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\
             \"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"}}"
        )
    }

    fn set(keys: &[String]) -> Result<(KeySet, Vec<String>), String> {
        KeySet::of_jwks(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    #[test]
    fn s6_keys_that_cannot_be_used_are_told_and_the_others_used() {
        let (keys, passed_over) = set(&[key("7"), key("\"good\""), "{}".to_owned()]).unwrap();
        assert!(keys.find(Some("good")).is_some());
        assert_eq!(passed_over.len(), 2, "{passed_over:?}");
        assert!(passed_over[0].starts_with("key 1: "), "{passed_over:?}");
        let (none, passed_over) = set(&[]).unwrap();
        assert!(none.is_empty() && passed_over.is_empty());
        assert!(
            set(&[key("7")]).is_err(),
            "says nothing, and withdraws nothing"
        );
        assert!(KeySet::of_jwks(b"{\"keys\":{}}").is_err());
    }

    #[test]
    fn s6_keys_behind_the_last_that_is_looked_at_are_told() {
        let keys: Vec<String> = (0..=MOST_KEYS).map(|n| key(&format!("\"k{n}\""))).collect();
        let (found, passed_over) = set(&keys).unwrap();
        assert!(found.find(Some("k63")).is_some() && found.find(Some("k64")).is_none());
        assert_eq!(passed_over.len(), 1);
        assert!(
            passed_over[0].starts_with("1 keys behind"),
            "{passed_over:?}"
        );
    }
}
