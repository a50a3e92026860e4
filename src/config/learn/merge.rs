//! What was learned, added to a profile that there is.
//!
//! Owns what may change in it: lists grow, limits rise, what the user has said anew counts. All else, remarks
//! included, stays as its author wrote it.

use toml_edit::{Array, DocumentMut, Item, Value};

use super::Lesson;

impl Lesson {
    /// The text of a profile with what was learned.
    ///
    /// # Errors
    /// It is none that can be added to: the end of a sentence.
    pub fn merged(&self, old: &str) -> Result<String, String> {
        let mut document: DocumentMut =
            old.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
        for name in &self.carried.inherit {
            add(&mut document, "inherit", name, "")?;
        }
        for (key, is_list, value) in &self.carried.said {
            match is_list {
                true => add(&mut document, key, value, "you named it")?,
                false => set(&mut document, key, value)?,
            }
        }
        if !self.reopened.is_empty() {
            remove(&mut document, &self.reopened);
        }
        for (path, why) in self.rules_to_write() {
            add(&mut document, "rw", &path, &why)?;
        }
        for (path, why) in self.rules_to_read() {
            add(&mut document, "ro", &path, &why)?;
        }
        for bound in self.bounds.iter().filter(|bound| bound.impossible.is_none()) {
            let old = document.get(bound.key).and_then(Item::as_value).map(amount);
            if old.is_none_or(|old| bound.is_above(&old)) {
                set(&mut document, bound.key, &bound.value())?;
            }
        }
        let mut trailing = document.trailing().as_str().unwrap_or_default().to_owned();
        if !trailing.is_empty() && !trailing.ends_with('\n') {
            trailing.push('\n');
        }
        trailing.push_str(&format!("\n# Added by sandbox learn from: {}\n", self.program));
        trailing.push_str(&self.remarks());
        document.set_trailing(trailing);
        Ok(document.to_string())
    }
}

/// A limit as a flag says it.
fn amount(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.value().to_string(),
        value => value.as_str().unwrap_or_default().to_owned(),
    }
}

fn parsed(text: &str) -> Result<Value, String> {
    text.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())
}

/// Sets a key, where it stands or at the end.
fn set(document: &mut DocumentMut, key: &str, text: &str) -> Result<(), String> {
    let value = parsed(text)?;
    match document.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => drop(document.insert(key, Item::Value(value))),
    }
    Ok(())
}

/// Adds to a list, which may be one value, unless it is there.
pub(in super::super) fn add(
    document: &mut DocumentMut,
    key: &str,
    text: &str,
    why: &str,
) -> Result<(), String> {
    let value = parsed(text)?;
    let item = document.entry(key).or_insert(Item::Value(Value::Array(Array::new())));
    let Some(old) = item.as_value_mut() else { return Err(format!("{key} is no list")) };
    if !old.is_array() {
        let mut all = Array::new();
        let decor = old.decor().clone();
        let mut first = old.clone();
        *first.decor_mut() = toml_edit::Decor::new("\n    ", "");
        all.push_formatted(first);
        *old = Value::Array(all);
        *old.decor_mut() = decor;
    }
    let Some(all) = old.as_array_mut() else { return Err(format!("{key} is no list")) };
    let same = |it: &Value| match (it.as_str(), value.as_str()) {
        (Some(one), Some(other)) => one == other,
        _ => it.as_integer().is_some() && it.as_integer() == value.as_integer(),
    };
    if all.iter().any(same) {
        return Ok(());
    }
    // A remark stands behind the comma that follows what it is about: in front of the next one, or at the end.
    let before = all.trailing().as_str().unwrap_or_default().trim_end().to_owned();
    let mut value = value;
    value.decor_mut().set_prefix(format!("{before}\n    "));
    value.decor_mut().set_suffix("");
    all.push_formatted(value);
    all.set_trailing_comma(true);
    let remark = if why.is_empty() { String::new() } else { format!(" # {why}") };
    all.set_trailing(format!("{remark}\n"));
    Ok(())
}

/// Takes elements out of the list `ro`, by their numbers.
fn remove(document: &mut DocumentMut, numbers: &[usize]) {
    let Some(item) = document.get_mut("ro").and_then(Item::as_value_mut) else { return };
    let Some(all) = item.as_array_mut() else {
        document.remove("ro");
        return;
    };
    let mut kept = Array::new();
    for (number, value) in all.iter().enumerate().filter(|(number, _)| !numbers.contains(number)) {
        let mut value = value.clone();
        if number > 0 {
            // What stands in front of it is about the one that is gone, if that is.
            let gone = numbers.contains(&(number - 1));
            let prefix = value.decor().prefix().and_then(|it| it.as_str()).unwrap_or_default();
            let prefix = if gone { "\n    ".to_owned() } else { prefix.to_owned() };
            value.decor_mut().set_prefix(prefix);
        }
        kept.push_formatted(value);
    }
    let last = all.len().saturating_sub(1);
    let trailing = all.trailing().as_str().unwrap_or_default().to_owned();
    kept.set_trailing(if numbers.contains(&last) { "\n".to_owned() } else { trailing });
    kept.set_trailing_comma(all.trailing_comma());
    if kept.is_empty() {
        document.remove("ro");
        return;
    }
    *all = kept;
}
