//! The real programs that `scripts/tools` builds.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where the programs are; it exists only if all of them do.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Finds the programs in `$KAGAMI_TOOLS` or `target/tools`, or says what is missing.
    pub(crate) fn find() -> Result<Self, String> {
        Self::find_some(&[
            "definitions",
            "etcd",
            "helm",
            "kube-apiserver",
            "kube-controller-manager",
            "kubectl",
            "registry",
        ])
    }

    /// The same for somebody who needs these programs only.
    pub(crate) fn find_some(programs: &[&str]) -> Result<Self, String> {
        let folder = env::var_os("KAGAMI_TOOLS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools"),
            PathBuf::from,
        );
        let tools = Self { folder }.with(programs)?;
        // Keeps programs from outliving a killed test run; other implementations lack the option.
        let can_bind = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !can_bind {
            return Err("`setpriv --pdeathsig` not found: install util-linux".to_owned());
        }
        Ok(tools)
    }

    /// The same, if these programs are there as well.
    pub(crate) fn with(self, programs: &[&str]) -> Result<Self, String> {
        let missing: Vec<_> = programs
            .iter()
            .copied()
            .filter(|name| !self.path(name).exists())
            .collect();
        if missing.is_empty() {
            return Ok(self);
        }
        let (missing, folder) = (missing.join(", "), self.folder.display());
        Err(format!("{missing} not found in {folder}: run scripts/tools"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
