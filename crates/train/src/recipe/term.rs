//! A term of the objective: a loss, its weight, and how the weight changes.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::Loss;

/// One term of the objective.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    /// λ, the factor before the schedule. Where `share` is stated, only what the first measurement replaces.
    pub weight: f64,
    /// The part of the gradient's norm that the term shall hold, above 0 and below 1; absent: the weight counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The factor on the weight in the course of training.
    #[serde(skip_serializing_if = "TermSchedule::is_constant")]
    pub schedule: TermSchedule,
    /// The loss with its settings.
    #[serde(flatten)]
    pub loss: Loss,
}

impl<'de> Deserialize<'de> for Term {
    /// The keys that every term has are taken out, the rest is the loss: so an unknown key is refused wherever it stands.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = toml::Table::deserialize(deserializer)?;
        let name = table.get("term").and_then(toml::Value::as_str).unwrap_or("term").to_string();
        let inside = |error: toml::de::Error| D::Error::custom(format!("{name}: {}", error.message()));
        let share: Option<f64> = table.remove("share").map(toml::Value::try_into).transpose().map_err(inside)?;
        let schedule = table.remove("schedule").map(toml::Value::try_into).transpose().map_err(inside)?;
        let weight: Option<f64> = table.remove("weight").map(toml::Value::try_into).transpose().map_err(inside)?;
        let loss = toml::Value::Table(table).try_into().map_err(inside)?;
        let weight = match (weight, share) {
            (Some(weight), _) => weight,
            (None, Some(_)) => 1.0,
            (None, None) => return Err(D::Error::custom(format!("{name}: missing field `weight`"))),
        };
        Ok(Self { weight, share, schedule: schedule.unwrap_or_default(), loss })
    }
}

impl Term {
    /// A term of constant weight.
    #[must_use]
    pub fn new(weight: f64, loss: Loss) -> Self {
        Self { weight, share: None, schedule: TermSchedule::Constant {}, loss }
    }

    /// The name in logs and reports, where it is the only one of its loss.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.loss.name()
    }

    /// What is wrong with the term, as key, expected and got.
    pub(super) fn fault(&self) -> Option<(&'static str, String, String)> {
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            return Some(("weight", "a number not below 0".to_string(), self.weight.to_string()));
        }
        if let Some(share) = self.share
            && !(share > 0.0 && share < 1.0)
        {
            return Some(("share", "a number above 0 and below 1".to_string(), share.to_string()));
        }
        self.schedule.fault().or_else(|| self.loss.fault())
    }
}

/// The factor on a term's weight by step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TermSchedule {
    /// Always 1.
    Constant {},
    /// From 1/steps in the first step to 1 in step `steps`, in equal parts; 1 from then on.
    Warmup {
        /// Steps until the full weight.
        steps: u64,
    },
    /// floor + (1 − floor) · (1 − t/until)^power at step t from 0; floor from step `until` on.
    Decay {
        /// Steps until the floor; absent: the whole training.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
        /// The exponent.
        #[serde(default = "linear")]
        power: f64,
        /// The last factor, 0–1.
        #[serde(default)]
        floor: f64,
    },
}

fn linear() -> f64 {
    1.0
}

impl Default for TermSchedule {
    fn default() -> Self {
        Self::Constant {}
    }
}

impl TermSchedule {
    fn is_constant(&self) -> bool {
        matches!(self, Self::Constant {})
    }

    /// The factor at `step` (from 0) of `steps`.
    #[must_use]
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        match *self {
            Self::Constant {} => 1.0,
            Self::Warmup { steps } => ((step + 1) as f64 / steps.max(1) as f64).min(1.0),
            Self::Decay { until, power, floor } => {
                let left = 1.0 - step as f64 / until.unwrap_or(steps).max(1) as f64;
                floor + (1.0 - floor) * left.max(0.0).powf(power)
            }
        }
    }

    fn fault(&self) -> Option<(&'static str, String, String)> {
        match *self {
            Self::Warmup { steps: 0 } => Some(("schedule.steps", "at least 1".to_string(), "0".to_string())),
            Self::Decay { until: Some(0), .. } => Some(("schedule.until", "at least 1".to_string(), "0".to_string())),
            Self::Decay { power, .. } if !(power.is_finite() && power > 0.0) => {
                Some(("schedule.power", "a number above 0".to_string(), power.to_string()))
            }
            Self::Decay { floor, .. } if !(0.0..=1.0).contains(&floor) => {
                Some(("schedule.floor", "a number from 0 to 1".to_string(), floor.to_string()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Preset;

    fn read(text: &str) -> Result<Term, String> {
        toml::from_str::<Term>(text).map_err(|error| error.message().to_string())
    }

    #[test]
    fn common_keys_and_settings_are_told_apart_and_written_as_they_are_read() {
        let term = read(
            "term = \"csd\"\npreset = \"paper_reading\"\nshare = 0.2\nschedule = { kind = \"warmup\", steps = 4 }",
        );
        let term = term.unwrap();
        assert_eq!((term.weight, term.share), (1.0, Some(0.2)));
        assert_eq!(term.loss, Loss::Csd { preset: Preset::PaperReading, temperature: None });
        assert_eq!(read(&toml::to_string(&term).unwrap()).unwrap(), term);
        let ssl = read("term = \"ssl\"\nweight = 1\nlambda = 0.25\nmining = { map = { share = 0.5 } }").unwrap();
        assert_eq!(read(&toml::to_string(&ssl).unwrap()).unwrap(), ssl);
        for (text, culprit) in [
            ("term = \"csd\"\npreset = \"paper_reading\"", "csd: missing field `weight`"),
            ("term = \"csd\"\nweight = 1\npreset = \"paper_reading\"\ntau = 2", "csd: unknown field `tau`"),
            ("term = \"ssl\"\nweight = 1\nlamda = 0.1", "ssl: unknown field `lamda`"),
            ("term = \"kd\"\nweight = 1", "kd: unknown variant `kd`"),
            ("term = \"dist_kd\"\nweight = \"much\"", "dist_kd: invalid type: string"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.starts_with(culprit), "{message}");
        }
    }

    #[test]
    fn schedules_begin_and_end_where_they_say() {
        let warmup = TermSchedule::Warmup { steps: 4 };
        assert_eq!([0, 1, 3, 9].map(|step| warmup.factor(step, 10)), [0.25, 0.5, 1.0, 1.0]);
        let decay = TermSchedule::Decay { until: None, power: 2.0, floor: 0.2 };
        assert_eq!([0, 5, 10].map(|step| decay.factor(step, 10)), [1.0, 0.2 + 0.8 * 0.25, 0.2]);
        let early = TermSchedule::Decay { until: Some(5), power: 1.0, floor: 0.0 };
        assert_eq!([0, 4, 5, 9].map(|step| early.factor(step, 10)), [1.0, 1.0 - 4.0 / 5.0, 0.0, 0.0]);
    }
}
