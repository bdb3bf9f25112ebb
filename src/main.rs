//! The `kagami` program: parse, dispatch, print what went wrong, exit code.

use std::{io::Write as _, process::ExitCode};

use kagami::{cli, domain::foreign::visible};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let error = match cli::run() {
        Ok(code) => return code,
        Err(error) => error,
    };
    let text = format!("kagami: {}\n", visible(&kagami::telemetry::chain(&*error)));
    // Where Kubernetes looks for the last words of a container (`terminationMessagePath`).
    let log = std::path::Path::new("/dev/termination-log");
    if log.exists() {
        drop(std::fs::write(log, &text));
    }
    // There is nobody left to tell if even this fails.
    drop(std::io::stderr().write_all(text.as_bytes()));
    ExitCode::FAILURE
}
