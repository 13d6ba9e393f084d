//! What one session owns in a browser that others use too.
//!
//! Owns: the names of its BrowserContexts and the folder that its downloads go to. Never talks to the
//! browser.

use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub struct Jail {
    context: String,
    downloads: PathBuf,
}

impl Jail {
    /// The session of one BrowserContext, whose downloads go to a folder of its own.
    pub fn new(context: String, downloads: PathBuf) -> Jail {
        Jail { context, downloads }
    }

    /// The id of its BrowserContext.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Whether a BrowserContext is its own.
    pub fn owns(&self, context: &str) -> bool {
        self.context == context
    }

    /// Where its downloads go.
    pub fn downloads(&self) -> &Path {
        &self.downloads
    }
}
