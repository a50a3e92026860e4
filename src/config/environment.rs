//! The guest's environment: what of the caller's is passed, what is withheld and why.
//!
//! Judges variables by name, and by value only where the value itself is unmistakable. Leaves
//! LD_PRELOAD and its kin alone: the guest is a native program and the walls do not depend on them.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::error::refuse;
use super::paths::quoted;
use super::{ConfigError, Withheld};

/// A whole environment, in order.
pub(crate) type Variables = Vec<(OsString, OsString)>;

/// One `--env`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// `NAME`: the caller's value.
    Pass(OsString),
    /// `NAME=VALUE`.
    Set(OsString, OsString),
}

/// The environment that the guest gets of `caller`'s, and what was left out of it. `extra` judges
/// what depends on more than name and value.
pub(crate) fn choose(
    caller: &[(OsString, OsString)],
    clear: bool,
    wishes: &[OsString],
    extra: impl Fn(&OsStr, &OsStr) -> Option<&'static str>,
) -> Result<(Variables, Vec<Withheld>), ConfigError> {
    let wanted = read_wishes(caller, wishes)?;
    let (mut passed, mut withheld) = (Variables::new(), Vec::new());
    let mut seen = HashSet::new();
    // getenv(3) finds the first of two variables of one name: the second is nobody's.
    for (name, value) in caller.iter().filter(|(name, _)| !clear && seen.insert(name)) {
        if wanted.set.contains_key(name) {
            continue;
        }
        match because(name, value).or_else(|| extra(name, value)) {
            Some(reason) => withheld.push(Withheld { name: name.clone(), reason }),
            None => passed.push((name.clone(), value.clone())),
        }
    }
    let mut set = wanted.set;
    for name in wanted.order {
        passed.extend(set.remove_entry(&name));
    }
    Ok((passed, withheld))
}

/// What `--env` asks for.
struct Wanted {
    /// The value of each name; the last flag counts.
    set: HashMap<OsString, OsString>,
    /// The names in the order in which they were first named.
    order: Vec<OsString>,
}

fn read_wishes(
    caller: &[(OsString, OsString)],
    wishes: &[OsString],
) -> Result<Wanted, ConfigError> {
    let mut wanted = Wanted { set: HashMap::new(), order: Vec::new() };
    if wishes.is_empty() {
        return Ok(wanted);
    }
    let mut values: HashMap<&OsStr, &OsStr> = HashMap::new();
    for (name, value) in caller {
        values.entry(name).or_insert(value);
    }
    for text in wishes {
        let (name, value) = match parse_wish(text)? {
            Wish::Set(name, value) => (name, value),
            Wish::Pass(name) => match values.get(name.as_os_str()) {
                Some(value) => (name, value.to_os_string()),
                None => {
                    let name = quoted(&name);
                    return Err(refuse!(
                        "cannot pass --env {name}: the variable is not set here; export it first \
                         or write --env {name}=VALUE"
                    ));
                }
            },
        };
        wanted.order.push(name.clone());
        wanted.set.insert(name, value);
    }
    Ok(wanted)
}

/// Reads `NAME` or `NAME=VALUE`.
pub(crate) fn parse_wish(text: &OsStr) -> Result<Wish, ConfigError> {
    let bytes = text.as_bytes();
    let cause = if bytes.is_empty() || bytes[0] == b'=' {
        "it names no variable"
    } else if bytes.contains(&0) {
        "it contains a NUL byte"
    } else {
        let mut halves =
            bytes.splitn(2, |&byte| byte == b'=').map(|b| OsStr::from_bytes(b).to_owned());
        let name = halves.next().unwrap_or_default();
        return Ok(halves.next().map_or(Wish::Pass(name.clone()), |value| Wish::Set(name, value)));
    };
    Err(refuse!("cannot use --env {}: {cause}; write --env NAME or --env NAME=VALUE", quoted(text)))
}

const SECRET: &str = "its name looks like a secret's";
const SECRET_VALUE: &str = "its value looks like a secret";
const PASSWORD_URL: &str = "its value is an address with a password in it";
const SERVICE: &str = "leads to a service of the host";
const CREDENTIALS: &str = "says where credentials are";

/// Why a variable is withheld, if it is.
pub(crate) fn because(name: &OsStr, value: &OsStr) -> Option<&'static str> {
    let name = name.to_string_lossy();
    by_name(&name).or_else(|| by_value(&value.to_string_lossy()))
}

/// Names that lead to a process of the host outside the sandbox (sockets of agents, of the
/// desktop, of container daemons) or that systemd meant for one process only.
const SERVICES: &[&str] = &[
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "DBUS_STARTER_ADDRESS",
    "AT_SPI_BUS_ADDRESS",
    "GNOME_KEYRING_CONTROL",
    "GNOME_KEYRING_PID",
    "SESSION_MANAGER",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "WAYLAND_SOCKET",
    "SWAYSOCK",
    "I3SOCK",
    "HYPRLAND_INSTANCE_SIGNATURE",
    "NIRI_SOCKET",
    "PULSE_SERVER",
    "PIPEWIRE_REMOTE",
    "XDG_RUNTIME_DIR",
    "TMUX",
    "STY",
    "KITTY_LISTEN_ON",
    "WEZTERM_UNIX_SOCKET",
    "ALACRITTY_SOCKET",
    "NVIM",
    "NVIM_LISTEN_ADDRESS",
    "VSCODE_IPC_HOOK",
    "VSCODE_IPC_HOOK_CLI",
    "VSCODE_GIT_IPC_HANDLE",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
];

/// Names that say where credentials lie.
const PLACES: &[&str] = &[
    "XAUTHORITY",
    "ICEAUTHORITY",
    "KUBECONFIG",
    "GNUPGHOME",
    "PULSE_COOKIE",
    "CREDENTIALS_DIRECTORY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "KRB5CCNAME",
    "KRB5_KTNAME",
    "NETRC",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "RCLONE_CONFIG",
];

/// Single names of secrets that no pattern finds.
const SECRETS: &[&str] = &["SSHPASS", "DOCKER_AUTH_CONFIG", "BW_SESSION", "NPM_CONFIG__AUTH"];

/// All that begins so belongs to a tool whose variables are credentials or lead to them.
const PREFIXES: &[&str] =
    &["AWS_", "VAULT_", "OP_SESSION_", "OP_CONNECT_", "CLOUDSDK_AUTH_", "RCLONE_CONFIG_"];

/// Exceptions from the prefixes: which region, which pager, whom to trust.
const HARMLESS: &[&str] = &[
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_DEFAULT_OUTPUT",
    "AWS_PAGER",
    "AWS_CA_BUNDLE",
    "VAULT_CACERT",
];

fn by_name(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    if SERVICES.contains(&upper.as_str()) {
        return Some(SERVICE);
    }
    if HARMLESS.contains(&upper.as_str()) {
        return None;
    }
    if PLACES.contains(&upper.as_str()) {
        return Some(CREDENTIALS);
    }
    let listed = SECRETS.contains(&upper.as_str()) || PREFIXES.iter().any(|p| upper.starts_with(p));
    (listed || is_secret_name(&upper)).then_some(SECRET)
}

/// Judges the words of an upper-case name.
fn is_secret_name(upper: &str) -> bool {
    let words: Vec<&str> =
        upper.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let Some(&last) = words.last() else { return false };
    let before_last = words.len().checked_sub(2).map_or("", |n| words[n]);
    // The path of a secret is no secret: whether the file can be read is a matter of the file rules.
    if words.len() > 1 && matches!(last, "FILE" | "PATH" | "DIR" | "DIRECTORY") {
        return false;
    }
    let counted =
        words.iter().any(|word| matches!(*word, "MAX" | "MIN" | "NUM" | "COUNT" | "TOTAL"));
    let any = words.iter().any(|word| {
        ["PASSWORD", "PASSWD", "PASSPHRASE", "PASSCODE"].iter().any(|part| word.contains(part))
            || ["TOKEN", "SECRET", "APIKEY", "SECRETKEY", "ACCESSKEY", "PRIVATEKEY"]
                .iter()
                .any(|part| word.ends_with(part))
            || (*word == "TOKENS" && !counted)
            || matches!(
                *word,
                "SECRETS"
                    | "CREDENTIAL"
                    | "CREDENTIALS"
                    | "CREDS"
                    | "JWT"
                    | "BEARER"
                    | "COOKIE"
                    | "WEBHOOK"
            )
    });
    // MONKEY, KEYBOARD and KEYMAP are other words; PUBLIC_KEY says of itself that it may be known.
    let key =
        matches!(last, "KEY" | "KEYS" | "PRIVKEY") && !matches!(before_last, "PUBLIC" | "CACHE");
    let qualified_key = words.windows(2).any(|pair| {
        matches!(pair[1], "KEY" | "KEYS")
            && matches!(
                pair[0],
                "API"
                    | "ACCESS"
                    | "SECRET"
                    | "PRIVATE"
                    | "MASTER"
                    | "ENCRYPTION"
                    | "SIGNING"
                    | "DEPLOY"
            )
    });
    let several = words.len() > 1;
    let short = match last {
        "PASS" | "AUTH" | "DSN" | "PAT" => true,
        "PWD" => several,
        "STRING" => before_last == "CONNECTION",
        _ => false,
    };
    any || key || qualified_key || (short && several)
}

/// How the tokens of widespread services begin, and how long they are at least.
const TOKEN_SHAPES: &[(&str, usize)] = &[
    ("ghp_", 36),
    ("gho_", 36),
    ("ghs_", 36),
    ("ghu_", 36),
    ("ghr_", 36),
    ("github_pat_", 40),
    ("glpat-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("npm_", 40),
    ("pypi-AgEI", 40),
    ("sk-ant-", 30),
    ("sk-proj-", 30),
    ("sk_live_", 20),
    ("hvs.", 24),
    ("dop_v1_", 40),
    ("AKIA", 20),
    ("AIza", 39),
    ("AGE-SECRET-KEY-", 40),
];

fn by_value(value: &str) -> Option<&'static str> {
    let one_word = !value.contains(char::is_whitespace);
    let token = |(head, length): &(&str, usize)| value.starts_with(head) && value.len() >= *length;
    if value.contains("PRIVATE KEY-----") || (one_word && TOKEN_SHAPES.iter().any(token)) {
        return Some(SECRET_VALUE);
    }
    let mut addresses = value.split("://").skip(1);
    addresses.any(has_password).then_some(PASSWORD_URL)
}

/// Whether what follows `://` begins with `user:password@` (RFC 3986, section 3.2.1).
fn has_password(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#', ' ', '"', '\'']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict(name: &str, value: &str) -> Option<&'static str> {
        because(OsStr::new(name), OsStr::new(value))
    }

    #[test]
    fn secrets_are_known_by_name() {
        for name in [
            "GITHUB_TOKEN",
            "GH_TOKEN",
            "CARGO_REGISTRY_TOKEN",
            "CARGO_REGISTRIES_MY_TOKEN",
            "TOKEN",
            "githubToken",
            "npm_config_//registry.npmjs.org/:_authToken",
            "CLIENT_SECRET",
            "SECRET",
            "SECRET_KEY_BASE",
            "DJANGO_SECRET_KEY",
            "PGPASSWORD",
            "MYSQL_PWD",
            "DB_PASS",
            "password",
            "RESTIC_PASSWORD",
            "GPG_PASSPHRASE",
            "OPENAI_API_KEY",
            "STRIPE_KEY",
            "AZURE_STORAGE_KEY",
            "RAILS_MASTER_KEY",
            "API_KEYS",
            "APP_API_KEY_V2",
            "S3_ACCESS_KEY_ID",
            "FOO_APIKEY",
            "AWS_ACCESS_KEY_ID",
            "AWS_PROFILE",
            "VAULT_ADDR",
            "OP_SESSION_my",
            "CI_JOB_JWT_V2",
            "TWINE_PASSWORD",
            "HF_TOKEN",
            "SLACK_WEBHOOK_URL",
            "SENTRY_DSN",
            "REDISCLI_AUTH",
            "AZURE_STORAGE_CONNECTION_STRING",
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            "GITLAB_PAT",
            "SSH_PRIVATE_KEY",
            "SSHPASS",
            "DEPLOY_KEY_BASE64",
            "AUTH_TOKENS",
            "SESSION_COOKIE",
            "AZURE_CREDENTIALS",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ] {
            assert!(verdict(name, "x").is_some(), "{name} passes");
        }
    }

    #[test]
    fn services_are_known_by_name() {
        for name in ["SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "XDG_RUNTIME_DIR"] {
            assert_eq!(verdict(name, "x"), Some(SERVICE), "{name}");
        }
        assert_eq!(verdict("KUBECONFIG", "/x"), Some(CREDENTIALS));
    }

    #[test]
    fn ordinary_variables_pass() {
        for name in [
            "PATH",
            "HOME",
            "TERM",
            "LANG",
            "PWD",
            "OLDPWD",
            "SHELL",
            "USER",
            "KEYBOARD",
            "KEYMAP",
            "MONKEY",
            "LESSKEY",
            "KEYTIMEOUT",
            "XMODIFIERS",
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS",
            "NUM_TOKENS_PER_BATCH",
            "COMPASS",
            "BYPASS",
            "PASSENGER_APP_ENV",
            "SSH_ASKPASS",
            "GIT_ASKPASS",
            "GIT_AUTHOR_NAME",
            "AUTHOR",
            "SSL_CERT_FILE",
            "SSL_KEY_FILE",
            "DB_PASSWORD_FILE",
            "PUBLIC_KEY",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "PYTHONPATH",
            "RUSTFLAGS",
            "CARGO_HOME",
            "MAKEFLAGS",
            "XDG_SESSION_TYPE",
            "LS_COLORS",
            "SECRETARY",
            "GPG_TTY",
            "AWS_REGION",
            "AWS_CA_BUNDLE",
            "EDITOR",
            "HTTP_PROXY",
            "CC",
            "_",
            "",
            "SSH_CONNECTION",
            "COLORTERM",
            "PATTERN",
            "FONT_STRING",
            "DESKTOP_SESSION",
            "KEYCLOAK_VERSION",
            "STRING",
            "CACHE_KEY",
            "PAT",
        ] {
            assert_eq!(verdict(name, "plain"), None, "{name}");
        }
    }

    #[test]
    fn some_values_give_themselves_away() {
        assert_eq!(verdict("DATABASE", "postgres://me:pw@db/x"), Some(PASSWORD_URL));
        assert_eq!(verdict("PROXIES", "a,http://u:p@h:1 b"), Some(PASSWORD_URL));
        assert_eq!(verdict("X", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc"), Some(SECRET_VALUE));
        assert_eq!(verdict("X", &format!("ghp_{}", "a".repeat(36))), Some(SECRET_VALUE));
        for plain in ["http://host:80/a@b:c", "https://me@host", "ghp_", "npm_config", "a://:@b"] {
            assert_eq!(verdict("X", plain), None, "{plain}");
        }
    }

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn flags_decide_over_the_patterns() {
        let caller = vars(&[("A", "1"), ("MY_TOKEN", "t"), ("B_SECRET", "s"), ("A", "2")]);
        let wishes = ["MY_TOKEN".into(), "C=3".into(), "C=4".into(), "D=".into()];
        let (passed, withheld) = choose(&caller, false, &wishes, |_, _| None).unwrap();
        assert_eq!(passed, vars(&[("A", "1"), ("MY_TOKEN", "t"), ("C", "4"), ("D", "")]));
        assert_eq!(withheld, [Withheld { name: "B_SECRET".into(), reason: SECRET }]);
        let (passed, withheld) = choose(&caller, true, &wishes, |_, _| None).unwrap();
        assert_eq!(passed, vars(&[("MY_TOKEN", "t"), ("C", "4"), ("D", "")]));
        assert!(withheld.is_empty());
    }

    #[test]
    fn a_bad_wish_is_named() {
        for (text, words) in
            [("", "names no"), ("=x", "names no"), ("A\0", "NUL"), ("NONE", "not set")]
        {
            let error = choose(&vars(&[]), false, &[text.into()], |_, _| None).unwrap_err();
            assert!(error.to_string().contains(words), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_wish_is_split_at_the_first_equals_sign(name in "[^=\0]{1,8}", value in "[^\0]{0,8}") {
            let set = parse_wish(OsStr::new(&format!("{name}={value}")));
            prop_assert_eq!(set, Ok(Wish::Set(name.clone().into(), value.into())));
            prop_assert_eq!(parse_wish(OsStr::new(&name)), Ok(Wish::Pass(name.into())));
        }

        #[test]
        fn every_variable_is_passed_or_withheld(names in proptest::collection::vec("[A-Z_]{1,12}", 0..20)) {
            let caller: Variables = names.iter().map(|n| (n.into(), "v".into())).collect();
            let (passed, withheld) = choose(&caller, false, &[], |_, _| None).unwrap();
            let distinct: HashSet<&String> = names.iter().collect();
            prop_assert_eq!(passed.len() + withheld.len(), distinct.len());
        }
    }
}
