//! The start of a walsender session: parameters, authentication, until the server is ready.
//!
//! Ours because tokio-postgres has no replication mode. Invariant: with SCRAM the server proves
//! that it knows the password too: a login is complete only after its signature was checked.
//!
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP>

use std::io;

use bytes::{Buf, Bytes};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use crate::postgres::connection_error::ConnectionError;
use crate::postgres::session::{Session, unexpected};
use crate::postgres::url::PostgresUrl;

/// What the session is pinned to, whatever the database or the role is set to, for both kinds of
/// connection: text of values must always look the same.
pub(crate) const PINNED_OPTIONS: &str = "-c timezone=UTC -c datestyle=ISO \
     -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex \
     -c quote_all_identifiers=off";

/// Under it a regclass is written with its namespace. Others than the walsender keep the role's,
/// for the names in mappings.
const SEARCH_PATH: &str = "-c search_path=pg_catalog";

/// A walsender is idle for long and never ends on its own account; and it warns of what it leaves
/// out (`connection::left_out`), which a role's own setting must not hush.
const UNLIMITED_OPTIONS: &str =
    "-c statement_timeout=0 -c idle_session_timeout=0 -c client_min_messages=warning";

/// Starts the session and logs in.
pub(crate) async fn start(session: &mut Session, url: &PostgresUrl) -> Result<(), ConnectionError> {
    let options = format!("{PINNED_OPTIONS} {SEARCH_PATH} {UNLIMITED_OPTIONS}");
    let parameters = [
        ("user", url.user.as_str()),
        ("database", url.database.as_str()),
        ("replication", "database"),
        ("client_encoding", "UTF8"),
        ("application_name", "onelog"),
        ("options", options.as_str()),
    ];
    frontend::startup_message(parameters, &mut session.outbox)
        .map_err(ConnectionError::Unsendable)?;
    session.flush().await?;
    log_in(session, url).await?;
    loop {
        let frame = session.message().await?;
        match frame.tag {
            b'Z' => return Ok(()),
            // The key for cancelling, which we never do; a minor version, of which we ask none.
            b'K' | b'v' => {}
            _ => return Err(unexpected(&frame, "logging in")),
        }
    }
}

/// The authentication messages that we know.
#[derive(Debug)]
enum Authentication {
    Accepted,
    Cleartext,
    Md5([u8; 4]),
    Sasl(Bytes),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Other(u32),
}

async fn authentication(session: &mut Session) -> Result<Authentication, ConnectionError> {
    let frame = session.message().await?;
    if frame.tag != b'R' {
        return Err(unexpected(&frame, "authenticating"));
    }
    let mut body = frame.body;
    let short = |_| ConnectionError::Protocol("a short authentication message".to_owned());
    let known = match body.try_get_u32().map_err(short)? {
        0 => Authentication::Accepted,
        3 => Authentication::Cleartext,
        5 => Authentication::Md5(body.try_get_u32().map_err(short)?.to_be_bytes()),
        10 => Authentication::Sasl(std::mem::take(&mut body)),
        11 => Authentication::SaslContinue(std::mem::take(&mut body)),
        12 => Authentication::SaslFinal(std::mem::take(&mut body)),
        other => Authentication::Other(other),
    };
    match known {
        Authentication::Other(_) => Ok(known),
        _ if body.is_empty() => Ok(known),
        _ => Err(ConnectionError::Protocol("a long authentication message".to_owned())),
    }
}

async fn log_in(session: &mut Session, url: &PostgresUrl) -> Result<(), ConnectionError> {
    match authentication(session).await? {
        Authentication::Accepted => return Ok(()),
        // As libpq, also without TLS: which methods to offer is for the server's pg_hba.conf.
        Authentication::Cleartext => send_password(session, password(url)?).await?,
        Authentication::Md5(salt) => {
            let hash = md5_hash(url.user.as_bytes(), password(url)?, salt);
            send_password(session, hash.as_bytes()).await?;
        }
        Authentication::Sasl(mechanisms) => scram(session, url, &mechanisms).await?,
        Authentication::Other(method) => {
            return Err(ConnectionError::Authentication(format!(
                "the server asks for method {method}, which onelog does not know: use \
                 scram-sha-256 in pg_hba.conf"
            )));
        }
        other => return Err(out_of_order(&other)),
    }
    match authentication(session).await? {
        Authentication::Accepted => Ok(()),
        other => Err(out_of_order(&other)),
    }
}

fn out_of_order(message: &Authentication) -> ConnectionError {
    let name = match message {
        Authentication::Accepted => "acceptance before the server's proof",
        Authentication::Cleartext | Authentication::Md5(_) => "a second request for a password",
        Authentication::Sasl(_) => "a second request for SASL",
        Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => "SASL out of order",
        Authentication::Other(_) => "a second method of authentication",
    };
    ConnectionError::Protocol(name.to_owned())
}

fn password(url: &PostgresUrl) -> Result<&[u8], ConnectionError> {
    url.password.as_ref().map(String::as_bytes).ok_or_else(no_password)
}

/// The server wants a password and the URL has none.
pub(crate) fn no_password() -> ConnectionError {
    let what = "the server asks for a password: write postgres://user:password@host/database";
    ConnectionError::Authentication(what.to_owned())
}

async fn send_password(session: &mut Session, password: &[u8]) -> Result<(), ConnectionError> {
    frontend::password_message(password, &mut session.outbox)
        .map_err(ConnectionError::Unsendable)?;
    session.flush().await
}

/// SCRAM-SHA-256, bound to the TLS channel where both sides can.
///
/// <https://www.postgresql.org/docs/current/sasl-authentication.html>
async fn scram(
    session: &mut Session,
    url: &PostgresUrl,
    mechanisms: &[u8],
) -> Result<(), ConnectionError> {
    let offered = |name: &str| mechanisms.split(|&it| it == 0).any(|it| it == name.as_bytes());
    let (mechanism, binding) = match session.transport().end_point_hash() {
        Some(hash) if offered(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
        }
        // "We could, you did not offer it": the server notices if someone took its offer away.
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !offered(mechanism) {
        let what = "the server offers SASL without SCRAM-SHA-256, the only kind known to onelog";
        return Err(ConnectionError::Authentication(what.to_owned()));
    }
    let refused = |source: io::Error| ConnectionError::Authentication(format!("SCRAM: {source}"));
    let unsendable = ConnectionError::Unsendable;
    let mut scram = ScramSha256::new(password(url)?, binding);
    frontend::sasl_initial_response(mechanism, scram.message(), &mut session.outbox)
        .map_err(unsendable)?;
    session.flush().await?;
    match authentication(session).await? {
        Authentication::SaslContinue(data) => scram.update(&data).map_err(refused)?,
        other => return Err(out_of_order(&other)),
    }
    frontend::sasl_response(scram.message(), &mut session.outbox).map_err(unsendable)?;
    session.flush().await?;
    match authentication(session).await? {
        Authentication::SaslFinal(data) => scram.finish(&data).map_err(refused),
        other => Err(out_of_order(&other)),
    }
}
