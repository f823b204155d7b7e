//! YAML into data, with the file and the line in what is wrong.

use serde::de::DeserializeOwned;

/// Reads a document; or where it is wrong, as `FILE:LINE`, and why.
pub(crate) fn read<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, (String, String)> {
    serde_saphyr::from_str(text).map_err(|error| {
        let place = match error.location() {
            Some(location) => format!("{file}:{}", location.line()),
            None => file.to_owned(),
        };
        let said = error.without_snippet().to_string();
        let reason = said.lines().next().unwrap_or_default().to_owned();
        (place, reason)
    })
}
