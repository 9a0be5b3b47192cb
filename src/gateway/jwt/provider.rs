//! The cryptography of tokens: ring, which TLS brings along. Signatures are verified here, never
//! made.
//!
//! The library's own choices are a second C library, or a tree of crates with an RSA of known
//! weakness (RUSTSEC-2023-0071), so it is given these few lines.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey, errors};
use ring::signature as ring;
use signature::Verifier;

pub(super) static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn no_signer(_: &Algorithm, _: &EncodingKey) -> errors::Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> errors::Result<Box<dyn JwtVerifier>> {
    let right = match method(*algorithm) {
        Some(Method::Rsa(_)) => key.family() == AlgorithmFamily::Rsa,
        Some(Method::Raw(_)) => [AlgorithmFamily::Ec, AlgorithmFamily::Ed].contains(&key.family()),
        None => false,
    };
    if !right {
        return Err(Error::from(ErrorKind::InvalidAlgorithm));
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
}

enum Method {
    Rsa(&'static ring::RsaParameters),
    Raw(&'static dyn ring::VerificationAlgorithm),
}

/// None: shared secrets, which whoever can check can also make.
fn method(algorithm: Algorithm) -> Option<Method> {
    Some(match algorithm {
        Algorithm::RS256 => Method::Rsa(&ring::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Method::Rsa(&ring::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Method::Rsa(&ring::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Method::Rsa(&ring::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Method::Rsa(&ring::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Method::Rsa(&ring::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Method::Raw(&ring::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Method::Raw(&ring::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Method::Raw(&ring::ED25519),
        _ => return None,
    })
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match (method(self.algorithm), self.key.kind()) {
            (Some(Method::Rsa(parameters)), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                // ring wants them without the zeros that some issuers put in front.
                let bare = |it: &[u8]| {
                    let zeros = it.iter().take_while(|byte| **byte == 0).count();
                    it[zeros..].to_vec()
                };
                let key = ring::RsaPublicKeyComponents { n: bare(n), e: bare(e) };
                key.verify(parameters, message, signed)
            }
            (Some(Method::Raw(algorithm)), DecodingKeyKind::SecretOrDer(bytes)) => {
                ring::UnparsedPublicKey::new(algorithm, bytes).verify(message, signed)
            }
            _ => return Err(signature::Error::new()),
        };
        verified.map_err(|_| signature::Error::new())
    }
}
