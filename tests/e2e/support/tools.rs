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
        let folder = env::var_os("KAGAMI_TOOLS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools"),
            PathBuf::from,
        );
        let tools = Self { folder };
        let missing: Vec<_> = [
            "definitions",
            "etcd",
            "helm",
            "kube-apiserver",
            "kube-controller-manager",
            "kubectl",
            "registry",
        ]
        .into_iter()
        .filter(|name| !tools.path(name).exists())
        .collect();
        if !missing.is_empty() {
            let (missing, folder) = (missing.join(", "), tools.folder.display());
            return Err(format!("{missing} not found in {folder}: run scripts/tools"));
        }
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
