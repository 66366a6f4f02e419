//! SQL expressions over events.
