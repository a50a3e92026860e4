//! What the walls around files cost where files are all that is worked with.
//!
//! Each work is done in turns by native, bwrap, the same overlayfs mounted by hand in a user namespace (the floor), a run
//! of ours with each of the flags that change how files are reached, and those who make one root without being root.
//! One measurement fills a row for each of our flags. Carrying changes over is [`super::carried`]'s.

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
pub(super) const NAME: &str = "files/works";

/// What it measures, one after the other.
pub(super) const PARTS: [&str; 8] =
    ["make", "scatter", "untar", "git", "find", "du", "owners", "dpkg"];

/// Mounts overlays over the working directory and over /usr, with new layers as a run of ours has, and runs a command
/// there.
const FLOOR: &str = r#"tree=$1 layers=$2/$$; shift 2
for of in "$tree" /usr; do
    mkdir -p "$layers$of/upper" "$layers$of/work"
    mount -t overlay overlay -o "lowerdir=$of,upperdir=$layers$of/upper,workdir=$layers$of/work,userxattr" "$of" || exit
done
cd "$tree" && exec "$@"
"#;

/// What one run may take.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// A run of ours: its contender, the words of its rows, its flags.
type Flavour = (&'static str, &'static str, &'static [&'static str]);

/// Ours, by what changes how files are reached.
const OURS: [Flavour; 4] = [
    ("ours/overlay", "--overlay /", &["--overlay", "/"]),
    (
        "ours/patterns",
        "patterns",
        // (What lies in a home is the machine's, and would be walked through as well.)
        &["--hide", "./**/.env", "--deny", "./**/*.pem", "--ro", "./**/*.lock"],
    ),
    ("ours/root", "--root", &["--root"]),
    ("ours/record", "--record-files", &[]),
];

/// Those whose work a run with `--root` does.
const PRETENDERS: [&str; 2] = ["proot", "fakeroot"];

/// One thing to do.
struct Work {
    /// Which of [`PARTS`].
    part: &'static str,
    title: String,
    script: &'static str,
    /// Rounds, of a full run and of a quick one.
    rounds: (usize, usize),
    /// Names of files are most of it, not what is in them.
    is_names: bool,
    /// It takes root, and so it is nothing for those who have nobody's.
    of_root: bool,
}

/// Where all of it happens.
pub(super) struct Places {
    /// The working directory of the guests.
    pub(super) tree: PathBuf,
    /// Our layers.
    pub(super) layers: PathBuf,
    /// Those of the floor.
    floor: PathBuf,
    list: PathBuf,
    /// How many small files there are.
    count: usize,
}

/// # Errors
/// Only where the user interrupts.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>, String> {
    or_note(rows(bench), NAME, |notes| row("works".to_owned(), "native", Target::None, notes))
}

fn rows(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let places = prepare(bench)?;
    let contenders = contenders(bench, &places)?;
    let mut rows = Vec::new();
    for work in works(bench, &places) {
        rows.extend(measured(bench, &places, &contenders, &work)?);
    }
    if let Some(first) = rows.first_mut() {
        first.notes.extend(contenders.skipped.iter().map(|why| format!("{why}: files")));
    }
    Ok(rows)
}

/// A C project, an archive of small files, a repository of them, and a package.
///
/// # Errors
/// One of them cannot be made.
pub(super) fn prepare(bench: &Bench) -> Result<Places, Failure> {
    let here = bench.workshop.path();
    // (Where removed files are discarded from the disk, many take minutes.)
    let count = bench.pick(5_000, 1_000);
    let at = |name: &str| here.join(name);
    let places = Places {
        tree: at("tree"),
        layers: at("layers"),
        floor: at("by-hand"),
        list: at("list.json"),
        count,
    };
    // Another group has made them.
    if places.layers.exists() {
        return Ok(places);
    }
    let failed = |error: std::io::Error| Failure::Failed(format!("its files: {error}"));
    project::write(&bench.workshop, "tree/project", bench.pick(60, 8)).map_err(Failure::Failed)?;
    bench.workshop.write("floor.sh", FLOOR).map_err(Failure::Failed)?;
    for number in 0..count {
        let name = format!("tree/small/{}/{}/file-{number}.js", number % 40, number / 40 % 25);
        let content = format!("module.exports = {number};\n").repeat(number % 60 + 1);
        bench.workshop.write(&name, &content).map_err(Failure::Failed)?;
    }
    let control = "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: small files\n";
    bench.workshop.write("package/DEBIAN/control", control).map_err(Failure::Failed)?;
    let script = "tar cf small.tar -C tree small && cd tree/small && git init -q && \
                  git -c core.safecrlf=false add . && \
                  git -c user.name=a -c user.email=a@b commit -qm a && git status --short && cd ../.. && \
                  { ! command -v dpkg-deb >/dev/null || { mkdir -p package/opt && \
                  tar xf small.tar -C package/opt && chmod 755 package package/DEBIAN && \
                  dpkg-deb --root-owner-group -Znone -b package small.deb >/dev/null && rm -r package; }; }";
    let script: Vec<OsString> = ["sh", "-c", script].iter().map(Into::into).collect();
    bench.runner.run(&script, here, LIMIT, Output::Discard)?;
    fs::create_dir(&places.layers).map_err(failed)?;
    Ok(places)
}

fn works(bench: &Bench, places: &Places) -> Vec<Work> {
    let count = places.count;
    let scattered = bench.pick("20000", "1000");
    let work = |part, title: String, script, rounds, is_names| Work {
        part,
        title,
        script,
        rounds,
        is_names,
        of_root: false,
    };
    let scatter =
        bench.pick("../scatter new 20000 && rm -r new", "../scatter new 1000 && rm -r new");
    let du = "du -s /usr >/dev/null 2>&1 || test $? = 1";
    let find = "find /usr >/dev/null 2>&1 || test $? = 1";
    let unpack = "mkdir new && tar xf ../small.tar -C new && rm -r new";
    let owned = "mkdir new && tar xf ../small.tar -C new && chown -R 5:60 new && rm -r new";
    let install = "mkdir -p new/db/info new/db/updates && touch new/db/status && \
                   dpkg --admindir=new/db --instdir=new --log=/dev/null --force-unsafe-io -i ../small.deb \
                   >/dev/null && rm -r new";
    let mut all = vec![
        work("make", "make -j2 of C files".to_owned(), "make -B -s -j2 -C project", (5, 1), false),
        work("scatter", format!("{scattered} new files, as npm ci"), scatter, (8, 2), true),
        work("untar", format!("untar of {count} files"), unpack, (8, 2), true),
        work("git", "git status".to_owned(), "git -C small status --short", (20, 3), true),
        work("find", "find /usr".to_owned(), find, (10, 2), true),
        work("du", "du /usr".to_owned(), du, (10, 2), true),
    ];
    let of_root = |part, title: String, script| Work {
        of_root: true,
        ..work(part, title, script, (6, 2), true)
    };
    all.push(of_root("owners", format!("untar, chown of {count} files"), owned));
    if bench.workshop.path().join("small.deb").exists() {
        all.push(of_root("dpkg", format!("dpkg -i of {count} files"), install));
    }
    all.retain(|work| bench.wants(&format!("{NAME}/{}", work.part)));
    all
}

fn contenders(bench: &Bench, places: &Places) -> Result<Contenders, Failure> {
    let ours = bench.contenders.get("ours");
    let ours = ours.ok_or_else(|| Failure::Failed("there is no sandbox".to_owned()))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let program = ours.verb(&[])[0].to_string_lossy().into_owned();
    let (tree, layers, list) = (text(&places.tree), text(&places.layers), text(&places.list));
    let (script, by_hand) = (text(&bench.workshop.path().join("floor.sh")), text(&places.floor));
    let floor = ["unshare", "--user", "--map-root-user", "--mount", "sh", &script, &tree, &by_hand];
    let mut candidates = vec![
        ("native", vec![Contender::new("native", &[])]),
        ("overlayfs", vec![Contender::new("overlayfs", &floor)]),
    ];
    candidates.push(("bwrap", vec![Contender::bwrap(&tree)]));
    for (name, _, flags) in OURS {
        let mut line = vec![program.as_str(), "--quiet", "--workdir", &tree];
        line.extend(flags);
        match name {
            "ours/overlay" => line.extend(["--overlay-dir", &layers]),
            "ours/record" => line.extend(["--record-files", &list]),
            _ => {}
        }
        candidates.push((name, vec![Contender::with_flags(name, &line)]));
    }
    candidates.push(("proot", vec![Contender::new("proot", &["proot", "-0"])]));
    candidates.push(("fakeroot", vec![Contender::new("fakeroot", &["fakeroot", "--"])]));
    Contenders::those_of(candidates, &bench.workshop, &bench.runner)
        .map_err(|_| Failure::Interrupted)
}

/// One work by all of them, as a row for each of our flags.
fn measured(
    bench: &Bench,
    places: &Places,
    contenders: &Contenders,
    work: &Work,
) -> Result<Vec<Row>, Failure> {
    let argv: Vec<OsString> = ["sh", "-c", work.script].iter().map(Into::into).collect();
    let of_all = ["native", "overlayfs", "bwrap"].into_iter().chain(OURS.map(|(name, ..)| name));
    let names: Vec<&'static str> = match work.of_root {
        true => ["native", "ours/root"].into_iter().chain(PRETENDERS).collect(),
        false => of_all.chain(PRETENDERS).collect(),
    };
    let plan = Plan {
        name: work.title.clone(),
        key: work.title.clone(),
        unit: Unit::Nanoseconds,
        target: Target::None,
    };
    let workload = Workload {
        group: "files",
        title: work.title.clone(),
        flags: &[],
        command: Box::new(move |_| argv.clone()),
        reading: Reading::WallTime,
        plans: vec![plan],
        contenders: names,
        reference: "native",
        effort: Effort {
            rounds: bench.pick(work.rounds.0, work.rounds.1),
            slow_rounds: 0,
            budget: Duration::from_secs(bench.pick(150, 8)),
        },
        review: |_: &mut Row| {},
    };
    let all = workload.measure(contenders, &bench.runner, &places.tree);
    let all = all.map_err(|_| Failure::Interrupted)?;
    Ok(all.iter().flat_map(|all| split(all, work)).collect())
}

/// The row of each of our flags: those flags are "ours" there, and beside them stand those whom they are compared with.
fn split(all: &Row, work: &Work) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, words, _) in OURS {
        let Some(ours) = all.column(name) else { continue };
        let (reference, beside, target) = match name {
            "ours/overlay" => {
                ("overlayfs", &["native", "bwrap", "overlayfs"][..], Target::Ratio(1.05))
            }
            "ours/record" => ("native", &["native", "bwrap"][..], Target::None),
            _ => {
                let target = match work.is_names {
                    true => Target::Overhead(0.5, &PRETENDERS),
                    false => Target::Ratio(1.5),
                };
                ("native", &["native", "bwrap", "proot", "fakeroot"][..], target)
            }
        };
        let mut row = row(format!("{}, {words}", work.title), reference, target, Vec::new());
        row.columns = beside.iter().filter_map(|name| all.column(name).cloned()).collect();
        row.columns.push(Column { contender: "ours", ..ours.clone() });
        rows.push(row);
    }
    if let Some(first) = rows.first_mut() {
        first.notes.clone_from(&all.notes);
    }
    rows
}

/// A row without figures.
pub(super) fn row(
    name: String,
    reference: &'static str,
    target: Target,
    notes: Vec<String>,
) -> Row {
    let name = format!("files/{name}");
    Row { name, unit: Unit::Nanoseconds, reference, target, columns: Vec::new(), notes }
}
