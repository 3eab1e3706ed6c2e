//! The page and what it needs, carried inside the program: an operator who has the binary has the page, and it asks
//! nobody else for anything.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::extract::Named;
use crate::problem::{Problem, ProblemKind};

#[derive(RustEmbed)]
#[folder = "../../web/dist"]
struct Assets;

/// The page of the interface: written by hand, served as it stands.
#[derive(RustEmbed)]
#[folder = "../../web/reference"]
struct Reference;

/// Scripts, styles and requests from here only; nothing inline, nothing framed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      font-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`
pub(super) async fn index() -> Response {
    file("index.html")
}

/// `GET /assets/…`
pub(super) async fn asset(Named(path): Named) -> Response {
    file(&format!("assets/{path}"))
}

/// `GET /docs`: the interface, to be read and tried.
pub(super) async fn reference() -> Response {
    served("index.html", Reference::get("index.html"))
}

/// `GET /docs/…`: what that page needs beside the assets of the other.
pub(super) async fn reference_asset(Named(path): Named) -> Response {
    served(&path, Reference::get(&path))
}

fn file(path: &str) -> Response {
    served(path, Assets::get(path))
}

fn served(path: &str, file: Option<EmbeddedFile>) -> Response {
    let Some(file) = file else {
        return Problem::new(ProblemKind::Plain, "there is no such file")
            .status(StatusCode::NOT_FOUND)
            .into_response();
    };
    let mut response = file.data.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(media_type(path)),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "json" | "map" => "application/json",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
