//! What it costs to reach an allowed host, beside other ways to let a program reach only some: a network of its own that
//! slirp4netns carries, and a proxy that is told where to connect.
//!
//! There are two hosts, in network namespaces that the bench makes: one serves, and on the other all contenders run.

use std::ffi::OsString;
use std::time::Duration;

use super::contender::{Contender, Contenders};
use super::process::Failure;
use super::row::{Row, Target, Unit};
use super::running::Guest;
use super::workload::{Effort, Plan, Reading, Samples, Workload, named_numbers};
use super::{Bench, or_note};

/// The name that `--only` knows.
pub(super) const NAME: &str = "network/an allowed host";

/// Where the other host is, and names that it resolves.
const HOST: &str = "203.0.113.2";
const DOMAIN: &str = "bench.example";
/// The proxy's port, at the loopback.
const PROXY: &str = "8888";

const ALLOWED: &[&str] = &["--allow-net", HOST, "--allow-net", "*.bench.example"];
const EVERYONE: &[&str] = &["native", "ours", "slirp4netns", "tinyproxy"];
/// What a connection carries comes and goes by the host's kernel alone, as natively.
const CONNECTED: Target = Target::Ratio(1.02);
/// Nanoseconds.
const MOST_ADDED: f64 = 60e3;

/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    or_note(rows(bench), NAME, |notes| Row {
        name: "network/a connection".to_owned(),
        unit: Unit::Nanoseconds,
        reference: "native",
        target: Target::None,
        columns: Vec::new(),
        notes,
    })
}

fn rows(bench: &Bench) -> Result<Vec<Row>, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::Failed("making two hosts takes root".to_owned()));
    }
    for (name, script) in [
        ("hosts.sh", include_str!("../../bench/hosts.sh")),
        ("slirp.sh", include_str!("../../bench/slirp.sh")),
    ] {
        bench.workshop.write(name, script).map_err(Failure::Failed)?;
    }
    let (script, place) =
        (bench.workshop.file("hosts.sh"), bench.workshop.path().to_string_lossy());
    let argv = ["unshare", "--net", "--mount", "sh", &script.to_string_lossy(), &place];
    let native = Contender::new("native", &[]);
    let hosts = Guest::start(bench, &native, &[], &argv, "hosts").map_err(Failure::Failed)?;
    let contenders = on_host(bench, hosts.pid())?;
    let mut rows = Vec::new();
    for workload in workloads(bench) {
        let measured = workload.measure(&contenders, &bench.runner, bench.workshop.path());
        // (It fails only where the user interrupts.)
        rows.extend(measured.map_err(|_| Failure::Interrupted)?);
    }
    if let Some(first) = rows.first_mut() {
        first.notes.extend(contenders.skipped);
    }
    Ok(rows)
}

/// The contenders on the host that `pid` is on.
fn on_host(bench: &Bench, pid: u32) -> Result<Contenders, Failure> {
    let pid = pid.to_string();
    let enter = ["nsenter", "--target", &pid, "--net", "--mount", "--wd"];
    let ours =
        bench.contenders.get("ours").map(|ours| ours.verb(&[])[0].to_string_lossy().into_owned());
    let ours = ours.ok_or_else(|| Failure::Failed("there is no sandbox".to_owned()))?;
    let slirp = bench.workshop.file("slirp.sh").to_string_lossy().into_owned();
    // (The proxy runs where it is installed; whether it answers tells a connection through it.)
    let dials = bench.workshop.file("dials");
    let through =
        format!("{} trip {HOST} 1 {PROXY} >/dev/null && exec \"$@\"", dials.to_string_lossy());
    let candidates = vec![
        ("native", vec![Contender::new("native", &enter)]),
        ("ours", vec![Contender::with_flags("ours", &[&enter[..], &[&ours]].concat())]),
        (
            "slirp4netns",
            vec![Contender::new("slirp4netns", &[&enter[..], &["sh", &slirp]].concat())],
        ),
        (
            "tinyproxy",
            vec![Contender::new(
                "tinyproxy",
                &[&enter[..], &["sh", "-c", &through, "sh"]].concat(),
            )],
        ),
    ];
    Contenders::those_of(candidates, &bench.workshop, &bench.runner)
        .map_err(|_| Failure::Interrupted)
}

fn workloads(bench: &Bench) -> Vec<Workload> {
    let connections = bench.pick("500", "100");
    let mut all = vec![
        dials(
            bench,
            &["connect", HOST, connections],
            ALLOWED,
            EVERYONE,
            vec![
                plan("a connection", "connect", Target::Ratio(3.0)),
                plan("a connection, added", "connect", Target::Added(MOST_ADDED)),
            ],
        ),
        dials(
            bench,
            &["trip", HOST, "5000"],
            ALLOWED,
            EVERYONE,
            vec![plan("a byte there and back", "trip", CONNECTED)],
        ),
        dials(
            bench,
            &["name", DOMAIN, "100"],
            ALLOWED,
            &["native", "ours", "slirp4netns"],
            vec![
                plan("a name", "name", Target::None),
                plan("the same name again", "again", Target::None),
            ],
        ),
        pull(bench),
        requests(bench),
    ];
    for (flags, with) in [(&[][..], "loopback"), (ALLOWED, "loopback (allow)")] {
        let title = |what: &str| format!("{with}, {what}");
        let plans = vec![
            plan(
                &title("connect"),
                "connect",
                if flags.is_empty() { CONNECTED } else { Target::None },
            ),
            plan(&title("a GiB"), "pull", CONNECTED),
            plan(&title("a byte"), "trip", CONNECTED),
        ];
        all.push(dials(bench, &["loopback"], flags, &["native", "ours"], plans));
    }
    all
}

fn plan(name: &str, key: &str, target: Target) -> Plan {
    Plan { name: name.to_owned(), key: key.to_owned(), unit: Unit::Nanoseconds, target }
}

/// What `dials` measures. Those who go through the proxy are told so.
fn dials(
    bench: &Bench,
    words: &[&'static str],
    flags: &'static [&'static str],
    contenders: &[&'static str],
    plans: Vec<Plan>,
) -> Workload {
    let program = bench.workshop.file("dials");
    let words = words.to_vec();
    Workload {
        group: "network",
        title: words.join(" "),
        flags,
        command: Box::new(move |contender| {
            let proxy = (contender.name == "tinyproxy").then_some(PROXY);
            let words = words.iter().copied().chain(proxy).map(OsString::from);
            std::iter::once(program.clone()).chain(words).collect()
        }),
        reading: Reading::Stdout(named_numbers),
        plans,
        contenders: contenders.to_vec(),
        reference: "native",
        effort: Effort {
            rounds: bench.pick(20, 4),
            slow_rounds: 0,
            budget: Duration::from_secs(bench.pick(40, 6)),
        },
        review: |_: &mut Row| {},
    }
}

/// 4 GiB over one connection, of those who have it within seconds; the others carry less.
fn pull(bench: &Bench) -> Workload {
    let program = bench.workshop.file("dials");
    let whole = bench.pick("4096", "512");
    let command = move |contender: &Contender| {
        let is_quick = ["native", "ours"].contains(&contender.name);
        let mut words = vec!["pull", HOST, if is_quick { whole } else { "256" }];
        words.extend((contender.name == "tinyproxy").then_some(PROXY));
        std::iter::once(program.clone()).chain(words.into_iter().map(OsString::from)).collect()
    };
    let plans = vec![plan("a GiB of 4", "pull", CONNECTED)];
    Workload { command: Box::new(command), ..dials(bench, &["pull"], ALLOWED, EVERYONE, plans) }
}

/// wrk(1) and nginx, ten connections that are kept. (wrk knows no proxies.)
fn requests(bench: &Bench) -> Workload {
    let seconds = bench.pick("2s", "1s");
    let command = move |_: &Contender| {
        let url = format!("http://{HOST}:8080/");
        ["wrk", "-t", "1", "-c", "10", "-d", seconds, &url].map(OsString::from).to_vec()
    };
    let plans = vec![plan("a request, wrk and nginx", "request", CONNECTED)];
    Workload {
        command: Box::new(command),
        reading: Reading::Stdout(requests_of_wrk),
        ..dials(bench, &["wrk"], ALLOWED, &["native", "ours", "slirp4netns"], plans)
    }
}

/// Nanoseconds for each request, from `Requests/sec: 12345.67`.
fn requests_of_wrk(stdout: &str) -> Result<Samples, String> {
    let told = stdout.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    let rate = told.and_then(|rate| rate.trim().parse::<f64>().ok()).filter(|rate| *rate > 0.0);
    let rate = rate.ok_or("wrk told no rate")?;
    Ok(vec![("request".to_owned(), 1e9 / rate)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read() {
        let said = "  Thread Stats\nRequests/sec:  50000.00\nTransfer/sec:  1MB\n";
        assert_eq!(requests_of_wrk(said), Ok(vec![("request".to_owned(), 20_000.0)]));
        assert!(requests_of_wrk("unable to connect").is_err());
    }
}
