//! Log lines to standard output, as text or JSON.

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Log, LogFormat};

/// So many lines wait at the most for a slow reader of our output; later ones are dropped, because
/// neither checks nor sessions may ever wait for a log.
const BUFFERED_LINES: usize = 8192;

/// Starts logging for the whole process. What is buffered is written when the guard is dropped.
/// Fails if logging was started before.
pub fn start(log: Log) -> Result<WorkerGuard, tracing::subscriber::SetGlobalDefaultError> {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("rolegate-log")
        .finish(std::io::stdout());
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from_level(log.level))
        .with_writer(writer)
        .with_target(false);
    match log.format {
        LogFormat::Json => tracing::subscriber::set_global_default(
            lines
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .finish(),
        )?,
        LogFormat::Text => {
            tracing::subscriber::set_global_default(lines.with_ansi(false).finish())?;
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let words = panic.payload_as_str().unwrap_or("no words");
        tracing::error!(place, words, "a defect of rolegate: please report this panic");
    }));
    Ok(guard)
}
