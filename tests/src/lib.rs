//! Tests of the whole product in the lab.

pub mod chaos;
