//! Hosts made for tests: a temporary directory as root of the files, and users of its own.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use super::{Account, Accounts, Host, IdRange, Options, Rule, RuleKind, RunSpec};

/// A host whose files lie in a temporary directory that is removed with it.
pub(crate) struct TestHost {
    pub(crate) host: Host,
}

impl TestHost {
    /// An ordinary user "me" in /home/me/project, on a host with the usual directories.
    pub(crate) fn ordinary() -> Self {
        TestHost::new(1000, "/home/me")
    }

    /// Root in /srv/work, at home in /root.
    pub(crate) fn root() -> Self {
        let mut host = TestHost::new(0, "/root");
        host.host.cwd = Ok("/srv/work".into());
        host
    }

    fn new(id: u32, home: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sandbox-config-{}-{number}", std::process::id());
        let all = vec![IdRange { inside: 0, outside: 0, count: u32::MAX }];
        let host = Host {
            root: std::env::temp_dir().join(name),
            cwd: Ok("/home/me/project".into()),
            uid: id,
            gid: id,
            environment: vec![("HOME".into(), home.into()), ("PATH".into(), "/usr/bin".into())],
            uid_ranges: all.clone(),
            gid_ranges: all,
            descriptors: [0, 1, 2, 7].into(),
            sockets: Vec::new(),
            process_views: Vec::new(),
            mounts: vec![("/".into(), "ext4".into()), ("/proc".into(), "proc".into())],
            time_namespaces: true,
            cpus: vec![0, 1],
            open_files_limit: 1024,
            file_size_limit: u64::MAX,
            private: Vec::new(),
            stores: Vec::new(),
            accounts: Box::new(TestAccounts),
            seen: Default::default(),
            listed: Default::default(),
            led: Default::default(),
        };
        let host = TestHost { host };
        for directory in [
            "/home/me/project",
            "/home/other",
            "/root",
            "/etc",
            "/usr/bin",
            "/srv/work",
            "/data/in",
            "/dev",
            "/proc",
            "/sys",
            "/run/user/1000",
            "/tmp",
            "/var/tmp",
        ] {
            host.directory(directory);
        }
        host.link("/var/run", "/run");
        host
    }

    fn real(&self, path: &str) -> PathBuf {
        self.host.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn directory(&self, path: &str) {
        std::fs::create_dir_all(self.real(path)).unwrap();
    }

    pub(crate) fn file(&self, path: &str) {
        let path = self.real(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.real(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn link(&self, path: &str, to: &str) {
        symlink(to, self.real(path)).unwrap();
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.host.environment.push((name.into(), value.into()));
    }

    /// The same as somebody sees it who looks anew.
    pub(crate) fn look_anew(&mut self) {
        self.host.look_anew();
    }

    /// The run that these options describe here.
    pub(crate) fn resolve(&self, options: &Options) -> Result<RunSpec, String> {
        super::resolve(options, &self.host).map_err(|error| {
            let error = error.to_string();
            assert!(!error.contains('\n'), "more than one line: {error}");
            error
        })
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.host.root);
    }
}

/// Options for `true` with rules as `--ro PATH` words.
pub(crate) fn options(rules: &[&str]) -> Options {
    let rule = |words: &&str| {
        let (flag, text) = words.split_once(' ').unwrap();
        let kinds = [
            RuleKind::ReadOnly,
            RuleKind::Writable,
            RuleKind::Hide,
            RuleKind::Tmpfs,
            RuleKind::Overlay,
            RuleKind::Deny,
            RuleKind::Allow,
            RuleKind::Socket,
        ];
        Rule::new(kinds.into_iter().find(|kind| kind.flag() == flag).unwrap(), text)
    };
    Options {
        argv: vec!["true".into()],
        rules: rules.iter().map(rule).collect(),
        ..Options::default()
    }
}

/// root, me, and other who is in two groups.
struct TestAccounts;

fn accounts() -> [Account; 3] {
    let account = |name: &str, uid, gid, home: &str| Account {
        name: name.into(),
        uid,
        gid,
        home: Path::new(home).into(),
        shell: "/bin/sh".into(),
    };
    [
        account("root", 0, 0, "/root"),
        account("me", 1000, 1000, "/home/me"),
        account("other", 1001, 1002, "/home/other"),
    ]
}

impl Accounts for TestAccounts {
    fn by_name(&self, name: &str) -> Result<Option<Account>, Errno> {
        Ok(accounts().into_iter().find(|account| account.name == name))
    }

    fn by_uid(&self, uid: u32) -> Result<Option<Account>, Errno> {
        Ok(accounts().into_iter().find(|account| account.uid == uid))
    }

    fn groups(&self, account: &Account) -> Result<Vec<u32>, Errno> {
        Ok(if account.name == "other" { vec![1002, 44] } else { vec![account.gid] })
    }
}
