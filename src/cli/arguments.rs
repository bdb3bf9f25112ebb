//! What can be typed. The help texts are for a person who sees Kagami for the first time.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{domain::mirror::Mode, telemetry};

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
    /// [default: info for `serve` and `webhook`, off else]
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
    Webhook(WebhookArguments),
    /// Answer an AdmissionReview, or rewrite Pods and workloads, from a file
    Review(ReviewArguments),
    /// Show the whole decision for one image, step by step
    Explain(ExplainArguments),
    /// Print the reference to pull now, for scripts: the mirror's if it is proven, else the image as given
    #[command(after_help = "Example: docker pull $(kagami resolve nginx:1.27 --config mirrors.yaml)")]
    Resolve(ResolveArguments),
    /// Write a certificate authority and a serving certificate, for trying out
    Certs(CertsArguments),
    /// Print the custom resource definitions
    #[command(after_help = "Example: kagami crds | kubectl apply --server-side -f -")]
    Crds,
    /// Print a completion script for a shell
    #[command(after_help = "Example: kagami completions bash > /etc/bash_completion.d/kagami")]
    Completions { shell: clap_complete::Shell },
}

/// Where the mirrors are told.
#[derive(Debug, Args)]
pub(super) struct ConfigArguments {
    /// YAML or JSON file with ImageMirror documents and, where they are needed, v1 Namespace and
    /// Secret documents
    #[arg(long, short, value_name = "FILE", env = "KAGAMI_CONFIG")]
    pub(super) config: PathBuf,

    /// Namespaces whose Pods are never touched
    #[arg(
        long,
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "kube-system,kagami-system",
        env = "KAGAMI_LEFT_ALONE"
    )]
    pub(super) left_alone: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    #[command(flatten)]
    pub(super) config: ConfigArguments,

    #[command(flatten)]
    pub(super) listen: ListenArguments,

    /// Serving certificate (PEM, chain allowed), read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "KAGAMI_TLS_CERT")]
    pub(super) tls_cert: Option<PathBuf>,

    /// Private key of the serving certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "KAGAMI_TLS_KEY")]
    pub(super) tls_key: Option<PathBuf>,

    /// Without a serving certificate one is made; its certificate authority is written here, for
    /// `caBundle` of the webhook configuration
    #[arg(long, value_name = "FILE", conflicts_with = "tls_cert", env = "KAGAMI_CA_OUT")]
    pub(super) ca_out: Option<PathBuf>,

    /// Name or address that the certificate made here is good for, besides localhost and the
    /// address listened on; may be given several times
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "tls_cert",
        env = "KAGAMI_TLS_NAME"
    )]
    pub(super) tls_name: Vec<String>,
}

/// What long-running commands listen on, and how they answer.
#[derive(Debug, Args)]
pub(super) struct ListenArguments {
    /// Where admission reviews are answered (HTTPS); port 0 lets the system choose
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:8443",
        env = "KAGAMI_LISTEN"
    )]
    pub(super) listen: SocketAddr,

    /// Where /livez, /readyz, /metrics and /status are answered (HTTP)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:8080",
        env = "KAGAMI_ADMIN_LISTEN"
    )]
    pub(super) admin_listen: SocketAddr,

    /// Authorities (PEM) of client certificates; with them only such clients are answered
    #[arg(long, value_name = "FILE", env = "KAGAMI_CLIENT_CA")]
    pub(super) client_ca: Option<PathBuf>,

    /// The longest that a review waits for probes of unknown images; never more than the request's
    /// own timeout less one second
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = duration, env = "KAGAMI_BUDGET")]
    pub(super) budget: Duration,

    /// How long to go on answering after SIGTERM, while clients move away; 95s behind a Service
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration, env = "KAGAMI_DRAIN_DELAY")]
    pub(super) drain_delay: Duration,
}

#[derive(Debug, Args)]
pub(super) struct CompanionArguments {
    /// Kagami's own namespace
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "kagami-system",
        env = "KAGAMI_NAMESPACE"
    )]
    pub(super) namespace: String,

    /// Where /livez, /readyz, /metrics and /status are answered (HTTP)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:8080",
        env = "KAGAMI_ADMIN_LISTEN"
    )]
    pub(super) admin_listen: SocketAddr,

    /// Namespaces whose Pods are never touched, besides Kagami's own
    #[arg(
        long,
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "kube-system",
        env = "KAGAMI_LEFT_ALONE"
    )]
    pub(super) left_alone: Vec<String>,

    /// Mode of namespaces without the label kagami.dev/mode, as the webhook configuration has it
    #[arg(long, value_name = "MODE", default_value = "off", env = "KAGAMI_DEFAULT_MODE")]
    pub(super) default_mode: ModeArgument,

    /// How long after its last use by a Pod an image is forgotten
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration, env = "KAGAMI_FORGET_AFTER")]
    pub(super) forget_after: Duration,

    /// Name in the leader lease, another one for each replica [default: host, process and time]
    #[arg(long, value_name = "NAME", env = "KAGAMI_IDENTITY")]
    pub(super) identity: Option<String>,

    /// MutatingWebhookConfiguration whose caBundle is kept; without it no certificates are made
    #[arg(long, value_name = "NAME", env = "KAGAMI_WEBHOOK_CONFIGURATION")]
    pub(super) webhook_configuration: Option<String>,

    /// Service of the webhook, for the names of its serving certificate
    #[arg(
        long,
        value_name = "NAME",
        default_value = "kagami-webhook",
        env = "KAGAMI_WEBHOOK_SERVICE"
    )]
    pub(super) webhook_service: String,

    /// Secret that holds the serving certificate
    #[arg(
        long,
        value_name = "NAME",
        default_value = "kagami-webhook-tls",
        env = "KAGAMI_CERTIFICATE_SECRET"
    )]
    pub(super) certificate_secret: String,

    /// Time between two steps of a renewal: new authority known, new certificate served, old
    /// authority gone; Secret volumes are slow
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, env = "KAGAMI_CERTIFICATE_STEP")]
    pub(super) certificate_step: Duration,

    /// How long a serving certificate is valid; the authority is valid for four times as long, and
    /// both are renewed when a third is left
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = duration, env = "KAGAMI_CERTIFICATE_VALIDITY")]
    pub(super) certificate_validity: Duration,
}

/// What one-shot commands have in common.
#[derive(Debug, Args)]
pub(super) struct OnceArguments {
    #[command(flatten)]
    pub(super) config: ConfigArguments,

    /// The longest that the command waits for mirrors
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration, env = "KAGAMI_ONCE_BUDGET")]
    pub(super) budget: Duration,
}

#[derive(Debug, Args)]
pub(super) struct ReviewArguments {
    /// An AdmissionReview, or Pods and workloads (YAML or JSON, one or many); `-` is standard input
    pub(super) file: PathBuf,

    #[command(flatten)]
    pub(super) once: OnceArguments,

    /// How far Kagami may go [default: what the Namespace document says, else enforce]
    #[arg(long, value_name = "MODE")]
    pub(super) mode: Option<ModeArgument>,

    /// Namespace of documents that name none
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    pub(super) namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ModeArgument {
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

#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// The image, as it would stand in a Pod
    pub(super) image: String,

    #[command(flatten)]
    pub(super) once: OnceArguments,

    /// Namespace of the Pod
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    pub(super) namespace: String,

    /// How the answer looks
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub(super) output: ExplainOutput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExplainOutput {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct ResolveArguments {
    /// The images
    #[arg(required = true)]
    pub(super) images: Vec<String>,

    #[command(flatten)]
    pub(super) once: OnceArguments,

    /// Namespace for which to decide
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    pub(super) namespace: String,

    /// Say on standard error why, for each image
    #[arg(long, short)]
    pub(super) verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct CertsArguments {
    /// Folder for ca.crt, tls.crt and tls.key
    #[arg(long, short, value_name = "FOLDER", default_value = ".")]
    pub(super) out: PathBuf,

    /// Name or address that the certificate is good for; may be given several times
    #[arg(
        long = "name",
        value_name = "NAME",
        default_values = ["localhost", "127.0.0.1", "::1", "kagami-webhook.kagami-system.svc"]
    )]
    pub(super) names: Vec<String>,

    /// How long the certificates are valid
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    pub(super) validity: Duration,

    /// Overwrite files that exist
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct WebhookArguments {
    /// Kagami's own namespace
    #[arg(long, value_name = "NAMESPACE", env = "KAGAMI_NAMESPACE")]
    pub(super) namespace: String,

    #[command(flatten)]
    pub(super) listen: ListenArguments,

    /// Serving certificate (PEM, chain allowed), read again when it changes
    #[arg(long, value_name = "FILE", env = "KAGAMI_TLS_CERT")]
    pub(super) tls_cert: PathBuf,

    /// Private key of the serving certificate (PEM)
    #[arg(long, value_name = "FILE", env = "KAGAMI_TLS_KEY")]
    pub(super) tls_key: PathBuf,

    /// Folder with credentials that may read the mirrors: one Docker configuration for each, in a file
    /// with the mirror's name; read again when they change
    #[arg(long, value_name = "FOLDER", env = "KAGAMI_PROBE_CREDENTIALS")]
    pub(super) probe_credentials: Option<PathBuf>,

    /// Namespaces whose Pods are never touched, besides Kagami's own
    #[arg(
        long,
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "kube-system",
        env = "KAGAMI_LEFT_ALONE"
    )]
    pub(super) left_alone: Vec<String>,
}

/// Reads a duration as the resources have them: `300ms`, `2s`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    crate::api::v1alpha1::Duration(text.to_owned())
        .parse()
        .ok_or_else(|| "write it as 300ms, 2s, 10m or 1h30m".to_owned())
}
