//! The sandbox: what a job in it can do, and every way out that we know of,
//! tried from inside.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;

use mlmesh_exec::ProcessExecutor;
use mlmesh_model::*;

use crate::support::*;

struct Walled {
    bench: Bench,
    executor: Arc<ProcessExecutor>,
}

/// `None` where the host cannot do it.
fn walled() -> Option<Walled> {
    let bench = Bench::new();
    let executor = bench.executor();
    let abilities = executor.abilities();
    println!("sandbox: {:?}", abilities.sandbox_missing);
    let missing = skip_without(abilities.sandbox, "sandbox");
    (!missing).then_some(Walled { bench, executor })
}

impl Walled {
    fn spec(&self, script: &str) -> StartSpec {
        let mut spec = self.bench.spec(&["sh", "-c", script]);
        spec.placement.sandbox = true;
        edit_plan(&mut spec, |plan| plan.network = PlanNetwork::None);
        spec
    }

    /// Output of a script, which must end with code 0.
    async fn say(&self, script: &str) -> String {
        self.say_spec(&self.spec(script)).await
    }

    async fn say_spec(&self, spec: &StartSpec) -> String {
        let (_, ended) = run(self.executor.as_ref(), spec).await;
        let text = stdout(self.executor.as_ref(), spec.attempt).await;
        let errors = log(self.executor.as_ref(), spec.attempt, LogStream::Stderr).await;
        assert_eq!(ended.exit, Some(Exit::Code(0)), "{text}\n{errors}");
        text
    }

    /// Each of these commands must fail inside.
    async fn denied(&self, commands: &[&str]) {
        for command in commands {
            let script = format!(
                "if ( {command} ) >/dev/null 2>&1; then echo POSSIBLE; else echo denied; fi"
            );
            assert_eq!(
                self.say(&script).await,
                "denied\n",
                "possible inside: {command}"
            );
        }
    }
}

#[tokio::test]
async fn a_job_has_what_it_needs() {
    let Some(walled) = walled() else { return };
    let mut spec = walled.spec(
        "set -e; pwd; id -u; id -un; echo $HOME; echo x > $HOME/x; echo x > /tmp/x; echo x > made; \
         echo x > $MLMESH_OUTPUT_DIR/o; echo x > $MLMESH_CHECKPOINT_DIR/c; cat data/digits; \
         echo x > /dev/null; head -c 1 /dev/urandom | wc -c; echo x > /dev/shm/x; hostname; ls /dev/fd/ > /dev/null; \
         cat /etc/passwd; test -r /etc/ld.so.cache; test ! -e /etc/shadow; test -r /proc/cpuinfo",
    );
    let (dataset, _) = walled.bench.dataset("digits", "1 2 3\n");
    add_dataset(&mut spec, &dataset, "data/digits");
    let text = walled.say_spec(&spec).await;
    let expected = "/mlmesh/work\n1000\njob\n/mlmesh/home\n1 2 3\n1\nmlmesh\njob:x:1000:1000::/mlmesh/home:/bin/sh\n";
    assert_eq!(text, expected);
    let work = walled.bench.work(spec.attempt);
    assert_eq!(fs::read_to_string(work.join("made")).unwrap(), "x\n");
    let checkpoint = walled
        .bench
        .attempt_dir(spec.attempt)
        .with_file_name("checkpoints/c");
    assert_eq!(fs::read_to_string(checkpoint).unwrap(), "x\n");
    let plan = spec.plan.clone();
    let collected = walled.executor.collect(spec.attempt, plan).await.unwrap();
    // The dataset's place in the working directory is no output.
    assert_eq!(collected.files.len(), 1);
    walled.executor.discard(spec.attempt).await.unwrap();
    assert!(!work.exists());
}

#[tokio::test]
async fn what_it_had_is_recorded() {
    let Some(walled) = walled() else { return };
    let spec = walled.spec("exit 5");
    let (started, ended) = run(walled.executor.as_ref(), &spec).await;
    assert_eq!(ended.exit, Some(Exit::Code(5)));
    let isolation = started.isolation;
    assert!(isolation.sandboxed && isolation.network_enforced);
    assert_eq!(
        isolation.namespaces,
        ["user", "mount", "pid", "net", "ipc", "uts"]
    );
    let (_, ended) = run(walled.executor.as_ref(), &walled.spec("kill -KILL $$")).await;
    assert_eq!(ended.exit, Some(Exit::Signal(9)));
    assert_eq!(ended.cause, Some(Cause::Signal));
    let mut spec = walled.spec("");
    edit_plan(&mut spec, |plan| plan.argv = vec!["no-such-program".into()]);
    let error = walled.executor.start(spec).await.unwrap_err();
    assert_eq!(error.cause, Cause::CommandNotFound, "{error}");
}

#[tokio::test]
async fn stop_and_grandchildren_inside() {
    let Some(walled) = walled() else { return };
    let spec = walled.spec("trap 'echo bye; exit 0' TERM; setsid sleep 1000 & echo up > up; while :; do sleep 0.01; done");
    walled.executor.start(spec.clone()).await.unwrap();
    line_in(&walled.bench.work(spec.attempt).join("up")).await;
    let stop = walled.executor.stop(spec.attempt, Cause::Cancelled, 20_000);
    stop.await.unwrap();
    let ended = walled.executor.wait(spec.attempt).await.unwrap();
    assert_eq!(
        (ended.cause, ended.exit),
        (Some(Cause::Cancelled), Some(Exit::Code(0)))
    );
    assert_eq!(
        stdout(walled.executor.as_ref(), spec.attempt).await,
        "bye\n"
    );
}

/// Under load a sandbox's first process was faster than the launcher that tells of
/// it; the launcher's end was then taken for the command's.
#[tokio::test]
async fn many_at_once_end_with_their_own_ends() {
    let Some(walled) = walled() else { return };
    let mut runs = tokio::task::JoinSet::new();
    for code in 1..=40 {
        let spec = walled.spec(&format!("echo {code}; exit {code}"));
        let executor = Arc::clone(&walled.executor);
        runs.spawn(async move {
            let (_, ended) = run(executor.as_ref(), &spec).await;
            let text = stdout(executor.as_ref(), spec.attempt).await;
            (code, ended.exit, text)
        });
    }
    while let Some(done) = runs.join_next().await {
        let (code, exit, text) = done.unwrap();
        assert_eq!(exit, Some(Exit::Code(code)));
        assert_eq!(text, format!("{code}\n"));
    }
}

#[tokio::test]
async fn files_of_the_host_are_out_of_reach() {
    let Some(walled) = walled() else { return };
    let other = walled.bench.spec(&["sh", "-c", "echo secret > secret"]);
    run(walled.executor.as_ref(), &other).await;
    let data = walled.bench.dir.path().display().to_string();
    let secret = walled.bench.work(other.attempt).join("secret");
    assert!(secret.exists());
    let commands = [
        format!("cat {data}/owner.key"),
        format!("ls {data}/data"),
        format!("cat {}", secret.display()),
        "ls /root".to_owned(),
        "ls /home".to_owned(),
        "cat /etc/shadow".to_owned(),
        format!("cat /proc/1/root{data}/owner.key"),
        format!("cat /proc/1/cwd/..{data}/owner.key"),
        "ls -d /proc/1/root/root".to_owned(),
        "cat ../../root/.bashrc".to_owned(),
        "cat ../journal".to_owned(),
    ];
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    walled.denied(&commands).await;
}

#[tokio::test]
async fn nothing_of_the_system_is_writable() {
    let Some(walled) = walled() else { return };
    walled
        .denied(&[
            "echo x > /usr/bin/evil",
            "echo x > /etc/passwd",
            "echo x > /etc/ld.so.cache",
            "mkdir /new",
            "mkdir /usr/new",
            "mkdir /dev/new",
            "echo x > /bin/sh",
            "echo 0 > /proc/sys/kernel/randomize_va_space",
            "echo x > /proc/sys/kernel/core_pattern",
            "echo x > /proc/sys/user/max_user_namespaces",
            "echo h > /proc/sysrq-trigger",
            "echo x > /sys/devices/system/cpu/cpu0/online",
            "echo -1000 > /proc/self/oom_score_adj",
            "test -s /proc/kcore",
            "test -s /proc/keys",
            "ls /sys/fs/cgroup",
        ])
        .await;
}

/// No descriptor of ours is open in a job: the streams, and the listing's own.
#[tokio::test]
async fn no_descriptor_leaks() {
    let Some(walled) = walled() else { return };
    // A descriptor that the daemon was given and passes on, as shells leave some.
    let folder = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&folder, rustix::io::FdFlags::empty()).unwrap();
    let script = "ls /proc/self/fd; readlink /proc/self/fd/0";
    assert_eq!(walled.say(script).await, "0\n1\n2\n3\n/dev/null\n");
    let spec = walled.bench.spec(&["ls", "/proc/self/fd"]);
    assert_eq!(walled.say_spec(&spec).await, "0\n1\n2\n3\n");
}

#[tokio::test]
async fn no_way_to_more_rights() {
    let Some(walled) = walled() else { return };
    walled
        .denied(&[
            "mount -o remount,rw /usr",
            "mount -o remount,bind,rw /usr",
            "mount -t tmpfs none /tmp",
            "mount --bind /usr /tmp",
            "umount /usr",
            "umount /proc",
            "mknod /tmp/disk b 8 0",
            "mknod /tmp/null c 1 3",
            "chroot / true",
            "chown 0:0 /tmp",
            "unshare -U true",
            "unshare -m true",
            "unshare -r true",
            "nsenter -t 1 -m true",
            "hostname other",
            "date -s 2001-01-01",
            "cat /proc/1/environ",
            "readlink /proc/1/fd/0",
            "cat /proc/1/maps",
        ])
        .await;
    let status = walled.say("cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {status}"))
            .trim()
            .to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Uid:"), "1000\t1000\t1000\t1000");
    assert_eq!(field("Groups:"), "");
}

#[tokio::test]
async fn processes_of_the_host_are_out_of_reach() {
    let Some(walled) = walled() else { return };
    let victim = std::process::Command::new("sleep").arg("1000").spawn();
    let mut victim = victim.unwrap();
    let pid = victim.id();
    walled
        .denied(&[
            &format!("kill -9 {pid}"),
            &format!("ls -d /proc/{pid}"),
            &format!("cat /proc/{pid}/cmdline"),
        ])
        .await;
    assert!(victim.try_wait().unwrap().is_none(), "the victim lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
    // Its own processes only: the first one, the shell and what it starts.
    let pids = walled.say("ls /proc | grep -c '^[0-9]*$'").await;
    let count: u32 = pids.trim().parse().unwrap();
    assert!((2..=5).contains(&count), "{count} processes are visible");
    // Killing everything that can be named ends itself and nothing else.
    let spec = walled.spec("kill -9 -1; echo alive");
    let (_, ended) = run(walled.executor.as_ref(), &spec).await;
    assert!(ended.exit.is_some(), "{ended:?}");
}

#[tokio::test]
async fn no_network_reaches_nothing() {
    let Some(walled) = walled() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = format!(
        "import socket; s = socket.create_connection(('127.0.0.1', {port}), 5); print('reached')"
    );
    let python = "/usr/bin/python3";
    if skip_without(fs::metadata(python).is_ok(), "python3 of the system") {
        return;
    }
    let command = format!("{python} -c \"{connect}\"");
    walled.denied(&[&command]).await;
    // Its own loopback works.
    let own = format!(
        "{python} -c \"import socket; a = socket.create_server(('127.0.0.1', 0)); \
         socket.create_connection(a.getsockname()); print('own')\""
    );
    assert_eq!(walled.say(&own).await, "own\n");
    assert_eq!(
        walled
            .say(
                "ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"
            )
            .await,
        "lo\n"
    );
    // With an open network the same command gets through, so the probe is one.
    let mut open = walled.spec(&command);
    edit_plan(&mut open, |plan| plan.network = PlanNetwork::Open);
    assert_eq!(walled.say_spec(&open).await, "reached\n");
    let (started, _) = {
        open.attempt.number = AttemptNumber(2);
        run(walled.executor.as_ref(), &open).await
    };
    assert!(!started.isolation.network_enforced);
}

#[tokio::test]
async fn a_dataset_cannot_be_written_through_its_mount() {
    let Some(walled) = walled() else { return };
    let (dataset, path) = walled.bench.dataset("digits", "1 2 3\n");
    let mut spec = walled.spec(
        "for try in 'echo x > d/digits' 'rm d/digits' 'mv d/digits e' 'chmod 777 d/digits' 'ln -f made d/digits' \
         'truncate -s 0 d/digits'; do ( eval $try ) 2>/dev/null && echo POSSIBLE: $try; done; cat d/digits",
    );
    add_dataset(&mut spec, &dataset, "d/digits");
    assert_eq!(walled.say_spec(&spec).await, "1 2 3\n");
    assert_eq!(fs::read_to_string(path).unwrap(), "1 2 3\n");
}

/// A link in the project at or above a mount must not lead the mount elsewhere.
#[tokio::test]
async fn links_in_a_project_do_not_redirect_mounts() {
    let Some(walled) = walled() else { return };
    let (dataset, _) = walled.bench.dataset("digits", "1 2 3\n");
    for mount in ["data/digits", "data"] {
        let mut spec = walled.spec("true");
        add_dataset(&mut spec, &dataset, mount);
        let commit = walled.bench.snapshots.commit(&[("a.txt", mount)]);
        let store = walled.bench.dir.path().join("store");
        let link = store.join(commit.to_string()).join("data");
        std::os::unix::fs::symlink("/etc", link).unwrap();
        edit_plan(&mut spec, |plan| plan.commit = commit);
        let error = walled.executor.start(spec).await.unwrap_err();
        assert_eq!(error.cause, Cause::PrepareFailed);
        assert!(error.message.contains("link"), "{error}");
    }
}
