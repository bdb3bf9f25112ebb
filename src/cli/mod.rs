//! The command line: every flag and environment variable, and the commands behind them.
//!
//! The only place that reads the environment, prints, and may use both processes.

mod arguments;
mod certs;
mod cluster;
mod companion;
mod copy;
mod explain;
mod input;
mod oneshot;
mod output;
mod pages;
mod passed_on;
mod pods;
mod report;
mod resolve;
mod review;
mod serve;
mod serving;
mod sync;
mod webhook;

use std::{fmt::Write as _, io, process::ExitCode};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use self::arguments::{Arguments, Command};
use crate::{api, telemetry};

/// The exit code for settings or files that cannot be used, and for images that were left alone.
const BAD_SETTINGS: u8 = 2;

/// Runs the command that the command line names.
pub fn run() -> anyhow::Result<ExitCode> {
    let Arguments {
        command,
        log_format,
        log,
    } = Arguments::parse();
    // Another provider was installed first only if a library of ours misbehaves.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("cannot install the TLS provider");
    }
    let filter = log.unwrap_or_else(|| match command {
        Command::Serve(_) => "info".to_owned(),
        // The watches tell of failures themselves, once and not for every request.
        Command::Webhook(_) | Command::Companion(_) => "info,kube_client=off".to_owned(),
        // One-shot commands say what they have to say on their own.
        _ => "off".to_owned(),
    });
    let settings = telemetry::Settings {
        format: log_format.into(),
        filter,
        colour: output::colours(&io::stderr()),
    };
    telemetry::init(&settings)?;
    let outcome = match command {
        Command::Serve(arguments) => block_on(serve::run(arguments)),
        Command::Webhook(arguments) => block_on(webhook::run(arguments)),
        Command::Companion(arguments) => block_on(companion::run(arguments)),
        Command::Review(arguments) => block_on(review::run(arguments)),
        Command::Explain(arguments) => block_on(explain::run(arguments)),
        Command::Resolve(arguments) => block_on(resolve::run(arguments)),
        Command::Report(arguments) => block_on(report::run(arguments)),
        Command::Copy(arguments) => block_on(copy::run(arguments)),
        Command::Sync(arguments) => block_on(sync::run(arguments)),
        Command::Certs(arguments) => certs::run(&arguments),
        Command::Crds => output::print(&api::crds_yaml()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "kagami", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    };
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast::<BadSettings>() {
            Ok(BadSettings(faults)) => {
                for fault in faults {
                    output::complain(&fault);
                }
                Ok(ExitCode::from(BAD_SETTINGS))
            }
            Err(error) => Err(error),
        },
    }
}

/// Returns why the program would not take these arguments, if it would not; nothing is run.
pub fn check<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    let arguments = ["kagami"].into_iter().chain(arguments);
    let parsed = Arguments::try_parse_from(arguments);
    parsed.map(drop).map_err(|error| error.to_string())
}

/// The commands that run until they are told to end.
const LONG_RUNNING: [&str; 3] = ["serve", "webhook", "companion"];

/// Returns README's table of the settings of the long-running commands, as Markdown.
pub fn settings_table() -> String {
    let command = Arguments::command();
    // Rows in order, with the commands that have each.
    let mut rows: Vec<(String, Vec<&str>)> = Vec::new();
    for name in LONG_RUNNING {
        let own = command
            .find_subcommand(name)
            .into_iter()
            .flat_map(clap::Command::get_arguments);
        for row in own.chain(command.get_arguments()).filter_map(settings_row) {
            match rows.iter_mut().find(|(known, _)| *known == row) {
                Some((_, names)) => names.push(name),
                None => rows.push((row, vec![name])),
            }
        }
    }
    let mut table =
        String::from("| flag | variable | default | meaning | command |\n| --- | --- | --- | --- | --- |\n");
    for (row, names) in rows {
        let names = if names.len() == LONG_RUNNING.len() {
            "all".to_owned()
        } else {
            names.join(", ")
        };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{row} {names} |");
    }
    table
}

/// Returns a setting's row up to its last column; nothing for what is no flag.
fn settings_row(argument: &clap::Arg) -> Option<String> {
    let long = argument.get_long()?;
    let code = |text: &str| {
        if text.is_empty() {
            String::new()
        } else {
            format!("`{text}`")
        }
    };
    let variable = argument
        .get_env()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let defaults: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    Some(format!(
        "| `--{long}` | {} | {} | {help} |",
        code(&variable),
        code(&defaults.join(","))
    ))
}

/// Runs a command to its end. Name look-ups that nobody waits for any more block a thread each, for
/// as long as the system's resolver likes; they do not hold up the end.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

/// Settings or files that cannot be used, one line for each fault.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
struct BadSettings(Vec<String>);

impl BadSettings {
    fn one(fault: impl Into<String>) -> Self {
        Self(vec![fault.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_are_checked_whole() {
        let pair = ["--tls-cert=c", "--tls-key=k"];
        let webhook = |more: &[&'static str]| check([&["webhook"], &pair[..], more].concat());
        assert_eq!(webhook(&["--budget=1s"]), Ok(()));
        assert!(webhook(&["--budget=1"]).unwrap_err().contains("300ms"));
        assert!(webhook(&["--no-such"]).unwrap_err().contains("--no-such"));
        // Only `serve` can do without.
        assert!(check(["webhook"]).unwrap_err().contains("--tls-cert"));
        assert_eq!(check(["serve", "--config=c"]), Ok(()));
        assert!(
            check(["serve", "--config=c", pair[0]])
                .unwrap_err()
                .contains("--tls-key")
        );
        assert_eq!(check(["serve", "--config=c", pair[0], pair[1]]), Ok(()));
    }

    #[test]
    fn a_thread_that_blocks_does_not_hold_up_the_end() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let long = std::time::Duration::from_secs(10);
        let started = std::time::Instant::now();
        let outcome = block_on(async move {
            drop(tokio::task::spawn_blocking(move || receiver.recv_timeout(long)));
            Ok(())
        });
        assert!(outcome.is_ok() && started.elapsed() < long / 2);
        drop(sender);
    }
}
