//! Logs go to standard error, so that standard output stays the program's own; metrics are kept by
//! one recorder in the process, which every part feeds through a facade and `/metrics` renders.
//!
//! ```no_run
//! use steadfast_server::{App, Config, telemetry};
//!
//! # async fn example(config: Config) -> Result<(), Box<dyn std::error::Error>> {
//! let telemetry = telemetry::init(&config)?; // if the program has no subscriber of its own
//! let app = App::start(config).await?;
//! // … it serves …
//! app.close().await;
//! telemetry.shutdown();
//! # Ok(()) }
//! ```

use std::io::IsTerminal;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::auth;
use crate::certificates;
use crate::config::{Config, LogFormat};
use crate::observe::failovers;
use crate::tasks;

mod lines;
mod traces;
mod words;

use lines::Lines;
pub(crate) use traces::{adopt_parent, answered, are_enabled as traces_are_enabled, operation};

/// The reason why logs or traces could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The process has another subscriber already.
    #[error("logging is already set up in this process")]
    AlreadySet,
    /// There is no thread to be had that would write the log.
    #[error("the log cannot be written: {0}")]
    Log(std::io::Error),
    /// The exporter of traces could not be built.
    #[error("traces cannot be exported: {0}")]
    Traces(String),
}

/// Keeps logs and traces going. Dropped, however the program ends, it sends what is still held: the
/// last lines before an early end are those that say why.
#[derive(Debug)]
pub struct Telemetry {
    lines: Lines,
    traces: Option<traces::Exporter>,
}

/// Lets SIGHUP change what is logged.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logs as `[log]` says, and traces if `[tracing] endpoint` is set. Once in a process,
/// within a tokio runtime.
///
/// # Errors
/// See [`TelemetryError`].
pub fn init(config: &Config) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(&config.log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let writer = Lines::to_stderr().map_err(TelemetryError::Log)?;
    let lines = match config.log.format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(writer.clone())
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(writer.clone())
            .boxed(),
    };
    let (layer, traces) = match traces::Exporter::start(&config.tracing)? {
        Some((layer, exporter)) => (Some(layer), Some(exporter)),
        None => (None, None),
    };
    // The filter is the log's alone: what is traced does not depend on what is logged.
    let own =
        |meta: &tracing::Metadata<'_>| meta.is_span() && meta.target().starts_with("steadfast");
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(layer.with_filter(filter_fn(own)))
        .try_init()
        .map_err(|_| TelemetryError::AlreadySet)?;
    let _ = FILTER.set(handle);
    Ok(Telemetry {
        lines: writer,
        traces,
    })
}

impl Telemetry {
    /// Sends the traces that are still held, and lets the last lines of the log be written.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take() {
            traces.shutdown();
        }
        self.lines.flush();
    }
}

/// Changes what is logged from now on; no effect where [`init`] was not called.
pub(crate) fn change_level(level: &str) {
    if let (Some(handle), Ok(filter)) = (FILTER.get(), EnvFilter::try_new(level)) {
        let _ = handle.reload(filter);
    }
}

/// Edges of the latency histograms in seconds: OpenTelemetry's advice for database clients, and
/// finer below a millisecond, where a cache lives.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// The recorder of this process, installed by the first who asks.
pub(crate) fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("an embedding program records metrics itself; /metrics shows none");
        }
        words::describe();
        handle
    })
}

/// Lets every counter begin at 0, so that its first event is a rise, which alerts see, and not
/// a series from nowhere.
pub(crate) fn begin_counters(config: &Config) {
    use metrics::counter;
    for name in [
        "steadfast_log_lost_total",
        "steadfast_audit_lost_total",
        "steadfast_audit_suppressed_total",
        "steadfast_stalled_callers_total",
    ] {
        counter!(name).increment(0);
    }
    failovers::begin_counters();
    tasks::begin_counters();
    if config.auth.is_some() {
        auth::begin_counters();
    }
    for limit in config.limits.rate.keys() {
        counter!("steadfast_rate_limited_total", "limit" => limit.clone()).increment(0);
        counter!("steadfast_rate_limit_uncounted_total", "limit" => limit.clone()).increment(0);
    }
    if config.server.tls.is_some() {
        certificates::begin_counters();
    }
}

/// Does something at each line of the log that is told in this thread, until it is dropped.
#[cfg(test)]
pub(crate) fn listen(act: impl Fn() + Send + Sync + 'static) -> tracing::subscriber::DefaultGuard {
    struct Listener<F>(F);

    impl<S: tracing::Subscriber, F: Fn() + 'static> Layer<S> for Listener<F> {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _: tracing_subscriber::layer::Context<'_, S>,
        ) {
            if event.metadata().target().starts_with("steadfast") {
                (self.0)();
            }
        }
    }

    tracing::subscriber::set_default(Registry::default().with(Listener(act)))
}
