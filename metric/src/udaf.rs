//! The metric's fold as a DataFusion aggregate, for batch: the same states from the same rows as the speed layer's fold.
//!
//! Partial results and the final one are the same: the encoded states of one row, as Binary.

use std::{hash::Hash, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray},
    compute::{filter, prep_null_mask_filter},
    datatypes::{DataType, Field, FieldRef},
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
};

use crate::{
    metric::Metric,
    state::{Inputs, Layout, Number, States},
};

/// An aggregate over the columns `_partition, _offset, _time, _order, v?, x0..` of prepared rows. It gives Binary that
/// [`States::decode_row`] reads: the states of one row.
pub fn states_udaf(metric: &Metric) -> AggregateUDF {
    udaf(Layout::of(metric))
}

pub(crate) fn udaf(layout: Layout) -> AggregateUDF {
    let arguments = 4 + usize::from(layout.number != Number::None) + layout.texts();
    AggregateUDF::new_from_impl(StatesUdaf { layout, signature: Signature::any(arguments, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct StatesUdaf {
    layout: Layout,
    signature: Signature,
}

impl AggregateUDFImpl for StatesUdaf {
    fn name(&self) -> &str {
        "lamina_states"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let mut states = States::new(&self.layout);
        states.resize(1);
        Ok(Box::new(One(states)))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[states]", args.name), DataType::Binary, true))])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Many(States::new(&self.layout))))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// States without groups.
#[derive(Debug)]
struct One(States);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = values.first().map_or(0, |array| array.len());
        fold(&mut self.0, values, &vec![0; rows])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Binary(Some(self.0.encode_row(0, Vec::new()).map_err(external)?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.0.bytes()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |array| array.len());
        merge(&mut self.0, states, &vec![0; rows])
    }
}

/// States of many groups, all in one [`States`].
struct Many(States);

impl GroupsAccumulator for Many {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        opt_filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.0.resize(total);
        let Some(mask) = opt_filter else { return fold(&mut self.0, values, groups) };
        let mask = if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() };
        let kept = values.iter().map(|array| filter(array, &mask)).collect::<Result<Vec<_>, _>>()?;
        let groups: Vec<usize> = mask.values().set_indices().map(|row| groups[row]).collect();
        fold(&mut self.0, &kept, &groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let emit = match emit_to {
            EmitTo::All => self.0.len(),
            EmitTo::First(n) => n.min(self.0.len()),
        };
        let (mut encoded, mut bytes) = (BinaryBuilder::new(), Vec::new());
        for row in 0..emit {
            bytes.clear();
            bytes = self.0.encode_row(row, bytes).map_err(external)?;
            encoded.append_value(&bytes);
        }
        self.0.drop_first(emit);
        Ok(Arc::new(encoded.finish()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.0.resize(total);
        merge(&mut self.0, values, groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |array| array.len());
        let mut each = Self(States::new(self.0.layout()));
        let groups: Vec<usize> = (0..rows).collect();
        each.update_batch(values, &groups, opt_filter, rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.0.bytes()
    }
}

fn fold(states: &mut States, values: &[ArrayRef], groups: &[usize]) -> Result<()> {
    let inputs = Inputs::of_arrays(states.layout(), values, groups.len()).map_err(external)?;
    states.fold(&inputs, groups).map_err(external)
}

fn merge(states: &mut States, encoded: &[ArrayRef], groups: &[usize]) -> Result<()> {
    let column = encoded.first().and_then(|array| array.as_binary_opt::<i32>());
    let column = column.ok_or_else(|| DataFusionError::Internal("partial states must be binary".to_owned()))?;
    let (mut each, mut into) = (States::new(states.layout()), Vec::with_capacity(groups.len()));
    for (bytes, &group) in column.iter().zip(groups) {
        if let Some(bytes) = bytes {
            each.decode_row(bytes).map_err(external)?;
            into.push(group);
        }
    }
    states.merge(&each, &into).map_err(external)
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

#[cfg(test)]
mod tests;
