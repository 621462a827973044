//! Log lines into the bundle's `log` fifo, which containerd copies to its own log.
//!
//! The fifo is opened for reading and writing: it then exists without a reader, survives containerd's
//! restart (the next reader gets what is buffered), and never raises SIGPIPE. It is non-blocking: when
//! nobody reads and it is full, lines are dropped and counted, and the shim goes on.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use isopod_settings::LogLevel;
use rustix::fs::OFlags;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

/// A write of up to so many bytes to a pipe is one piece (PIPE_BUF, pipe(7)): lines never mix.
const MAX_LINE: usize = 4096;

/// Writes one logfmt line per event; spans carry nothing, the pod's identity stands in every line.
pub struct Log {
    output: Mutex<File>,
    /// `namespace=... id=... pod=...`, written once.
    identity: String,
    /// Its keys: an event that names them again adds nothing.
    keys: Vec<String>,
    level: Mutex<LevelFilter>,
    dropped: AtomicU64,
}

impl Log {
    /// A log into the fifo at `path`.
    pub fn open(path: &Path, identity: &[(&str, &str)]) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let output = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        Ok(Self::to(output, identity))
    }

    fn to(output: File, identity: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (key, value) in identity {
            pair(&mut text, key, value);
        }
        Self {
            output: Mutex::new(output),
            identity: text,
            keys: identity.iter().map(|(key, _)| (*key).to_owned()).collect(),
            level: Mutex::new(LevelFilter::INFO),
            dropped: AtomicU64::new(0),
        }
    }

    /// A second handle on the fifo, for panics.
    pub fn handle(&self) -> io::Result<File> {
        lock(&self.output).try_clone()
    }

    /// From now on, events up to this level.
    pub fn set_level(&self, level: LogLevel) {
        *lock(&self.level) = match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        tracing::callsite::rebuild_interest_cache();
    }

    fn write(&self, line: &str) {
        let mut output = lock(&self.output);
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            let note = self.line(
                Level::WARN,
                &format!("{dropped} log lines were dropped: nobody read them"),
                "",
            );
            if output.write(note.as_bytes()).is_ok() {
                self.dropped.fetch_sub(dropped, Ordering::Relaxed);
            }
        }
        if output.write(line.as_bytes()).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn line(&self, level: Level, message: &str, fields: &str) -> String {
        let mut line = String::with_capacity(256);
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        pair(&mut line, "time", &rfc3339(SystemTime::now()));
        pair(&mut line, "level", level);
        pair(&mut line, "msg", message);
        line.push_str(&self.identity);
        line.push_str(fields);
        cut(&mut line, MAX_LINE - 1);
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// A poisoned lock guards nothing that a panic could have half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Shortens to at most `limit` bytes, at a character's border.
fn cut(line: &mut String, limit: usize) {
    if line.len() > limit {
        let end = (0..=limit).rev().find(|end| line.is_char_boundary(*end));
        line.truncate(end.unwrap_or(0));
    }
}

/// Appends `key=value `, quoted where logfmt needs it. Guests' texts end up here: control characters
/// are escaped, so that none can forge a line.
fn pair(line: &mut String, key: &str, value: &str) {
    line.push_str(key);
    line.push('=');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+:".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        line.push_str(value);
    } else {
        let _ = write!(line, "{value:?}");
    }
    line.push(' ');
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= *lock(&self.level)
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(*lock(&self.level))
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields {
            message: String::new(),
            others: String::new(),
            known: &self.keys,
        };
        event.record(&mut fields);
        let level = *event.metadata().level();
        self.write(&self.line(level, &fields.message, &fields.others));
    }
}

struct Fields<'a> {
    message: String,
    others: String,
    known: &'a [String],
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else if !self.known.iter().any(|key| key == field.name()) {
            pair(&mut self.others, field.name(), value);
        }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.record_str(field, &text);
    }
}

/// 2026-11-22T10:00:00.123456789Z. Days become a date by H. Hinnant's `civil_from_days`.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
#[path = "logging_tests.rs"]
mod tests;
