//! Reading a recipe: shipped or from a file, overrides, checks, comparison.

use std::path::Path;

use super::{Balance, ClassWeights, Loss, Optimiser, Recipe, SHIPPED, Term, VERSION};
use crate::{Error, Result};

impl Recipe {
    /// Reads a shipped recipe by name or a file by path, lays `key=value` overrides over it and checks it.
    ///
    /// # Errors
    /// [`Error::Recipe`] with the name, the key and what is allowed.
    pub fn read(name_or_path: &str, overrides: &[String]) -> Result<Self> {
        let text = match SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            Some((_, text)) => (*text).to_string(),
            None => {
                let path = Path::new(name_or_path);
                if !path.is_file() {
                    let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
                    return Err(wrong(
                        name_or_path,
                        format!("no such recipe or file; the program has {}", names.join(", ")),
                    ));
                }
                std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?
            }
        };
        Self::parse(name_or_path, &text, overrides)
    }

    /// The recipe of a run that was started in `folder`.
    ///
    /// # Errors
    /// [`Error::File`] where there is no run; [`Error::Recipe`].
    pub fn of_run(folder: &Path, overrides: &[String]) -> Result<Self> {
        let path = folder.join("recipe.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&path.display().to_string(), &text, overrides),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::file(folder, "holds no run to resume"))
            }
            Err(error) => Err(Error::file(&path, error)),
        }
    }

    /// Parses the text of a recipe; `label` names it in errors.
    ///
    /// # Errors
    /// [`Error::Recipe`].
    pub fn parse(label: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let mut table: toml::Table = toml::from_str(text).map_err(|error| wrong(label, one_line(text, &error)))?;
        for entry in overrides {
            lay_over(label, &mut table, entry)?;
        }
        // Through text again, so that an error can show its line and the key's whole path.
        let resolved = toml::to_string(&table).map_err(|error| wrong(label, error))?;
        let recipe: Self = toml::from_str(&resolved).map_err(|error| wrong(label, one_line(&resolved, &error)))?;
        recipe.check(label)?;
        Ok(recipe)
    }

    /// The resolved recipe as TOML.
    ///
    /// # Errors
    /// [`Error::Recipe`] where a value has no TOML form.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| wrong(&self.name, error))
    }

    /// Every list of terms by its key: the task's, and those of which a student has one besides.
    fn lists(&self) -> Vec<(String, &[Term])> {
        let methods = self.comparison.iter().flat_map(|comparison| &comparison.methods).enumerate();
        let methods = methods.map(|(index, method)| (format!("comparison.method[{index}].terms"), &method.terms[..]));
        let own = [("task.terms", &self.task.terms), ("distillation", &self.distillation)];
        own.into_iter().map(|(key, terms)| (key.to_string(), &terms[..])).chain(methods).collect()
    }

    fn check(&self, label: &str) -> Result<()> {
        let refuse =
            |key: &str, expected: &str, got: String| Err(wrong(label, format!("{key} is {got}, expected {expected}")));
        if self.version != VERSION {
            return refuse("version", &VERSION.to_string(), self.version.to_string());
        }
        if self.name.is_empty() || self.name.contains(['/', '\\']) || self.name.starts_with('.') {
            return refuse("name", "a plain folder name", format!("{:?}", self.name));
        }
        for (name, role) in [("teacher", &self.teacher), ("student", &self.student)] {
            if role.batch_size == 0 {
                return refuse(&format!("{name}.batch_size"), "at least 1", "0".to_string());
            }
            if role.steps == 0 && role.weights.is_none() {
                return refuse(&format!("{name}.steps"), "at least 1", "0".to_string());
            }
            let (Optimiser::Sgd { learning_rate, weight_decay, clip_norm, .. }
            | Optimiser::Adamw { learning_rate, weight_decay, clip_norm, .. }) = role.optimiser;
            if !(learning_rate.is_finite() && learning_rate > 0.0) {
                return refuse(
                    &format!("{name}.optimiser.learning_rate"),
                    "a number above 0",
                    learning_rate.to_string(),
                );
            }
            if !(weight_decay.is_finite() && weight_decay >= 0.0) {
                return refuse(
                    &format!("{name}.optimiser.weight_decay"),
                    "a number not below 0",
                    weight_decay.to_string(),
                );
            }
            if clip_norm.is_some_and(|norm| !(norm.is_finite() && norm > 0.0)) {
                return refuse(&format!("{name}.optimiser.clip_norm"), "a number above 0", format!("{clip_norm:?}"));
            }
            if role.accumulate == 0 {
                return refuse(&format!("{name}.accumulate"), "at least 1", "0".to_string());
            }
            if let Some(keep) = role.ema.filter(|keep| !(*keep > 0.0 && *keep < 1.0)) {
                return refuse(&format!("{name}.ema"), "a number above 0 and below 1", keep.to_string());
            }
            let factor = role.backbone_learning_rate_factor;
            if !(factor > 0.0 && factor <= 1.0) {
                let key = format!("{name}.backbone_learning_rate_factor");
                return refuse(&key, "a number above 0 and at most 1", factor.to_string());
            }
            if !(role.schedule.power.is_finite() && role.schedule.power >= 0.0) {
                return refuse(
                    &format!("{name}.schedule.power"),
                    "a number not below 0",
                    role.schedule.power.to_string(),
                );
            }
        }
        for (name, stated) in [
            ("normalisation", &self.normalisation),
            ("teacher.normalisation", &self.teacher.normalisation),
            ("student.normalisation", &self.student.normalisation),
        ] {
            let Some(stated) = stated else { continue };
            if !stated.mean.iter().all(|mean| mean.is_finite()) {
                return refuse(&format!("{name}.mean"), "finite numbers", format!("{:?}", stated.mean));
            }
            if !stated.std.iter().all(|std| std.is_finite() && *std > 0.0) {
                return refuse(&format!("{name}.std"), "numbers above 0", format!("{:?}", stated.std));
            }
        }
        if self.student.weights.is_some() {
            return refuse("student.weights", "nothing: only the teacher can be loaded", "set".to_string());
        }
        for (key, number) in [
            ("evaluation.every", self.evaluation.every),
            ("evaluation.batch_size", self.evaluation.batch_size as u64),
            ("run.checkpoint_every", self.run.checkpoint_every),
            ("run.log_every", self.run.log_every),
        ] {
            if number == 0 {
                return refuse(key, "at least 1", "0".to_string());
            }
        }
        if !(self.task.aux_weight.is_finite() && self.task.aux_weight >= 0.0) {
            return refuse("task.aux_weight", "a number not below 0", self.task.aux_weight.to_string());
        }
        if let Some(comparison) = &self.comparison {
            if let Some((key, expected, got)) = comparison.fault() {
                return refuse(&key, &expected, got);
            }
            if !self.distillation.is_empty() {
                return refuse(
                    "distillation",
                    "[] beside [comparison], whose methods have their own terms",
                    "set".into(),
                );
            }
        }
        let balanced = self.objective.balance == Balance::Share;
        for (list, terms) in self.lists() {
            for (index, term) in terms.iter().enumerate() {
                if let Some((key, expected, got)) = term.fault() {
                    return refuse(&format!("{list}[{index}].{key}"), &expected, got);
                }
                if list == "task.terms" && term.loss.needs_teacher() {
                    let key = format!("{list}[{index}].term");
                    return refuse(
                        &key,
                        "a loss against labels; others belong in [[distillation]]",
                        term.name().into(),
                    );
                }
                if term.share.is_some() && !balanced {
                    let key = format!("{list}[{index}].share");
                    return refuse(&key, "nothing without [objective] balance = \"share\"", "set".to_string());
                }
                let weighted = matches!(term.loss, Loss::PixelKd { class_weighted: true, .. });
                if weighted && self.task.class_weights == ClassWeights::None {
                    let key = format!("{list}[{index}].class_weighted");
                    return refuse(&key, "false without task.class_weights", "true".to_string());
                }
            }
        }
        let shares = |terms: &[Term]| terms.iter().filter_map(|term| term.share).sum::<f64>();
        for (list, terms) in self.lists().iter().skip(1) {
            let stated = shares(&self.task.terms) + shares(terms);
            // A method of a comparison may have no terms and so no shares; its task's weights are the recipe's.
            let least = if list == "distillation" && self.comparison.is_none() { f64::MIN_POSITIVE } else { 0.0 };
            if balanced && !(least..1.0).contains(&stated) {
                let expected = "terms with a share, together below 1: the others hold the rest";
                return refuse("objective.balance", expected, format!("share, with shares of {stated} together"));
            }
        }
        if balanced && self.objective.balance_steps == 0 {
            return refuse("objective.balance_steps", "at least 1", "0".to_string());
        }
        Ok(())
    }
}

/// The keys, dotted, at which two recipes differ, each with both values.
///
/// # Errors
/// [`Error::Recipe`] where a recipe has no TOML form.
pub fn differences(left: &Recipe, right: &Recipe) -> Result<Vec<String>> {
    let table = |recipe: &Recipe| toml::Table::try_from(recipe).map_err(|error| wrong(&recipe.name, error));
    let mut found = Vec::new();
    compare("", &toml::Value::Table(table(left)?), &toml::Value::Table(table(right)?), &mut found);
    Ok(found)
}

fn compare(path: &str, left: &toml::Value, right: &toml::Value, found: &mut Vec<String>) {
    if let (toml::Value::Table(a), toml::Value::Table(b)) = (left, right) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match (a.get(key), b.get(key)) {
                (Some(x), Some(y)) => compare(&inner, x, y, found),
                (x, y) => {
                    let show = |value: Option<&toml::Value>| value.map_or("absent".to_string(), ToString::to_string);
                    found.push(format!("{inner} ({} → {})", show(x), show(y)));
                }
            }
        }
    } else if let (toml::Value::Array(a), toml::Value::Array(b)) = (left, right)
        && a.len() == b.len()
        && a.iter().any(toml::Value::is_table)
    {
        for (index, (a, b)) in a.iter().zip(b).enumerate() {
            compare(&format!("{path}.{index}"), a, b, found);
        }
    } else if left != right {
        found.push(format!("{path} ({left} → {right})"));
    }
}

/// Lays one `key=value` over a recipe. The value is read as TOML; what is not TOML is taken as a string.
fn lay_over(label: &str, table: &mut toml::Table, entry: &str) -> Result<()> {
    let (key, value) = entry
        .split_once('=')
        .ok_or_else(|| wrong(label, format!("--set {entry}: expected key=value, for example student.steps=400")))?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {value}")) {
        Ok(mut parsed) => parsed.remove("value").unwrap_or_else(|| toml::Value::String(value.to_string())),
        Err(_) => toml::Value::String(value.to_string()),
    };
    let mut place: Option<&mut toml::Value> = None;
    let parts: Vec<&str> = key.trim().split('.').collect();
    for (depth, part) in parts.iter().enumerate() {
        let parent = parts[..depth].join(".");
        let unknown = |what: &str| wrong(label, format!("--set {key}: {parent} {what}"));
        let next = match place {
            None => table.entry(part.to_string()).or_insert_with(|| toml::Table::new().into()),
            Some(toml::Value::Table(inner)) => {
                inner.entry(part.to_string()).or_insert_with(|| toml::Table::new().into())
            }
            Some(toml::Value::Array(items)) => {
                let count = items.len();
                part.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(|| {
                    unknown(&format!("is a list of {count}; expected a position below that, got {part}"))
                })?
            }
            Some(_) => return Err(unknown("is a single value and has no keys")),
        };
        place = Some(next);
    }
    if let Some(place) = place {
        *place = value;
    }
    Ok(())
}

/// A TOML error in one line, with the line it points at.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = text.get(..span.start).map_or(0, |before| before.matches('\n').count());
            let shown = text.lines().nth(line).unwrap_or_default().trim();
            if shown.is_empty() { message } else { format!("{message} (at `{shown}`)") }
        }
        None => message,
    }
}

fn wrong(recipe: &str, message: impl ToString) -> Error {
    Error::Recipe { recipe: recipe.to_string(), message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::read("smoke", &overrides).unwrap_err().to_string()
    }

    #[test]
    fn every_shipped_recipe_is_read_and_its_resolved_form_is_the_same_recipe() {
        for (name, _) in SHIPPED {
            let recipe = Recipe::read(name, &[]).unwrap();
            assert_eq!(recipe.name, name);
            assert_eq!(Recipe::parse(name, &recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
        }
    }

    #[test]
    fn overrides_reach_nested_keys_lists_and_strings() {
        let set = ["student.steps=7", "distillation.0.weight=2.5", "data.dataset=camvid", "augmentation.crop=[32, 48]"];
        let recipe = Recipe::read("smoke", &set.map(String::from)).unwrap();
        assert_eq!((recipe.student.steps, recipe.distillation[0].weight), (7, 2.5));
        assert_eq!((recipe.data.dataset.as_str(), recipe.augmentation.crop), ("camvid", [32, 48]));
    }

    #[test]
    fn wrong_recipes_are_refused_in_one_line_that_names_the_key() {
        for (overrides, culprit) in [
            (vec!["student.stepz=7"], "stepz"),
            (vec!["studnt.steps=7"], "studnt"),
            (vec!["version=9"], "version is 9, expected 1"),
            (vec!["student.batch_size=0"], "student.batch_size is 0"),
            (vec!["student.optimiser.learning_rate=-1"], "student.optimiser.learning_rate is -1"),
            (vec!["student.steps=many"], "steps"),
            (vec!["steps"], "expected key=value"),
            (vec!["name=a/b"], "plain folder name"),
        ] {
            let message = failure(&overrides);
            assert!(message.contains(culprit), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        assert!(Recipe::read("nowhere", &[]).unwrap_err().to_string().contains("quick, smoke, camvid"));
    }

    #[test]
    fn differences_name_the_keys_with_both_values() {
        let one = Recipe::read("smoke", &[]).unwrap();
        let other = Recipe::read("smoke", &["student.steps=3".to_string()]).unwrap();
        assert!(differences(&one, &one).unwrap().is_empty());
        let found = differences(&one, &other).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("student.steps (") && found[0].ends_with("→ 3)"), "{found:?}");
    }
}
