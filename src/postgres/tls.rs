//! TLS for connections to Postgres, as `sslmode` asks for it, with rustls and ring.
//!
//! The provider is chosen here and not by the process' default: another crate that brings a second
//! provider must not be able to change what we check, or to make us panic.
//!
//! Never weaker than asked: a root file that can't be read is an error, and so is an empty one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::Digest;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{
    ClientConfig, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::postgres::url::{PostgresUrl, SslMode};

/// The authorities to trust can't be had.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("can't read certificates from sslrootcert {path}: give a PEM file")]
    File {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("{0} holds no usable certificate: give a PEM file of the authorities to trust")]
    Empty(PathBuf),
    #[error("the system has no certificates to trust: install them or give sslrootcert=file.pem")]
    NoSystemRoots,
}

/// What is looked at. `None` for the roots: nothing, as libpq without `sslrootcert`.
#[derive(Debug)]
struct Verifier {
    roots: Option<RootCertStore>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
            if self.check_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The client's side of TLS for this URL. Reads files: call it where that may block.
pub(crate) fn client_config(url: &PostgresUrl) -> Result<ClientConfig, RootsError> {
    let roots = match url.ssl_mode {
        SslMode::Disable | SslMode::Prefer => None,
        SslMode::Require if url.ssl_root_cert.is_none() => None,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Some(roots(url)?),
    };
    let provider = Arc::new(ring::default_provider());
    let check_name = url.ssl_mode == SslMode::VerifyFull;
    let verifier = Verifier { roots, check_name, provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

fn roots(url: &PostgresUrl) -> Result<RootCertStore, RootsError> {
    let mut store = RootCertStore::empty();
    let Some(path) = &url.ssl_root_cert else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if store.is_empty() { Err(RootsError::NoSystemRoots) } else { Ok(store) };
    };
    let failed = |source| RootsError::File { path: path.clone(), source };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|it| it.collect::<Result<Vec<_>, _>>())
        .map_err(failed)?;
    store.add_parsable_certificates(certificates);
    if store.is_empty() { Err(RootsError::Empty(path.clone())) } else { Ok(store) }
}

/// The name to ask for and to check: a host name or an IP address.
pub(crate) fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|it| io::Error::new(io::ErrorKind::InvalidData, it))
}

/// Channel binding `tls-server-end-point`: the certificate's hash, by the hash of its signature;
/// MD5 and SHA-1 count as SHA-256. None for signatures with a hash of their own (Ed25519) or in
/// parameters (RSA-PSS): the login then goes without channel binding.
///
/// <https://www.rfc-editor.org/rfc/rfc5929#section-4.1>
pub(crate) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let oid = signature_oid(certificate)?;
    let (rsa, ecdsa) = (oid.strip_prefix(RSA), oid.strip_prefix(ECDSA));
    match (rsa, ecdsa) {
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => {
            Some(sha2::Sha256::digest(certificate).to_vec())
        }
        (Some([12]), _) | (_, Some([3, 3])) => Some(sha2::Sha384::digest(certificate).to_vec()),
        (Some([13]), _) | (_, Some([3, 4])) => Some(sha2::Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// `Certificate ::= SEQUENCE { tbs SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }`
fn signature_oid(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (inside, _) = der_value(certificate, SEQUENCE)?;
    let (_, rest) = der_value(inside, SEQUENCE)?;
    let (algorithm, _) = der_value(rest, SEQUENCE)?;
    der_value(algorithm, OBJECT_IDENTIFIER).map(|(oid, _)| oid)
}

/// The value of the DER element in front, which must have this tag, and what follows it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        // Four bytes are far more than any certificate has.
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f).min(5))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |sum, &it| sum << 8 | usize::from(it)), rest)
    };
    if found == tag { rest.split_at_checked(length) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `SEQUENCE { SEQUENCE {}, SEQUENCE { OID } }`
    fn certificate(oid: &[u8]) -> Vec<u8> {
        let length = u8::try_from(oid.len()).unwrap();
        [&[0x30, length + 6, 0x30, 0, 0x30, length + 2, 0x06, length], oid].concat()
    }

    #[test]
    fn the_signature_names_the_hash() {
        let cases: [(&[u8], Option<usize>); 5] = [
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 5], Some(32)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 2], Some(32)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 12], Some(48)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 3, 4], Some(64)),
            (&[0x2b, 0x65, 0x70], None),
        ];
        for (oid, expected) in cases {
            let hash = end_point_hash(&certificate(oid));
            assert_eq!(hash.map(|it| it.len()), expected, "{oid:x?}");
        }
    }

    #[test]
    fn a_real_certificate_has_a_hash() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let der = made.cert.der();
        assert_eq!(end_point_hash(der), Some(sha2::Sha256::digest(der).to_vec()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            drop(end_point_hash(&bytes));
            drop(end_point_hash(&[&[0x30, 0x84][..], &bytes].concat()));
        }
    }
}
