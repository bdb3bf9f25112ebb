//! What the commands can be told that run until they are told to end.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::shared::{
    AdminArguments, DefaultModeArguments, LeftAloneArguments, ListenArguments, OwnNamespaceArguments,
    PairArguments, duration,
};

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// YAML or JSON file with ImageMirror documents and, where they are needed, v1 Namespace and
    /// Secret documents
    #[arg(long, short, value_name = "FILE", env = "KAGAMI_CONFIG")]
    pub(crate) config: PathBuf,

    #[command(flatten)]
    pub(crate) left_alone: LeftAloneArguments,

    #[command(flatten)]
    pub(crate) listen: ListenArguments,

    #[command(flatten)]
    pub(crate) pair: Option<PairArguments>,

    /// Without a serving certificate one is made; its certificate authority is written here, for
    /// `caBundle` of the webhook configuration
    #[arg(long, value_name = "FILE", conflicts_with = "tls_cert", env = "KAGAMI_CA_OUT")]
    pub(crate) ca_out: Option<PathBuf>,

    /// Name or address that the certificate made here is good for, besides localhost and the
    /// address listened on; may be given several times
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "tls_cert",
        env = "KAGAMI_TLS_NAME"
    )]
    pub(crate) tls_name: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WebhookArguments {
    #[command(flatten)]
    pub(crate) own: OwnNamespaceArguments,

    #[command(flatten)]
    pub(crate) left_alone: LeftAloneArguments,

    #[command(flatten)]
    pub(crate) listen: ListenArguments,

    #[command(flatten)]
    pub(crate) pair: PairArguments,

    /// Folder with credentials that may read the mirrors: one Docker configuration for each, in a file
    /// with the mirror's name; read again when they change
    #[arg(long, value_name = "FOLDER", env = "KAGAMI_PROBE_CREDENTIALS")]
    pub(crate) probe_credentials: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CompanionArguments {
    #[command(flatten)]
    pub(crate) own: OwnNamespaceArguments,

    #[command(flatten)]
    pub(crate) left_alone: LeftAloneArguments,

    #[command(flatten)]
    pub(crate) admin: AdminArguments,

    #[command(flatten)]
    pub(crate) default_mode: DefaultModeArguments,

    /// How long after its last use by a Pod an image is forgotten
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration, env = "KAGAMI_FORGET_AFTER")]
    pub(crate) forget_after: Duration,

    /// Put the brake on: no image is rewritten and no stuck Pod is turned, in the whole cluster, as long as a companion
    /// that leads has this flag
    #[arg(long, env = "KAGAMI_PAUSED")]
    pub(crate) paused: bool,

    /// How many Pods a second, in the whole cluster, have their images turned back to what their users wrote
    /// because they cannot be pulled from a mirror; 0: none. The chart says 10, and makes the right and the policy
    /// that holds it
    #[arg(
        long,
        value_name = "PODS",
        default_value_t = 0,
        env = "KAGAMI_RESCUE_PER_SECOND"
    )]
    pub(crate) rescue_per_second: u32,

    /// Registries of mirrors, as `spec.registry` names them, to which Pods may be turned that cannot be pulled from upstream,
    /// where their namespace is labelled enforce and the mirror has proof; none by default
    #[arg(
        long,
        value_name = "REGISTRY",
        value_delimiter = ',',
        env = "KAGAMI_RESCUE_REGISTRIES"
    )]
    pub(crate) rescue_registries: Vec<String>,

    /// Keep the logins of mirrors with `spec.pullSecret` in a Secret `kagami-pull` of each namespace that they serve and that
    /// is labelled enforce
    #[arg(long, env = "KAGAMI_PULL_SECRETS")]
    pub(crate) pull_secrets: bool,

    /// Name in the leader lease, another one for each replica [default: host, process and time]
    #[arg(long, value_name = "NAME", env = "KAGAMI_IDENTITY")]
    pub(crate) identity: Option<String>,

    /// MutatingWebhookConfiguration whose caBundle is kept; without it no certificates are made
    #[arg(long, value_name = "NAME", env = "KAGAMI_WEBHOOK_CONFIGURATION")]
    pub(crate) webhook_configuration: Option<String>,

    /// Service of the webhook, for the names of its serving certificate
    #[arg(
        long,
        value_name = "NAME",
        default_value = "kagami-webhook",
        env = "KAGAMI_WEBHOOK_SERVICE"
    )]
    pub(crate) webhook_service: String,

    /// Secret that holds the serving certificate
    #[arg(
        long,
        value_name = "NAME",
        default_value = "kagami-webhook-tls",
        env = "KAGAMI_CERTIFICATE_SECRET"
    )]
    pub(crate) certificate_secret: String,

    /// Time between two steps of a renewal: new authority known, new certificate served, old
    /// authority gone; Secret volumes are slow
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, env = "KAGAMI_CERTIFICATE_STEP")]
    pub(crate) certificate_step: Duration,

    /// How long a serving certificate is valid; the authority is valid for four times as long, and
    /// both are renewed when a third is left
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = duration, env = "KAGAMI_CERTIFICATE_VALIDITY")]
    pub(crate) certificate_validity: Duration,
}
