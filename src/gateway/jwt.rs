//! Tokens that somebody else has signed: who asks, and for which session.
//!
//! The keys come from a file, the issuer's JSON Web Key Set, which whoever deploys us puts there
//! and replaces when keys are rotated; nothing is fetched, so that no token can make us ask
//! somebody's server. The key decides which algorithms its tokens may have, never the token:
//! `none`, and an HMAC made with a public key, verify nowhere (RFC 8725, section 3.1).

mod provider;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::PublicKeyUse;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::config::gateway::JwtConfig;
use crate::gateway::commands::body::is_id;
use crate::json::offset_of;
use crate::mistake::Mistake;

/// Largest key set. A hundred RSA keys are a fifth of it.
const SET_BYTES_MAX: u64 = 1_000_000;

/// By how much the issuer's clock may differ from ours.
const LEEWAY_SECONDS: u64 = 30;

/// Longest `sub`: it becomes a header of every command.
const SUBJECT_LENGTH_MAX: usize = 255;

/// What is wrong with the file of keys. It never repeats the file, where a secret may be.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum KeysError {
    #[error("it is larger than a key set is; is it another file?")]
    TooLarge,
    #[error("it is no JSON Web Key Set, {{\"keys\": […]}}")]
    NotASet,
    #[error("this key is broken: it is not as RFC 7517 has keys, or not all of it is there")]
    Broken,
    #[error("this is a shared secret (kty \"oct\"): use a key pair, and put its public key there")]
    Secret,
    #[error("it has no key that verifies RS*, PS*, ES256, ES384 or EdDSA")]
    Empty,
}

/// Why a token opens nothing. It never repeats the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token has expired; get a new one")]
    Expired,
    #[error("the token is not valid yet; is a clock wrong?")]
    Early,
    #[error("the token is for somebody else (aud or iss)")]
    NotForUs,
    #[error("the token lacks exp, iss, aud, sub or the session's claim, or one has a wrong form")]
    Claims,
    #[error("the token is none of a key that is trusted here")]
    Untrusted,
}

/// Whom a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    pub session_id: String,
}

/// A key, with what its tokens may be signed by.
#[derive(Debug)]
struct TrustedKey {
    id: Option<String>,
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// Checks tokens by the newest keys.
#[derive(Debug)]
pub struct TokenVerifier {
    config: JwtConfig,
    keys: RwLock<Arc<Vec<TrustedKey>>>,
}

impl TokenVerifier {
    /// One that trusts nobody before [`TokenVerifier::load`].
    pub fn new(config: JwtConfig) -> Self {
        // Err: another one of this process was first, with the same.
        let _same = provider::PROVIDER.install_default();
        Self { config, keys: RwLock::default() }
    }

    pub fn file(&self) -> &Path {
        &self.config.jwks_file
    }

    /// Reads the file. With a mistake in it the keys stay what they were.
    ///
    /// # Errors
    /// The first mistake, at its place.
    pub fn load(&self) -> Result<(), Mistake> {
        let keys = Arc::new(read(self.file())?);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, token: &str) -> Result<Subject, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Untrusted)?;
        // An extension that we don't know changes what the token means (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(TokenError::Untrusted);
        }
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let named = |it: &&TrustedKey| match (&header.kid, &it.id) {
            (Some(wanted), Some(id)) => wanted == id,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let fitting = keys.iter().filter(named);
        let mut fitting = fitting.filter(|it| it.algorithms.contains(&header.alg));
        let mut worst = TokenError::Untrusted;
        for key in &mut fitting {
            match self.verify_by(token, key) {
                Err(TokenError::Untrusted) => {}
                Err(error) => worst = error,
                Ok(subject) => return Ok(subject),
            }
        }
        Err(worst)
    }

    fn verify_by(&self, token: &str, key: &TrustedKey) -> Result<Subject, TokenError> {
        let first = key.algorithms.first().ok_or(TokenError::Untrusted)?;
        let mut validation = Validation::new(*first);
        validation.algorithms.clone_from(&key.algorithms);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.config.audience]);
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let token = jsonwebtoken::decode::<Claims>(token, &key.key, &validation);
        let Claims { sub, mut more } = token.map_err(|it| told(it.kind()))?.claims;
        let fine = |it: &str| !it.is_empty() && !it.chars().any(char::is_control);
        if SUBJECT_LENGTH_MAX < sub.len() || !fine(&sub) {
            return Err(TokenError::Claims);
        }
        let session = match self.config.session_claim == "sub" {
            true => Some(Value::String(sub.clone())),
            false => more.remove(&self.config.session_claim),
        };
        match session {
            Some(Value::String(session_id)) if is_id(&session_id) => {
                Ok(Subject { name: sub, session_id })
            }
            _ => Err(TokenError::Claims),
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

fn told(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::Early,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => TokenError::NotForUs,
        // The claims are read only once the signature is right.
        ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::InvalidSubject
        | ErrorKind::Json(_) => TokenError::Claims,
        _ => TokenError::Untrusted,
    }
}

fn read(path: &Path) -> Result<Vec<TrustedKey>, Mistake> {
    let unreadable = |it: std::io::Error| {
        let message = format!("can't read it ({it}); [gateway.jwt] jwks_file names it");
        Mistake::at(path, "", 0..0, message)
    };
    if SET_BYTES_MAX < std::fs::metadata(path).map_err(unreadable)?.len() {
        return Err(Mistake::at(path, "", 0..0, KeysError::TooLarge.to_string()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    if let Err(error) = serde_json::from_str::<&RawValue>(&text) {
        return Err(Mistake::in_json(path, &error));
    }
    trusted(&text).map_err(|(pointer, error)| {
        let offset = offset_of(&text, &pointer);
        Mistake::at(path, &text, offset..offset, error.to_string())
    })
}

#[derive(Deserialize)]
struct KeySet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The keys of a set that may have signed tokens, or the JSON Pointer to what is wrong.
fn trusted(set: &str) -> Result<Vec<TrustedKey>, (String, KeysError)> {
    let top = |it: KeysError| (String::new(), it);
    let set: KeySet<'_> = serde_json::from_str(set).map_err(|_| top(KeysError::NotASet))?;
    let mut keys = Vec::new();
    for (nth, jwk) in set.keys.into_iter().enumerate() {
        let wrong = |it: KeysError| (format!("/keys/{nth}"), it);
        let jwk: Jwk = serde_json::from_str(jwk.get()).map_err(|_| wrong(KeysError::Broken))?;
        if matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
            return Err(wrong(KeysError::Secret));
        }
        let algorithms = algorithms(&jwk);
        if !algorithms.is_empty() {
            let key = DecodingKey::from_jwk(&jwk).map_err(|_| wrong(KeysError::Broken))?;
            keys.push(TrustedKey { id: jwk.common.key_id, key, algorithms });
        }
    }
    if keys.is_empty() { Err(top(KeysError::Empty)) } else { Ok(keys) }
}

/// What a key may verify: what it says, within what its type can.
fn algorithms(jwk: &Jwk) -> Vec<Algorithm> {
    if jwk.common.public_key_use.as_ref().is_some_and(|it| *it != PublicKeyUse::Signature) {
        return Vec::new();
    }
    let possible: &[(KeyAlgorithm, Algorithm)] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            (KeyAlgorithm::RS256, Algorithm::RS256),
            (KeyAlgorithm::RS384, Algorithm::RS384),
            (KeyAlgorithm::RS512, Algorithm::RS512),
            (KeyAlgorithm::PS256, Algorithm::PS256),
            (KeyAlgorithm::PS384, Algorithm::PS384),
            (KeyAlgorithm::PS512, Algorithm::PS512),
        ],
        AlgorithmParameters::EllipticCurve(it) => match it.curve {
            EllipticCurve::P256 => &[(KeyAlgorithm::ES256, Algorithm::ES256)],
            EllipticCurve::P384 => &[(KeyAlgorithm::ES384, Algorithm::ES384)],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(it) if it.curve == EllipticCurve::Ed25519 => {
            &[(KeyAlgorithm::EdDSA, Algorithm::EdDSA)]
        }
        _ => &[],
    };
    let said = jwk.common.key_algorithm.as_ref();
    let mut found = possible.iter().filter(|(name, _)| said.is_none_or(|it| it == name));
    found.by_ref().map(|(_, algorithm)| *algorithm).collect()
}

#[cfg(test)]
mod tests;
