//! Messages on stderr, from the level that `HF3FS_USRBIO_LIB_LOG` names; warnings by default.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::Once;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const VARIABLE: &str = "HF3FS_USRBIO_LIB_LOG";

/// Starts logging, once a process.
pub(crate) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        let level = std::env::var(VARIABLE).ok().as_deref().and_then(level).unwrap_or(LevelFilter::WARN);
        // Fails only if a Rust program that links the rlib logs by itself.
        let _ = tracing::subscriber::set_global_default(Stderr(level));
    });
}

/// The level in a folly logging configuration such as `DBG3` or `.=INFO;default:async=true`: that of the first
/// category, the rest is ignored.
fn level(text: &str) -> Option<LevelFilter> {
    let first = text.split([';', ',', ':']).next()?;
    let name = first.rsplit('=').next()?.trim().to_ascii_uppercase();
    match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "NONE" | "OFF" | "FATAL" | "DFATAL" => Some(LevelFilter::OFF),
        "CRITICAL" | "ERR" | "ERROR" => Some(LevelFilter::ERROR),
        "WARN" | "WARNING" => Some(LevelFilter::WARN),
        "INFO" => Some(LevelFilter::INFO),
        "DBG" | "DEBUG" => Some(LevelFilter::DEBUG),
        "TRACE" | "ALL" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

struct Stderr(LevelFilter);

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = format!("usrbio[{}] {}:", std::process::id(), event.metadata().level());
        event.record(&mut Fields(&mut line));
        line.push('\n');
        // In one write, so that lines of several processes do not mix. A closed stderr is no reason to fail.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    // The library has no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_the_first_one_of_a_folly_configuration() {
        for (text, expected) in [
            ("INFO", Some(LevelFilter::INFO)),
            ("dbg3", Some(LevelFilter::DEBUG)),
            (".=ERR;default:async=true", Some(LevelFilter::ERROR)),
            ("WARN:default", Some(LevelFilter::WARN)),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(level(text), expected, "{text}");
        }
    }
}
