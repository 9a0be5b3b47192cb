//! Tokens of keys made here, and an RSA one of openssl's.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::json;

use super::*;

const SESSION: &str = "s-1";

fn encoded(value: &Value) -> String {
    BASE64.encode(value.to_string())
}

fn ec() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let method = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::generate_pkcs8(method, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(method, key.as_ref(), &random).unwrap()
}

fn ec_jwk(key: &EcdsaKeyPair, id: &str) -> Value {
    let point = key.public_key().as_ref();
    let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
    json!({ "kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "x": x, "y": y })
}

fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encoded(header), encoded(claims));
    let signed = sign(message.as_bytes());
    format!("{message}.{}", BASE64.encode(signed))
}

fn signed_by(key: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let random = SystemRandom::new();
    token(header, claims, |it| key.sign(&random, it).unwrap().as_ref().to_vec())
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn good() -> Value {
    json!({ "iss": "https://id", "aud": "onelog", "sub": "ann", "sid": SESSION, "exp": now() + 600 })
}

/// The good claims with one of them otherwise; null: without it.
fn but(name: &str, value: Value) -> Value {
    let mut claims = good();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn verifier(keys: &[Value]) -> (TokenVerifier, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();
    let verifier = TokenVerifier::new(JwtConfig {
        jwks_file: file.path().to_owned(),
        issuer: "https://id".to_owned(),
        audience: "onelog".to_owned(),
        session_claim: "sid".to_owned(),
        commands: Vec::new(),
        collections: Vec::new(),
    });
    (verifier, file)
}

fn loaded(keys: &[Value]) -> TokenVerifier {
    let (verifier, _file) = verifier(keys);
    verifier.load().unwrap();
    verifier
}

#[test]
fn claims_decide_whom_a_token_speaks_for() {
    let key = ec();
    let verifier = loaded(&[ec_jwk(&key, "a")]);
    let header = json!({ "alg": "ES256", "kid": "a" });
    let subject = Subject { name: "ann".to_owned(), session_id: SESSION.to_owned() };
    let long = "x".repeat(256);
    let cases = [
        (good(), Ok(subject.clone())),
        (but("aud", json!(["other", "onelog"])), Ok(subject.clone())),
        (but("nbf", json!(now() - 5)), Ok(subject)),
        (but("exp", json!(now() - 600)), Err(TokenError::Expired)),
        (but("nbf", json!(now() + 600)), Err(TokenError::Early)),
        (but("aud", json!("other")), Err(TokenError::NotForUs)),
        (but("iss", json!("https://evil")), Err(TokenError::NotForUs)),
        (but("exp", json!("never")), Err(TokenError::Claims)),
        (but("nbf", json!("never")), Err(TokenError::Claims)),
        (but("exp", Value::Null), Err(TokenError::Claims)),
        (but("aud", Value::Null), Err(TokenError::Claims)),
        (but("iss", Value::Null), Err(TokenError::Claims)),
        (but("sub", Value::Null), Err(TokenError::Claims)),
        (but("sub", json!("a\r\nb")), Err(TokenError::Claims)),
        (but("sub", json!(long)), Err(TokenError::Claims)),
        (but("sid", Value::Null), Err(TokenError::Claims)),
        (but("sid", json!(7)), Err(TokenError::Claims)),
        (but("sid", json!("a b")), Err(TokenError::Claims)),
    ];
    for (claims, expected) in cases {
        let found = verifier.verify(&signed_by(&key, &header, &claims));
        assert_eq!(found, expected, "{claims}");
    }
}

#[test]
fn only_a_trusted_key_opens_and_it_says_by_which_algorithm() {
    let (key, other) = (ec(), ec());
    let jwk = ec_jwk(&key, "a");
    let verifier = loaded(&[jwk.clone(), ec_jwk(&other, "b")]);
    let header = |alg: &str, id: &str| json!({ "alg": alg, "kid": id });
    let right = signed_by(&key, &header("ES256", "a"), &good());
    assert!(verifier.verify(&right).is_ok());
    assert!(verifier.verify(&signed_by(&key, &json!({ "alg": "ES256" }), &good())).is_ok());

    let point = key.public_key().as_ref();
    let secrets = [point.to_vec(), jwk.to_string().into_bytes()];
    let mut wrong: Vec<String> = secrets
        .iter()
        .map(|secret| {
            let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
            let sign = |it: &[u8]| ring::hmac::sign(&secret, it).as_ref().to_vec();
            token(&header("HS256", "a"), &good(), sign)
        })
        .collect();
    let (_, rest) = right.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let head = |value: &Value| encoded(value);
    wrong.extend([
        token(&header("none", "a"), &good(), |_| Vec::new()),
        token(&header("NONE", "a"), &good(), |_| Vec::new()),
        token(&header("ES256", "a"), &good(), |_| Vec::new()),
        token(&header("ES256", "a"), &good(), |_| vec![0; 64]),
        signed_by(&ec(), &header("ES256", "a"), &good()),
        signed_by(&other, &header("ES256", "a"), &good()),
        signed_by(&key, &header("ES256", "c"), &good()),
        signed_by(&key, &header("ES384", "a"), &good()),
        signed_by(&key, &json!({ "alg": "ES256", "kid": "a", "crit": ["exp"] }), &good()),
        format!(
            "{}.{}.{signature}",
            head(&header("ES256", "a")),
            encoded(&but("sub", json!("bob")))
        ),
        format!("{}.{claims}.", head(&header("ES256", "a"))),
        format!("{claims}.{signature}"),
        "..".to_owned(),
        "a.b.c".to_owned(),
        String::new(),
    ]);
    for token in wrong {
        assert_eq!(verifier.verify(&token), Err(TokenError::Untrusted), "{token}");
    }
}

#[test]
fn edwards_keys_are_taken_too() {
    let random = SystemRandom::new();
    let pair = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap();
    let x = BASE64.encode(pair.public_key().as_ref());
    let verifier = loaded(&[json!({ "kty": "OKP", "crv": "Ed25519", "x": x })]);
    let made = token(&json!({ "alg": "EdDSA" }), &good(), |it| pair.sign(it).as_ref().to_vec());
    assert!(verifier.verify(&made).is_ok());
    let (signed, signature) = made.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let other = format!("{signed}.{first}{}", &signature[1..]);
    assert_eq!(verifier.verify(&other), Err(TokenError::Untrusted));
}

/// Made by `openssl genrsa` and `openssl dgst -sha256 -sign`; its private half is nowhere, and it
/// expires in 2100.
#[test]
fn rsa_verifies_what_openssl_has_signed() {
    let n = "icKJi_Z314M5pwNvf65Mzt6A_0Ks9hXZG_Znuwf-og0vNQcx4-fF90sv_JI7cy1-B7PyOyfdq-WLr5mGRPSvfOmVFdkUvxnQK6Yuf3IeKEEISUJdfAsuRtJW-1E8YK5iIv-TBrHS6e3EwchFYAq3TL9woi2tdbjFZ2plWTxu1Xo-p81PS0-IEimCnpsOSYN0hIiuab8aAlgJvbxsxlx6pSmPFISOkRyFEB5pO93p4P-zzJedKUkln1S-TA6Ul--W0E45Knz2Fq-FCiv-Mu4kpQVVbI4mZ2bu92C0HW8vxLkl2zqIP4YCUvGLtnkfSkyXYOiM-GCUWKFont9ZljEzgQ";
    let made = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiAiaHR0cHM6Ly9pZCIsICJhdWQiOiAib25lbG9nIiwgInN1YiI6ICJhbm4iLCAic2lkIjogInMtMSIsICJleHAiOiA0MTAyNDQ0ODAwfQ.ZVUOjroM0RL-fpDWAaU-J4hP4S-Biyhg4sybZM4m7McbqtkYoXnQmh4QPmNL-4naWoRX3snvU9EDN28nLdFvAv1y1qkvmaOC8ZmNpp9i5VSepNUqHDgcm7DCvR0bO-RcKtvxmzzlS8uu006EB_jd3joDgymbY9YulBdlYiKkul0QDd7-gpemg9JHndvfDS1Ttg3vHgTFsWsB1_jtxoL3eC0SPP78MGDlmtcD6zB9szcTtIgBFlVajQe2XuJZV8KjKsvxX7uikdAJL5yniRRunzk2W_3ToMAgDj-iX5HOvWUxwnt7yVSFH8tsFWBgr8faP9JbIGNn0IuGqpV7d3_XzQ";
    let key = json!({ "kty": "RSA", "n": n, "e": "AQAB" });
    let verifier = loaded(std::slice::from_ref(&key));
    assert_eq!(verifier.verify(made).unwrap().session_id, SESSION);
    let (rest, signature) = made.rsplit_once('.').unwrap();
    let turned: String = signature.chars().rev().collect();
    assert_eq!(verifier.verify(&format!("{rest}.{turned}")), Err(TokenError::Untrusted));
    let mut only_pss = key.clone();
    only_pss["alg"] = "PS256".into();
    assert_eq!(loaded(&[only_pss]).verify(made), Err(TokenError::Untrusted));

    // The public key as a shared secret: the oldest trick with tokens.
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, n.as_bytes());
    let sign = |it: &[u8]| ring::hmac::sign(&secret, it).as_ref().to_vec();
    let tricked = token(&json!({ "alg": "HS256" }), &good(), sign);
    assert_eq!(verifier.verify(&tricked), Err(TokenError::Untrusted));
}

#[test]
fn a_set_that_can_not_be_trusted_is_refused_and_the_old_keys_stay() {
    let key = ec();
    let (verifier, file) = verifier(&[ec_jwk(&key, "a")]);
    let made = signed_by(&key, &json!({ "alg": "ES256" }), &good());
    assert_eq!(verifier.verify(&made), Err(TokenError::Untrusted), "nothing is loaded yet");
    verifier.load().unwrap();
    let mut encryption = ec_jwk(&key, "a");
    encryption["use"] = "enc".into();
    for (set, expected) in [
        (json!({}), "no JSON Web Key Set"),
        (json!({ "keys": [] }), "no key that verifies"),
        (json!({ "keys": [encryption] }), "no key that verifies"),
        (json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }), "shared secret"),
        (json!({ "keys": [ec_jwk(&key, "a"), { "kty": "RSA", "n": "?", "e": "AQAB" }] }), "broken"),
        (json!({ "keys": ["c2VjcmV0"] }), ":1:10: this key is broken"),
    ] {
        std::fs::write(file.path(), set.to_string()).unwrap();
        let error = verifier.load().unwrap_err().to_string();
        assert!(error.contains(expected), "{set}: {error}");
        assert!(!error.contains("c2VjcmV0"), "{error}");
        assert!(verifier.verify(&made).is_ok(), "{set}");
    }
    let next = ec();
    std::fs::write(file.path(), json!({ "keys": [ec_jwk(&next, "b")] }).to_string()).unwrap();
    verifier.load().unwrap();
    assert_eq!(verifier.verify(&made), Err(TokenError::Untrusted), "a rotated key is gone");
}
