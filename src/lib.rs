//! The package that puts lamina together: backends and the wiring of the layers.

pub mod backends;
