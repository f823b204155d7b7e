//! A real Triton Inference Server for tests, with a model in Python that doubles numbers. It
//! comes with the packages of the tests' Python environment.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::http::free_address;
use crate::kill::wait_until;

const PORTS_TRIED_MAX: u32 = 5;
const START_MAX: Duration = Duration::from_secs(120);
const STOP_MAX: Duration = Duration::from_secs(60);

/// Below the folder of packages.
const SERVER: &str = "pytriton/tritonserver";

/// The model's name; its input is `IN`, its output `OUT`, both lists of INT32.
pub const MODEL: &str = "double";

const CONFIG: &str = r#"
backend: "python"
max_batch_size: 0
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"#;

const PROGRAM: &str = r#"
import triton_python_backend_utils as backend

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            numbers = backend.get_input_tensor_by_name(request, "IN").as_numpy()
            doubled = backend.Tensor("OUT", numbers * 2)
            answers.append(backend.InferenceResponse([doubled]))
        return answers
"#;

/// A running server, which ends with this value.
#[derive(Debug)]
pub struct TritonServer {
    child: Child,
    /// Where it speaks HTTP, gRPC and of its metrics.
    ports: [SocketAddr; 3],
    _folder: tempfile::TempDir,
}

impl TritonServer {
    /// Starts a server with the environment in this folder and waits until it is ready.
    pub fn start(environment: &Path) -> TritonServer {
        let (packages, version) = packages_and_version(environment);
        let server = packages.join(SERVER);
        let folder = tempfile::Builder::new().prefix("triton").tempdir();
        let folder = folder.expect("a folder for temporary files");
        let backends = backends(folder.path(), &packages, &version).expect("backends");
        let models = models(folder.path()).expect("models");
        for _ in 0..PORTS_TRIED_MAX {
            let ports = [(); 3].map(|()| free_address());
            let said = folder.path().join("said");
            let log = fs::File::create(&said).expect("a log");
            let mut command = Command::new(server.join("bin/tritonserver"));
            command.arg("--model-repository").arg(&models);
            command.arg("--backend-directory").arg(&backends);
            for (name, port) in ["http", "grpc", "metrics"].iter().zip(ports) {
                command.arg(format!("--{name}-address={}", port.ip()));
                command.arg(format!("--{name}-port={}", port.port()));
            }
            let mut child = command
                .env("PYTHONPATH", &packages)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("tritonserver starts");
            let is_up = wait_until(START_MAX, || {
                matches!(child.try_wait(), Ok(Some(_))) || is_ready(ports[0])
            });
            if is_up && matches!(child.try_wait(), Ok(None)) {
                return TritonServer {
                    child,
                    ports,
                    _folder: folder,
                };
            }
            // Somebody else may have taken a port meanwhile.
            stop(&mut child);
            let said = fs::read_to_string(said).unwrap_or_default();
            assert!(
                said.contains("port"),
                "tritonserver did not come up: {said}"
            );
        }
        panic!("no free ports for tritonserver");
    }

    /// Where it speaks HTTP.
    pub fn http(&self) -> SocketAddr {
        self.ports[0]
    }

    /// Where it speaks gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.ports[1]
    }

    /// Where its metrics are.
    pub fn metrics(&self) -> SocketAddr {
        self.ports[2]
    }
}

/// A program `tritonserver` in this folder, for those who look for it by its name, and a
/// repository with the model beside it; its path.
pub fn install(environment: &Path, folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let (packages, version) = packages_and_version(environment);
    fs::create_dir_all(folder).expect("a folder");
    let backends = backends(folder, &packages, &version).expect("backends");
    let models = models(folder).expect("models");
    let text = format!(
        "#!/bin/sh\nexport PYTHONPATH='{}' PYTHONDONTWRITEBYTECODE=1\n\
         exec '{}' --backend-directory='{}' \"$@\"\n",
        packages.display(),
        packages.join(SERVER).join("bin/tritonserver").display(),
        backends.display()
    );
    let program = folder.join("tritonserver");
    fs::write(&program, text).expect("a program");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&program, mode).expect("its mode");
    models
}

fn packages_and_version(environment: &Path) -> (PathBuf, String) {
    let packages = packages(environment);
    let version = packages.parent().and_then(Path::file_name);
    let version = version.and_then(|name| name.to_str()?.strip_prefix("python"));
    let version = version.expect("a folder of a version of Python").to_owned();
    (packages, version)
}

impl Drop for TritonServer {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Lets it end its models' processes and remove their shared memory.
fn stop(child: &mut Child) {
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    wait_until(STOP_MAX, || !matches!(child.try_wait(), Ok(None)));
    let _ = child.kill();
    let _ = child.wait();
}

/// The folder of an environment's packages.
fn packages(environment: &Path) -> PathBuf {
    let output = Command::new(environment.join("bin/python"))
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
        ])
        .output()
        .expect("the environment has Python");
    let text = String::from_utf8(output.stdout).expect("a path");
    let packages = PathBuf::from(text.trim());
    match packages
        .file_name()
        .is_some_and(|name| name == "site-packages")
    {
        true => packages,
        false => panic!("`{text}` is no folder of packages"),
    }
}

/// The backend for Python with what belongs to this version of it, beside the wheel's own
/// files, which stay as they are.
fn backends(folder: &Path, packages: &Path, version: &str) -> std::io::Result<PathBuf> {
    let backends = folder.join(SERVER).join("backends");
    let python = backends.join("python");
    let server = packages.join(SERVER);
    fs::create_dir_all(&python)?;
    for entry in fs::read_dir(server.join("backends/python"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), python.join(entry.file_name()))?;
        }
    }
    // What they are linked with is looked for from where they lie.
    const LIBRARIES: &str = "nvidia_pytriton.libs";
    symlink(packages.join(LIBRARIES), folder.join(LIBRARIES))?;
    let stub = "triton_python_backend_stub";
    let built = server.join("python_backend_stubs").join(version).join(stub);
    fs::copy(built, python.join(stub))?;
    Ok(backends)
}

fn models(folder: &Path) -> std::io::Result<PathBuf> {
    let models = folder.join("models");
    let model = models.join(MODEL);
    fs::create_dir_all(model.join("1"))?;
    fs::write(
        model.join("config.pbtxt"),
        format!("name: \"{MODEL}\"{CONFIG}"),
    )?;
    fs::write(model.join("1/model.py"), PROGRAM)?;
    Ok(models)
}

fn is_ready(http: SocketAddr) -> bool {
    let path = format!("/v2/models/{MODEL}/ready");
    crate::http::get(http, &path).is_ok_and(|(status, _)| status == 200)
}
