//! The filter's language over the events of a source, instead of over series.

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    datatypes::SchemaRef,
};

use super::{SeriesFilter, readable};
use crate::{metric::Dimension, source::Source};

/// A boolean filter over a source's fields and derived columns; only TRUE passes.
#[derive(Clone, Debug)]
pub struct EventFilter(SeriesFilter);

impl EventFilter {
    /// # Errors
    /// If the text is not a condition over the source's columns; says what is wrong and what is allowed.
    pub fn parse(sql: &str, source: &Source) -> Result<Self, String> {
        let schema = source.schema();
        let own = |name: &str| !name.starts_with('_');
        let columns = schema.fields().iter().filter(|field| own(field.name()));
        let columns =
            columns.map(|field| Dimension { name: field.name().clone(), data_type: field.data_type().clone() });
        let filter = SeriesFilter::over(sql, &columns.collect::<Vec<_>>())?;
        if filter.columns.is_empty() {
            return Err("the filter names no field, so it would be the same for all events".to_owned());
        }
        Ok(Self(filter))
    }

    /// Which events pass, of a batch with the source's columns.
    ///
    /// # Errors
    /// If a column is missing, or the condition fails on a value.
    pub fn mask(&self, events: &RecordBatch) -> Result<BooleanArray, String> {
        let SeriesFilter { schema, condition, .. } = &self.0;
        let column =
            |name: &String| events.column_by_name(name).cloned().ok_or_else(|| format!("there is no column {name}"));
        let columns = schema.fields().iter().map(|field| column(field.name())).collect::<Result<Vec<_>, _>>()?;
        let columns = RecordBatch::try_new(SchemaRef::clone(schema), columns).map_err(readable)?;
        let passed = condition.evaluate(&columns).and_then(|value| value.into_array(events.num_rows()));
        let passed = passed.map_err(readable)?;
        Ok(match passed.as_boolean_opt() {
            Some(passed) => passed.iter().map(|pass| Some(pass == Some(true))).collect(),
            // The condition is NULL whatever the event.
            None => BooleanArray::from(vec![false; events.num_rows()]),
        })
    }
}
