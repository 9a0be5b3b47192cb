//! `postgres://user:password@host:port/database?sslmode=…`, parsed by us: tokio-postgres refuses
//! `sslmode=verify-full`, and the walsender connection is our own anyway.
//!
//! Never shows the password: not in `Debug`, not in `Display`, not in an error. Errors therefore
//! quote no part of the text that a badly escaped password can reach.
//!
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>

use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// As libpq: how much of TLS is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// TLS if the server offers it, without looking at its certificate. libpq's default.
    Prefer,
    /// TLS or nothing; the certificate is checked only when `sslrootcert` is given, as libpq does.
    Require,
    /// The certificate must be signed by a known authority.
    VerifyCa,
    /// And be issued for the host that we connect to.
    VerifyFull,
}

/// Where Postgres is and who we are there. `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// A host name, an IP address, or a folder with a Unix socket (begins with `/`).
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<String>,
    pub database: String,
    pub ssl_mode: SslMode,
    /// PEM file of the authorities to trust; None: the system's.
    pub ssl_root_cert: Option<PathBuf>,
}

/// What is wrong in the URL and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the URL must begin with postgres:// or postgresql://")]
    Scheme,
    #[error("`@` may stand only between user and host: write `@ / ? : %` as %40 %2F %3F %3A %25")]
    Unescaped,
    #[error("the {0} is not percent-encoded UTF-8 without NUL: write `%` itself as %25")]
    Encoding(&'static str),
    #[error("the URL names no user: write postgres://user@host/database")]
    NoUser,
    #[error("the URL names no host: write postgres://user@host/database, or ?host=/folder")]
    NoHost,
    #[error("the URL names several hosts: give one")]
    SeveralHosts,
    #[error("an IPv6 address is written in brackets: [::1]")]
    Brackets,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error("unknown parameter \"{0}\": known are sslmode, sslrootcert and host")]
    UnknownParameter(String),
    #[error("the parameter \"{0}\" is given twice")]
    Repeated(&'static str),
    #[error("the parameter \"{0}\" has no value")]
    NoValue(&'static str),
    #[error("sslmode is not one of disable, prefer, require, verify-ca and verify-full{0}")]
    SslMode(&'static str),
}

impl FromStr for PostgresUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let rest = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|it| text.strip_prefix(it))
            .ok_or(UrlError::Scheme)?;
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = before.split_once('/').unwrap_or((before, ""));
        // An `@` elsewhere means that a `/`, `?` or `@` of the password was taken for ours.
        let (who, place) = authority.split_once('@').unwrap_or(("", authority));
        if rest.matches('@').count() > usize::from(authority.contains('@')) {
            return Err(UrlError::Unescaped);
        }
        let (user, password) = match who.split_once(':') {
            Some((user, password)) => (user, Some(decoded("password", password)?)),
            None => (who, None),
        };
        if user.is_empty() {
            return Err(UrlError::NoUser);
        }
        let user = decoded("user", user)?;
        let (host, port) = host_and_port(place)?;
        let parameters = Parameters::parse(query)?;
        let host = parameters.host.unwrap_or(host);
        if host.is_empty() {
            return Err(UrlError::NoHost);
        }
        if host.contains(',') {
            return Err(UrlError::SeveralHosts);
        }
        let database = decoded("database", database)?;
        Ok(Self {
            host,
            port,
            database: if database.is_empty() { user.clone() } else { database },
            user,
            password,
            ssl_mode: parameters.ssl_mode.unwrap_or(SslMode::Prefer),
            ssl_root_cert: parameters.ssl_root_cert,
        })
    }
}

impl PostgresUrl {
    /// The Unix socket to connect to, if the host is a folder.
    pub(crate) fn socket_path(&self) -> Option<PathBuf> {
        let folder = self.host.starts_with('/').then(|| PathBuf::from(&self.host));
        folder.map(|it| it.join(format!(".s.PGSQL.{}", self.port)))
    }
}

/// Percent-decoded; NUL is refused because the protocol ends its texts with it.
fn decoded(what: &'static str, text: &str) -> Result<String, UrlError> {
    let bytes = text.as_bytes();
    let escaped = bytes.iter().enumerate().filter(|(_, it)| **it == b'%').all(|(at, _)| {
        bytes.get(at + 1..at + 3).is_some_and(|it| it.iter().all(u8::is_ascii_hexdigit))
    });
    let plain = percent_decode_str(text).decode_utf8().map_err(|_| UrlError::Encoding(what))?;
    if escaped && !plain.contains('\0') {
        Ok(plain.into_owned())
    } else {
        Err(UrlError::Encoding(what))
    }
}

fn host_and_port(place: &str) -> Result<(String, u16), UrlError> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(UrlError::Brackets)?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(UrlError::Brackets);
        }
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').unwrap_or("?")) })
    } else {
        match place.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(UrlError::Brackets),
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    let port = match port {
        None | Some("") => 5432,
        // `+5432` would parse as well.
        Some(text) if !text.bytes().all(|it| it.is_ascii_digit()) => return Err(UrlError::Port),
        Some(text) => text.parse().ok().filter(|&it| it != 0).ok_or(UrlError::Port)?,
    };
    Ok((decoded("host", host)?, port))
}

#[derive(Default)]
struct Parameters {
    ssl_mode: Option<SslMode>,
    ssl_root_cert: Option<PathBuf>,
    host: Option<String>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, UrlError> {
        let mut found = Self::default();
        for pair in query.split('&').filter(|it| !it.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslmode" => once("sslmode", &mut found.ssl_mode, value, |it| ssl_mode(&it))?,
                "sslrootcert" => {
                    let path = |it| Ok(PathBuf::from(it));
                    once("sslrootcert", &mut found.ssl_root_cert, value, path)?;
                }
                "host" => once("host", &mut found.host, value, Ok)?,
                other => return Err(UrlError::UnknownParameter(other.to_owned())),
            }
        }
        Ok(found)
    }
}

/// Two values for one parameter mean that one of them is not wanted: nobody can tell which.
fn once<T>(
    name: &'static str,
    slot: &mut Option<T>,
    value: &str,
    read: impl FnOnce(String) -> Result<T, UrlError>,
) -> Result<(), UrlError> {
    let value = decoded(name, value)?;
    if value.is_empty() {
        return Err(UrlError::NoValue(name));
    }
    match slot.replace(read(value)?) {
        None => Ok(()),
        Some(_) => Err(UrlError::Repeated(name)),
    }
}

fn ssl_mode(text: &str) -> Result<SslMode, UrlError> {
    match text {
        "disable" => Ok(SslMode::Disable),
        "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        "allow" => Err(UrlError::SslMode("; instead of allow write prefer")),
        _ => Err(UrlError::SslMode("")),
    }
}

impl std::fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgres://{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}?sslmode={:?}", self.ssl_mode)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(host: &str, port: u16, user: &str, password: Option<&str>, db: &str) -> PostgresUrl {
        PostgresUrl {
            host: host.to_owned(),
            port,
            user: user.to_owned(),
            password: password.map(str::to_owned),
            database: db.to_owned(),
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: None,
        }
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        let cases = [
            ("postgres://u@h", url("h", 5432, "u", None, "u")),
            ("postgresql://u:p@h:1/d", url("h", 1, "u", Some("p"), "d")),
            ("postgres://u:@h:/d?", url("h", 5432, "u", Some(""), "d")),
            ("postgres://a%40b:%3A%2f%C3%A9@h/d%20e", url("h", 5432, "a@b", Some(":/é"), "d e")),
            ("postgres://u:a:b@h", url("h", 5432, "u", Some("a:b"), "u")),
            ("postgres://u@[::1]:7/d", url("::1", 7, "u", None, "d")),
            ("postgres://u@%2Frun%2Fpg/d", url("/run/pg", 5432, "u", None, "d")),
            ("postgres://u@:7/d?host=/run", url("/run", 7, "u", None, "d")),
        ];
        for (text, expected) in cases {
            assert!(text.parse() == Ok(expected), "{text}: {:?}", text.parse::<PostgresUrl>());
        }
    }

    #[test]
    fn parameters_are_read() {
        let mode = |text: &str| format!("postgres://u@h?{text}").parse::<PostgresUrl>();
        let cases = [
            ("sslmode=disable", SslMode::Disable, None),
            ("sslmode=require&sslrootcert=/a%20b.pem", SslMode::Require, Some("/a b.pem")),
            ("sslrootcert=ca&sslmode=verify-ca", SslMode::VerifyCa, Some("ca")),
            ("sslmode=verify-full", SslMode::VerifyFull, None),
        ];
        for (text, expected, path) in cases {
            let got = mode(text).unwrap();
            assert_eq!((got.ssl_mode, got.ssl_root_cert), (expected, path.map(PathBuf::from)));
        }
    }

    #[test]
    fn mistakes_say_what_to_write() {
        let cases = [
            ("mysql://u@h", UrlError::Scheme),
            ("postgres:/u@h", UrlError::Scheme),
            ("postgres://h/d", UrlError::NoUser),
            ("postgres://:p@h/d", UrlError::NoUser),
            ("postgres://u@/d", UrlError::NoHost),
            ("postgres://u@a,b/d", UrlError::SeveralHosts),
            ("postgres://u:p@ss@h/d", UrlError::Unescaped),
            ("postgres://u:pa/ss@h/d", UrlError::Unescaped),
            ("postgres://u:pa?ss@h/d", UrlError::Unescaped),
            ("postgres://u:100%@h/d", UrlError::Encoding("password")),
            ("postgres://u:%ff@h/d", UrlError::Encoding("password")),
            ("postgres://u%00@h/d", UrlError::Encoding("user")),
            ("postgres://u@h:x", UrlError::Port),
            ("postgres://u@h:0", UrlError::Port),
            ("postgres://u@h:+1", UrlError::Port),
            ("postgres://u@h:65536", UrlError::Port),
            ("postgres://u@::1", UrlError::Brackets),
            ("postgres://u@[::1", UrlError::Brackets),
            ("postgres://u@[::1]5", UrlError::Port),
            ("postgres://u@h?x=1", UrlError::UnknownParameter("x".to_owned())),
            ("postgres://u@h?sslmode=no", UrlError::SslMode("")),
            ("postgres://u@h?sslmode", UrlError::NoValue("sslmode")),
            ("postgres://u@h?host=/a&host=/b", UrlError::Repeated("host")),
        ];
        for (text, expected) in cases {
            assert!(text.parse::<PostgresUrl>() == Err(expected), "{text}");
        }
        let allow = "postgres://u@h?sslmode=allow".parse::<PostgresUrl>().unwrap_err();
        assert!(allow.to_string().ends_with("; instead of allow write prefer"), "{allow}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String, tail in "(\\PC|[:/?@%&=\\[\\]]){0,40}") {
            drop(text.parse::<PostgresUrl>());
            drop(format!("postgres://{tail}").parse::<PostgresUrl>());
        }

        #[test]
        fn the_password_is_never_shown(
            middle in "(\\PC|[:/?@%&=\\[\\]]){0,6}",
            tail in "(\\?sslmode=(no|allow|require)|:x/d|/d\\?x=1)?",
        ) {
            let text = format!("postgres://u:hunter{middle}hunter@h{tail}");
            let shown = match text.parse::<PostgresUrl>() {
                Ok(url) => format!("{url} {url:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            prop_assert!(!shown.contains("hunter"), "{}", shown);
        }
    }
}
