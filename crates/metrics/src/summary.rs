//! The figures of one evaluation, as they are printed and stored.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::{AbsentClass, ConfusionMatrix, Error, Result};

/// The figures of one evaluation: fractions 0 to 1, `None` (JSON `null`) where there was nothing to measure.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Mean IoU over the classes that occur in labels or predictions ([`AbsentClass::Skip`]).
    pub miou: Option<f64>,
    /// Share of the counted pixels whose prediction is right.
    pub pixel_accuracy: Option<f64>,
    /// Mean recall over the classes that occur in the labels.
    pub mean_accuracy: Option<f64>,
    /// IoU weighted by the classes' shares of the labelled pixels.
    pub frequency_weighted_iou: Option<f64>,
    /// IoU by class name, in class order.
    pub iou: ClassValues,
}

/// One value per class, in class order; in JSON an object from name to number or `null`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassValues(pub Vec<(String, Option<f64>)>);

impl ClassValues {
    /// The value of the class with this name; `None` both where it has none and where there is no such class.
    #[must_use]
    pub fn get(&self, class_name: &str) -> Option<f64> {
        self.0.iter().find(|(name, _)| name == class_name).and_then(|(_, value)| *value)
    }
}

impl ConfusionMatrix {
    /// The figures of this matrix, with the classes' names in the order of their ids.
    ///
    /// # Errors
    /// NameCount where there are not as many names as classes; NameTwice where two are equal.
    pub fn summary<Name: AsRef<str>>(&self, class_names: &[Name]) -> Result<Summary> {
        if class_names.len() != self.num_classes() {
            return Err(Error::NameCount { expected: self.num_classes(), got: class_names.len() });
        }
        let names: Vec<&str> = class_names.iter().map(AsRef::as_ref).collect();
        if let Some((_, name)) = names.iter().enumerate().find(|&(index, name)| names[..index].contains(name)) {
            return Err(Error::NameTwice { name: (*name).to_string() });
        }
        Ok(Summary {
            miou: self.miou(AbsentClass::Skip),
            pixel_accuracy: self.pixel_accuracy(),
            mean_accuracy: self.mean_accuracy(),
            frequency_weighted_iou: self.frequency_weighted_iou(),
            iou: ClassValues(names.into_iter().map(str::to_string).zip(self.iou()).collect()),
        })
    }
}

impl Serialize for ClassValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for ClassValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = ClassValues;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from class name to a number or null")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<ClassValues, A::Error> {
                let mut values = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    values.push(entry);
                }
                Ok(ClassValues(values))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
