//! Log lines to standard output, as text or JSON.

use tracing::Level;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, reload};

use crate::config::{Log, LogFormat};

/// So many lines wait at the most for a slow reader of our output; later ones are dropped, because
/// neither checks nor sessions may ever wait for a log.
const BUFFERED_LINES: usize = 8192;

/// What of a running process's logging can change.
pub struct Logging {
    set_level: Box<dyn Fn(LevelFilter)>,
    /// Writes what is buffered when it is dropped.
    _flush: WorkerGuard,
}

impl Logging {
    /// From now on nothing less severe is written.
    pub fn set_level(&self, level: Level) {
        (self.set_level)(LevelFilter::from_level(level));
    }
}

/// Starts logging for the whole process. What is buffered is written when the result is dropped.
/// Fails if logging was started before.
pub fn start(log: Log) -> Result<Logging, tracing::subscriber::SetGlobalDefaultError> {
    let (writer, flush) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("rolegate-log")
        .finish(std::io::stdout());
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(writer)
        .with_target(false);
    let level = LevelFilter::from_level(log.level);
    // The subscriber lives as long as the process, so a change of its level cannot fail.
    let set_level: Box<dyn Fn(LevelFilter)> = match log.format {
        LogFormat::Json => {
            let (filter, handle) = reload::Layer::new(level);
            let lines = lines.json().flatten_event(true).with_current_span(false);
            let lines = lines.with_span_list(false).finish().with(filter);
            tracing::subscriber::set_global_default(lines)?;
            Box::new(move |level| _ = handle.reload(level))
        }
        LogFormat::Text => {
            let (filter, handle) = reload::Layer::new(level);
            let lines = lines.with_ansi(false).finish().with(filter);
            tracing::subscriber::set_global_default(lines)?;
            Box::new(move |level| _ = handle.reload(level))
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let words = panic.payload_as_str().unwrap_or("no words");
        tracing::error!(place, words, "a defect of rolegate: please report this panic");
    }));
    Ok(Logging { set_level, _flush: flush })
}
