//! cluster

pub mod placement;
