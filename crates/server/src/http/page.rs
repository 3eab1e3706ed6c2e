//! The page and what it needs, carried inside the program: an operator who has the binary has the
//! page, and it asks nobody else for anything.

use std::collections::BTreeMap;
use std::io::Write;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use rust_embed::{EmbeddedFile, RustEmbed};

use super::extract::PathParam;
use crate::problem::{Problem, ProblemKind};

#[derive(RustEmbed)]
#[folder = "assets/dist"]
struct Assets;

/// The page of the interface: written by hand, served as it stands.
#[derive(RustEmbed)]
#[folder = "assets/reference"]
struct Reference;

/// The pages for whoever runs the service, as they stand in the repository: at night nobody looks
/// for the right version of them.
#[derive(RustEmbed)]
#[folder = "assets/runbook"]
struct Runbook;

/// Scripts, styles and requests from here only; nothing inline, nothing framed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      font-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`
pub(crate) async fn index(headers: HeaderMap) -> Response {
    file("index.html", &headers)
}

/// `GET /assets/…`
pub(crate) async fn asset(PathParam(path): PathParam, headers: HeaderMap) -> Response {
    file(&format!("assets/{path}"), &headers)
}

/// `GET /docs`: the interface, to be read and tried.
pub(crate) async fn reference(headers: HeaderMap) -> Response {
    served("index.html", Reference::get("index.html"), &headers)
}

/// `GET /docs/…`: what that page needs beside the assets of the other, and the runbook, as text and
/// as a page that shows it.
pub(crate) async fn reference_asset(PathParam(path): PathParam, headers: HeaderMap) -> Response {
    if path == "operations" {
        return file("operations.html", &headers);
    }
    let found = Runbook::get(&path).or_else(|| Reference::get(&path));
    served(&path, found, &headers)
}

fn file(path: &str, headers: &HeaderMap) -> Response {
    served(path, Assets::get(path), headers)
}

fn served(path: &str, file: Option<EmbeddedFile>, asked: &HeaderMap) -> Response {
    let Some(file) = file else {
        return Problem::new(ProblemKind::Plain, "there is no such file")
            .status(StatusCode::NOT_FOUND)
            .into_response();
    };
    let hash = file.metadata.sha256_hash();
    let packed = takes_gzip(asked)
        .then(|| packed(hash, &file.data))
        .flatten();
    let tag = tag(&hash, packed.is_some());
    let mut response = if has(asked, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match &packed {
            Some(packed) => packed.clone().into_response(),
            None => file.data.into_response(),
        }
    };
    let unchanged = response.status() == StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    if unchanged {
        headers.remove(header::CONTENT_TYPE);
    } else {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(media_type(path)),
        );
        if packed.is_some() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Returns the `ETag` of a file: of its content, and of how that was sent.
fn tag(hash: &[u8; 32], packed: bool) -> String {
    let hash: String = hash[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{hash}{}\"", if packed { "-gzip" } else { "" })
}

/// Whether the browser has the file of that tag already (RFC 9110, 13.1.2).
fn has(asked: &HeaderMap, tag: &str) -> bool {
    let lists = asked.get_all(header::IF_NONE_MATCH).iter();
    lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(|one| one.trim())
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// Whether gzip is named among the encodings, and not as one that is refused.
fn takes_gzip(asked: &HeaderMap) -> bool {
    let lists = asked.get_all(header::ACCEPT_ENCODING).iter();
    lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|one| {
            let mut parts = one.split(';').map(str::trim);
            let named = parts.next()?.eq_ignore_ascii_case("gzip");
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            named.then(|| {
                weight
                    .and_then(|weight| weight.parse::<f32>().ok())
                    .unwrap_or(1.0)
            })
        })
        .any(|weight| weight > 0.0)
}

/// The file in gzip, made once; `None` where that saves nothing.
fn packed(hash: [u8; 32], data: &[u8]) -> Option<Bytes> {
    static PACKED: Mutex<BTreeMap<[u8; 32], Option<Bytes>>> = Mutex::new(BTreeMap::new());
    let mut packed = PACKED.lock();
    let made = packed.entry(hash).or_insert_with(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).ok()?;
        let packed = encoder.finish().ok()?;
        (packed.len() < data.len() * 9 / 10).then(|| packed.into())
    });
    made.clone()
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
        "md" => "text/markdown; charset=utf-8",
        "json" | "map" => "application/json",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
