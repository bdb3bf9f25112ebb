//! What the commands can be told that answer once and end.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::shared::{ClusterArguments, HealArguments, LeftAloneArguments, ModeArgument, duration};

/// What one-shot commands have in common.
#[derive(Debug, Args)]
pub(crate) struct OnceArguments {
    /// YAML or JSON file with ImageMirror documents and, where they are needed, v1 Namespace and
    /// Secret documents, instead of a cluster
    #[arg(long, short, value_name = "FILE", env = "KAGAMI_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) left_alone: LeftAloneArguments,

    /// The longest that the command waits for the cluster and the mirrors together
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration, env = "KAGAMI_ONCE_BUDGET")]
    pub(crate) budget: Duration,

    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ReviewArguments {
    /// An AdmissionReview, or Pods and workloads (YAML or JSON, one or many); `-` is standard input
    pub(crate) file: PathBuf,

    /// How far Kagami may go [default: the mode of the namespace, where it is known, else enforce]
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<ModeArgument>,

    /// Namespace of documents that name none [default: that of the context, else default]
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    #[command(flatten)]
    pub(crate) heal: HealArguments,

    #[command(flatten)]
    pub(crate) once: OnceArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// The image, as it would stand in a Pod
    pub(crate) image: String,

    /// Namespace of the Pod [default: that of the context, else default]
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// How the answer looks
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: ExplainOutput,

    #[command(flatten)]
    pub(crate) once: OnceArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainOutput {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArguments {
    /// The images
    #[arg(required = true)]
    pub(crate) images: Vec<String>,

    /// Namespace for which to decide [default: that of the context, else default]
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// What the references end in [default: what the mirror's `tags.pin` says]
    #[arg(long, value_name = "FORM")]
    pub(crate) form: Option<ReferenceForm>,

    /// Say on standard error why for each image, not only for those given back
    #[arg(long, short)]
    pub(crate) verbose: bool,

    #[command(flatten)]
    pub(crate) once: OnceArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferenceForm {
    /// The form that was given
    Tag,
    /// The proven digest in the tag's place, which every tool takes
    Digest,
    /// The proven digest beside the tag
    Both,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// Only Pods of this namespace [default: of all]
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// How the answer looks
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: ReportOutput,

    #[command(flatten)]
    pub(crate) left_alone: LeftAloneArguments,

    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportOutput {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    /// The images, as they would stand in Pods; `-` reads more from standard input, one a line
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,

    /// Name of the ImageMirror to copy into
    #[arg(long, value_name = "MIRROR")]
    pub(crate) to: String,

    /// YAML or JSON file with ImageMirror documents and, where they are needed, v1 Secret documents, instead of
    /// a cluster
    #[arg(long, short, value_name = "FILE", env = "KAGAMI_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) how: HowToCopy,

    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
}

#[derive(Debug, Args)]
pub(crate) struct SyncArguments {
    /// Only what Pods of this namespace use, whatever its label says [default: of all namespaces in mode enforce, warn
    /// or audit]
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// Only into this ImageMirror; may be given several times [default: into all of kind Hosted that are not Off]
    #[arg(long, value_name = "MIRROR")]
    pub(crate) to: Vec<String>,

    #[command(flatten)]
    pub(crate) how: HowToCopy,

    #[command(flatten)]
    pub(crate) left_alone: LeftAloneArguments,

    #[command(flatten)]
    pub(crate) cluster: ClusterArguments,
}

/// How images are copied by hand.
#[derive(Debug, Args)]
pub(crate) struct HowToCopy {
    /// Copy only what nodes of this platform pull, such as linux/arm64; may be given several times. Not every registry
    /// takes an index without all that it lists [default: all platforms]
    #[arg(long = "platform", value_name = "OS/ARCH")]
    pub(crate) platforms: Vec<String>,

    /// Leave out signatures, SBOMs and what else refers to an image
    #[arg(long)]
    pub(crate) no_referrers: bool,

    /// Look at every blob also where the mirror has the manifest already
    #[arg(long)]
    pub(crate) verify: bool,

    /// Say what would be copied, and copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// How many images are copied at once
    #[arg(long, value_name = "NUMBER", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: u16,

    /// Docker configuration with logins for the registries that images come from, and for the mirror
    /// [default: config.json in the folder $DOCKER_CONFIG, or in ~/.docker]
    #[arg(long, value_name = "FILE", env = "KAGAMI_DOCKER_CONFIG")]
    pub(crate) docker_config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CertsArguments {
    /// Folder for ca.crt, tls.crt and tls.key
    #[arg(long, short, value_name = "FOLDER", default_value = ".")]
    pub(crate) out: PathBuf,

    /// Name or address that the certificate is good for; may be given several times
    #[arg(
        long = "name",
        value_name = "NAME",
        default_values = ["localhost", "127.0.0.1", "::1", "kagami-webhook.kagami-system.svc"]
    )]
    pub(crate) names: Vec<String>,

    /// How long the certificates are valid
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    pub(crate) validity: Duration,

    /// Overwrite files that exist
    #[arg(long)]
    pub(crate) force: bool,
}
