//! What several commands can be told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};

use crate::domain::mirror::Mode;

/// What is never touched.
#[derive(Debug, Args)]
pub(crate) struct LeftAloneArguments {
    /// Namespaces whose Pods are never touched; in a cluster Kagami's own is always one of them
    #[arg(
        long,
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "kube-system,kagami-system",
        env = "KAGAMI_LEFT_ALONE"
    )]
    pub(crate) left_alone: Vec<String>,
}

/// What may become of earlier rewrites.
#[derive(Debug, Args)]
pub(crate) struct HealArguments {
    /// Whether an image that Kagami rewrote earlier goes back to its recorded original where that would
    /// not be rewritten now; false where policies allow the mirrors' names only
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set, env = "KAGAMI_HEAL")]
    pub(crate) heal: bool,
}

/// Where a process of the cluster lives.
#[derive(Debug, Args)]
pub(crate) struct OwnNamespaceArguments {
    /// Kagami's own namespace
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "kagami-system",
        env = "KAGAMI_NAMESPACE"
    )]
    pub(crate) namespace: String,
}

/// What namespaces without a label mean.
#[derive(Debug, Args)]
pub(crate) struct DefaultModeArguments {
    /// Mode of namespaces without the label kagami.dev/mode, as the webhook configuration has it
    #[arg(long, value_name = "MODE", default_value = "off", env = "KAGAMI_DEFAULT_MODE")]
    pub(crate) default_mode: ModeArgument,
}

/// The listener for people and probes.
#[derive(Debug, Args)]
pub(crate) struct AdminArguments {
    /// Where /livez, /readyz, /metrics and /status are answered (HTTP)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:8080",
        env = "KAGAMI_ADMIN_LISTEN"
    )]
    pub(crate) admin_listen: SocketAddr,
}

/// What long-running commands listen on, and how they answer.
#[derive(Debug, Args)]
pub(crate) struct ListenArguments {
    /// Where admission reviews are answered (HTTPS); port 0 lets the system choose
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:8443",
        env = "KAGAMI_LISTEN"
    )]
    pub(crate) listen: SocketAddr,

    #[command(flatten)]
    pub(crate) admin: AdminArguments,

    /// Shows the last decisions in /status, with namespaces, Pods and images, to whoever may ask
    #[arg(long, env = "KAGAMI_SHOW_DECISIONS")]
    pub(crate) show_decisions: bool,

    /// Authorities (PEM) of client certificates; with them only such clients are answered
    #[arg(long, value_name = "FILE", env = "KAGAMI_CLIENT_CA")]
    pub(crate) client_ca: Option<PathBuf>,

    /// The longest that a review waits for probes of unknown images; never more than the request's
    /// own timeout less one second
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = duration, env = "KAGAMI_BUDGET")]
    pub(crate) budget: Duration,

    #[command(flatten)]
    pub(crate) heal: HealArguments,

    /// How long to go on answering after SIGTERM, while clients move away; 95s behind a Service
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration, env = "KAGAMI_DRAIN_DELAY")]
    pub(crate) drain_delay: Duration,
}

/// A serving certificate in files: both or, for a command that can do without, none.
#[derive(Debug, Args)]
pub(crate) struct PairArguments {
    /// Serving certificate (PEM, chain allowed), read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        required = false,
        requires = "tls_key",
        env = "KAGAMI_TLS_CERT"
    )]
    pub(crate) tls_cert: PathBuf,

    /// Private key of the serving certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        required = false,
        requires = "tls_cert",
        env = "KAGAMI_TLS_KEY"
    )]
    pub(crate) tls_key: PathBuf,
}

/// How to reach a cluster, and how Kagami is set up in it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArguments {
    /// File that says how to reach the cluster [default: as kubectl finds it, else that of this Pod]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of that file [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Kagami's own namespace
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "kagami-system",
        env = "KAGAMI_NAMESPACE"
    )]
    pub(crate) kagami_namespace: String,

    #[command(flatten)]
    pub(crate) default_mode: DefaultModeArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArgument {
    Enforce,
    Warn,
    Audit,
    Off,
}

impl From<ModeArgument> for Mode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Enforce => Self::Enforce,
            ModeArgument::Warn => Self::Warn,
            ModeArgument::Audit => Self::Audit,
            ModeArgument::Off => Self::Off,
        }
    }
}

/// Reads a duration as the resources have them: `300ms`, `2s`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    crate::api::v1alpha1::Duration(text.to_owned())
        .parse()
        .ok_or_else(|| "write it as 300ms, 2s, 10m or 1h30m".to_owned())
}
