//! What can be typed. The help texts are for a person who sees Kagami for the first time.

mod oneshot;
mod serving;
mod shared;

use clap::{Parser, Subcommand, ValueEnum};

pub(super) use self::{
    oneshot::{
        CertsArguments, CopyArguments, ExplainArguments, ExplainOutput, HowToCopy, OnceArguments,
        ReferenceForm, ReportArguments, ReportOutput, ResolveArguments, ReviewArguments, SyncArguments,
    },
    serving::{CompanionArguments, ServeArguments, WebhookArguments},
    shared::{ClusterArguments, LeftAloneArguments, ListenArguments, PairArguments},
};
use crate::telemetry;

/// Kagami (鏡, mirror) rewrites the images of Kubernetes Pods to your own mirror registry, but only
/// on fresh proof that the mirror is healthy and holds the image. Every doubt means: leave the
/// image as written and pull from upstream.
#[derive(Debug, Parser)]
#[command(
    name = "kagami",
    version,
    disable_help_subcommand = true,
    after_help = "Start with `kagami explain nginx:1.27 --config mirrors.yaml`: it shows the whole decision \
                  for one image, step by step."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,

    /// How log lines look.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "human",
        env = "KAGAMI_LOG_FORMAT"
    )]
    pub(super) log_format: LogFormat,

    /// What is logged: a level, or levels by module such as `info,kagami::webhook=debug`
    /// [default: info for `serve`, `webhook` and `companion`, off else]
    #[arg(long, global = true, value_name = "FILTER", env = "KAGAMI_LOG")]
    pub(super) log: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl From<LogFormat> for telemetry::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Answer admission reviews and keep watch over the mirrors, all in one process, without a cluster
    Serve(ServeArguments),
    /// Keep the shared state of a cluster: probe the mirrors, look at images, keep certificates
    Companion(CompanionArguments),
    /// Answer admission reviews in a cluster; the companion keeps watch over the mirrors
    #[command(
        mut_arg("tls_cert", |argument| argument.required(true)),
        mut_arg("tls_key", |argument| argument.required(true))
    )]
    Webhook(WebhookArguments),
    /// Answer an AdmissionReview, or rewrite Pods and workloads, from a file
    Review(ReviewArguments),
    /// Show the whole decision for one image, step by step
    Explain(ExplainArguments),
    /// Print the reference to pull now, for scripts: the mirror's if it is proven, else the image as given
    #[command(after_help = "Example: docker pull $(kagami resolve nginx:1.27 --config mirrors.yaml)")]
    Resolve(ResolveArguments),
    /// Show what every running Pod of a cluster uses, and what it would use if it were created now
    #[command(
        after_help = "It changes nothing and asks no mirror: put namespaces into mode audit, then look here."
    )]
    Report(ReportArguments),
    /// Copy images into a mirror of kind Hosted, with all that belongs to them
    #[command(
        after_help = "Example: kagami copy nginx:1.27 redis:8 --to main --config mirrors.yaml\n\nThe exit code is 0 if \
                      every image is there in the end, 1 if not."
    )]
    Copy(CopyArguments),
    /// Copy the images that running Pods of a cluster use into its mirrors of kind Hosted
    #[command(
        after_help = "Example: kagami sync --namespace shop --dry-run\n\nFor warming a mirror up before a namespace is \
                      labelled. The exit code is 0 if every image is there in the end, 1 if not."
    )]
    Sync(SyncArguments),
    /// Write a certificate authority and a serving certificate, for trying out
    Certs(CertsArguments),
    /// Print the custom resource definitions
    #[command(after_help = "Example: kagami crds | kubectl apply --server-side --force-conflicts -f -")]
    Crds,
    /// Print a completion script for a shell
    #[command(after_help = "Example: kagami completions bash > /etc/bash_completion.d/kagami")]
    Completions { shell: clap_complete::Shell },
}
