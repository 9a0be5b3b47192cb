//! Who issues tokens for browsers' sessions: an Ed25519 key of a test's own.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// The section of the config that trusts what is in `keys.json`, beside the config.
pub const SECTION: &str = "[gateway.jwt]\njwks_file = \"keys.json\"\nissuer = \"https://id\"\n\
                           audience = \"onelog\"\n";

pub struct Issuer {
    key: Ed25519KeyPair,
}

impl Issuer {
    pub fn new() -> Self {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self { key: Ed25519KeyPair::from_pkcs8(pair.as_ref()).expect("a key") }
    }

    /// The JSON Web Key Set with its key.
    pub fn set(&self) -> String {
        let x = BASE64.encode(self.key.public_key().as_ref());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": x }] }).to_string()
    }

    /// Ann's token for the next hour, but for one claim.
    pub fn token(&self, algorithm: &str, change: (&str, Value)) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let mut claims = json!({
            "iss": "https://id", "aud": "onelog", "sub": "ann", "sid": "s-ann", "exp": now + 3600,
        });
        claims[change.0] = change.1;
        let header = json!({ "alg": algorithm, "kid": "a" });
        let message =
            format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signed = if algorithm == "none" {
            Vec::new()
        } else {
            self.key.sign(message.as_bytes()).as_ref().to_vec()
        };
        format!("{message}.{}", BASE64.encode(signed))
    }

    /// A good token of this session.
    pub fn of_session(&self, session: &str) -> String {
        self.token("EdDSA", ("sid", json!(session)))
    }
}
