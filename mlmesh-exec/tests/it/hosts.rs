//! Declared hosts: what is declared is reached by programs that know nothing of
//! it, and nothing else is, by any way that we know of.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use mlmesh_exec::ProcessExecutor;
use mlmesh_model::*;

use crate::process::{kill, supervisor_of};
use crate::support::*;

const PYTHON: &str = "/usr/bin/python3";

/// What every script of a job begins with.
const PRELUDE: &str = "
import os, socket, sys, threading
socket.setdefaulttimeout(30)
def connect(host, port): return socket.create_connection((host, port))
def all_of(s):
    parts = []
    while part := s.recv(1 << 16): parts.append(part)
    return b''.join(parts)
";

struct Doors {
    bench: Bench,
    executor: Arc<ProcessExecutor>,
}

/// `None` where the host cannot do it.
fn doors() -> Option<Doors> {
    let bench = Bench::new();
    let executor = bench.executor();
    able(&executor).then_some(Doors { bench, executor })
}

fn able(executor: &ProcessExecutor) -> bool {
    let abilities = executor.abilities();
    println!("sandbox: {:?}", abilities.sandbox_missing);
    !skip_without(abilities.network_hosts, "sandbox with declared hosts")
        && !skip_without(fs::metadata(PYTHON).is_ok(), "python3 of the system")
}

impl Doors {
    fn spec(&self, hosts: &[String], script: &str) -> StartSpec {
        let script = format!("{PRELUDE}\n{script}");
        let mut spec = self
            .bench
            .spec_in(&[PYTHON, "job.py"], &[("job.py", &script)]);
        spec.placement.sandbox = true;
        edit_plan(&mut spec, |plan| {
            plan.network = PlanNetwork::Hosts(hosts.to_vec())
        });
        spec
    }

    /// Output of a script that ends with code 0, and what it exchanged.
    async fn say(&self, hosts: &[String], script: &str) -> (String, Vec<HostTraffic>) {
        let spec = self.spec(hosts, script);
        let (started, ended) = run(self.executor.as_ref(), &spec).await;
        let text = stdout(self.executor.as_ref(), spec.attempt).await;
        let errors = log(self.executor.as_ref(), spec.attempt, LogStream::Stderr).await;
        assert_eq!(ended.exit, Some(Exit::Code(0)), "{text}\n{errors}");
        assert!(started.isolation.sandboxed && started.isolation.network_enforced);
        assert!(ended.isolation.network_enforced);
        (text, ended.isolation.hosts)
    }
}

/// A server on the loopback of this machine; one thread for each connection.
fn serve(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    serve_at("127.0.0.1:0".parse().unwrap(), answer)
}

fn serve_at(address: SocketAddr, answer: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// Sends back what comes, until nothing more does.
fn echo(mut stream: TcpStream) {
    let mut back = stream.try_clone().unwrap();
    // Whoever breaks off is no failure of the server.
    drop(std::io::copy(&mut stream, &mut back));
    drop(back.shutdown(Shutdown::Write));
}

/// Accepts one connection and gives what `talk` makes of it.
fn once<T: Send + 'static>(
    talk: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let talking = std::thread::spawn(move || talk(listener.accept().unwrap().0));
    (port, talking)
}

fn local(port: u16) -> String {
    format!("localhost:{port}")
}

#[tokio::test]
async fn a_declared_host_is_reached_by_name_and_by_address() {
    let Some(doors) = doors() else { return };
    let port = serve(echo);
    let script = |host: &str| {
        format!(
            "s = connect('{host}', {port}); s.sendall(b'to and fro'); s.shutdown(socket.SHUT_WR); print(all_of(s).decode())"
        )
    };
    let (text, hosts) = doors.say(&[local(port)], &script("localhost")).await;
    assert_eq!(text, "to and fro\n");
    let expected = HostTraffic {
        host: local(port),
        connections: 1,
        refused: 0,
        bytes_sent: 10,
        bytes_received: 10,
    };
    assert_eq!(hosts, [expected]);
    let address = format!("127.0.0.1:{port}");
    let (text, _) = doors.say(&[address], &script("127.0.0.1")).await;
    assert_eq!(text, "to and fro\n");
}

#[tokio::test]
async fn an_ipv6_host_is_reached() {
    let Some(doors) = doors() else { return };
    let address: SocketAddr = "[::1]:0".parse().unwrap();
    if skip_without(TcpListener::bind(address).is_ok(), "IPv6") {
        return;
    }
    let port = serve_at(address, echo);
    let script = format!(
        "s = connect('::1', {port}); s.sendall(b'six'); s.shutdown(socket.SHUT_WR); print(all_of(s))"
    );
    let (text, _) = doors.say(&[format!("[::1]:{port}")], &script).await;
    assert_eq!(text, "b'six'\n");
}

/// An address of the machine that others see, too; none where there is no network.
fn own_address() -> Option<String> {
    // A UDP socket that is connected has sent nothing, and has chosen its address.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().unwrap().ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}

#[tokio::test]
async fn a_declared_address_is_connected_to_as_it_is() {
    let Some(doors) = doors() else { return };
    let Some(address) = own_address() else {
        println!("skipped: this machine has its loopback only");
        return;
    };
    let port = serve_at(format!("{address}:0").parse().unwrap(), echo);
    let script = format!(
        "s = connect('{address}', {port}); s.sendall(b'there'); s.shutdown(socket.SHUT_WR); print(all_of(s))
try: connect('{address}', {port} ^ 1); print('POSSIBLE')
except OSError as e: print(type(e).__name__)"
    );
    let (text, _) = doors.say(&[format!("{address}:{port}")], &script).await;
    assert_eq!(text, "b'there'\nConnectionRefusedError\n");
}

#[tokio::test]
async fn nothing_else_is_reached() {
    let Some(doors) = doors() else { return };
    let declared = serve(echo);
    let other = serve(echo);
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = datagrams.local_addr().unwrap().port();
    // Where the machine's other interfaces lead, the same server listens.
    let outside = own_address().unwrap_or_else(|| "192.0.2.1".to_owned());
    let everywhere = serve_at("0.0.0.0:0".parse().unwrap(), echo);
    let script = format!(
        r#"
import struct
def denied(what, action):
    try: action()
    except OSError as e: print(what, 'denied', file=sys.stderr)
    else: print(what, 'POSSIBLE')
def ask(server):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
    name = b''.join(bytes([len(p)]) + p for p in (b'example', b'org')) + b'\0'
    s.sendto(struct.pack('>6H', 1, 256, 1, 0, 0, 0) + name + struct.pack('>2H', 1, 1), (server, 53))
    s.recv(512)
connect('localhost', {declared}).close()
for host in ('127.0.0.1', 'localhost', '127.77.0.1', '127.0.0.2'):
    denied(host + ' other port', lambda: connect(host, {other}))
denied('another loopback address', lambda: connect('127.0.0.2', {declared}))
denied('own address', lambda: connect('{outside}', {everywhere}))
denied('own address, declared port', lambda: connect('{outside}', {declared}))
denied('address', lambda: connect('192.0.2.1', 443))
denied('address 6', lambda: connect('2001:db8::1', 443))
for name in ('example.org', 'vm', os.uname().nodename + '.local', '{outside}.nip.io'):
    denied('name ' + name, lambda: socket.getaddrinfo(name, 443))
for server in ('127.0.0.1', '127.0.0.53', '192.0.2.1', '{outside}'):
    denied('dns ' + server, lambda: ask(server))
def datagram(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((host, {udp}))
    s.send(b'x'); s.settimeout(1); s.recv(1)
for host in ('127.0.0.1', '{outside}', '255.255.255.255'):
    denied('udp ' + host, lambda: datagram(host))
denied('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
denied('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
def bind(): socket.create_server(('127.0.0.1', {declared}))
denied('the door of another', bind)
denied('write hosts', lambda: open('/etc/hosts', 'a'))
print([name for _, name in socket.if_nameindex()])
print(open('/etc/hosts').read(), end='')
"#
    );
    let (text, _) = doors.say(&[local(declared)], &script).await;
    let expected = "['lo']\n127.0.0.1 localhost mlmesh\n::1 localhost\n";
    assert_eq!(text, expected);
    datagrams.set_nonblocking(true).unwrap();
    assert!(datagrams.recv(&mut [0; 8]).is_err(), "a datagram got out");
}

/// Client and server are Python as it comes; the certificate is checked inside.
#[tokio::test]
async fn tls_stays_between_the_job_and_the_host() {
    let Some(doors) = doors() else { return };
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let certificate = key.cert.pem();
    let both = folder.path().join("both.pem");
    fs::write(&both, key.signing_key.serialize_pem() + &certificate).unwrap();
    let server = "
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(sys.argv[1])
listener = context.wrap_socket(socket.create_server(('127.0.0.1', 0)), server_side=True)
print(listener.getsockname()[1], flush=True)
s, _ = listener.accept(); s.sendall(b'sealed: ' + s.recv(100)); s.close()
";
    let mut server = Command::new(PYTHON)
        .args(["-c", server])
        .arg(&both)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(server.stdout.take().unwrap());
    let mut port = String::new();
    std::io::BufRead::read_line(&mut said, &mut port).unwrap();
    let port: u16 = port.trim().parse().unwrap();
    let script = format!(
        "import ssl
context = ssl.create_default_context(cadata='''{certificate}''')
s = context.wrap_socket(connect('localhost', {port}), server_hostname='localhost')
s.sendall(b'secret'); print(s.version()[:4], s.recv(100))"
    );
    let (text, _) = doors.say(&[local(port)], &script).await;
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(text, "TLSv b'sealed: secret'\n");
}

/// No more than a named number is carried at once; the others wait at their door.
#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let Some(doors) = doors() else { return };
    let counts = Arc::new(Mutex::new((0, 0)));
    let counted = Arc::clone(&counts);
    let port = serve(move |mut stream| {
        {
            let (open, most) = &mut *counted.lock().unwrap();
            *open += 1;
            *most = (*most).max(*open);
        }
        stream.write_all(b"!").unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        stream.write_all(&heard).unwrap();
        counted.lock().unwrap().0 -= 1;
    });
    let script = format!(
        "
all = [connect('localhost', {port}) for _ in range(300)]
greeted = [s.recv(1) for s in all[:256]]
for n, s in enumerate(all):
    s.sendall(b'%d' % n); s.shutdown(socket.SHUT_WR)
    assert all_of(s) == (b'' if n < 256 else b'!') + b'%d' % n, n
    s.close()"
    );
    let (_, hosts) = doors.say(&[local(port)], &script).await;
    assert_eq!(hosts[0].connections, 300);
    assert_eq!(*counts.lock().unwrap(), (0, 256));
}

#[tokio::test]
async fn many_connections_at_once() {
    let Some(doors) = doors() else { return };
    let port = serve(echo);
    let script = format!(
        "
import hashlib
threading.stack_size(256 << 10)
ok = []
def one(n):
    data = hashlib.sha256(str(n).encode()).digest() * (1 + n * 37 % 3000)
    s = connect('localhost', {port})
    t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))); t.start()
    if all_of(s) == data: ok.append(n)
    t.join(); s.close()
all = [threading.Thread(target=one, args=(n,)) for n in range(400)]
for t in all: t.start()
for t in all: t.join()
print(len(ok))"
    );
    let (text, hosts) = doors.say(&[local(port)], &script).await;
    assert_eq!(text, "400\n");
    assert_eq!((hosts[0].connections, hosts[0].refused), (400, 0));
    assert_eq!(hosts[0].bytes_sent, hosts[0].bytes_received);
}

#[tokio::test]
async fn each_side_may_close_its_half() {
    let Some(doors) = doors() else { return };
    let (port, server) = once(|mut stream| {
        stream.write_all(b"all I say").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard.len()
    });
    let script = format!(
        "s = connect('localhost', {port}); print(all_of(s)); s.sendall(b'x' * 3_000_000); s.close()"
    );
    let (text, hosts) = doors.say(&[local(port)], &script).await;
    assert_eq!(text, "b'all I say'\n");
    assert_eq!(server.join().unwrap(), 3_000_000);
    assert_eq!(hosts[0].bytes_sent, 3_000_000);
}

#[tokio::test]
async fn a_host_that_refuses_or_breaks_off_is_no_clean_end() {
    let Some(doors) = doors() else { return };
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let (broken_port, server) = once(|mut stream| {
        stream.write_all(b"half of").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        // What is unread when a socket closes makes it a reset.
        rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    });
    let script = format!(
        "
def end(port, first):
    # A refusal may be quick enough for the connect itself to tell of it.
    try:
        s = connect('localhost', port)
        if first: print(s.recv(7)); s.sendall(b'ok')
        print('clean', all_of(s))
    except ConnectionResetError: print('reset')
end({closed_port}, False)
end({broken_port}, True)"
    );
    let hosts = [local(closed_port), local(broken_port)];
    let (text, hosts) = doors.say(&hosts, &script).await;
    server.join().unwrap();
    assert_eq!(text, "reset\nb'half of'\nreset\n");
    let closed = hosts.iter().find(|host| host.host == local(closed_port));
    let closed = closed.unwrap();
    assert_eq!((closed.connections, closed.refused), (0, 1));
}

/// With a connection of its own the kernel would deliver it, too. The host reads
/// slowly, so that much is on its way when the job ends.
#[tokio::test]
async fn what_was_written_before_the_end_arrives() {
    let Some(doors) = doors() else { return };
    let (port, server) = once(|mut stream| {
        let mut heard = 0;
        let mut piece = vec![0; 64 << 10];
        loop {
            match stream.read(&mut piece).unwrap() {
                0 => break heard,
                length => heard += length,
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    let script =
        format!("s = connect('localhost', {port}); s.sendall(b'x' * 6_000_000); os._exit(0)");
    let (_, hosts) = doors.say(&[local(port)], &script).await;
    assert_eq!(server.join().unwrap(), 6_000_000);
    assert_eq!(hosts[0].bytes_sent, 6_000_000);
}

#[tokio::test]
async fn with_the_supervisor_its_connections_end() {
    let Some(doors) = doors() else { return };
    let (port, server) = once(|mut stream| {
        let mut first = [0; 3];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(b"!").unwrap();
        let rest = stream.read_to_end(&mut Vec::new());
        (first, rest.is_err() || rest.is_ok_and(|length| length == 0))
    });
    let script = format!(
        "s = connect('localhost', {port}); s.sendall(b'one'); s.recv(1); open('up', 'w').write('up\\n'); s.settimeout(None); s.recv(1)"
    );
    let spec = doors.spec(&[local(port)], &script);
    doors.executor.start(spec.clone()).await.unwrap();
    line_in(&doors.bench.work(spec.attempt).join("up")).await;
    let supervisor = supervisor_of(&doors.bench, spec.attempt);
    kill(supervisor["pid"].as_i64().unwrap() as i32);
    assert_eq!(server.join().unwrap(), (*b"one", true));
    let ended = doors.executor.wait(spec.attempt).await.unwrap();
    assert_eq!(ended.cause, Some(Cause::Lost));
}

/// The program of the executor, where names are what `hosts` says.
fn with_names(bench: &Bench, hosts: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let names = bench.dir.path().join("names");
    fs::write(&names, hosts).unwrap();
    let wrapper = bench.dir.path().join("wrapper");
    let namespaces = match rustix::process::geteuid().is_root() {
        true => "--mount",
        false => "--user --map-current-user --keep-caps --mount",
    };
    let text = format!(
        "#!/bin/sh\nexec unshare {namespaces} sh -c \
         'mount --bind {} /etc/hosts && exec {} \"$@\"' names \"$@\"\n",
        names.display(),
        program().display()
    );
    fs::write(&wrapper, text).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    wrapper
}

/// The machine's resolver decides where a name leads, but never to what listens on
/// this machine alone, such as the daemon.
#[tokio::test]
async fn a_name_leads_where_it_resolves_to_but_never_home() {
    let bench = Bench::new();
    let Some(address) = own_address() else {
        println!("skipped: this machine has its loopback only");
        return;
    };
    let names = format!("127.0.0.1 localhost\n{address} data.example\n127.0.0.1 home.example\n");
    let executor = bench.executor_with_program(with_names(&bench, &names));
    if !able(&executor) {
        return;
    }
    let doors = Doors { bench, executor };
    let port = serve_at("0.0.0.0:0".parse().unwrap(), echo);
    let script = format!(
        "
s = connect('data.example', {port}); s.sendall(b'named'); s.shutdown(socket.SHUT_WR); print(all_of(s))
for host in ('home.example', 'absent.example'):
    try: print('POSSIBLE', all_of(connect(host, {port})))
    except ConnectionResetError: print('reset')
try: socket.getaddrinfo('other.example', {port}); print('POSSIBLE')
except OSError: print('unknown')
print(socket.gethostbyname('data.example'))"
    );
    let hosts = ["absent", "data", "home"].map(|name| format!("{name}.example:{port}"));
    let (text, traffic) = doors.say(&hosts, &script).await;
    assert_eq!(text, "b'named'\nreset\nreset\nunknown\n127.77.0.2\n");
    let counts = traffic.iter().map(|host| (host.connections, host.refused));
    assert_eq!(counts.collect::<Vec<_>>(), [(0, 1), (1, 0), (0, 1)]);
}

#[tokio::test]
async fn without_a_sandbox_they_are_recorded_as_not_enforced() {
    let bench = Bench::new();
    let executor = bench.executor();
    let mut spec = bench.spec(&["true"]);
    edit_plan(&mut spec, |plan| {
        plan.network = PlanNetwork::Hosts(vec!["example.org:443".into()])
    });
    let (started, ended) = run(executor.as_ref(), &spec).await;
    assert_eq!(ended.exit, Some(Exit::Code(0)));
    assert!(!started.isolation.network_enforced && !started.isolation.sandboxed);
}
