//! Profiles and what they inherit become one list of settings, the weakest first.
//!
//! Owns the order within a name (the program's profile, the system's, the user's), inheritance and its
//! bounds. Judges nothing: whether a project's file may say so is decided above.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::super::error::refuse;
use super::super::{ConfigError, Host, quoted};
use super::file::{self, Owner};
use super::parse::{Position, Profile, Source, nearest, parse};
use super::places::{self, BUILT_IN, Wanted};
use super::setting::{Origin, Setting, Value};

/// Profiles that stand on one another at most, and profiles of a run at most.
const DEPTH_MAX: usize = 16;
const SOURCES_MAX: usize = 64;

/// A text that settings came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Comes with the program.
    BuiltIn(&'static str),
    /// A file.
    File(Arc<Path>),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::BuiltIn(name) => write!(f, "built-in {name}"),
            Place::File(path) => f.write_str(&quoted(path.as_os_str())),
        }
    }
}

/// What was read so far.
pub(super) struct Loader<'h> {
    host: &'h Host,
    /// The directory of the project whose file is read; `None`: the user's are.
    project: Option<PathBuf>,
    /// What was read, in that order, without what says nothing.
    pub(super) places: Vec<Place>,
    /// The settings of all of them, the weakest first.
    pub(super) settings: Vec<Setting>,
    done: Vec<Wanted>,
    /// Each one stands on the next one.
    under_way: Vec<Wanted>,
    rank: usize,
}

impl<'h> Loader<'h> {
    pub(super) fn new(host: &'h Host) -> Loader<'h> {
        let (places, settings, done, under_way) = Default::default();
        Loader { host, project: None, places, settings, done, under_way, rank: 0 }
    }

    /// Reads the profile that the user asks for.
    pub(super) fn load(&mut self, wanted: Wanted) -> Result<(), ConfigError> {
        self.read(wanted).map_err(|refused| match refused {
            Refused::Cause(cause) => refuse!("cannot use --profile: {cause}"),
            Refused::Error(error) => error,
        })
    }

    /// Reads a project's own file. Gives back its settings and those of what it inherits, which are not
    /// among the others.
    pub(super) fn load_project(&mut self, file: PathBuf) -> Result<Vec<Setting>, ConfigError> {
        self.project = file.parent().map(Path::to_owned);
        let before = self.settings.len();
        self.load(Wanted::File(file))?;
        Ok(self.settings.split_off(before))
    }

    fn read(&mut self, wanted: Wanted) -> Result<(), Refused> {
        if self.done.contains(&wanted) {
            return Ok(());
        }
        let cause = if self.under_way.contains(&wanted) {
            "it stands on itself"
        } else if self.under_way.len() == DEPTH_MAX {
            "too many profiles stand on one another"
        } else if self.places.len() > SOURCES_MAX {
            "there are too many profiles"
        } else {
            self.under_way.push(wanted.clone());
            match &wanted {
                Wanted::Named(name) => self.read_name(name)?,
                Wanted::File(path) => self.read_file(path)?,
            }
            self.under_way.pop();
            self.done.push(wanted);
            return Ok(());
        };
        let chain: Vec<String> =
            self.under_way.iter().chain([&wanted]).map(Wanted::to_string).collect();
        Err(Refused::Cause(format!(
            "{cause} ({}); take one inherit away",
            chain.join(" inherits ")
        )))
    }

    /// Reads all profiles of a name, which are the user's whoever inherits them.
    fn read_name(&mut self, name: &str) -> Result<(), Refused> {
        let project = self.project.take();
        let read = self.read_all_named(name);
        self.project = project;
        read
    }

    fn read_all_named(&mut self, name: &str) -> Result<(), Refused> {
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        if let Some((name, text)) = built_in {
            let origin = |_: usize| Origin::BuiltIn(name);
            let profile = self.parse(text, name, &origin, None)?;
            self.take(Place::BuiltIn(name), profile, None)?;
        }
        let mut found = built_in.is_some();
        for directory in places::directories(self.host) {
            let path = directory.join(format!("{name}.toml"));
            if let Some(text) = file::read(self.host, &path, Owner::User)? {
                self.read_text(&path, &text, None)?;
                found = true;
            }
        }
        match found {
            true => Ok(()),
            false => Err(Refused::Cause(self.no_profile(name))),
        }
    }

    fn read_file(&mut self, path: &Path) -> Result<(), Refused> {
        let owner = self.project.as_deref().map_or(Owner::User, Owner::Project);
        let Some(text) = file::read(self.host, path, owner)? else {
            let path = quoted(path.as_os_str());
            return Err(Refused::Cause(format!("there is no file {path}; correct the path")));
        };
        self.read_text(path, &text, path.parent())
    }

    fn read_text(&mut self, path: &Path, text: &str, base: Option<&Path>) -> Result<(), Refused> {
        let shared: Arc<Path> = path.into();
        let origin = |line| Origin::File { path: Arc::clone(&shared), line };
        let profile = self.parse(text, &quoted(path.as_os_str()), &origin, base)?;
        self.take(Place::File(Arc::clone(&shared)), profile, Some(path))
    }

    fn parse(
        &mut self,
        text: &str,
        name: &str,
        origin: &dyn Fn(usize) -> Origin,
        base: Option<&Path>,
    ) -> Result<Profile, ConfigError> {
        parse(text, &Source { name, origin, base, host: self.host, rank: 0 })
    }

    /// Takes what a profile inherits, and then what it says itself.
    fn take(&mut self, place: Place, profile: Profile, path: Option<&Path>) -> Result<(), Refused> {
        let name = match &place {
            Place::BuiltIn(name) => (*name).to_owned(),
            Place::File(path) => quoted(path.as_os_str()),
        };
        for (word, at) in &profile.inherit {
            let wrong = |cause: &str| wrong_inherit(&name, word, *at, cause);
            let wanted = self.inherited(word, path).map_err(|cause| wrong(&cause))?;
            self.read(wanted).map_err(|refused| match refused {
                Refused::Cause(cause) => Refused::Error(wrong(&cause)),
                error => error,
            })?;
        }
        let built_in = matches!(place, Place::BuiltIn(_));
        let settings = profile.settings.into_iter().filter(|it| !built_in || self.is_there(it));
        let rank = self.rank;
        let settings: Vec<Setting> = settings.map(|it| Setting { rank, ..it }).collect();
        self.settings.extend(settings);
        self.rank += 1;
        self.places.push(place);
        Ok(())
    }

    /// What a word behind `inherit` means.
    fn inherited(&self, word: &str, from: Option<&Path>) -> Result<Wanted, String> {
        if !word.contains('/') && !word.ends_with(".toml") {
            return Wanted::named(word);
        }
        let directory = from.and_then(Path::parent).ok_or("a built-in profile inherits by name")?;
        let word = Path::new(word);
        let inside =
            word.components().all(|it| matches!(it, Component::Normal(_) | Component::CurDir));
        // Else a project could lead to any file of the user's.
        if self.project.is_some() && !inside {
            return Err(
                "a project's file inherits from files of its own directory only; name one there, or \
                 a profile by its name"
                    .to_owned(),
            );
        }
        Ok(Wanted::File(normal(&directory.join(word))))
    }

    /// A built-in profile is for every host: what it says of variables that are not set is nothing.
    fn is_there(&self, setting: &Setting) -> bool {
        match &setting.value {
            Value::Word(word) if setting.key.name == "env" => {
                let set = |name: &str| self.host.environment.iter().any(|(known, _)| known == name);
                word.to_str().is_some_and(|word| word.contains('=') || set(word))
            }
            _ => true,
        }
    }

    fn no_profile(&self, name: &str) -> String {
        let known: Vec<String> = self.names();
        match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("there is no profile {name}; the nearest one is {near}"),
            None => format!(
                "there is no profile {name}; sandbox profile list names those that there are, and a \
                 file is named with a slash, as in ./{name}"
            ),
        }
    }

    /// The names of all profiles.
    fn names(&self) -> Vec<String> {
        let directories = places::directories(self.host);
        let files = directories.iter().flat_map(|directory| places::names(self.host, directory));
        BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).chain(files).collect()
    }
}

/// Why nothing was read.
enum Refused {
    /// There is no such profile, or not here: why not, and what to do.
    Cause(String),
    Error(ConfigError),
}

impl From<ConfigError> for Refused {
    fn from(error: ConfigError) -> Refused {
        Refused::Error(error)
    }
}

fn wrong_inherit(name: &str, word: &str, at: Position, cause: &str) -> ConfigError {
    let Position { line, column } = at;
    refuse!(
        "cannot use the profile {name}: line {line}, column {column}: cannot inherit {}: {cause}",
        quoted(word)
    )
}

/// The path without `.` and, as far as its text goes, without `..`: one file has one name.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
