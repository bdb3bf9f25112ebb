//! The log: where it goes, how it looks, and how often one fault may speak.
//!
//! It goes to standard error, so that the output of commands stays clean. No environment variable
//! is read here.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt::Debug,
    hash::Hash,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{Subscriber, field::Field};
use tracing_subscriber::{
    Layer as _,
    field::MakeExt as _,
    filter,
    filter::Targets,
    fmt::{
        self, MakeWriter,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt as _,
    registry,
};

use crate::domain::foreign::visible;

/// How long it goes without saying that something still fails.
const SAID_AGAIN: Duration = Duration::from_mins(5);

/// The same where it fails otherwise now: two causes may take turns.
const SAID_OTHERWISE: Duration = Duration::from_secs(30);

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line, fields at its top level.
    Json,
}

/// What is logged and how.
#[derive(Clone, Debug)]
pub struct Settings {
    pub format: Format,
    /// Levels by target, for example `info,kagami=debug`.
    pub filter: String,
    /// Whether lines for people are coloured.
    pub colour: bool,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot parse log filter {filter:?}")]
    Filter {
        filter: String,
        #[source]
        source: filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("cannot set up the log")]
    Taken(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends the log of the whole process to standard error.
pub fn init(settings: &Settings) -> Result<(), Error> {
    tracing::subscriber::set_global_default(subscriber(settings, io::stderr)?)?;
    Ok(())
}

/// Returns what [`init`] sets up, with another writer.
pub fn subscriber<W>(settings: &Settings, writer: W) -> Result<impl Subscriber + Send + Sync + use<W>, Error>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let targets: Targets = settings.filter.parse().map_err(|source| Error::Filter {
        filter: settings.filter.clone(),
        source,
    })?;
    let layer = fmt::layer().with_writer(writer);
    let layer = match settings.format {
        Format::Human => layer
            .with_ansi(settings.colour)
            .fmt_fields(debug_fn(human_field).delimited(" "))
            .boxed(),
        Format::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    Ok(registry().with(layer.with_filter(targets)))
}

/// Writes one field of a line for people, with nothing in it that ends the line or moves the cursor.
fn human_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = visible(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}")
        }
        name => write!(writer, "{name}={value}"),
    }
}

/// Returns an error's text with those of its causes, `: ` between them. What says its cause by itself, as
/// some libraries' errors do, says it once.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let told = if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            // As text it is the message, then the whole answer as Rust sees it, then the message again.
            next = None;
            format!("{} ({})", status.message, status.code)
        } else {
            error.to_string()
        };
        let is_told = text.strip_suffix(&told);
        if is_told.is_none_or(|before| !before.is_empty() && !before.ends_with(": ")) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&told);
        }
    }
    text
}

/// Bounds how often something is said, for each key by itself, so that a dead mirror or a hostile
/// client cannot flood the log. Keys are never forgotten: use an enum.
#[derive(Debug)]
pub struct Throttle<K> {
    most: u32,
    window: Duration,
    windows: Mutex<HashMap<K, Window>>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    admitted: u32,
    suppressed: u64,
}

impl<K: Copy + Eq + Hash> Throttle<K> {
    /// Returns a throttle that admits `per_second` events of each key in a second.
    pub fn new(per_second: u32) -> Self {
        Self {
            most: per_second,
            window: Duration::from_secs(1),
            windows: Mutex::default(),
        }
    }

    /// Returns a throttle that admits one event of each key in a minute: for what is tried again for ever.
    pub fn each_minute() -> Self {
        Self {
            most: 1,
            window: Duration::from_mins(1),
            windows: Mutex::default(),
        }
    }

    /// Returns how many events of this key were suppressed since the last admitted one, if this one
    /// may be said; nothing if it may not.
    pub fn admit(&self, key: K, now: Instant) -> Option<u64> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(key).or_insert(Window {
            start: now,
            admitted: 0,
            suppressed: 0,
        });
        if now.saturating_duration_since(window.start) >= self.window {
            window.start = now;
            window.admitted = 0;
        }
        if window.admitted == self.most {
            window.suppressed += 1;
            return None;
        }
        window.admitted += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// When something that fails again and again is said: at once, again soon when it fails otherwise, and now
/// and then while it stays so.
#[derive(Debug, Default)]
pub struct Reminder {
    said: Option<(String, Instant)>,
}

impl Reminder {
    /// Takes in a failure, and returns whether it is said.
    pub fn failed(&mut self, text: &str, now: Instant) -> bool {
        let is_known = self.said.as_ref().is_some_and(|(said, at)| {
            let pause = if said == text { SAID_AGAIN } else { SAID_OTHERWISE };
            now.saturating_duration_since(*at) < pause
        });
        if !is_known {
            self.said = Some((text.to_owned(), now));
        }
        !is_known
    }

    /// Takes in that it fails no more, and returns whether that is said.
    pub fn ended(&mut self) -> bool {
        self.said.take().is_some()
    }
}

/// Takes the first few events of each second. Asking is cheap: what is not taken writes nothing that
/// processors would have to pass to each other.
#[derive(Debug)]
pub struct Sample {
    start: Instant,
    per_second: u32,
    /// The second after `start`, and how many of it were taken.
    taken: AtomicU64,
}

impl Sample {
    /// Returns a sample that takes `per_second` events of each second.
    pub fn new(per_second: u32) -> Self {
        Self {
            start: Instant::now(),
            per_second,
            taken: AtomicU64::new(0),
        }
    }

    /// Whether an event that happens `now` is taken.
    pub fn takes(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.start).as_secs() << 32;
        let next = |taken: u64| {
            let taken = taken.max(second);
            (taken - second < u64::from(self.per_second)).then_some(taken + 1)
        };
        self.taken
            .try_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }
}

/// What tests of the log share.
#[cfg(test)]
pub(crate) mod examples {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    /// A log in memory. Clones share it.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        /// Returns all that was written.
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut lines = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
            lines.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{examples::Lines, *};

    /// Returns what two lines of one target and one of another become.
    fn logged(format: Format, filter: &str, colour: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let settings = Settings {
            format,
            filter: filter.to_owned(),
            colour,
        };
        let subscriber = subscriber(&settings, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "kagami::server", peer = "a", "fine");
            tracing::warn!(target: "kagami::server", suppressed = 3, "bad");
            tracing::debug!(target: "other", "unseen");
        });
        lines.text()
    }

    #[test]
    fn the_filter_holds_by_target() {
        let text = logged(Format::Human, "info,kagami=debug", false);
        assert!(
            text.contains("fine") && text.contains("bad") && !text.contains("unseen"),
            "{text}"
        );
        let text = logged(Format::Human, "warn", false);
        assert!(!text.contains("fine") && text.contains("bad"), "{text}");
        let settings = Settings {
            format: Format::Human,
            filter: "kagami=loud".to_owned(),
            colour: false,
        };
        let error = subscriber(&settings, io::sink).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "cannot parse log filter \"kagami=loud\"");
    }

    #[test]
    fn only_coloured_lines_carry_escapes() {
        assert!(logged(Format::Human, "info", true).contains('\u{1b}'));
        assert!(!logged(Format::Human, "info", false).contains('\u{1b}'));
        assert!(!logged(Format::Json, "info", true).contains('\u{1b}'));
    }

    #[test]
    fn what_comes_from_outside_forges_no_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let settings = Settings {
            format: Format::Human,
            filter: "info".to_owned(),
            colour: false,
        };
        let subscriber = subscriber(&settings, move || writer.clone()).unwrap();
        let name = "a\n2026-01-01 WARN forged\u{1b}[2K\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(shown = %name, "message of {name}");
            tracing::warn!(text = name, "fine");
        });
        let text = lines.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        let is_safe =
            |character: char| character == '\n' || !character.is_control() && character != '\u{202e}';
        assert!(text.chars().all(is_safe), "{text:?}");
        assert!(text.contains("message of a\\n2026-01-01"), "{text}");
        assert!(text.contains(" shown=a\\n2026-01-01"), "{text}");
        assert!(text.contains(" text=\"a\\n2026-01-01"), "{text}");
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top() {
        let text = logged(Format::Json, "info", false);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "bad");
        assert_eq!(line["suppressed"], 3);
        assert_eq!(line["target"], "kagami::server");
    }

    #[test]
    fn a_sample_takes_the_first_few_of_each_second() {
        let sample = Sample::new(2);
        let takes = |millis| sample.takes(sample.start + Duration::from_millis(millis));
        assert_eq!([0, 10, 20, 999].map(takes), [true, true, false, false]);
        assert_eq!([1000, 1001, 1002].map(takes), [true, true, false]);
        // A thread that looked at the clock earlier and comes later.
        assert!(!takes(999));
        assert_eq!([5500, 5501, 5502].map(takes), [true, true, false]);
    }

    #[test]
    fn what_goes_on_failing_is_said_now_and_then() {
        let mut reminder = Reminder::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!reminder.ended());
        let said = [("a", 0), ("a", 2), ("a", 299), ("a", 300), ("b", 329), ("b", 330)];
        let said = said.map(|(text, seconds)| reminder.failed(text, at(seconds)));
        assert_eq!(said, [true, false, false, true, false, true]);
        assert!(reminder.ended() && !reminder.ended());
        assert!(reminder.failed("b", at(332)));
    }

    #[test]
    fn a_throttle_admits_so_many_a_second_of_each_key() {
        let throttle = Throttle::new(2);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(throttle.admit('a', at(0)), Some(0));
        assert_eq!(throttle.admit('a', at(10)), Some(0));
        assert_eq!(throttle.admit('a', at(20)), None);
        assert_eq!(throttle.admit('b', at(20)), Some(0));
        assert_eq!(throttle.admit('a', at(999)), None);
        assert_eq!(throttle.admit('a', at(1000)), Some(2));
        assert_eq!(throttle.admit('a', at(1001)), Some(0));
        assert_eq!(throttle.admit('a', at(1002)), None);
        let throttle = Throttle::each_minute();
        assert_eq!(throttle.admit('a', at(0)), Some(0));
        assert_eq!(throttle.admit('a', at(1000)), None);
        assert_eq!(throttle.admit('b', at(59_000)), Some(0));
        assert_eq!(throttle.admit('a', at(59_999)), None);
        assert_eq!(throttle.admit('a', at(60_000)), Some(2));
    }

    /// Says its cause by itself.
    #[derive(Debug, thiserror::Error)]
    #[error("{before}{source}")]
    struct Twice {
        before: &'static str,
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("refused")]
    struct Refused(#[source] kube::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        let parse = "x=loud".parse::<Targets>().unwrap_err();
        let cause = parse.to_string();
        let error = Error::Filter {
            filter: "x=loud".to_owned(),
            source: parse,
        };
        assert!(chain(&error).starts_with(&format!("cannot parse log filter \"x=loud\": {cause}")));
        assert_eq!(chain(&io::Error::other("alone")), "alone");
        let answer = kube::core::Status {
            message: "Lease \"a\" is invalid: no".to_owned(),
            code: 422,
            ..kube::core::Status::failure("", "Invalid")
        };
        assert_eq!(
            chain(&Refused(kube::Error::Api(Box::new(answer)))),
            "refused: Lease \"a\" is invalid: no (422)"
        );
        for (before, expected) in [
            ("", "no"),
            ("client error: ", "client error: no"),
            ("pia", "piano: no"),
        ] {
            let source = io::Error::other("no");
            assert_eq!(chain(&Twice { before, source }), expected);
        }
    }
}
