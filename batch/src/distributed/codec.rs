//! How a fold's plan travels: our two nodes and our aggregate; DataFusion's own nodes travel by themselves.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::{DataFusionError, Result, internal_err, not_impl_err},
    execution::TaskContext,
    functions_aggregate::min_max::min_udaf,
    logical_expr::AggregateUDF,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::{
    bytes::physical_plan_to_bytes_with_proto_converter,
    physical_plan::{
        ComposedPhysicalExtensionCodec, DeduplicatingProtoConverter, PhysicalExtensionCodec,
        PhysicalProtoConverterExtension,
    },
};
use lamina_metric::{Catalog, Metric, Versions, udaf};
use serde::{Deserialize, Serialize};

use crate::{
    report::Report,
    scan::{Piece, Scan},
};

/// A node as bytes: postcard.
#[derive(Serialize, Deserialize)]
enum Node {
    Report,
    Scan { definition: Definition, partitions: Vec<Vec<Piece>> },
}

/// A metric and its source, to be compiled again.
#[derive(Serialize, Deserialize)]
struct Definition {
    metric: String,
    /// As [`Catalog::compile`] takes it.
    text: String,
    version: u32,
    since: u64,
}

impl Definition {
    fn of(metric: &Metric) -> Result<Self> {
        let source = &metric.source;
        let text = source.definition.to_toml(&source.name).map_err(external)?
            + &metric.definition.to_toml(&metric.name).map_err(external)?;
        Ok(Self { metric: metric.name.clone(), text, version: metric.version, since: metric.since })
    }

    fn compile(self) -> Result<Arc<Metric>> {
        let Self { metric, text, version, since } = self;
        let versions = Versions { revision: since, metrics: BTreeMap::from([(metric.clone(), (version, since))]) };
        let compiled = Catalog::compile(&[("the leader's definition".to_owned(), text)], &versions);
        let compiled = compiled.map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            DataFusionError::Plan(problems.join("\n"))
        })?;
        let unnamed = || DataFusionError::Plan(format!("the leader's definition has no metric {metric}"));
        compiled.metrics.get(&metric).cloned().ok_or_else(unnamed)
    }
}

/// Encodes a plan as executors decode it.
pub(super) fn encode(plan: Arc<dyn ExecutionPlan>) -> Result<Vec<u8>> {
    // The library's own codec comes first on the other side, and would here take every aggregate for its own.
    let codecs = ComposedPhysicalExtensionCodec::new(vec![Arc::new(Nothing), Arc::new(Codec)]);
    let converter = DeduplicatingProtoConverter::default();
    Ok(physical_plan_to_bytes_with_proto_converter(plan, &codecs, &converter)?.to_vec())
}

#[derive(Debug)]
pub(super) struct Codec;

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (postcard::from_bytes(bytes).map_err(external)?, inputs) {
            (Node::Report, [fold]) => Ok(Arc::new(Report::over(Arc::clone(fold))?)),
            (Node::Scan { definition, partitions }, []) => Ok(Arc::new(Scan::new(definition.compile()?, partitions))),
            (Node::Report | Node::Scan { .. }, inputs) => {
                internal_err!("a node of lamina's over {} plans", inputs.len())
            }
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let node = if node.is::<Report>() {
            Node::Report
        } else if let Some(scan) = node.downcast_ref::<Scan>() {
            Node::Scan { definition: Definition::of(&scan.metric)?, partitions: scan.partitions.clone() }
        } else {
            return not_impl_err!("{} is no node of lamina's", node.name());
        };
        bytes.extend(postcard::to_stdvec(&node).map_err(external)?);
        Ok(())
    }

    fn try_decode_udaf(&self, name: &str, bytes: &[u8]) -> Result<Arc<AggregateUDF>> {
        if bytes.is_empty() && name == min_udaf().name() {
            return Ok(min_udaf());
        }
        Ok(Arc::new(udaf::udaf(postcard::from_bytes(bytes).map_err(external)?)))
    }

    fn try_encode_udaf(&self, function: &AggregateUDF, bytes: &mut Vec<u8>) -> Result<()> {
        if let Some(layout) = udaf::layout_of(function) {
            bytes.extend(postcard::to_stdvec(layout).map_err(external)?);
        }
        Ok(())
    }
}

/// Stands where the other side has the library's own codec, and takes nothing.
#[derive(Debug)]
struct Nothing;

impl PhysicalExtensionCodec for Nothing {
    fn try_decode(
        &self,
        _: &[u8],
        _: &[Arc<dyn ExecutionPlan>],
        _: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        not_impl_err!("nothing is decoded here")
    }

    fn try_encode(
        &self,
        _: Arc<dyn ExecutionPlan>,
        _: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        not_impl_err!("another codec's")
    }

    fn try_encode_udaf(&self, _: &AggregateUDF, _: &mut Vec<u8>) -> Result<()> {
        not_impl_err!("another codec's")
    }
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
