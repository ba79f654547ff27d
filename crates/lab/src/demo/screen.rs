//! Output of the demo: chapters, and checked lines with their result.

use nix::sys::signal::{SigSet, Signal};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Exit code that shells give a program ended by Ctrl-C.
const EXIT_INTERRUPTED: i32 = 130;

/// The user pressed Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// Standard output, and the number of failed checks.
#[derive(Debug)]
pub(super) struct Screen {
    is_coloured: bool,
    chapters: usize,
    checks: usize,
    wrong: usize,
    started: Instant,
    interrupted: Arc<AtomicBool>,
}

/// Rendition of a text on a terminal (ECMA-48, select graphic rendition).
#[derive(Debug, Clone, Copy)]
enum Look {
    Bold,
    Faint,
    Green,
    Red,
}

impl Screen {
    /// Uses colours on terminals, unless the user disabled them (<https://no-color.org>).
    pub(super) fn new() -> std::io::Result<Self> {
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Ok(Self {
            is_coloured: std::io::stdout().is_terminal() && !wants_none,
            chapters: 0,
            checks: 0,
            wrong: 0,
            started: Instant::now(),
            interrupted: at_interrupt()?,
        })
    }

    /// Fails after Ctrl-C, so that the lab is taken down while the error propagates.
    pub(super) fn go_on(&self) -> Result<(), Interrupted> {
        match self.is_interrupted() {
            true => Err(Interrupted),
            false => Ok(()),
        }
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Bold => 1,
            Look::Faint => 2,
            Look::Green => 32,
            Look::Red => 31,
        };
        match self.is_coloured {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// A closed pipe, as after `head`, must not stop the cleanup.
    fn line(text: &str) {
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    pub(super) fn title(&self, text: &str) {
        Self::line(&self.paint(Look::Bold, text));
    }

    pub(super) fn plain(&self, text: &str) {
        Self::line(text);
    }

    pub(super) fn chapter(&mut self, text: &str) {
        self.chapters += 1;
        let text = format!("{} {text}", self.chapters);
        Self::line(&format!("\n{}", self.paint(Look::Bold, &text)));
    }

    /// A line without a check.
    pub(super) fn note(&self, text: &str) {
        for line in text.lines() {
            Self::line(&self.paint(Look::Faint, &format!("        {line}")));
        }
    }

    /// One checked line.
    pub(super) fn check(&mut self, is_right: bool, text: &str) {
        self.checks += 1;
        let mark = match is_right {
            true => self.paint(Look::Green, "   ok"),
            false => self.paint(Look::Red, "WRONG"),
        };
        self.wrong += usize::from(!is_right);
        let mut lines = text.lines();
        Self::line(&format!("{mark}   {}", lines.next().unwrap_or_default()));
        lines.for_each(|line| Self::line(&format!("        {line}")));
    }

    /// The last line, and the exit code of the program.
    pub(super) fn verdict(&self) -> ExitCode {
        let took = self.started.elapsed().as_secs();
        let (look, text) = match self.wrong {
            0 => (
                Look::Green,
                format!("Everything is as it should be: {} checks.", self.checks),
            ),
            wrong => (
                Look::Red,
                format!("{wrong} of {} checks are WRONG.", self.checks),
            ),
        };
        Self::line(&format!("\n{} ({took} s)", self.paint(look, &text)));
        ExitCode::from(u8::from(self.wrong > 0))
    }
}

/// A flag that Ctrl-C and SIGTERM set. The second signal ends the program at once and leaves the lab up.
fn at_interrupt() -> std::io::Result<Arc<AtomicBool>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // Programs that are started later do not inherit the mask: the standard library gives them an empty one.
    signals.thread_block()?;
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while signals.wait().is_ok() {
                if raised.swap(true, Ordering::Relaxed) {
                    std::process::exit(EXIT_INTERRUPTED);
                }
            }
        })?;
    Ok(flag)
}

/// Time in readable units.
pub(super) fn time(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "under 1 ms".to_owned(),
        millis @ 1..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_have_a_unit() {
        assert_eq!(time(Duration::from_micros(300)), "under 1 ms");
        assert_eq!(time(Duration::from_micros(212_400)), "212 ms");
        assert_eq!(time(Duration::from_millis(2_349)), "2.3 s");
    }
}
