//! What the terms of the objectives did, for the page.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::journal::Line;
use crate::objective::{median, verdict};

/// A row of the table of terms.
#[derive(Serialize)]
pub(super) struct TermRow {
    role: String,
    name: String,
    /// The last logged value, times its weight.
    weighted: String,
    /// Median over the measurements, percent.
    share: String,
    /// What is to be said about a term that does nothing or everything.
    remark: String,
}

/// A row for each term of each network of which shares were measured.
pub(super) fn rows(lines: &[Line]) -> Vec<TermRow> {
    let mut seen: BTreeMap<(&str, &str), (Vec<f64>, f64)> = BTreeMap::new();
    let mut order = Vec::new();
    for line in lines {
        let Line::Step { role, weighted, shares, .. } = line else { continue };
        if !shares.is_empty() && !order.contains(&role.as_str()) {
            order.push(role.as_str());
        }
        for (name, share) in shares {
            seen.entry((role, name)).or_default().0.push(*share);
        }
        for (name, value) in weighted {
            if let Some((_, last)) = seen.get_mut(&(role.as_str(), name.as_str())) {
                *last = *value;
            }
        }
    }
    let of_role = |role: &str| -> Vec<TermRow> {
        let own = seen.iter().filter(|((of, _), _)| *of == role);
        own.map(|((role, name), (shares, last))| {
            let share = median(shares);
            TermRow {
                role: (*role).to_string(),
                name: (*name).to_string(),
                weighted: format!("{last:.4}"),
                share: format!("{:.2}", 100.0 * share),
                remark: verdict(name, share).unwrap_or_default(),
            }
        })
        .collect()
    };
    order.into_iter().flat_map(of_role).collect()
}
