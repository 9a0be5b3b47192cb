//! Who asks, and what they may: API keys, known by their SHA-256, and tokens that somebody else
//! has signed ([`crate::gateway::jwt`]).
//!
//! Keys are looked up by their hash, so that how long it takes tells nothing about a key; the
//! config has no key that could leak.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use globset::{Glob, GlobSet, GlobSetBuilder};
use sha2::{Digest as _, Sha256};

use crate::config::gateway::GatewayConfig;
use crate::gateway::jwt::TokenVerifier;
use crate::gateway::problem::Problem;

/// What is longer is no credential of ours, and not worth to be hashed.
const CREDENTIAL_MAX: usize = 8192;

/// Who asks. In the request's extensions once they are let in.
#[derive(Debug, Clone)]
pub struct Principal {
    /// As logs and the header `principal` of commands have it.
    pub name: Arc<str>,
    /// The only session that this principal may speak for. None: any.
    pub session: Option<Arc<str>>,
    commands: GlobSet,
    collections: GlobSet,
}

impl Principal {
    /// Whether commands may be sent to the topic.
    pub fn may_command(&self, topic: &str) -> bool {
        self.commands.is_match(topic)
    }

    pub fn may_read(&self, collection: &str) -> bool {
        self.collections.is_match(collection)
    }
}

/// Who may come in.
#[derive(Debug)]
pub struct Doorkeeper {
    keys: HashMap<[u8; 32], Principal>,
    anonymous: Option<Principal>,
    tokens: Option<(Arc<TokenVerifier>, Principal)>,
}

impl Doorkeeper {
    pub fn new(config: &GatewayConfig) -> Self {
        let all = ["*".to_owned()];
        let principal = |name: &str, commands: &[String], collections: &[String]| Principal {
            name: name.into(),
            session: None,
            commands: globs(commands),
            collections: globs(collections),
        };
        let keys = config.api_keys.iter();
        let keys = keys
            .map(|it| (it.sha256, principal(&it.name, &it.commands, &it.collections)))
            .collect();
        let anonymous = config.anonymous.then(|| principal("anonymous", &all, &all));
        let tokens = config.jwt.as_ref().map(|it| {
            let anybody = principal("", &it.commands, &it.collections);
            (Arc::new(TokenVerifier::new(it.clone())), anybody)
        });
        Self { keys, anonymous, tokens }
    }

    /// What checks tokens, if they are taken.
    pub fn tokens(&self) -> Option<&Arc<TokenVerifier>> {
        self.tokens.as_ref().map(|(verifier, _)| verifier)
    }

    /// Lets in or says why not. `token`: what the query string has instead of a header.
    ///
    /// # Errors
    /// 401: no credential, or none that we know.
    pub fn admit(&self, headers: &HeaderMap, token: Option<&str>) -> Result<Principal, Problem> {
        let Some(credential) = credential(headers)?.or(token) else {
            return self.anonymous.clone().ok_or_else(|| {
                unauthorized(
                    "say who you are: Authorization: Bearer …, with an API key of [gateway]",
                )
            });
        };
        let known = (credential.len() <= CREDENTIAL_MAX)
            .then(|| self.keys.get(&<[u8; 32]>::from(Sha256::digest(credential))))
            .flatten();
        match (known, &self.tokens) {
            (Some(known), _) => Ok(known.clone()),
            (None, Some((verifier, anybody))) if is_token(credential) => {
                let subject = verifier.verify(credential);
                let subject = subject.map_err(|it| unauthorized(&it.to_string()))?;
                let session = Some(subject.session_id.into());
                Ok(Principal { name: subject.name.into(), session, ..anybody.clone() })
            }
            (None, _) => Err(unauthorized("this credential is not known here")),
        }
    }
}

/// What the headers have as credential: `Authorization: Bearer`, or `X-API-Key`.
fn credential(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (given.next(), given.next());
    if let Some(value) = first {
        let (scheme, rest) = value.to_str().unwrap_or("").split_once(' ').unwrap_or_default();
        if second.is_some() || !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unauthorized("one header Authorization: Bearer … is understood"));
        }
        return Ok(Some(rest.trim()));
    }
    match headers.get("x-api-key") {
        Some(value) if value.to_str().is_err() => Err(unauthorized("a credential is ASCII")),
        key => Ok(key.and_then(|it| it.to_str().ok())),
    }
}

/// Whether it looks like a token: three parts.
fn is_token(credential: &str) -> bool {
    credential.len() <= CREDENTIAL_MAX && credential.split('.').count() == 3
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"onelog\""))
}

/// Patterns that the config has checked.
pub fn globs(patterns: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).expect("the config has checked it"));
    }
    set.build().expect("the config has checked each")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway::ApiKey;

    fn config(anonymous: bool) -> GatewayConfig {
        let text = "[postgres]\nurl = \"postgres://onelog@localhost/app\"\ntables = [\"a.*\"]\n\
                    [kafka]\nbrokers = \"localhost:9092\"\ntopic_prefix = \"app\"\n\
                    [elasticsearch]\nurl = \"http://localhost:9200\"\n[gateway]";
        let config = crate::config::file::parse("config.toml".as_ref(), text, &|_| None).unwrap();
        let key = ApiKey {
            name: "web".to_owned(),
            sha256: Sha256::digest("s3cret").into(),
            commands: vec!["commands.*".to_owned()],
            collections: vec!["page".to_owned()],
        };
        GatewayConfig { anonymous, api_keys: vec![key], ..config.gateway.unwrap() }
    }

    #[test]
    fn only_who_has_a_key_or_needs_none_comes_in() {
        type Case = (
            &'static [(&'static str, &'static str)],
            Option<&'static str>,
            bool,
            Result<&'static str, u16>,
        );
        let cases: &[Case] = &[
            (&[("authorization", "Bearer s3cret")], None, false, Ok("web")),
            (&[("authorization", "bearer  s3cret")], None, false, Ok("web")),
            (&[("x-api-key", "s3cret")], None, true, Ok("web")),
            (&[], Some("s3cret"), false, Ok("web")),
            (&[], None, true, Ok("anonymous")),
            (&[], None, false, Err(401)),
            // A wrong key is not the same as none.
            (&[("x-api-key", "wrong")], None, true, Err(401)),
            (&[("authorization", "Basic s3cret")], None, true, Err(401)),
            (&[("authorization", "Bearer")], None, true, Err(401)),
            (
                &[("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")],
                None,
                false,
                Err(401),
            ),
        ];
        for (given, token, anonymous, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in *given {
                headers.append(*name, value.parse().unwrap());
            }
            let found = Doorkeeper::new(&config(*anonymous)).admit(&headers, *token);
            let found = found.map(|it| it.name.to_string()).map_err(|it| it.status().as_u16());
            assert_eq!(found, expected.map(str::to_owned), "{given:?} {token:?}");
        }
    }

    #[test]
    fn a_key_opens_what_it_is_for() {
        let door = Doorkeeper::new(&config(false));
        let web = door.admit(&HeaderMap::new(), Some("s3cret")).unwrap();
        assert!(web.may_command("commands.profile") && !web.may_command("orders"));
        assert!(web.may_read("page") && !web.may_read("page2"));
    }
}
