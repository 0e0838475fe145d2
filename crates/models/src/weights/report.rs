//! What a source of weights had in common with a network.

use std::fmt;

use crate::weights::{Part, Scheme};

/// A tensor that has another shape than the network's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongShape {
    /// Our name.
    pub name: String,
    /// The name in the source.
    pub theirs: String,
    /// The shape in the network.
    pub expected: Vec<usize>,
    /// The shape in the source.
    pub got: Vec<usize>,
}

/// Each tensor of a source and each tensor of the part that was asked for is in exactly one of the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where the weights came from.
    pub source: String,
    /// SHA-256 of the file, lower case hexadecimal.
    pub sha256: String,
    /// The scheme of names under which most tensors fit.
    pub scheme: Scheme,
    /// What was asked for.
    pub part: Part,
    /// Our name and theirs.
    pub matched: Vec<(String, String)>,
    /// Tensors of the part that the source lacks; our names.
    pub missing: Vec<String>,
    /// Tensors of the source that the network lacks; their names.
    pub unexpected: Vec<String>,
    /// Tensors of the source that belong to a part that was not asked for, or that no network here has, such as the
    /// classifier of an image; their names.
    pub outside: Vec<String>,
    /// Tensors of another shape.
    pub wrong_shape: Vec<WrongShape>,
    /// Counters of batches, which are not used; their names.
    pub ignored: Vec<String>,
    /// What was changed on the way, a sentence each.
    pub notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(scheme: Scheme, part: Part) -> Self {
        Self {
            source: String::new(),
            sha256: String::new(),
            scheme,
            part,
            matched: vec![],
            missing: vec![],
            unexpected: vec![],
            outside: vec![],
            wrong_shape: vec![],
            ignored: vec![],
            notes: vec![],
        }
    }

    /// Why the part cannot be loaded, in one line; none where it can.
    pub(crate) fn refusal(&self) -> Option<String> {
        let mut faults = Vec::new();
        let wrong: Vec<String> = self
            .wrong_shape
            .iter()
            .map(|wrong| format!("{} has shape {:?}, expected {:?}", wrong.theirs, wrong.got, wrong.expected))
            .collect();
        // For a backbone, whatever else the source has is none of its business.
        let unexpected = if self.part == Part::Backbone { &[][..] } else { &self.unexpected[..] };
        for (kind, names) in
            [("of a wrong shape", &wrong[..]), ("missing", &self.missing[..]), ("unexpected", unexpected)]
        {
            if !names.is_empty() {
                faults.push(format!("{} {kind}: {}", names.len(), listed(names)));
            }
        }
        if faults.is_empty() {
            return None;
        }
        let way_out = match self.part {
            Part::Backbone => "",
            Part::AllButClassifiers => "; ask for the part `backbone` to take the backbone alone",
            Part::Everything => {
                "; ask for the part `backbone` to take the backbone alone (or, in a program, `all-but-classifiers` for \
                 other classes)"
            }
        };
        let (part, scheme, matched) = (self.part.name(), self.scheme.name(), self.matched.len());
        Some(format!("{part}, names as in {scheme}: {matched} tensors fit, but {}{way_out}", faults.join("; ")))
    }
}

impl Part {
    /// Its name on the command line and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Backbone => "backbone",
            Self::AllButClassifiers => "all-but-classifiers",
        }
    }
}

/// How many names of one kind are listed before they are only counted.
const LISTED: usize = 5;

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED { format!("{shown} and {} more", names.len() - LISTED) } else { shown }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source          {}", self.source)?;
        writeln!(f, "SHA-256         {}", self.sha256)?;
        writeln!(f, "names as in     {}", self.scheme.name())?;
        writeln!(f, "part            {}", self.part.name())?;
        writeln!(f, "matched         {:5}", self.matched.len())?;
        let wrong: Vec<String> = self
            .wrong_shape
            .iter()
            .map(|wrong| format!("{} {:?} for {:?}", wrong.theirs, wrong.got, wrong.expected))
            .collect();
        for (kind, names) in [
            ("missing", &self.missing),
            ("wrong shape", &wrong),
            ("unexpected", &self.unexpected),
            ("not asked for", &self.outside),
            ("batch counters", &self.ignored),
        ] {
            let names_shown = if names.is_empty() { String::new() } else { format!("  {}", listed(names)) };
            writeln!(f, "{kind:15} {:5}{names_shown}", names.len())?;
        }
        for note in &self.notes {
            writeln!(f, "note            {note}")?;
        }
        Ok(())
    }
}
