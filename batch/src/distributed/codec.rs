//! How a fold's plan travels: as the files and the metric's definition, from which the other side makes the same plan again.
//!
//! Nothing of DataFusion's own is sent: its decoder trusts what it reads, and panics on a column that is not there.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    common::{DataFusionError, Result, internal_err, not_impl_err},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::{
    bytes::physical_plan_to_bytes_with_proto_converter,
    physical_plan::{
        ComposedPhysicalExtensionCodec, DeduplicatingProtoConverter, PhysicalExtensionCodec,
        PhysicalProtoConverterExtension,
    },
};
use lamina_metric::{Catalog, Metric, Versions};
use serde::{Deserialize, Serialize};

use crate::{
    fold,
    scan::{Piece, Scan},
};

/// What is to be folded, as bytes: postcard.
#[derive(Serialize, Deserialize)]
struct Errand {
    definition: Definition,
    partitions: Vec<Vec<Piece>>,
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

/// Encodes what executors decode to the whole fold of these files.
pub(super) fn encode(scan: Scan) -> Result<Vec<u8>> {
    // The other side asks the library's own codec first and ours second, and is told by number whose a node is.
    let codecs = ComposedPhysicalExtensionCodec::new(vec![Arc::new(Nothing), Arc::new(Codec)]);
    let converter = DeduplicatingProtoConverter::default();
    Ok(physical_plan_to_bytes_with_proto_converter(Arc::new(scan), &codecs, &converter)?.to_vec())
}

pub(super) fn pack(scan: &Scan) -> Result<Vec<u8>> {
    let errand = Errand { definition: Definition::of(&scan.metric)?, partitions: scan.partitions.clone() };
    postcard::to_stdvec(&errand).map_err(external)
}

pub(super) fn unpack(bytes: &[u8]) -> Result<Arc<dyn ExecutionPlan>> {
    let Errand { definition, partitions } = postcard::from_bytes(bytes).map_err(external)?;
    fold::plan(&definition.compile()?, partitions)
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
        if inputs.is_empty() { unpack(bytes) } else { internal_err!("a fold of files over {} plans", inputs.len()) }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(scan) = node.downcast_ref::<Scan>() else {
            return not_impl_err!("{} is not sent to executors", node.name());
        };
        bytes.extend(pack(scan)?);
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
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
