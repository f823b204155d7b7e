//! A real gateway for tests: the built `meshd`, on a port that it chooses itself.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::program;
use crate::kill::wait_until;

/// How long it may take to end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that ends with the test.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    address: SocketAddr,
    admin: Option<SocketAddr>,
}

impl Gateway {
    /// Starts a gateway in front of these engines and reads where it listens.
    pub fn start(targets: &[SocketAddr], more: &[&str]) -> Gateway {
        Gateway::start_through(&[], targets, more)
    }

    /// The same through a program that becomes the gateway by executing its arguments.
    pub fn start_through(through: &[&str], targets: &[SocketAddr], more: &[&str]) -> Gateway {
        let urls: Vec<String> = targets.iter().map(|at| format!("http://{at}")).collect();
        let meshd = program("meshd");
        let mut command = match through {
            [] => Command::new(meshd),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(meshd);
                command
            }
        };
        let mut child = command
            .args(["gateway", "--listen", "127.0.0.1:0", "--target"])
            .args(urls)
            .args(more)
            // It needs neither.
            .env_remove("HOME")
            .env_remove("PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`meshd` is executed");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("the gateway says where it listens");
        let mut addresses = line
            .split("http://")
            .skip(1)
            .map(|rest| rest.trim_end_matches(|letter: char| !letter.is_ascii_digit()))
            .map(|rest| rest.split(',').next().unwrap_or(rest).parse());
        let address = addresses.next().expect("an address").expect("an address");
        let admin = addresses.next().map(|admin| admin.expect("an address"));
        Gateway {
            child,
            address,
            admin,
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its own pages are: at `--admin`, or under `/-/`.
    pub fn pages(&self) -> SocketAddr {
        self.admin.unwrap_or(self.address)
    }

    /// A sample of its metrics page; `series` is the name with its labels.
    pub fn metric(&self, series: &str) -> i64 {
        let (status, page) = crate::http::get(self.pages(), "/-/metrics").expect("a page");
        assert_eq!(status, 200);
        let value = page.lines().find_map(|line| line.strip_prefix(series));
        let value = value.unwrap_or_else(|| panic!("no `{series}` in {page}"));
        value.trim().parse().expect("a number")
    }

    /// Bytes of memory that it holds.
    pub fn memory(&self) -> u64 {
        let file = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(file).expect("the gateway is there");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok())
            .expect("a number")
            * 1024
    }

    /// Tells it to stop; it drains first.
    pub fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("the gateway is there");
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(PATIENCE, || {
            status = self.child.try_wait().expect("our own child");
            status.is_some()
        });
        status.expect("the gateway ends")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
