//! `kagami certs`: a certificate authority and a serving pair for trying out.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
};

use anyhow::Context as _;

use super::{BadSettings, arguments::CertsArguments, output};
use crate::{
    certificates::{self, Name},
    clock,
};

pub(super) fn run(arguments: &CertsArguments) -> anyhow::Result<()> {
    let CertsArguments {
        out,
        names,
        validity,
        force,
    } = arguments;
    let files = ["ca.crt", "tls.crt", "tls.key"].map(|name| out.join(name));
    let in_the_way: Vec<String> = files
        .iter()
        .filter(|file| !force && file.exists())
        .map(|file| format!("{} exists; --force overwrites it", file.display()))
        .collect();
    if !in_the_way.is_empty() {
        return Err(BadSettings(in_the_way).into());
    }
    let names: Vec<Name> = names.iter().map(|name| self::name(name)).collect();
    let issued = certificates::issue(&names, clock::now(), *validity)?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let [authority, certificate, key] = &files;
    write(authority, &issued.authority, false)?;
    write(certificate, &issued.pair.certificate, false)?;
    write(key, &issued.pair.key, true)?;
    output::print(&files.map(|file| format!("{}\n", file.display())).concat())
}

/// Returns what a name on the command line means: an address or a DNS name.
pub(super) fn name(text: &str) -> Name {
    text.parse::<IpAddr>()
        .map_or_else(|_| Name::Dns(text.to_owned()), Name::Ip)
}

/// Writes a file that others may read, or that only its owner may.
pub(super) fn write(path: &Path, text: &str, secret: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let mode = if secret { 0o600 } else { 0o644 };
    let create = || -> io::Result<()> {
        // A file that is there keeps its mode, so it goes first.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())
    };
    create().with_context(|| format!("cannot write {}", path.display()))
}
