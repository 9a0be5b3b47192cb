//! A folder of files for browsers, such as the demo's page: served from the same origin as commands
//! and documents, which then needs no CORS.
//!
//! Files are public: a browser that opens an address has no header to say who it is.

use std::convert::Infallible;
use std::path::Path;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use tower::{Service, ServiceExt as _, service_fn};
use tower_http::services::ServeDir;

use crate::gateway::problem;

/// Paths that are never files, so that a page's mistake in an address gets a problem to read.
const API: &str = "/v1/";

/// What answers when no route does.
pub fn serve(
    folder: &Path,
) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + use<> {
    let files = ServeDir::new(folder);
    service_fn(move |request: Request| {
        let files = files.clone();
        async move {
            if request.uri().path().starts_with(API) {
                return Ok(problem::not_found().into_response());
            }
            let answer = files.oneshot(request).await.unwrap_or_else(|never| match never {});
            Ok(answered(answer.map(Body::new)))
        }
    })
}

/// A file, or a problem instead of an empty body.
fn answered(mut answer: Response) -> Response {
    match answer.status().as_u16() {
        404 => problem::not_found().into_response(),
        405 => problem::wrong_method().into_response(),
        _ => {
            let headers = answer.headers_mut();
            // Asked for each time, and not sent again while it is unchanged.
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            let as_it_says = HeaderValue::from_static("nosniff");
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, as_it_says);
            // Addresses of pages may hold ids of documents.
            let none = HeaderValue::from_static("no-referrer");
            headers.insert(header::REFERRER_POLICY, none);
            answer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(folder: &Path, method: &str, path: &str) -> (u16, String, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let answer = serve(folder).oneshot(request).await.unwrap();
        let kind = answer.headers().get(header::CONTENT_TYPE).map(|it| it.to_str().unwrap());
        let kind = kind.unwrap_or_default().to_owned();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn files_of_the_folder_are_served_and_nothing_else() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("page");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("index.html"), "<p>page").unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        assert_eq!(get(&folder, "GET", "/").await, (200, "text/html".into(), "<p>page".into()));
        for (method, path, status) in [
            ("GET", "/index.html", 200),
            ("GET", "/none", 404),
            ("GET", "/../secret", 404),
            ("GET", "/%2e%2e/secret", 404),
            ("GET", "/..%2fsecret", 404),
            ("GET", "/%2fetc/passwd", 404),
            ("GET", "/v1/index.html", 404),
            ("POST", "/", 405),
        ] {
            let (found, kind, body) = get(&folder, method, path).await;
            assert_eq!(found, status, "{path}");
            assert!(!body.contains("secret"), "{path}");
            assert_eq!(kind == "application/problem+json", status > 200, "{path}: {kind}");
        }
    }
}
