//! Min and max by value, first and last by moment.
//!
//! Values are kept as i128 whatever their type: integers and unscaled decimals as they are, floats mapped so that the
//! integers sort as the floats do (see [`super::inputs`]).

use serde::{Deserialize, Serialize};

use super::{Cell, Kind};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Min(pub(crate) Option<i128>);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Max(pub(crate) Option<i128>);

impl Min {
    pub(crate) fn add(&mut self, value: i128) {
        self.0 = Some(self.0.map_or(value, |least| least.min(value)));
    }
}

impl Max {
    pub(crate) fn add(&mut self, value: i128) {
        // `None` sorts before every value.
        self.0 = self.0.max(Some(value));
    }
}

impl Cell for Min {
    fn empty(_: &Kind) -> Self {
        Self(None)
    }

    fn merge(&mut self, other: &Self) {
        if let Some(value) = other.0 {
            self.add(value);
        }
    }
}

impl Cell for Max {
    fn empty(_: &Kind) -> Self {
        Self(None)
    }

    fn merge(&mut self, other: &Self) {
        self.0 = self.0.max(other.0);
    }
}

/// What the source's `order` field says of an event. Null sorts before every value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum OrderKey {
    Null,
    Number(i128),
    Text(Box<str>),
}

/// Where an event stands among the others, and its value. The order of the fields is the order of events: event time,
/// then the source's order field, then the place in the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Moment {
    pub(crate) time: i64,
    pub(crate) order: OrderKey,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) value: i128,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct First(pub(crate) Option<Box<Moment>>);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Last(pub(crate) Option<Box<Moment>>);

impl First {
    /// Whether an event of this time could be the first; spares making its whole moment.
    pub(crate) fn may_take(&self, time: i64) -> bool {
        self.0.as_ref().is_none_or(|kept| time <= kept.time)
    }

    pub(crate) fn add(&mut self, moment: Moment) {
        match &mut self.0 {
            Some(kept) if **kept <= moment => {}
            Some(kept) => **kept = moment,
            None => self.0 = Some(Box::new(moment)),
        }
    }
}

impl Last {
    pub(crate) fn may_take(&self, time: i64) -> bool {
        self.0.as_ref().is_none_or(|kept| time >= kept.time)
    }

    pub(crate) fn add(&mut self, moment: Moment) {
        match &mut self.0 {
            Some(kept) if **kept >= moment => {}
            Some(kept) => **kept = moment,
            None => self.0 = Some(Box::new(moment)),
        }
    }
}

impl Cell for First {
    fn empty(_: &Kind) -> Self {
        Self(None)
    }

    fn merge(&mut self, other: &Self) {
        if let Some(moment) = &other.0 {
            self.add((**moment).clone());
        }
    }

    fn heap(&self) -> usize {
        heap(self.0.as_deref())
    }
}

impl Cell for Last {
    fn empty(_: &Kind) -> Self {
        Self(None)
    }

    fn merge(&mut self, other: &Self) {
        if let Some(moment) = &other.0 {
            self.add((**moment).clone());
        }
    }

    fn heap(&self) -> usize {
        heap(self.0.as_deref())
    }
}

fn heap(moment: Option<&Moment>) -> usize {
    moment
        .map_or(0, |moment| size_of::<Moment>() + if let OrderKey::Text(text) = &moment.order { text.len() } else { 0 })
}
