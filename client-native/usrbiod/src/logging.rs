//! Log lines on stderr: one a line, whatever names tenants give, and of a session no more than people read.

use crate::cli::LogFormat;
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines of one source at once, and a second after that. A source is a session, or a place in the code for lines that name
/// none; warnings and errors count apart from what is only told.
const BURST: f64 = 50.0;
const PER_SECOND: f64 = 5.0;
/// Sources that are remembered.
const SOURCES: usize = 4096;
/// How often it is said how many lines were left out.
const SUMMARY: Duration = Duration::from_secs(1);

/// Log lines go to stderr. `RUST_LOG` overrides `-v`.
pub fn start(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let chosen =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("warn,usrbiod={level}")));
    let limit = Limit::default();
    let lines =
        Lines { limit: limit.clone(), format, to: Arc::new(|bytes| _ = std::io::stderr().write_all(bytes)) };
    let layer = tracing_subscriber::fmt::layer().with_target(false).with_ansi(false).with_writer(lines);
    let registry = tracing_subscriber::registry();
    // It fails only if logging was started already.
    let _ = match format {
        LogFormat::Json => {
            registry.with(layer.json().flatten_event(true).with_filter(chosen.and(limit))).try_init()
        }
        LogFormat::Text => registry.with(layer.with_filter(chosen.and(limit))).try_init(),
    };
}

/// Where a line comes from, and whether it warns.
type Source = (String, bool);

/// Leaves lines out of sources that have too many.
#[derive(Clone, Default)]
struct Limit(Arc<Mutex<Sources>>);

#[derive(Default)]
struct Sources {
    buckets: HashMap<Source, Bucket>,
    /// Lines left out that nobody was told of.
    untold: u64,
    told: Option<Instant>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
    left_out: u64,
}

impl Limit {
    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn admits(&self, source: Source, now: Instant) -> bool {
        let mut sources = self.lock();
        if sources.buckets.len() >= SOURCES && !sources.buckets.contains_key(&source) {
            sources.buckets.retain(|_, bucket| bucket.left_out > 0 || bucket.refilled(now) < BURST);
        }
        if sources.buckets.len() >= SOURCES && !sources.buckets.contains_key(&source) {
            sources.untold += 1;
            return false;
        }
        let full = Bucket { tokens: BURST, at: now, left_out: 0 };
        let bucket = sources.buckets.entry(source).or_insert(full);
        (bucket.tokens, bucket.at) = (bucket.refilled(now), now);
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        } else {
            bucket.left_out += 1;
            sources.untold += 1;
        }
        admitted
    }

    /// What was left out since it was said last: by source.
    fn summary(&self, now: Instant) -> Vec<(String, u64)> {
        let mut sources = self.lock();
        let recent = sources.told.is_some_and(|told| now.duration_since(told) < SUMMARY);
        if sources.untold == 0 || recent {
            return Vec::new();
        }
        sources.told = Some(now);
        sources.untold = 0;
        let left_out = sources.buckets.iter_mut().filter(|(_, bucket)| bucket.left_out > 0);
        left_out.map(|((source, _), bucket)| (source.clone(), std::mem::take(&mut bucket.left_out))).collect()
    }
}

impl Bucket {
    fn refilled(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + since * PER_SECOND).min(BURST)
    }
}

impl<S> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let mut session = Session(None);
        event.record(&mut session);
        let place = || {
            let at = event.metadata();
            format!("{}:{}", at.file().unwrap_or_default(), at.line().unwrap_or_default())
        };
        let source = session.0.map_or_else(place, |session| format!("session {session}"));
        self.admits((source, *event.metadata().level() <= Level::WARN), Instant::now())
    }
}

/// The field `session` of an event.
struct Session(Option<String>);

impl Visit for Session {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "session" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "session" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

/// Where lines go.
type Sink = dyn Fn(&[u8]) + Send + Sync;

/// Writes an event as one line.
#[derive(Clone)]
struct Lines {
    limit: Limit,
    format: LogFormat,
    to: Arc<Sink>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let mut line = String::new();
        for (source, count) in self.limit.summary(Instant::now()) {
            let message = format!("{count} more lines of {source} were left out");
            match self.format {
                LogFormat::Text => line += &format!("{:>34} {message}\n", "WARN"),
                LogFormat::Json => {
                    line += &serde_json::json!({"level": "WARN", "message": message}).to_string();
                    line.push('\n');
                }
            }
        }
        escape(&String::from_utf8_lossy(event), &mut line);
        (self.to)(line.as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Adds an event that ends with a newline: what a terminal or a collector of logs could take for more than a character of a
/// name is shown as an escape.
fn escape(event: &str, line: &mut String) {
    let (text, end) = match event.strip_suffix('\n') {
        Some(text) => (text, "\n"),
        None => (event, ""),
    };
    for char in text.chars() {
        let separates =
            matches!(char, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if char.is_control() || separates {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    *line += end;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `work` logs.
    fn logged(format: LogFormat, work: impl FnOnce()) -> String {
        let text = Arc::new(Mutex::new(Vec::new()));
        let to = text.clone();
        let limit = Limit::default();
        let to = Arc::new(move |bytes: &[u8]| to.lock().unwrap().extend_from_slice(bytes));
        let lines = Lines { limit: limit.clone(), format, to };
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(lines);
        match format {
            LogFormat::Json => {
                let layer = layer.json().flatten_event(true).with_filter(limit);
                tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
            }
            LogFormat::Text => {
                let layer = layer.with_filter(limit);
                tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
            }
        }
        String::from_utf8(text.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_name_cannot_forge_a_line_nor_speak_to_a_terminal() {
        let hostile = "a\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{2028}\u{9b}31m\u{202e}end";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, || tracing::info!(name = %hostile, session = "s", "removes {hostile}"));
            assert_eq!(text.lines().count(), 1, "{text:?}");
            let line = text.trim_end_matches('\n');
            assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{202e}'), "{line:?}");
            assert!(line.contains("ERROR forged") && line.contains("end"), "nothing is lost");
        }
    }

    #[test]
    fn a_session_that_logs_much_is_left_out_with_a_count_and_others_are_not() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, || {
                for i in 0..3555 {
                    tracing::info!(session = "loud", i, "removes a tree");
                }
                tracing::info!(session = "quiet", "attached");
                tracing::error!(session = "loud", "an error is no less seen");
            });
            let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
            let shown = count("removes a tree");
            assert!((50..200).contains(&shown), "{shown}");
            assert_eq!((count("attached"), count("an error is no less seen")), (1, 1), "{text}");
            let told: usize = (text.lines().filter(|line| line.contains("of session loud were left out")))
                .map(|line| line.split(" more lines").next().unwrap())
                .map(|before| {
                    before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap()
                })
                .sum();
            assert!(told > 0 && told + shown <= 3555, "{told} and {shown}");
        }
    }

    #[test]
    fn lines_without_a_session_are_limited_by_their_place() {
        let text = logged(LogFormat::Text, || (0..1000).for_each(|_| tracing::warn!("again and again")));
        assert!(text.lines().count() < 200, "{}", text.lines().count());
    }

    #[test]
    fn what_is_remembered_of_sources_is_bounded() {
        let limit = Limit::default();
        let now = Instant::now();
        for i in 0..3 * SOURCES {
            limit.admits((format!("session {i}"), false), now);
        }
        assert!(limit.lock().buckets.len() <= SOURCES);
        assert!(limit.admits(("session new".to_owned(), false), now + Duration::from_secs(60)));
    }
}
