//! Simulated engines for tests: the built `ml sim serve`, on ports that it chooses.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::daemon::program;

/// Engines that end with this value.
#[derive(Debug)]
pub struct SimEngines {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl SimEngines {
    /// Starts so many and reads where they listen.
    pub fn start(engines: u16, more: &[&str]) -> SimEngines {
        let mut child = Command::new(program("ml"))
            .args(["sim", "serve", "--listen", "127.0.0.1:0", "--engines"])
            .arg(engines.to_string())
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`ml` is executed");
        let output = child.stdout.take().expect("a pipe");
        let lines = BufReader::new(output).lines().take(engines.into());
        let address = |line: std::io::Result<String>| {
            let line = line.expect("a line for each engine");
            let address = line.strip_prefix("http://").expect("a URL");
            address.parse().expect("an address")
        };
        let addresses = lines.map(address).collect();
        SimEngines { child, addresses }
    }

    /// Where each answers.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A sample of an engine's page; `series` is the name, with labels beside the model
    /// and the engine.
    pub fn metric(&self, engine: usize, name: &str, labels: &str) -> f64 {
        let (status, page) = crate::http::get(self.addresses[engine], "/metrics").expect("a page");
        assert_eq!(status, 200);
        let series = format!("{name}{{model_name=\"sim\",engine=\"{engine}\"{labels}}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&series));
        let value = value.unwrap_or_else(|| panic!("no `{series}` in {page}"));
        value.parse().expect("a number")
    }
}

impl Drop for SimEngines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
