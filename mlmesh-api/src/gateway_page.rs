//! Pages of a gateway, which is no daemon: no key, no certificate of a data directory, and
//! nothing but GET.

use std::time::Duration;

use serde_json::Value;

use crate::ClientError;

/// Largest page that is read.
const PAGE_BYTES_MAX: u64 = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Status and body of a page, such as `/-/decisions`, of the gateway at `url`.
pub fn gateway_page(url: &str, path: &str) -> Result<(u16, Value), ClientError> {
    let url = url.trim_end_matches('/');
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(TIMEOUT))
        .user_agent(concat!("ml/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let unreachable = |error: ureq::Error| ClientError::NoGateway {
        url: url.to_owned(),
        reason: error.to_string(),
    };
    let mut answer = agent
        .get(format!("{url}{path}"))
        .call()
        .map_err(unreachable)?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(PAGE_BYTES_MAX);
    let body = body.read_to_vec().map_err(unreachable)?;
    let value = serde_json::from_slice(&body).map_err(|error| ClientError::Answer {
        route: format!("GET {url}{path}"),
        reason: error.to_string(),
    })?;
    Ok((status, value))
}
