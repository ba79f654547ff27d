//! Errors of the plugin in the specification's format: JSON on standard output (section 2, "Error").

use serde_json::json;
use std::fmt::Display;

/// The configuration's version is not supported.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// A variable is missing or wrong.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub const IO: u32 = 5;
/// Invalid JSON.
pub const DECODE: u32 = 6;
/// The configuration is invalid.
pub const INVALID_CONFIG: u32 = 7;
/// The caller shall retry.
pub const TRY_AGAIN_LATER: u32 = 11;
/// `STATUS`: no pod can be added.
pub const NOT_AVAILABLE: u32 = 50;
/// First of the plugin's own codes: the agent refused the request.
pub const REFUSED: u32 = 100;

/// Failure of a command.
#[derive(Debug)]
pub struct Failure {
    code: u32,
    text: String,
    details: String,
}

impl Failure {
    /// Creates a failure from its code, the failed operation and the cause.
    pub fn new(code: u32, text: impl Into<String>, details: impl Display) -> Self {
        Self {
            code,
            text: text.into(),
            details: details.to_string(),
        }
    }

    /// The failure as the JSON to print.
    pub fn to_json(&self, version: &str) -> String {
        json!({
            "cniVersion": version, "code": self.code, "msg": format!("egret-cni: {}", self.text), "details": self.details,
        })
        .to_string()
    }
}
