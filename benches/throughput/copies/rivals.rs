//! Who copies: Kagami, the least requests, and the programs that people use today.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{super::roles::Build, images::Image, replay};

/// Where Debian's programs are.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program that copies images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Copier {
    Kagami,
    /// With signatures and what else refers to an image.
    KagamiReferrers,
    /// The least requests, by nobody who would use it.
    Bare,
    Crane,
    /// One image at a time.
    Regctl,
    /// A list of images.
    Regsync,
    Skopeo,
}

/// What is to be copied, and with what.
#[derive(Debug)]
pub struct Work<'w> {
    pub folder: &'w Path,
    pub tools: &'w Path,
    pub kagami: &'w Build,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub images: &'w [Image],
    pub parallel: usize,
}

impl Copier {
    /// Returns those that are there, and the names of those that are not.
    pub fn all(tools: &Path) -> (Vec<Self>, Vec<&'static str>) {
        let mut there = vec![Self::Kagami, Self::Bare];
        let mut absent = Vec::new();
        for copier in [Self::Crane, Self::Regctl, Self::Regsync, Self::Skopeo] {
            let is_there = match copier {
                Self::Skopeo => {
                    let mut command = Command::new("skopeo");
                    command.env("PATH", SEARCH_PATH).arg("--version");
                    command.output().is_ok_and(|output| output.status.success())
                }
                _ => tools.join(copier.name()).exists(),
            };
            if is_there {
                there.push(copier);
            } else {
                absent.push(copier.name());
            }
        }
        (there, absent)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kagami => "Kagami",
            Self::KagamiReferrers => "Kagami, with referrers",
            Self::Bare => "the least requests",
            Self::Crane => "crane",
            Self::Regctl => "regctl",
            Self::Regsync => "regsync",
            Self::Skopeo => "skopeo",
        }
    }

    pub const fn is_rival(self) -> bool {
        !matches!(self, Self::Kagami | Self::KagamiReferrers | Self::Bare)
    }

    /// Returns what brings the images, as its users would write it.
    pub fn command(self, work: &Work<'_>) -> Result<Command> {
        let parallel = work.parallel.to_string();
        let mut command = match self {
            Self::Kagami => work.own(&["--no-referrers"])?,
            Self::KagamiReferrers => work.own(&[])?,
            Self::Bare => {
                let mut command = Command::new(std::env::current_exe()?);
                let names = work.list("names", |image| image.name.clone())?;
                command
                    .arg(replay::ROLE)
                    .args([work.from.to_string(), work.to.to_string(), parallel])
                    .arg(names);
                command
            }
            Self::Crane => work.each(&["crane", "copy", "--insecure"])?,
            Self::Regctl => {
                let hosts = [work.from, work.to].map(|host| format!("--host=reg={host},tls=disabled"));
                work.each(&["regctl", &hosts[0], &hosts[1], "image", "copy"])?
            }
            Self::Regsync => {
                let mut text = "version: 1\ncreds:\n".to_owned();
                for host in [work.from, work.to] {
                    writeln!(
                        text,
                        "- {{registry: \"{host}\", tls: disabled, reqConcurrent: 100}}"
                    )?;
                }
                writeln!(text, "defaults: {{parallel: {parallel}}}\nsync:")?;
                for image in work.images {
                    let (from, to) = (work.source(image), work.target(image));
                    writeln!(text, "- {{source: \"{from}\", target: \"{to}\", type: image}}")?;
                }
                let file = work.folder.join("regsync.yaml");
                fs::write(&file, text)?;
                let mut command = Command::new(work.tools.join(self.name()));
                command.args(["once", "--config"]).arg(file);
                command
            }
            Self::Skopeo => work.skopeo()?,
        };
        command
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("HOME", work.folder);
        Ok(command)
    }
}

impl Work<'_> {
    fn source(&self, image: &Image) -> String {
        format!("{}/{}:v1", self.from, image.name)
    }

    fn target(&self, image: &Image) -> String {
        format!("{}/{}:v1", self.to, image.name)
    }

    /// Writes a file with a line for each image.
    fn list(&self, name: &str, line: impl Fn(&Image) -> String) -> Result<PathBuf> {
        let file = self.folder.join(name);
        let lines = self.images.iter().map(|image| line(image) + "\n");
        fs::write(&file, lines.collect::<String>())?;
        Ok(file)
    }

    fn own(&self, more: &[&str]) -> Result<Command> {
        let configuration = self.folder.join("copies.yaml");
        fs::write(
            &configuration,
            format!(
                "apiVersion: kagami.dev/v1alpha1\nkind: ImageMirror\nmetadata: {{name: main}}\nspec:\n  registry: \
                 \"{to}\"\n  kind: Hosted\n  repository: \"{{repository}}\"\n  sources: [{{prefix: \"{from}\"}}]\n  \
                 endpoint: {{url: \"http://{to}\"}}\n",
                from = self.from,
                to = self.to
            ),
        )?;
        let list = self.list("images", |image| self.source(image))?;
        let mut command = self.kagami.command();
        command.args([
            "copy",
            "-",
            "--to",
            "main",
            "--parallel",
            &self.parallel.to_string(),
        ]);
        command.args(more).arg("--config").arg(configuration);
        // A list is read from standard input, which what starts programs for tests closes.
        let mut shell = Command::new("sh");
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        shell
            .args(["-c", r#"list=$1; shift; exec "$@" <"$list""#, "sh"])
            .arg(list)
            .args(words);
        Ok(shell)
    }

    /// Returns what runs a program for each image, some at once.
    fn each(&self, words: &[&str]) -> Result<Command> {
        let list = self.list("pairs", |image| {
            format!("{} {}", self.source(image), self.target(image))
        })?;
        let mut command = Command::new("xargs");
        command
            .arg("-a")
            .arg(list)
            .args(["-n", "2", "-P", &self.parallel.to_string()]);
        command.arg(self.tools.join(words[0])).args(&words[1..]);
        Ok(command)
    }

    /// Returns what splits the list, for skopeo copies one image after the other.
    fn skopeo(&self) -> Result<Command> {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            r#"to=$1; shift; failed=0; ids=
            for list; do
              skopeo --insecure-policy sync --preserve-digests --src yaml --dest docker --dest-tls-verify=false "$list" "$to" & ids="$ids $!"
            done
            for id in $ids; do wait "$id" || failed=1; done; exit $failed"#,
            "sh",
            &self.to.to_string(),
        ]);
        let share = self.images.len().div_ceil(self.parallel).max(1);
        for (number, images) in self.images.chunks(share).enumerate() {
            let mut text = format!("\"{}\":\n  tls-verify: false\n  images:\n", self.from);
            for image in images {
                writeln!(text, "    {}: [v1]", image.name)?;
            }
            let file = self.folder.join(format!("skopeo-{number}.yaml"));
            fs::write(&file, text)?;
            command.arg(file);
        }
        Ok(command)
    }
}
