//! What an overlay costs, and a list of touched files, where files are all that is worked with.
//!
//! Beside a run with `--overlay` are native, and the same overlayfs mounted by hand in a user namespace (the floor).
//! `sandbox diff` and `sandbox commit` are measured beside rsync(1), which has to find the same files and to bring
//! them to the same place.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::contender::{Contender, Contenders};
use super::process::{Failure, Output};
use super::project;
use super::row::{Column, Row, Target, Unit};
use super::workload::{Effort, Plan, Reading, Workload};
use super::{Bench, or_note};

/// The name that `--only` knows.
pub(super) const NAME: &str = "files/overlays and lists";

/// Mounts an overlay over a tree, and runs a command there.
const FLOOR: &str = r#"tree=$1 layers=$2; shift 2
mkdir -p "$layers/upper" "$layers/work"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$layers/upper,workdir=$layers/work,userxattr" "$tree" || exit
cd "$tree" && exec "$@"
"#;

const LIMIT: Duration = Duration::from_secs(120);

/// Where all of it happens.
struct Places {
    /// The working directory of the guests.
    tree: PathBuf,
    /// Our layers.
    layers: PathBuf,
    /// Those of the floor.
    floor: PathBuf,
    list: PathBuf,
    /// How many small files there are.
    count: usize,
}

/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    or_note(rows(bench), NAME, |notes| row("untar", "native", Vec::new(), notes))
}

fn rows(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let places = prepare(bench)?;
    let ours = bench.contenders.get("ours");
    let ours = ours.ok_or_else(|| Failure::Failed("there is none".to_owned()))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let program = ours.verb(&[])[0].to_string_lossy().into_owned();
    let (tree, layers) = (text(&places.tree), text(&places.layers));
    let (script, by_hand) = (text(&bench.workshop.path().join("floor.sh")), text(&places.floor));
    let floor = ["unshare", "--user", "--map-root-user", "--mount", "sh", &script, &tree, &by_hand];
    let overlaid =
        [&program, "--quiet", "--workdir", &tree, "--overlay", &tree, "--overlay-dir", &layers];
    let overlay = vec![
        ("native", vec![Contender::new("native", &[])]),
        ("overlayfs", vec![Contender::new("overlayfs", &floor)]),
        ("ours", vec![Contender::with_flags("ours", &overlaid)]),
    ];
    let recorded = [&program, "--quiet", "--record-files", &text(&places.list)];
    let record = vec![
        ("native", vec![Contender::new("native", &[])]),
        ("ours", vec![Contender::with_flags("ours", &recorded)]),
    ];
    let mut rows = works(bench, &places, "--overlay", "overlayfs", overlay)?;
    rows.extend(works(bench, &places, "--record-files", "native", record)?);
    rows.extend(carried(bench, &places, &program)?);
    Ok(rows)
}

/// A C project, an archive of small files, and a repository of them.
fn prepare(bench: &Bench) -> Result<Places, Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("its files: {error}"));
    project::write(&bench.workshop, "tree/project", bench.pick(60, 8)).map_err(Failure::Failed)?;
    bench.workshop.write("floor.sh", FLOOR).map_err(Failure::Failed)?;
    let here = bench.workshop.path();
    let count = bench.pick(5_000, 1_000);
    for number in 0..count {
        let name = format!("tree/small/{}/{}/file-{number}.js", number % 40, number / 40 % 25);
        let content = format!("module.exports = {number};\n").repeat(number % 60 + 1);
        bench.workshop.write(&name, &content).map_err(Failure::Failed)?;
    }
    let script = "tar cf small.tar -C tree small && cd tree/small && git init -q && \
                  git -c core.safecrlf=false add . && \
                  git -c user.name=a -c user.email=a@b commit -qm a && git status --short";
    let script: Vec<OsString> = ["sh", "-c", script].iter().map(Into::into).collect();
    bench.runner.run(&script, here, LIMIT, Output::Discard)?;
    let at = |name: &str| here.join(name);
    fs::create_dir(at("layers")).map_err(failed)?;
    Ok(Places {
        tree: at("tree"),
        layers: at("layers"),
        floor: at("by-hand"),
        list: at("list.json"),
        count,
    })
}

/// The same works by all contenders of a set.
fn works(
    bench: &Bench,
    places: &Places,
    flag: &str,
    reference: &'static str,
    candidates: Vec<(&'static str, Vec<Contender>)>,
) -> Result<Vec<Row>, Failure> {
    let contenders = Contenders::those_of(candidates, &bench.workshop, &bench.runner)
        .map_err(|_| Failure::Interrupted)?;
    let unpack = "mkdir new && tar xf ../small.tar -C new && rm -r new";
    let unpacked = format!("untar of {} small files, their removal", places.count);
    let du = "du -s /usr >/dev/null 2>&1 || test $? = 1";
    let find = "find /usr >/dev/null 2>&1 || test $? = 1";
    let mut rows = Vec::new();
    for (title, rounds, script) in [
        ("make -j2 of C files", (6, 1), "make -B -s -j2 -C project"),
        (&unpacked, (8, 2), unpack),
        ("git status", (20, 3), "git -C small status --short"),
        ("find /usr", (10, 2), find),
        ("du /usr", (10, 2), du),
    ] {
        let argv: Vec<OsString> = ["sh", "-c", script].iter().map(Into::into).collect();
        let title = format!("{title}, {flag}");
        let workload = Workload {
            group: "files",
            title: title.clone(),
            flags: &[],
            command: Box::new(move |_| argv.clone()),
            reading: Reading::WallTime,
            plans: vec![Plan {
                name: title.clone(),
                key: title,
                unit: Unit::Nanoseconds,
                target: if reference == "overlayfs" { Target::Ratio(1.05) } else { Target::None },
            }],
            contenders: vec!["native", "overlayfs", "ours"],
            reference,
            effort: Effort {
                rounds: bench.pick(rounds.0, rounds.1),
                slow_rounds: 0,
                budget: Duration::from_secs(bench.pick(60, 6)),
            },
            review: |_: &mut Row| {},
        };
        let measured = workload.measure(&contenders, &bench.runner, &places.tree);
        rows.extend(measured.map_err(|_| Failure::Interrupted)?);
    }
    if let Some(first) = rows.first_mut() {
        first.notes.extend(contenders.skipped.iter().map(|why| format!("{why}: files, {flag}")));
    }
    Ok(rows)
}

/// Finding and carrying over what was made: ours by diff and commit, rsync by a dry run and a run.
fn carried(bench: &Bench, places: &Places, program: &str) -> Result<Vec<Row>, Failure> {
    let (layers, tree) = (places.layers.to_string_lossy(), places.tree.to_string_lossy());
    let sh = |script: &str| {
        let argv: Vec<OsString> = ["sh", "-c", script].iter().map(Into::into).collect();
        bench.runner.run(&argv, &places.tree, LIMIT, Output::Discard)
    };
    let run = format!(
        "{program} run --quiet --id bench --overlay . --overlay-dir {layers} -- \
         sh -c 'mkdir new && tar xf ../small.tar -C new'"
    );
    let diff = format!("{program} diff --overlay-dir {layers} bench >/dev/null || test $? = 1");
    let commit = format!("{program} commit --overlay-dir {layers} bench >/dev/null");
    let mut notes = Vec::new();
    let has_rsync = sh("rsync --version").is_ok();
    if !has_rsync {
        notes.push("skipped: no rsync (cannot run it): files, diff and commit".to_owned());
    }
    let mut taken: [Vec<(usize, Vec<f64>)>; 4] = Default::default();
    for round in 0..bench.pick(5, 2) {
        let mut time = |of: usize, script: &str| -> Result<(), Failure> {
            let wall = sh(script)?.wall.as_nanos() as f64;
            taken[of].push((round, vec![wall]));
            Ok(())
        };
        sh(&run)?;
        time(0, &diff)?;
        time(1, &commit)?;
        sh("rm -r new")?;
        if has_rsync {
            sh(&format!("mkdir ../from && tar xf ../small.tar -C ../from; test -d {tree}"))?;
            time(2, "rsync -an --itemize-changes ../from/ new/ >/dev/null")?;
            time(3, "rsync -a ../from/ new/")?;
            sh("rm -r new ../from")?;
        }
    }
    let [diffs, commits, dry, copies] = taken;
    let columns = |ours, theirs: Vec<(usize, Vec<f64>)>| {
        let column = |contender, rounds| Column { contender, rounds, again: Vec::new() };
        let mut columns = vec![column("ours", ours)];
        if !theirs.is_empty() {
            columns.push(column("rsync", theirs));
        }
        columns
    };
    let count = places.count;
    Ok(vec![
        row(&format!("diff of {count} files"), "rsync", columns(diffs, dry), notes),
        row(&format!("commit of {count} files"), "rsync", columns(commits, copies), Vec::new()),
    ])
}

fn row(name: &str, reference: &'static str, columns: Vec<Column>, notes: Vec<String>) -> Row {
    Row {
        name: format!("files/{name}"),
        unit: Unit::Nanoseconds,
        reference,
        target: Target::Ratio(1.0),
        columns,
        notes,
    }
}
