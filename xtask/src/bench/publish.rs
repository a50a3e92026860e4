//! What comes through a published port, against a server on the host's own loopback.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::contender::Contender;
use super::process::Failure;
use super::row::{Column, Row, Target, Unit};
use super::running::Guest;
use super::{Bench, or_note};

/// The name that `--only` knows.
pub(super) const NAME: &str = "publish/a port of the host";

/// Takes a sample at a port.
type Measure = fn(u16) -> io::Result<Duration>;

/// Round trips that are one sample.
const TRIPS: usize = 500;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Rows: 100 MiB from a program, a byte there and back, and a connection that says one byte.
///
/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    or_note(rows(bench), NAME, |notes| row("publish/100 MiB", Vec::new(), notes))
}

fn row(name: &str, columns: Vec<Column>, notes: Vec<String>) -> Row {
    Row {
        name: name.to_owned(),
        unit: Unit::Nanoseconds,
        reference: "native",
        target: Target::None,
        columns,
        notes,
    }
}

fn rows(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let contender = |name: &str| {
        let found = bench.contenders.get(name);
        found.ok_or_else(|| Failure::Failed(format!("there is no {name}")))
    };
    let mut guests = Vec::new();
    for name in ["native", "ours"] {
        guests.push(start(bench, contender(name)?)?);
    }
    let measures = [
        ("publish/100 MiB", download as Measure),
        ("publish/a byte there and back", trip),
        ("publish/a connection", connection),
    ];
    let mut rows = Vec::new();
    for (name, measure) in measures {
        let column = |contender| Column { contender, rounds: Vec::new(), again: Vec::new() };
        let mut columns: Vec<Column> = guests.iter().map(|(it, _)| column(it.name)).collect();
        for round in 0..bench.pick(20, 5) {
            bench.runner.check_interrupted()?;
            for ((_, port), column) in guests.iter().zip(&mut columns) {
                let took = measure(*port)?.as_nanos() as f64;
                column.rounds.push((round, vec![took]));
            }
            let again = measure(guests[0].1)?.as_nanos() as f64;
            columns[0].again.push((round, vec![again]));
        }
        rows.push(row(name, columns, Vec::new()));
    }
    Ok(rows)
}

/// A server, and the port of the host at which it is reached.
fn start(bench: &Bench, contender: &Contender) -> Result<(Guest, u16), Failure> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let server = bench.workshop.file("served");
    let server = server.to_string_lossy();
    let publish = format!("{port}:{port}");
    let argv = [&*server, &port.to_string()];
    let guest = Guest::start(bench, contender, &["--publish", &publish], &argv, "serves");
    Ok((guest.map_err(Failure::Failed)?, port))
}

fn open(port: u16, words: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(words.as_bytes())?;
    Ok(stream)
}

fn download(port: u16) -> io::Result<Duration> {
    let begin = Instant::now();
    let mut stream = open(port, "s100")?;
    let mut room = vec![0; 1 << 20];
    let mut left = 100 << 20;
    while left > 0 {
        match stream.read(&mut room)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count,
        }
    }
    Ok(begin.elapsed())
}

fn trip(port: u16) -> io::Result<Duration> {
    let mut stream = open(port, &format!("e{TRIPS}"))?;
    // So that the first byte does not come as part of the words.
    stream.read_exact(&mut [0])?;
    let begin = Instant::now();
    for _ in 0..TRIPS {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
    }
    Ok(begin.elapsed() / TRIPS as u32)
}

fn connection(port: u16) -> io::Result<Duration> {
    const MANY: u32 = 100;
    let begin = Instant::now();
    for _ in 0..MANY {
        let mut stream = open(port, "s0")?;
        // Until the server has ended it.
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(begin.elapsed() / MANY)
}
