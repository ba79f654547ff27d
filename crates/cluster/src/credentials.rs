//! Credentials of a cluster: an authority for servers' certificates, and a token for every client. Made by `openssl`,
//! which every machine with trusted certificates has (Debian's package `ca-certificates` needs it). None of them is
//! secret: they live as long as the test.

use crate::ClusterError;
use crate::error::io;
use egret_lab::process::run;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A client: its name, and the groups that Kubernetes' built-in roles are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name in Kubernetes.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
    token: String,
}

/// The credentials of one cluster, in a folder.
#[derive(Debug, Clone)]
pub struct Credentials {
    folder: PathBuf,
    users: Vec<User>,
}

/// Name of the user with all rights.
pub const ADMIN: &str = "admin";

impl Credentials {
    /// Makes an authority, the API server's certificates for these addresses, and tokens of the users of a cluster with
    /// these nodes.
    ///
    /// # Errors
    /// `openssl` is missing or the folder cannot be written.
    pub fn make(folder: &Path, addresses: &[IpAddr], nodes: &[&str]) -> Result<Self, ClusterError> {
        std::fs::create_dir_all(folder).map_err(io(format!("creating {}", folder.display())))?;
        let mut users = vec![
            User::new(ADMIN, &["system:masters"])?,
            User::new("system:kube-controller-manager", &[])?,
            User::new("system:kube-scheduler", &[])?,
            User::new("system:kube-proxy", &[])?,
        ];
        for node in nodes {
            users.push(User::new(
                &format!("system:node:{node}"),
                &["system:nodes"],
            )?);
        }
        let credentials = Self {
            folder: folder.to_owned(),
            users,
        };
        credentials.write(addresses)?;
        Ok(credentials)
    }

    /// Opens the credentials in a folder that [`Self::make`] filled.
    ///
    /// # Errors
    /// The folder was not filled.
    pub fn open(folder: &Path) -> Result<Self, ClusterError> {
        let path = folder.join("tokens.csv");
        let text =
            std::fs::read_to_string(&path).map_err(io(format!("reading {}", path.display())))?;
        Ok(Self {
            folder: folder.to_owned(),
            users: text.lines().filter_map(User::of_line).collect(),
        })
    }

    /// The credentials for command lines of programs that see the files in another folder.
    pub(crate) fn seen_in(&self, folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            users: self.users.clone(),
        }
    }

    fn write(&self, addresses: &[IpAddr]) -> Result<(), ClusterError> {
        self.certificate(
            "ca",
            "/CN=egret-test-authority",
            "basicConstraints=critical,CA:TRUE",
        )?;
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ];
        let names = names.iter().map(|name| format!("DNS:{name}"));
        let all: Vec<String> = names
            .chain(addresses.iter().map(|address| format!("IP:{address}")))
            .collect();
        let all = format!("subjectAltName={}", all.join(","));
        self.certificate("apiserver", "/CN=kube-apiserver", &all)?;
        // Kubelets allow this group to run commands in containers and read logs.
        self.certificate(
            "kubelet-client",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
            "extendedKeyUsage=clientAuth",
        )?;
        self.openssl(&["genpkey", "-algorithm", "RSA", "-out", "accounts.key"])?;
        let tokens: String = self.users.iter().map(User::line).collect();
        self.file("tokens.csv", &tokens)
    }

    /// Makes a key and a certificate, signed by the authority or, for the authority, by itself.
    fn certificate(&self, name: &str, subject: &str, extension: &str) -> Result<(), ClusterError> {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        let mut arguments = vec![
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "30",
            "-subj",
            subject,
            "-addext",
            extension,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ];
        if name != "ca" {
            arguments.extend(["-CA", "ca.crt", "-CAkey", "ca.key"]);
            // By its default configuration `req -x509` would make the certificate an authority's.
            arguments.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
        }
        self.openssl(&arguments)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<(), ClusterError> {
        // Without the machine's configuration file: it may add extensions a second time, which is an error.
        let configuration = self.folder.join("openssl.cnf");
        std::fs::write(&configuration, "[req]\ndistinguished_name = name\n[name]\n")
            .map_err(io("writing the configuration of openssl"))?;
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(&self.folder);
        run(command.env("OPENSSL_CONF", &configuration), "")?;
        Ok(())
    }

    /// Adds a user.
    ///
    /// # Errors
    /// The folder cannot be written. A running API server does not read the file again.
    pub fn add(&mut self, name: &str, groups: &[&str]) -> Result<(), ClusterError> {
        self.users.push(User::new(name, groups)?);
        let tokens: String = self.users.iter().map(User::line).collect();
        self.file("tokens.csv", &tokens)
    }

    /// Path of a file: `ca.crt`, `apiserver.crt`, `apiserver.key`, `accounts.key`, `tokens.csv`, ...
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The text of a kubeconfig file for a user.
    ///
    /// # Panics
    /// No such user.
    pub fn kubeconfig(&self, user: &str, server: &str) -> Result<String, ClusterError> {
        let known = self.users.iter().find(|known| known.name == user);
        let token = &known.expect("a user that was made").token;
        let authority = Command::new("base64")
            .arg("-w0")
            .arg(self.path("ca.crt"))
            .output()
            .map_err(io("running base64"))?;
        let authority = String::from_utf8_lossy(&authority.stdout);
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: egret\n\
             clusters: [{{name: egret, cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}}}]\n\
             users: [{{name: {user:?}, user: {{token: {token}}}}}]\n\
             contexts: [{{name: egret, context: {{cluster: egret, user: {user:?}}}}}]\n"
        ))
    }

    /// Writes a kubeconfig file into the folder and returns its path.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_kubeconfig(&self, user: &str, server: &str) -> Result<PathBuf, ClusterError> {
        let name = format!("{}.kubeconfig", user.replace(':', "-"));
        self.file(&name, &self.kubeconfig(user, server)?)?;
        Ok(self.path(&name))
    }

    fn file(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = self.path(name);
        std::fs::write(&path, text).map_err(io(format!("writing {}", path.display())))
    }
}

impl User {
    fn new(name: &str, groups: &[&str]) -> Result<Self, ClusterError> {
        let mut bytes = [0; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(io("reading /dev/urandom"))?;
        Ok(Self {
            name: name.to_owned(),
            groups: groups.iter().map(ToString::to_string).collect(),
            token: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    fn of_line(line: &str) -> Option<Self> {
        let mut fields = line.splitn(4, ',');
        let (token, name) = (fields.next()?, fields.next()?);
        let groups = fields.nth(1)?.trim_matches('"').split(',');
        Some(Self {
            name: name.to_owned(),
            groups: groups
                .filter(|group| !group.is_empty())
                .map(str::to_owned)
                .collect(),
            token: token.to_owned(),
        })
    }

    /// One line of the format of `--token-auth-file`.
    fn line(&self) -> String {
        let Self {
            name,
            groups,
            token,
        } = self;
        format!("{token},{name},{name},\"{}\"\n", groups.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_survives_its_line() {
        for groups in [&[][..], &["system:nodes"], &["a", "b"]] {
            let user = User::new("system:node:worker1", groups).unwrap();
            assert_eq!(User::of_line(user.line().trim_end()), Some(user));
        }
    }
}
