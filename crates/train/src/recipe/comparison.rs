//! What a recipe says of a comparison: methods, seeds, and how long each method trains.

use serde::{Deserialize, Serialize};

use super::Term;

/// The folder beside the methods' that holds the teacher; no method may have its name.
pub(crate) const TEACHER: &str = "teacher";

/// A comparison: every method is trained with every seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Seeds of the students: initial weights, order, augmentation and dropout. Data and teacher keep the recipe's own.
    pub seeds: Vec<u64>,
    /// The method that the others are held against, by name.
    pub baseline: String,
    /// The methods, in the order in which they are trained and shown.
    #[serde(rename = "method")]
    pub methods: Vec<Method>,
}

/// One way to train the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name in tables, and its folder.
    pub name: String,
    /// Steps as a factor on the student's; absent: as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_factor: Option<f64>,
    /// As many steps as make the compute of this other method; absent: the student's steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_compute_of: Option<String>,
    /// The terms that the student has besides the task's, as in `[[distillation]]`; none: it is trained alone.
    #[serde(default)]
    pub terms: Vec<Term>,
}

/// The folder of one training, below the comparison's; also its name in messages and in `model.json`.
pub(crate) fn place(method: &str, seed: u64) -> String {
    format!("{method}/seed-{seed}")
}

impl Comparison {
    /// The method with this name.
    #[must_use]
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }

    /// The folders of the teacher and of all trainings, below the comparison's.
    pub(super) fn places(&self) -> Vec<String> {
        let of = |method: &Method| self.seeds.iter().map(|seed| place(&method.name, *seed)).collect::<Vec<_>>();
        std::iter::once(TEACHER.to_string()).chain(self.methods.iter().flat_map(of)).collect()
    }

    /// What is wrong with it, as key, expected and got; the terms are checked like those of `[[distillation]]`.
    pub(super) fn fault(&self) -> Option<(String, String, String)> {
        let names = || self.methods.iter().map(|method| method.name.as_str()).collect::<Vec<_>>().join(", ");
        let fault = |key: &str, expected: &str, got: String| Some((key.to_string(), expected.to_string(), got));
        if self.seeds.is_empty() {
            return fault("comparison.seeds", "at least one seed", "[]".to_string());
        }
        if let Some((_, seed)) = self.seeds.iter().enumerate().find(|(index, seed)| self.seeds[..*index].contains(seed))
        {
            return fault("comparison.seeds", "different seeds", format!("{seed} twice"));
        }
        if self.methods.len() < 2 {
            return fault("comparison.method", "at least 2 methods", self.methods.len().to_string());
        }
        let key = |index: usize, key: &str| format!("comparison.method[{index}].{key}");
        for (index, method) in self.methods.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if method.name.is_empty() || !method.name.chars().all(plain) || method.name == TEACHER {
                let expected = "a plain folder name of letters, digits, _ and -, other than teacher";
                return fault(&key(index, "name"), expected, format!("{:?}", method.name));
            }
            if self.methods[..index].iter().any(|other| other.name.eq_ignore_ascii_case(&method.name)) {
                return fault(
                    &key(index, "name"),
                    "a name of its own",
                    format!("{}, which an earlier method has", method.name),
                );
            }
        }
        // Names first: what follows speaks of other methods by theirs.
        for (index, method) in self.methods.iter().enumerate() {
            match (method.steps_factor, &method.match_compute_of) {
                (Some(_), Some(_)) => {
                    return fault(&key(index, "steps_factor"), "nothing beside match_compute_of", "set".to_string());
                }
                (Some(factor), None) if !(factor.is_finite() && factor > 0.0) => {
                    return fault(&key(index, "steps_factor"), "a number above 0", factor.to_string());
                }
                (None, Some(other)) => match self.method(other) {
                    None => {
                        return fault(&key(index, "match_compute_of"), &format!("one of {}", names()), other.clone());
                    }
                    Some(other) if other.match_compute_of.is_some() => {
                        let expected = "a method that does not match another one itself";
                        return fault(&key(index, "match_compute_of"), expected, other.name.clone());
                    }
                    Some(_) => {}
                },
                _ => {}
            }
        }
        if self.method(&self.baseline).is_none() {
            return fault("comparison.baseline", &format!("one of {}", names()), self.baseline.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::Recipe;

    #[test]
    fn comparisons_that_cannot_work_are_refused_in_one_line_with_names() {
        for (set, culprits) in [
            ("comparison.seeds=[]", &["comparison.seeds is []", "at least one seed"] as &[&str]),
            ("comparison.seeds=[3, 1, 3]", &["comparison.seeds is 3 twice"]),
            (
                "comparison.baseline=\"plain\"",
                &["comparison.baseline is plain", "one of baseline, baseline_longer, dsd"],
            ),
            ("comparison.method=[]", &["comparison.method is 0", "at least 2"]),
            ("comparison.method.1.name=\"Baseline\"", &["comparison.method[1].name is Baseline", "earlier"]),
            ("comparison.method.2.name=\"a/b\"", &["comparison.method[2].name is \"a/b\"", "plain folder name"]),
            ("comparison.method.2.name=\"..\"", &["comparison.method[2].name", "plain folder name"]),
            ("comparison.method.2.name=\"teacher\"", &["comparison.method[2].name", "other than teacher"]),
            ("comparison.method.1.steps_factor=2", &["comparison.method[1].steps_factor", "match_compute_of"]),
            ("comparison.method.2.steps_factor=0", &["comparison.method[2].steps_factor is 0", "above 0"]),
            ("comparison.method.1.match_compute_of=\"kd\"", &["[1].match_compute_of is kd", "baseline_longer, dsd"]),
            (
                "comparison.method.2.match_compute_of=\"baseline_longer\"",
                &["comparison.method[1].match_compute_of is dsd", "does not match another one"],
            ),
            ("comparison.method.2.terms.1.weight=-1", &["comparison.method[2].terms[1].weight is -1"]),
            ("comparison.method.2.terms.0.student=[\"head\"]", &["comparison.method[2].terms[0].student", "1 and 3"]),
            ("comparison.method.2.term=[]", &["unknown field `term`"]),
            (
                "distillation=[{ term = \"pixel_kd\", weight = 1, temperature = 1 }]",
                &["distillation is set", "[] beside"],
            ),
        ] {
            let message = Recipe::read("compare-quick", &[set.to_string()]).unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
            for culprit in culprits {
                assert!(message.contains(culprit), "{set}: expected {culprit:?} in: {message}");
            }
        }
    }
}
