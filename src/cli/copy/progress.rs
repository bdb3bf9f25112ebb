//! How far copies are, for people.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::super::output;
use crate::registry::copy::Meter;

/// The pause between two looks at how far copies are, on a terminal and elsewhere.
const REFRESH: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(30);

/// How many characters the bar has.
const BAR: usize = 24;

/// How far copies are, on standard error: in one line with a bar that is written anew on a terminal, and now and then in
/// a line of its own elsewhere.
pub(super) struct Progress {
    images: usize,
    since: Instant,
    is_terminal: bool,
}

impl Progress {
    pub(super) fn new(images: usize) -> Self {
        Self {
            images,
            since: Instant::now(),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    pub(super) const fn pause(&self) -> Duration {
        if self.is_terminal { REFRESH } else { LINE_EVERY }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people"
    )]
    pub(super) fn show(&self, ended: usize, meter: &Meter) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (bytes, sent) = (of(&meter.bytes), of(&meter.bytes_sent));
        // Blobs count as done in the end, and a large one takes long.
        let done = of(&meter.bytes_done).max(sent.min(bytes));
        let rate = sent as f64 / self.elapsed().as_secs_f64().max(0.001);
        let line = format!(
            "{ended} of {} images, {} of {} blobs, {} of {}, {}/s",
            self.images,
            of(&meter.blobs_done),
            of(&meter.blobs),
            size(done),
            size(bytes),
            size(rate as u64),
        );
        if self.is_terminal {
            let bar = bar(ended, self.images, done, bytes);
            drop(write!(io::stderr(), "\r\x1b[K{bar} {line}"));
            drop(io::stderr().flush());
        } else {
            output::complain(&line);
        }
    }

    /// Makes room for a line of its own.
    pub(super) fn clear(&self) {
        if self.is_terminal {
            drop(write!(io::stderr(), "\r\x1b[K"));
        }
    }
}

/// Returns a bar. Half of it stands for the images and half for their bytes: how many bytes there are is learned image by
/// image, so a bar of bytes alone would be full after the first one.
fn bar(ended: usize, images: usize, done: u64, bytes: u64) -> String {
    let half = BAR / 2;
    let by_images = half * ended.min(images) / images.max(1);
    let by_bytes = u128::from(done.min(bytes)) * half as u128 / u128::from(bytes.max(1));
    // What images that are there already have is no byte to be brought.
    let by_bytes = usize::try_from(by_bytes).unwrap_or(half).max(by_images);
    let full = by_images + by_bytes;
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR - full))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, expected) in [
            (0, "0.0 KiB"),
            (1536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
            (5 << 30, "5.00 GiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn a_bar_fills_by_images_and_by_bytes() {
        let full = |ended, images, done, bytes| {
            let bar = bar(ended, images, done, bytes);
            assert_eq!(bar.len(), BAR + 2, "{bar}");
            bar.matches('#').count()
        };
        assert_eq!(full(0, 4, 0, 0), 0);
        assert_eq!(full(0, 1, 50, 100), BAR / 4, "one large image");
        assert_eq!(full(2, 4, 0, 0), BAR / 2, "they were there already");
        assert_eq!(full(1, 4, 100, 100), 3 + BAR / 2);
        assert_eq!(full(4, 4, 100, 100), BAR);
        assert_eq!(full(0, 0, 0, 0), 0);
    }
}
