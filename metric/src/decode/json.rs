//! The declared fields of a JSON record, found in one pass; everything else is skipped.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// With `arbitrary_precision`, serde_json shows a number as an object with this key.
const NUMBER: &str = "$serde_json::private::Number";

/// Why a declared name is not usable as a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathError {
    pub(crate) name: String,
    pub(crate) message: String,
}

/// Where the declared fields lie in a record.
#[derive(Debug, Default)]
pub(super) struct Paths {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    /// The field that this value is.
    leaf: Option<usize>,
    keys: BTreeMap<String, Node>,
    items: BTreeMap<usize, Node>,
}

impl Paths {
    /// # Errors
    /// If a name is no path, or one name lies inside another.
    pub(super) fn new(names: &[String]) -> Result<Self, PathError> {
        let mut root = Node::default();
        for (field, name) in names.iter().enumerate() {
            let fail = |message: String| PathError { name: name.clone(), message };
            let mut node = &mut root;
            for step in steps(name).ok_or_else(|| fail(format!("{name:?} is no path; write a.b[0].c")))? {
                if let Some(outer) = node.leaf {
                    return Err(fail(format!("{name} lies inside {}, which is declared as one value", names[outer])));
                }
                node = match step {
                    Step::Key(key) => node.keys.entry(key.to_owned()).or_default(),
                    Step::Item(item) => node.items.entry(item).or_default(),
                };
            }
            if node.leaf.is_some() || !node.keys.is_empty() || !node.items.is_empty() {
                return Err(fail(format!("{name} is declared as one value, but a field inside it is declared too")));
            }
            node.leaf = Some(field);
        }
        Ok(Self { root })
    }

    /// Puts the JSON texts of the declared fields into `found`.
    pub(super) fn read<'a>(&self, record: &'a [u8], found: &mut [Option<Cow<'a, str>>]) -> Result<(), String> {
        let mut json = serde_json::Deserializer::from_slice(record);
        json.deserialize_map(Inside { node: &self.root, found: &mut *found })
            .and_then(|()| json.end())
            .map_err(|error| format!("does not fit as JSON: {error}"))
    }
}

enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

/// `a.b[0].c` in steps; a name without dots and brackets is one key.
fn steps(name: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    for part in name.split('.') {
        let (key, items) = part.split_at(part.find('[').unwrap_or(part.len()));
        if key.is_empty() {
            return None;
        }
        steps.push(Step::Key(key));
        let mut rest = items;
        while !rest.is_empty() {
            let (item, after) = rest.strip_prefix('[')?.split_once(']')?;
            steps.push(Step::Item(item.parse().ok()?));
            rest = after;
        }
    }
    Some(steps)
}

/// A value of which something is declared.
struct Value<'n, 'f, 'a> {
    node: &'n Node,
    found: &'f mut [Option<Cow<'a, str>>],
}

impl<'a> DeserializeSeed<'a> for Value<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        let Some(field) = self.node.leaf else {
            return deserializer.deserialize_any(Inside { node: self.node, found: self.found });
        };
        let raw: &'a RawValue = serde::Deserialize::deserialize(deserializer)?;
        if let Some(place) = self.found.get_mut(field) {
            *place = Some(Cow::Borrowed(raw.get()));
        }
        Ok(())
    }
}

/// The inside of an object or array; of anything else nothing is found.
struct Inside<'n, 'f, 'a> {
    node: &'n Node,
    found: &'f mut [Option<Cow<'a, str>>],
}

impl<'a> Visitor<'a> for Inside<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or array")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(child) = map.next_key_seed(Key(&self.node.keys))? {
            match child {
                Some(node) => map.next_value_seed(Value { node, found: &mut *self.found })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut item = 0;
        loop {
            let more = match self.node.items.get(&item) {
                Some(node) => seq.next_element_seed(Value { node, found: &mut *self.found })?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(());
            }
            item += 1;
        }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A key: the node of that name.
struct Key<'n>(&'n BTreeMap<String, Node>);

impl<'n, 'de> DeserializeSeed<'de> for Key<'n> {
    type Value = Option<&'n Node>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'n> Visitor<'_> for Key<'n> {
    type Value = Option<&'n Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        if key == NUMBER {
            return Err(E::custom("found a number where an object or array is declared"));
        }
        Ok(self.0.get(key))
    }
}
