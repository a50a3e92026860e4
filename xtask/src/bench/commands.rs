//! Whole commands as people run them, against bwrap with the same namespaces.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::Bench;
use super::project;
use super::row::{Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Samples, Workload};

/// Everyone; slow contenders as far as the effort lets them.
const CONTENDERS: [&str; 5] = ["native", "bwrap", "ours", "strace", "runsc"];

/// What a program of moderate size imports.
const MODULES: &str = "argparse, ast, asyncio, base64, bisect, collections, concurrent.futures, \
    contextlib, csv, ctypes, dataclasses, datetime, decimal, email.message, fractions, gzip, \
    hashlib, http.client, inspect, ipaddress, json, logging, multiprocessing, pathlib, pickle, \
    random, socket, statistics, subprocess, tempfile, threading, typing, unittest, \
    urllib.request, uuid, xml.etree.ElementTree, zipfile";

/// Starts a server on a port of the loopback, waits for it, loads it, ends it.
const REDIS: &str = r#"port=$1 requests=$2
redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no >/dev/null &
server=$!
trap 'kill "$server" 2>/dev/null' EXIT
until [ "$(redis-cli -p "$port" ping 2>/dev/null)" = PONG ]; do
    kill -0 "$server" || exit 1
    sleep 0.02
done
redis-benchmark -p "$port" --csv -n "$requests" -t get,set || exit 1
redis-cli -p "$port" shutdown nosave
wait "$server"
trap - EXIT
"#;

/// All commands.
///
/// # Errors
/// One sentence, where their inputs cannot be written.
pub(super) fn workloads(bench: &Bench) -> Result<Vec<Workload>, String> {
    let files = bench.pick(60, 8);
    project::write(&bench.workshop, "project", files)?;
    bench.workshop.write("redis.sh", REDIS)?;

    let runs = bench.pick(10, 2);
    let python =
        if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    let imports = format!(
        "i=0; while [ $i -lt {runs} ]; do {python} -c 'import {MODULES}' || exit; i=$((i+1)); done"
    );
    // An unreadable directory (status 1) is no failure, a missing find or a signal is.
    let find = "find /usr >/dev/null 2>&1 || test $? = 1";
    Ok(vec![
        timed(bench, &format!("make -j2, {files} C files"), (8, 2), (1, 0), (120, 9), {
            words(&["make", "-B", "-s", "-j2", "-C", "project"])
        }),
        timed(bench, "find /usr", (20, 4), (1, 0), (40, 5), words(&["sh", "-c", find])),
        timed(bench, &format!("python imports x {runs}"), (10, 3), (1, 1), (70, 6), {
            words(&["sh", "-c", &imports])
        }),
        spawn(bench, "fork"),
        spawn(bench, "vfork"),
        redis(bench)?,
    ])
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A command that is timed as a whole. The pairs are (full, quick): rounds, rounds of slow
/// contenders, seconds.
fn timed(
    bench: &Bench,
    title: &str,
    rounds: (usize, usize),
    slow_rounds: (usize, usize),
    seconds: (u64, u64),
    argv: Vec<OsString>,
) -> Workload {
    Workload {
        group: "commands",
        title: title.to_owned(),
        flags: &[],
        command: Box::new(move |_| argv.clone()),
        reading: Reading::WallTime,
        plans: vec![plan(title, title)],
        contenders: CONTENDERS.into(),
        reference: "bwrap",
        effort: Effort {
            rounds: bench.pick(rounds.0, rounds.1),
            slow_rounds: bench.pick(slow_rounds.0, slow_rounds.1),
            budget: Duration::from_secs(bench.pick(seconds.0, seconds.1)),
        },
        review: |_: &mut Row| {},
    }
}

fn plan(name: &str, key: &str) -> Plan {
    Plan {
        name: name.to_owned(),
        key: key.to_owned(),
        unit: Unit::Nanoseconds,
        target: Target::Ratio(1.02),
    }
}

fn spawn(bench: &Bench, how: &str) -> Workload {
    let count = bench.pick("500", "200");
    let program = if Path::new("/bin/true").exists() { "/bin/true" } else { "/usr/bin/true" };
    let mut argv = vec![bench.workshop.file("spawn")];
    argv.extend(words(&[how, count, program]));
    timed(bench, &format!("{how}+exec x {count}"), (24, 5), (1, 0), (25, 4), argv)
}

fn redis(bench: &Bench) -> Result<Workload, String> {
    let port = free_port()?.to_string();
    let (requests, few) = bench.pick(("100000", "5000"), ("10000", "2000"));
    let plan = |key: &str| plan(&format!("redis {key}, a request"), key);
    Ok(Workload {
        group: "commands",
        title: "redis-benchmark".to_owned(),
        flags: &[],
        command: Box::new(move |contender| {
            words(&["sh", "redis.sh", &port, if contender.slow { few } else { requests }])
        }),
        reading: Reading::Stdout(requests_per_second),
        plans: vec![plan("SET"), plan("GET")],
        contenders: CONTENDERS.into(),
        reference: "bwrap",
        effort: Effort {
            rounds: bench.pick(8, 3),
            slow_rounds: bench.pick(1, 0),
            budget: Duration::from_secs(bench.pick(100, 6)),
        },
        review: |_: &mut Row| {},
    })
}

/// A port that is free now. The sandboxes have a loopback of their own; native has the host's.
fn free_port() -> Result<u16, String> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("cannot find a free port on the loopback: {error}"))
}

/// Reads `"SET","71942.45",...` and turns requests a second into nanoseconds a request.
fn requests_per_second(stdout: &str) -> Result<Samples, String> {
    let line = |line: &str| {
        let mut fields = line.split(',').map(|field| field.trim_matches('"'));
        let (name, rate) = (fields.next()?, fields.next()?.parse::<f64>().ok()?);
        (rate > 0.0).then(|| (name.to_owned(), 1e9 / rate))
    };
    Ok(stdout.lines().filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_redis_benchmark_become_times() {
        let csv =
            "\"test\",\"rps\",\"avg\"\n\"SET\",\"50000.00\",\"0.9\"\n\"GET\",\"100000\",\"1\"\n";
        assert_eq!(
            requests_per_second(csv),
            Ok(vec![("SET".to_owned(), 20_000.0), ("GET".to_owned(), 10_000.0)])
        );
    }

    #[test]
    fn a_rate_of_zero_is_no_figure() {
        assert_eq!(requests_per_second("\"SET\",\"0\"\n"), Ok(Vec::new()));
    }
}
