//! Profiles: what files and the program's own profiles say of a run, merged with its flags.
//!
//! Owns which profiles a run has, their order of strength (docs/profiles.md), what a project's own file
//! may say, and who said what. Their words mean what the flags mean: a profile becomes [`Options`] by
//! the same table as the command line.

mod expand;
mod file;
mod judge;
mod keys;
mod load;
mod parse;
mod places;
mod setting;

use std::path::{Path, PathBuf};

pub use keys::{Form, Group, KEYS, Key, Merge, Project};
pub use load::Place;
pub use setting::{Origin, Setting, Value};

use super::{ConfigError, Host, Options, absolute};
use file::Owner;
use judge::Judge;
use load::Loader;
use places::{BUILT_IN, Wanted};

/// What the command line says of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `--profile`, in its order: names and files.
    pub profiles: Vec<std::ffi::OsString>,
    /// `--trust-project-profile`
    pub trusts_project: bool,
    /// All other flags.
    pub flags: Vec<Setting>,
}

/// What a run is told, by whom.
#[derive(Debug)]
pub struct Gathered {
    /// The wishes.
    pub options: Options,
    /// What they were made of: for each key that somebody named, what counts of it.
    pub settings: Vec<Setting>,
    /// What was read, the weakest first.
    pub places: Vec<Place>,
    /// The project's own file, if there is one.
    pub project: Option<PathBuf>,
    /// What it says, and is not allowed to.
    pub left_out: Vec<Setting>,
}

/// Finds the profiles of a run and merges them with its flags. `private` are directories that no guest
/// may see, in case that matters.
///
/// # Errors
/// The first profile that cannot be used, with the place in it.
pub fn gather(
    request: Request,
    host: &mut Host,
    private: impl FnOnce() -> Option<PathBuf>,
) -> Result<Gathered, ConfigError> {
    let project = places::project(host);
    if project.is_some() && !request.trusts_project {
        // What is compared with them must not be shown by them.
        host.private.extend(private());
    }
    let mut loader = Loader::new(host);
    for word in &request.profiles {
        loader.load(Wanted::of(word, host)?)?;
    }
    if request.profiles.is_empty() {
        loader.load(Wanted::Named("default".to_owned()))?;
    }
    let mut own = std::mem::take(&mut loader.settings);
    let asked = project.clone().map(|file| loader.load_project(file)).transpose()?;
    let places = loader.places;
    let (mut taken, mut left_out) = (Vec::new(), Vec::new());
    if let Some(asked) = asked {
        let without = own.iter().chain(&request.flags).cloned().collect();
        let base = Options::of(&merge(without))?;
        if let Some(store) = &base.overlay_dir
            && let Ok(place) = host.walk(&absolute(host, store)?)
        {
            host.stores.push(place.path);
        }
        let judge = Judge::new(host, base);
        for setting in asked {
            let judged = match request.trusts_project {
                true => Ok(setting),
                false => judge.take(setting)?,
            };
            match judged {
                Ok(setting) => taken.push(setting),
                Err(setting) => left_out.push(setting),
            }
        }
    }
    own.extend(taken);
    own.extend(request.flags);
    let settings = merge(own);
    let options = Options::of(&settings)?;
    Ok(Gathered { options, settings, places, project, left_out })
}

/// What counts of settings whose order is that of their strength.
fn merge(settings: Vec<Setting>) -> Vec<Setting> {
    let mut kept = vec![true; settings.len()];
    let mut known: std::collections::HashMap<(&str, &[u8]), usize> = Default::default();
    for (number, setting) in settings.iter().enumerate().rev() {
        let key = setting.key;
        kept[number] = match key.merge {
            Merge::All => true,
            Merge::Strongest => known.insert((key.name, b""), 0).is_none(),
            Merge::Source => *known.entry((key.name, b"")).or_insert(setting.rank) == setting.rank,
            Merge::Variable => {
                let word = setting.word().as_encoded_bytes();
                let name = word.split(|byte| *byte == b'=').next().unwrap_or_default();
                known.insert((key.name, name), 0).is_none()
            }
        };
    }
    settings.into_iter().zip(kept).filter_map(|(setting, kept)| kept.then_some(setting)).collect()
}

impl Options {
    /// The wishes that settings amount to, of which all count.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn of(settings: &[Setting]) -> Result<Options, ConfigError> {
        let mut options = Options::default();
        for setting in settings {
            setting.key.set(&mut options, setting)?;
        }
        options.observed = options.detach || options.id.is_some();
        Ok(options)
    }
}

/// Whether a text would be taken as the profile in a file.
///
/// # Errors
/// Why not.
pub fn check(text: &str, file: &Path, host: &Host) -> Result<(), ConfigError> {
    let origin = |line| Origin::File { path: file.into(), line };
    let name = super::quoted(file.as_os_str());
    let source = parse::Source { name: &name, origin: &origin, base: file.parent(), host, rank: 0 };
    parse::parse(text, &source).map(drop)
}

/// The names of the profiles that come with the program.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// Where the user's own profiles are that have names.
pub fn own_directory(host: &Host) -> Option<PathBuf> {
    places::directories(host).pop().filter(|path| path != Path::new("/etc/sandbox"))
}

/// A profile that there is.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// What it is for, in its own words; or what is wrong with it.
    pub description: Result<Option<String>, ConfigError>,
}

/// All profiles that have names, and the project's own file.
pub fn list(host: &Host) -> Vec<Listed> {
    let mut listed = Vec::new();
    for (name, text) in BUILT_IN {
        let origin = |_: usize| Origin::BuiltIn(name);
        let source = parse::Source { name, origin: &origin, base: None, host, rank: 0 };
        let description = parse::parse(text, &source).map(|profile| profile.description);
        listed.push(Listed { name: name.to_owned(), place: Place::BuiltIn(name), description });
    }
    for directory in places::directories(host) {
        for name in places::names(host, &directory) {
            let path = directory.join(format!("{name}.toml"));
            listed.extend(list_file(host, name, path, None));
        }
    }
    if let Some(path) = places::project(host) {
        let directory = path.parent().map(Path::to_owned);
        listed.extend(list_file(host, "(the project's)".to_owned(), path, directory.as_deref()));
    }
    listed
}

/// The profile in a file; `project` is the directory of the project that it belongs to.
fn list_file(host: &Host, name: String, path: PathBuf, project: Option<&Path>) -> Option<Listed> {
    let owner = project.map_or(Owner::User, Owner::Project);
    let origin = |line| Origin::File { path: path.as_path().into(), line };
    let words = super::quoted(path.as_os_str());
    let source = parse::Source { name: &words, origin: &origin, base: project, host, rank: 0 };
    let description = match file::read(host, &path, owner) {
        Ok(text) => parse::parse(&text?, &source).map(|profile| profile.description),
        Err(error) => Err(error),
    };
    Some(Listed { name, place: Place::File(path.as_path().into()), description })
}

/// The table of all keys, for docs/profiles.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "| key | value | several sources | a project's own file, not trusted |\n|---|---|---|---|\n",
    );
    for key in KEYS.iter().filter(|key| !key.hidden) {
        let several = match key.merge {
            Merge::Strongest => "the strongest counts",
            Merge::All => "add up",
            Merge::Source => "all words of the strongest count",
            Merge::Variable => "add up; of a variable, the strongest counts",
        };
        let project = match key.project {
            Project::Taken => "taken",
            Project::LeftOut | Project::Place(super::RuleKind::Socket) => "left out",
            Project::On => "`true` is taken",
            Project::Off => "`false` is taken",
            Project::Lower => "taken if it is not above yours",
            Project::Network => "`none` is taken",
            Project::Place(
                super::RuleKind::Hide | super::RuleKind::Deny | super::RuleKind::Allow,
            ) => "taken",
            Project::Place(super::RuleKind::ReadOnly) => "taken where the place is visible anyway",
            Project::Place(super::RuleKind::Writable | super::RuleKind::Overlay) => {
                "taken where the place is writable anyway"
            }
            Project::Place(super::RuleKind::Tmpfs) => {
                "taken where the place is writable or private anyway"
            }
        };
        let (name, form) = (key.name, key.form.words());
        text.push_str(&format!("| `{name}` | {form} | {several} | {project} |\n"));
    }
    text
}

#[cfg(test)]
mod tests;
