//! A fetch of one small document from one configured address. A full client would follow redirects,
//! keep cookies and read without end; whoever holds the signing keys must come from exactly where
//! the operator said, so nothing of that is here.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::Url;

/// A document that is larger is refused.
const LARGEST: usize = 256 << 10;

/// Everything together may take so long.
const LIMIT: Duration = Duration::from_secs(5);

/// Reads `url` (`https`, `http` or `file`). What is told of a failure names no secret of the URL.
pub(crate) async fn fetch(url: &Url) -> Result<Vec<u8>, String> {
    match tokio::time::timeout(LIMIT, read(url)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

async fn read(url: &Url) -> Result<Vec<u8>, String> {
    if url.scheme() == "file" {
        let path = url
            .to_file_path()
            .map_err(|()| "is not the path of a file".to_owned())?;
        let bytes = tokio::fs::read(&path)
            .await
            .map_err(|error| error.to_string())?;
        return within(bytes);
    }
    let host = url.host_str().ok_or("the address has no host")?;
    let port = url
        .port_or_known_default()
        .ok_or("the address has no port")?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port))
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    if url.scheme() != "https" {
        return ask(stream, url, host, port).await;
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(tls()?)
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    ask(stream, url, host, port).await
}

fn tls() -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("the system has no root certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn ask<S>(stream: S, url: &Url, host: &str, port: u16) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, format!("{host}:{port}"))
        .header(hyper::header::ACCEPT, "application/json")
        .header(hyper::header::USER_AGENT, "steadfast")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != hyper::StatusCode::OK {
        return Err(format!("answered with {}", response.status()));
    }
    let body = Limited::new(response.into_body(), LARGEST)
        .collect()
        .await
        .map_err(|error| format!("the answer cannot be read: {error}"))?;
    within(body.to_bytes().to_vec())
}

fn within(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if bytes.len() > LARGEST {
        return Err(format!("is larger than {LARGEST} bytes"));
    }
    Ok(bytes)
}
