//! A comparison: methods × seeds, trained so that methods differ in nothing but their terms, and what came out.
//!
//! All methods of a seed start from the same student and see the same batches, augmentation and dropout; all students
//! learn from one teacher. The seeds come one after the other, each with all methods, so that what is there when a
//! comparison is stopped is paired. Each student is a [stage](crate::stage) in a folder of its own.

mod outcome;
mod page;
mod plan;
mod statistics;
mod table;

use std::path::{Path, PathBuf};

use crate::checkpoint::make_folder;
use crate::journal::Journal;
use crate::recipe::{Recipe, Role, TEACHER, Term, place};
use crate::run::{Run, RunSettings, finish};
use crate::stage::Stage;
use crate::{Error, Result};

pub use outcome::{ClassDifference, MethodOutcome, Outcome, RunOutcome};
pub use plan::{MultiplyAdds, Plan, Planned};
pub use statistics::Sample;
pub use table::table;

/// Trains every method of a recipe's comparison with every seed and writes the comparison's folder; returns its path.
///
/// `partial` gets the table so far after each seed but the last.
///
/// # Errors
/// The first thing that goes wrong, naming its culprit. [`Error::Interrupted`] after a stop that was asked for: the
/// folder then holds a checkpoint.
pub fn compare(recipe: &Recipe, settings: &RunSettings, mut partial: impl FnMut(&str)) -> Result<PathBuf> {
    let comparison = recipe.comparison.as_ref().ok_or_else(|| none_in(&recipe.name))?;
    let objectives: Vec<(&str, &[Term])> =
        comparison.methods.iter().map(|method| (method.name.as_str(), &method.terms[..])).collect();
    let run = Run::open(recipe, settings, &objectives)?;
    let plan = Plan::of(recipe, comparison, run.num_classes(), &run.adaptors)?;
    plan.keep(&run.folder)?;
    if plan.methods.iter().any(|method| method.multiply_adds.teacher > 0) {
        run.finish_teacher(&mut journal(&run.folder.join(TEACHER))?)?;
    }
    for (index, seed) in comparison.seeds.iter().enumerate() {
        let seeded = Recipe { seed: *seed, ..recipe.clone() };
        for (method, planned) in comparison.methods.iter().zip(&plan.methods) {
            let name = place(&method.name, *seed);
            let role = Role { steps: planned.steps, ..recipe.student.clone() };
            let stage = run.stage(&name, &seeded, &role, &method.terms)?;
            // Loaded for each student, so that the memory of one that needs none is not that of a teacher.
            let teacher = if planned.multiply_adds.teacher > 0 { Some(run.teacher()?) } else { None };
            let stage = Stage { teacher: teacher.as_ref(), ..stage };
            finish(&stage, &mut journal(&stage.folder())?)?;
        }
        write(&run.folder)?;
        if index + 1 < comparison.seeds.len() {
            partial(&table(&run.folder)?);
        }
    }
    Ok(run.folder)
}

/// Writes `comparison.json` and `comparison.html` from the folder of a comparison, with what is finished in it.
///
/// # Errors
/// A file that is missing or damaged, by name.
pub fn write(folder: &Path) -> Result<()> {
    let outcome = Outcome::read(folder)?;
    outcome.keep(folder)?;
    page::write(folder, &outcome)
}

/// The log of one training, in its own folder.
fn journal(folder: &Path) -> Result<Journal> {
    make_folder(folder)?;
    Journal::open(folder)
}

pub(crate) fn none_in(recipe: &str) -> Error {
    let message = "has no [comparison] with methods and seeds; train it without --compare".to_string();
    Error::Recipe { recipe: recipe.to_string(), message }
}
