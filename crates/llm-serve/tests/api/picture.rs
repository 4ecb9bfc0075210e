//! Pictures of pages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::browser::Browser;

impl Browser {
    /// Writes a picture into the folder that `LLM_SERVE_SCREENSHOTS` names.
    pub fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("LLM_SERVE_SCREENSHOTS") else { return };
        let picture = self.call("Page.captureScreenshot", json!({}));
        let bytes = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}.png")), bytes).unwrap();
    }
}
