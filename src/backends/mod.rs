//! The log and the view store, each implemented more than once behind the traits of `lamina-core`.

pub mod archive;
pub mod cassandra;
pub mod embedded;
pub mod kafka;
