//! Traces leave in batches from a thread of their own, so that a slow collector costs a caller
//! nothing. That thread has no runtime, and an HTTP client needs one: requests are handed back to
//! the service's runtime and only awaited there.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};

use super::TelemetryError;
use crate::config::TracingConfig;

/// A collector that takes longer is given up; the batch is lost, and a line in the log says so.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Whether requests are worth a span: without an exporter nobody would see it.
pub(crate) fn are_enabled() -> bool {
    ENABLED.load(Relaxed)
}

/// Makes `span` a child of the caller's span, if its headers name one (W3C `traceparent`).
pub(crate) fn adopt_parent(span: &Span, headers: &HeaderMap) {
    let parent =
        TraceContextPropagator::new().extract(&opentelemetry_http::HeaderExtractor(headers));
    let _ = span.set_parent(parent);
}

/// A span of an operation on the database, below that of the request; none where nobody would see
/// it.
pub(crate) fn operation(system: &'static str, operation: &'static str, program: &str) -> Span {
    if !are_enabled() {
        return Span::none();
    }
    tracing::info_span!(
        "operation",
        otel.name = format!("{operation} {program}"),
        otel.kind = "client",
        db.system.name = system,
        db.operation.name = operation,
        steadfast.program = program,
    )
}

/// Notes on the request's span where its answer came from.
pub(crate) fn answered(source: &'static str, stale: bool) {
    if are_enabled() {
        let span = Span::current();
        span.record("steadfast.source", source);
        span.record("steadfast.stale", stale);
    }
}

type Layer<S> = OpenTelemetryLayer<S, opentelemetry_sdk::trace::SdkTracer>;

/// Sends traces until it is shut down.
pub(super) struct Exporter {
    provider: SdkTracerProvider,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Starts one if an endpoint is set, with the layer that feeds it.
    pub(super) fn start<S>(
        config: &TracingConfig,
    ) -> Result<Option<(Layer<S>, Self)>, TelemetryError>
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        let Some(endpoint) = &config.endpoint else {
            return Ok(None);
        };
        let client = OnRuntime {
            client: HyperClient::with_default_connector(EXPORT_LIMIT, None),
            runtime: Handle::try_current()
                .map_err(|error| TelemetryError::Traces(error.to_string()))?,
        };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.expose())
            .with_timeout(EXPORT_LIMIT)
            .build()
            .map_err(|error| TelemetryError::Traces(error.to_string()))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                config.sample,
            ))))
            .with_resource(
                Resource::builder()
                    .with_service_name(config.service_name.clone())
                    .build(),
            )
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("steadfast"));
        ENABLED.store(true, Relaxed);
        Ok(Some((layer, Self { provider })))
    }

    pub(super) fn shutdown(self) {
        ENABLED.store(false, Relaxed);
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_LIMIT) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// An HTTP client that may be awaited outside the runtime.
struct OnRuntime {
    client: HyperClient,
    runtime: Handle,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnRuntime")
    }
}

impl HttpClient for OnRuntime {
    fn send_bytes<'client, 'future>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'client: 'future,
        Self: 'future,
    {
        let client = self.client.clone();
        let sent = self
            .runtime
            .spawn(async move { client.send_bytes(request).await });
        Box::pin(async move { sent.await? })
    }
}
