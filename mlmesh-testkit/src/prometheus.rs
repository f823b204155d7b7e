//! A real Prometheus for tests, that reads one page four times a second.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::http;
use crate::kill::wait_until;

const PATIENCE: Duration = Duration::from_secs(60);

/// Prometheus, which ends with this value.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts it in front of a page; none where the program is not installed.
    pub fn start(page: SocketAddr, path: &str) -> Option<Prometheus> {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = serde_json::json!({
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
            "scrape_configs": [{
                "job_name": "mlmesh",
                "metrics_path": path,
                "static_configs": [{"targets": [page.to_string()]}],
            }],
        });
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, settings.to_string()).expect("written");
        let address = http::free_address();
        let said = std::fs::File::create(folder.path().join("said")).expect("a file");
        let spawned = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("`prometheus` is executed: {error}"),
        };
        let prometheus = Prometheus {
            child,
            address,
            folder,
        };
        wait_until(PATIENCE, || {
            http::get(address, "/-/ready").is_ok_and(|(status, _)| status == 200)
        });
        Some(prometheus)
    }

    /// What an expression is now: a number for each series.
    pub fn query(&self, expression: &str) -> Vec<f64> {
        let path = format!("/api/v1/query?query={}", encoded(expression));
        let (status, body) = http::get(self.address, &path).expect("an answer");
        assert_eq!(status, 200, "{expression}: {body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let series = answer["data"]["result"].as_array().expect("a list");
        let number = |one: &Value| one["value"][1].as_str().and_then(|text| text.parse().ok());
        series.iter().filter_map(number).collect()
    }

    /// What it says on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As a value in a query.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
