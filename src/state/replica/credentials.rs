//! The read credentials for live probes: a folder with a file for each mirror, as a Secret is mounted.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{fs, time::interval};

use super::Shared;
use crate::credentials::Secret;

/// How often the files are looked at. A watch on them would end with the kubelet's first rotation.
const LOOK: Duration = Duration::from_secs(2);

/// Follows the folder. One that is not there holds no credentials.
pub(super) async fn run(shared: Shared, folder: PathBuf) -> Infallible {
    let mut ticks = interval(LOOK);
    let mut fault = None;
    loop {
        ticks.tick().await;
        match read(&folder).await {
            Ok(credentials) => {
                fault = None;
                shared.belief().set_credentials(credentials);
            }
            Err(error) => {
                let text = error.to_string();
                if fault.as_ref() != Some(&text) {
                    tracing::warn!(folder = %folder.display(), error = text, "cannot read the probe credentials; the former ones stay in use");
                    fault = Some(text);
                }
            }
        }
    }
}

async fn read(folder: &Path) -> io::Result<BTreeMap<String, Secret>> {
    let mut credentials = BTreeMap::new();
    let mut entries = match fs::read_dir(folder).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(credentials),
        Err(error) => return Err(error),
    };
    while let Some(entry) = entries.next_entry().await? {
        let Ok(mirror) = entry.file_name().into_string() else {
            continue;
        };
        // `..data` and its kin are how the kubelet swaps all files at once.
        if mirror.starts_with('.') || !fs::metadata(entry.path()).await?.is_file() {
            continue;
        }
        let content = fs::read(entry.path()).await?;
        let secret = Secret::docker_config(content);
        credentials.insert(mirror, secret);
    }
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn a_folder_is_read_as_the_kubelet_mounts_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(read(&path.join("absent")).await.unwrap().is_empty());
        let data = path.join("..2026_01_02");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("main"), "{}").unwrap();
        symlink("..2026_01_02", path.join("..data")).unwrap();
        symlink("..data/main", path.join("main")).unwrap();
        std::fs::create_dir(path.join("folder")).unwrap();
        let credentials = read(path).await.unwrap();
        assert_eq!(credentials.keys().collect::<Vec<_>>(), ["main"]);
        assert_eq!(credentials["main"].data[".dockerconfigjson"], b"{}");
    }
}
