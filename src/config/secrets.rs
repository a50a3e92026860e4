//! Where secrets usually lie.
//!
//! Owns the list, nothing else: whether a place exists, and what the run shows of it, is decided
//! in `files`. The places are those that the programs' own manuals name; a variable that moves one
//! is followed. A name may hold one `*`, in its last component.

use std::path::{Path, PathBuf};

use super::Host;

/// A place that may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secret {
    /// Absolute, not yet resolved.
    pub(crate) path: PathBuf,
    /// What it holds.
    pub(crate) what: &'static str,
}

/// Every place to look at, for a caller (and a guest) with these home directories.
pub(crate) fn places(host: &Host, homes: &[PathBuf]) -> Vec<Secret> {
    let mut found = Vec::new();
    let mut add = |base: &Path, names: &[&str], what: &'static str| {
        let paths = names.iter().map(|name| base.join(name));
        found.extend(paths.map(|path| Secret { path, what }));
    };
    for (names, what) in SYSTEM {
        add(Path::new("/"), names, what);
    }
    for home in homes {
        for (names, what) in HOME {
            add(home, names, what);
        }
        // Most of what is looked for is not there: two lists tell that at once.
        host.names(home);
        host.names(&home.join(Base::Config.below_home()));
        for (base, names, what) in XDG {
            add(&home.join(base.below_home()), names, what);
            if let Some(moved) = host.variable(base.variable()) {
                add(Path::new(moved), names, what);
            }
        }
    }
    for (variable, names, what) in MOVED {
        let value = host.variable(variable).unwrap_or_default();
        // KUBECONFIG is a list; no other of these values can hold a colon and work.
        for moved in std::env::split_paths(value) {
            add(&moved, names, what);
        }
    }
    found.retain(|secret| secret.path.is_absolute());
    if !homes.iter().any(|home| home == Path::new("/root")) {
        found.push(Secret { path: "/root".into(), what: ROOTS_HOME });
    }
    found.into_iter().flat_map(|secret| expand(host, secret)).collect()
}

/// Whether these words tell what a secret holds.
pub(crate) fn has(what: &str) -> bool {
    let plain = SYSTEM.iter().chain(HOME).map(|it| it.1);
    let more = XDG.iter().map(|it| it.2).chain(MOVED.iter().map(|it| it.2));
    what == ROOTS_HOME || plain.chain(more).any(|it| it == what)
}

/// The names that a `*` in the last component stands for.
fn expand(host: &Host, secret: Secret) -> Vec<Secret> {
    let pattern = secret.path.file_name().and_then(|name| name.to_str());
    let Some((head, tail)) = pattern.and_then(|name| name.split_once('*')) else {
        return vec![secret];
    };
    let directory = secret.path.parent().unwrap_or(Path::new("/"));
    let fits = |name: &str| {
        name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
    };
    let listing = host.names(directory);
    let names = listing.names.iter().filter(|name| name.to_str().is_some_and(fits));
    names.map(|name| Secret { path: directory.join(name), what: secret.what }).collect()
}

const ROOTS_HOME: &str = "root's home directory";

/// The base directories of the XDG specification.
#[derive(Debug, Clone, Copy)]
enum Base {
    Config,
    Data,
    State,
    Cache,
}

impl Base {
    fn variable(self) -> &'static str {
        match self {
            Base::Config => "XDG_CONFIG_HOME",
            Base::Data => "XDG_DATA_HOME",
            Base::State => "XDG_STATE_HOME",
            Base::Cache => "XDG_CACHE_HOME",
        }
    }

    fn below_home(self) -> &'static str {
        match self {
            Base::Config => ".config",
            Base::Data => ".local/share",
            Base::State => ".local/state",
            Base::Cache => ".cache",
        }
    }
}

const SYSTEM: &[(&[&str], &str)] = &[
    (&["etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-"], "password hashes"),
    (&["etc/security/opasswd", "etc/master.passwd"], "password hashes"),
    (&["etc/sudoers", "etc/sudoers.d", "etc/doas.conf"], "who may become root"),
    (&["etc/ssh/ssh_host_*_key"], "the host's ssh keys"),
    (&["etc/ssl/private", "etc/pki/tls/private", "etc/letsencrypt"], "the host's TLS keys"),
    (&["etc/wireguard", "etc/openvpn", "etc/ipsec.secrets", "etc/ipsec.d/private"], "VPN keys"),
    (&["etc/swanctl/private", "etc/ppp/chap-secrets", "etc/ppp/pap-secrets"], "VPN keys"),
    (&["etc/NetworkManager/system-connections", "var/lib/iwd"], "network passwords"),
    (&["etc/wpa_supplicant", "etc/netplan"], "network passwords"),
    (&["etc/krb5.keytab"], "the host's Kerberos key"),
    (&["etc/cups/ssl", "etc/davfs2/secrets"], "service credentials"),
    (&["etc/credstore", "etc/credstore.encrypted"], "service credentials"),
    (&["var/lib/systemd/credential.secret"], "the key of service credentials"),
    (&["etc/cryptsetup-keys.d"], "disk encryption keys"),
    (&["etc/kubernetes", "var/lib/kubelet/pki", "etc/rancher"], "cluster credentials"),
    (&["var/lib/rancher/k3s/server"], "cluster credentials"),
    (&["etc/docker/key.json", "etc/containers/auth.json"], "container registry credentials"),
    (&["etc/boto.cfg", "etc/rclone.conf", "etc/s3cmd.cfg"], "storage credentials"),
    (&["etc/postfix/sasl_passwd", "etc/msmtprc"], "mail credentials"),
    (&["etc/exim4/passwd.client"], "mail credentials"),
];

const HOME: &[(&[&str], &str)] = &[
    (&[".ssh"], "ssh keys and hosts"),
    (&[".gnupg"], "gpg keys"),
    (&[".pki", ".cert", ".minisign", ".caff", ".step/secrets"], "certificates and keys"),
    (&[".aws", ".boto", ".s3cfg", ".passwd-s3fs", ".mc"], "cloud credentials"),
    (&[".azure", ".gsutil", ".oci", ".bluemix", ".aliyun"], "cloud credentials"),
    (&[".fly/config.yml", ".netlify", ".databrickscfg", ".snowflake"], "cloud credentials"),
    (&[".config/gcloud"], "cloud credentials"),
    (&[".kube", ".minikube/profiles", ".talos"], "cluster credentials"),
    (&[".docker/config.json", ".docker/contexts", ".docker/machine"], "container credentials"),
    (&[".docker/trust/private", ".dockercfg"], "container credentials"),
    (&[".git-credentials", ".git-credential-cache", ".gitcookies"], "git credentials"),
    (&[".netrc", "_netrc", ".authinfo", ".authinfo.gpg"], "network logins"),
    (&[".npmrc", ".yarnrc.yml", ".pypirc"], "package registry credentials"),
    (&[".cargo/credentials", ".cargo/credentials.toml"], "package registry credentials"),
    (&[".gem/credentials", ".bundle/config"], "package registry credentials"),
    (&[".composer/auth.json", ".nuget/NuGet/NuGet.Config"], "package registry credentials"),
    (&[".m2/settings.xml", ".m2/settings-security.xml"], "package registry credentials"),
    (&[".gradle/gradle.properties", ".sbt/.credentials"], "package registry credentials"),
    (&[".ivy2/.credentials", ".hex/hex.config"], "package registry credentials"),
    (&[".terraform.d/credentials.tfrc.json", ".terraformrc"], "infrastructure credentials"),
    (&[".pulumi/credentials.json", ".chef", ".vagrant.d/data"], "infrastructure credentials"),
    (&[".vault-token", ".vault_pass*"], "vault tokens"),
    (&[".password-store", ".lastpass", ".keepassx", ".keepass"], "a password manager"),
    (&["*.kdbx", "*.kdb", ".op", ".bw", ".lpass"], "a password manager"),
    (&[".gnome2/keyrings", ".kde/share/apps/kwallet"], "a keyring"),
    (&[".kde4/share/apps/kwallet"], "a keyring"),
    (&[".pgpass", ".my.cnf", ".mylogin.cnf", ".dbshell"], "database logins"),
    (&[".mongorc.js", ".cassandra/credentials"], "database logins"),
    (&[".huggingface/token", ".kaggle", ".jupyter/jupyter_server_config.json"], "API tokens"),
    (&[".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json"], "API tokens"),
    (&[".ipython/profile_default/security", ".travis", ".circleci/cli.yml"], "API tokens"),
    (&[".msmtprc", ".fetchmailrc", ".mutt", ".muttrc", ".mbsyncrc"], "mail logins"),
    (&[".offlineimaprc", ".getmail", ".mailrc"], "mail logins"),
    (&[".smbcredentials", ".davfs2/secrets", ".fscrypt", ".ecryptfs"], "storage credentials"),
    (&[".Private", ".vaults"], "an encrypted directory"),
    (&[".Xauthority", ".ICEauthority", ".pulse-cookie", ".esd_auth"], "desktop session cookies"),
    (&[".dbus-keyrings", ".krb5", ".k5login", ".k5identity"], "session credentials"),
    (&[".mozilla", ".thunderbird", ".icedove", ".librewolf", ".waterfox"], "a browser profile"),
    (&[".floorp", ".zen", ".tor-browser", ".opera", ".palemoon"], "a browser profile"),
    (&["snap/firefox", "snap/chromium", "snap/thunderbird", "snap/brave"], "a browser profile"),
    (&[".var/app/org.mozilla.firefox", ".var/app/org.mozilla.Thunderbird"], "a browser profile"),
    (&[".var/app/com.google.Chrome", ".var/app/org.chromium.Chromium"], "a browser profile"),
    (&[".var/app/com.brave.Browser", ".var/app/com.microsoft.Edge"], "a browser profile"),
    (
        &[".var/app/com.vivaldi.Vivaldi", ".var/app/io.gitlab.librewolf-community"],
        "a browser profile",
    ),
    (&[".var/app/com.bitwarden.desktop", ".var/app/org.keepassxc.KeePassXC"], "a password manager"),
    (&[".var/app/org.signal.Signal"], "messages"),
    (&[".bitcoin", ".ethereum", ".electrum", ".monero"], "a wallet"),
    (&[".*_history", ".*-history", ".histfile", ".history"], "a command history"),
    (
        &[".bash_sessions", ".zsh_sessions", ".lesshst", ".viminfo", ".node_repl_history"],
        "a command history",
    ),
];

const XDG: &[(Base, &[&str], &str)] = &[
    (Base::Config, &["gcloud", "doctl", "hcloud", "scw", "linode-cli", "oci"], "cloud credentials"),
    (Base::Config, &["fly", "vercel", "configstore", "wrangler", ".wrangler"], "cloud credentials"),
    (Base::Data, &["com.vercel.cli"], "cloud credentials"),
    (Base::Config, &["containers/auth.json"], "container registry credentials"),
    (Base::Config, &["helm/registry", "helm/repositories.yaml", "argocd"], "cluster credentials"),
    (Base::Config, &["git/credentials", "git-credential-oauth"], "git credentials"),
    (Base::Cache, &["git/credential"], "git credentials"),
    (Base::Config, &["gh", "hub", "glab-cli", "tea", "lab"], "code forge tokens"),
    (Base::Config, &["composer/auth.json", "NuGet/NuGet.Config"], "package registry credentials"),
    (Base::Config, &["pip/pip.conf", "pypoetry/auth.toml"], "package registry credentials"),
    (Base::Data, &["gem/credentials", "uv/credentials"], "package registry credentials"),
    (Base::Config, &["gem/credentials"], "package registry credentials"),
    (Base::Config, &["hashicorp", "pulumi"], "infrastructure credentials"),
    (
        Base::Config,
        &["rclone", "s3cmd", "b2", "restic", "borg", "filezilla"],
        "storage credentials",
    ),
    (Base::Config, &["sops", "age", "sequoia"], "encryption keys"),
    (Base::Data, &["sequoia", "pki"], "encryption keys"),
    (Base::Data, &["keyrings", "kwalletd", "plasma-vault"], "a keyring"),
    (Base::Data, &["password-store", "gopass", "rbw"], "a password manager"),
    (Base::Cache, &["rbw"], "a password manager"),
    (Base::Config, &["op", "1Password", "Bitwarden", "Bitwarden CLI"], "a password manager"),
    (Base::Config, &["keepassxc", "KeePass", "rbw", "gopass", "lpass"], "a password manager"),
    (Base::Config, &["google-chrome", "google-chrome-beta"], "a browser profile"),
    (Base::Config, &["google-chrome-unstable", "chromium"], "a browser profile"),
    (Base::Config, &["BraveSoftware", "vivaldi", "microsoft-edge"], "a browser profile"),
    (Base::Config, &["microsoft-edge-dev", "opera", "mozilla"], "a browser profile"),
    (Base::Data, &["qutebrowser", "epiphany", "torbrowser"], "a browser profile"),
    (Base::Data, &["evolution", "TelegramDesktop"], "messages"),
    (Base::Config, &["evolution", "Signal", "Slack", "discord", "Element"], "messages"),
    (Base::Config, &["goa-1.0", "keybase", "msmtp", "neomutt", "mutt"], "account logins"),
    (Base::Config, &["pulse/cookie"], "desktop session cookies"),
    (Base::Config, &["github-copilot", "openai", "anthropic"], "API tokens"),
    (Base::Cache, &["huggingface/token", "huggingface/stored_tokens"], "API tokens"),
    (Base::Data, &["fish/fish_history", "nushell/history.txt"], "a command history"),
    (Base::Data, &["atuin", "recently-used.xbel"], "a command history"),
    (Base::Config, &["nushell/history.txt"], "a command history"),
    (Base::State, &["bash/history", "zsh/history", "python_history"], "a command history"),
];

/// Variables that say where a secret lies: the value itself, or names below it.
const MOVED: &[(&str, &[&str], &str)] = &[
    ("GNUPGHOME", &[""], "gpg keys"),
    ("AWS_SHARED_CREDENTIALS_FILE", &[""], "cloud credentials"),
    ("AWS_CONFIG_FILE", &[""], "cloud credentials"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", &[""], "cloud credentials"),
    ("GOOGLE_APPLICATION_CREDENTIALS", &[""], "cloud credentials"),
    ("CLOUDSDK_CONFIG", &[""], "cloud credentials"),
    ("AZURE_CONFIG_DIR", &[""], "cloud credentials"),
    ("BOTO_CONFIG", &[""], "cloud credentials"),
    ("KUBECONFIG", &[""], "cluster credentials"),
    ("DOCKER_CONFIG", &["config.json", "contexts"], "container credentials"),
    ("REGISTRY_AUTH_FILE", &[""], "container registry credentials"),
    ("GH_CONFIG_DIR", &[""], "code forge tokens"),
    ("GLAB_CONFIG_DIR", &[""], "code forge tokens"),
    ("NETRC", &[""], "network logins"),
    ("NPM_CONFIG_USERCONFIG", &[""], "package registry credentials"),
    ("npm_config_userconfig", &[""], "package registry credentials"),
    ("CARGO_HOME", &["credentials", "credentials.toml"], "package registry credentials"),
    ("COMPOSER_HOME", &["auth.json"], "package registry credentials"),
    ("GRADLE_USER_HOME", &["gradle.properties"], "package registry credentials"),
    ("PIP_CONFIG_FILE", &[""], "package registry credentials"),
    ("TF_CLI_CONFIG_FILE", &[""], "infrastructure credentials"),
    ("VAULT_TOKEN_PATH", &[""], "vault tokens"),
    ("SOPS_AGE_KEY_FILE", &[""], "encryption keys"),
    ("PASSWORD_STORE_DIR", &[""], "a password manager"),
    ("PGPASSFILE", &[""], "database logins"),
    ("MYSQL_TEST_LOGIN_FILE", &[""], "database logins"),
    ("RCLONE_CONFIG", &[""], "storage credentials"),
    ("XAUTHORITY", &[""], "desktop session cookies"),
    ("ICEAUTHORITY", &[""], "desktop session cookies"),
    ("PULSE_COOKIE", &[""], "desktop session cookies"),
    ("HISTFILE", &[""], "a command history"),
    ("KRB5CCNAME", &[""], "Kerberos tickets"),
    ("KRB5_KTNAME", &[""], "Kerberos keys"),
    ("CREDENTIALS_DIRECTORY", &[""], "service credentials"),
];
