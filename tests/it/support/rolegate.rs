//! The real rolegate process, its log lines, and its admin.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use super::{Client, SOON, eventually, process::cpu_time};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rolegate");

/// A running rolegate. It ends with the test.
pub struct Rolegate {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Rolegate {
    /// Starts it with this configuration, whose log must be JSON at debug, and waits until it runs.
    pub fn start(config: &str) -> Self {
        let (folder, file) = write_config(config);
        Self::spawn(Command::new(PROGRAM).arg("-f").arg(file), folder)
    }

    /// The same, started as `change` says.
    pub fn start_with(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let (folder, file) = write_config(config);
        let mut command = Command::new(PROGRAM);
        change(command.arg("-f").arg(file));
        Self::spawn(&mut command, folder)
    }

    /// The same with a file of the test, which it may change meanwhile.
    pub fn start_with_file(file: &Path) -> Self {
        Self::spawn(Command::new(PROGRAM).arg("-f").arg(file), TempDir::new().unwrap())
    }

    /// The same by a command of the test, whose last step is to become rolegate.
    pub fn start_command(command: &mut Command) -> Self {
        Self::spawn(command, TempDir::new().unwrap())
    }

    /// The same with this limit of open files.
    pub fn start_with_descriptors(config: &str, limit: u32) -> Self {
        let (folder, file) = write_config(config);
        let script = format!("ulimit -n {limit}; exec \"$0\" -f \"$1\"");
        Self::spawn(Command::new("sh").arg("-c").arg(script).arg(PROGRAM).arg(file), folder)
    }

    /// The same where `/etc` is this folder, with a `hosts` and an `nsswitch.conf` of its own. Needs
    /// root, or a system that lets others have user namespaces.
    pub fn start_in(etc: &Path, config: &str) -> Self {
        Self::start_mounted(&format!("--bind '{}' /etc", etc.display()), config)
    }

    /// The same after a `mount` with these arguments, which nobody else sees.
    pub fn start_mounted(mount: &str, config: &str) -> Self {
        let (folder, file) = write_config(config);
        let flags = if rustix::process::getuid().is_root() { "-m" } else { "-rm" };
        let script = format!("mount {mount} && exec \"$0\" -f \"$1\"");
        let mut command = Command::new("unshare");
        let command = command.args([flags, "sh", "-c", &script, PROGRAM]).arg(file);
        Self::spawn(command, folder)
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.process())).unwrap().count()
    }

    fn spawn(command: &mut Command, folder: TempDir) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("rolegate starts");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let output = BufReader::new(child.stdout.take().unwrap());
        let sink = lines.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        let rolegate = Self { child, lines, folder };
        rolegate.wait_log("rolegate runs");
        rolegate
    }

    /// Starts it and waits until it serves a master.
    pub fn start_ready(config: &str) -> Self {
        let rolegate = Self::start(config);
        rolegate.wait_ready();
        rolegate
    }

    /// Puts another configuration in the place of the one that it was started with.
    pub fn write_config(&self, config: &str) {
        fs::write(self.folder.path().join("proxy.yaml"), config).unwrap();
    }

    /// Lets it read this configuration. True if it took that over.
    pub fn reload(&self, config: &str) -> bool {
        let count = |message: &str| self.log(message).len();
        let before = (count("reloaded"), count("not reloaded"));
        self.write_config(config);
        self.signal(Signal::HUP);
        eventually("the config is read again", || {
            match (count("reloaded") - before.0, count("not reloaded") - before.1) {
                (0, 0) => None,
                (taken, _) => Some(taken > 0),
            }
        })
    }

    /// What the last reload changed, line by line.
    pub fn changes(&self) -> Vec<String> {
        let lines = self.log("reload");
        lines.iter().map(|line| line["change"].as_str().unwrap().to_owned()).collect()
    }

    /// Where its first listener accepts.
    pub fn address(&self) -> SocketAddr {
        self.address_of(0)
    }

    /// Where the listener at this place of the config accepts.
    pub fn address_of(&self, place: usize) -> SocketAddr {
        self.log("listening")[place]["address"].as_str().unwrap().parse().unwrap()
    }

    fn admin(&self) -> String {
        self.log("admin listening")[0]["address"].as_str().unwrap().to_owned()
    }

    /// The log lines with this message so far.
    pub fn log(&self, message: &str) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        let likely = lines.iter().filter(|line| line.contains(message));
        let parsed = likely.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        parsed.filter(|line| line["message"] == message).collect()
    }

    /// Everything it has logged.
    pub fn output(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    pub fn wait_log(&self, message: &str) -> Value {
        eventually(&format!("log line {message:?}"), || self.log(message).pop())
    }

    pub fn wait_ready(&self) {
        eventually("rolegate is ready", || (self.get("/ready").0 == 200).then_some(()));
    }

    /// Waits until it serves this backend.
    pub fn wait_master(&self, backend: &str) {
        eventually(&format!("{backend} is served"), || {
            (self.status()["pools"]["main"]["master"] == backend).then_some(())
        });
    }

    /// Waits until the last check of this backend failed with this reason.
    pub fn wait_failure(&self, backend: &str, reason: &str) -> Value {
        eventually(&format!("checks of {backend} fail with {reason}"), || {
            let backend = self.status()["pools"]["main"]["backends"][backend].take();
            (backend["error"]["reason"] == reason && backend["state"] == "down").then_some(backend)
        })
    }

    /// A new connection through it.
    pub fn client(&self) -> Client {
        Client::connect(self.address()).unwrap()
    }

    /// Status code and body of a GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        let (status, response) = self.request(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        (
            status,
            response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default(),
        )
    }

    /// Status code and whole response to these bytes. 0 where there is none.
    pub fn request(&self, bytes: &str) -> (u16, String) {
        let mut stream = self.admin_stream();
        // The other side may have answered and closed before it has read everything.
        let _ = stream.write_all(bytes.as_bytes());
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        let response = String::from_utf8_lossy(&response).into_owned();
        let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, response)
    }

    pub fn admin_stream(&self) -> TcpStream {
        let address = self.admin();
        let stream = match address.strip_prefix("unix:") {
            Some(path) => OwnedFd::from(UnixStream::connect(path).unwrap()).into(),
            None => TcpStream::connect(address).unwrap(),
        };
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").1).unwrap()
    }

    /// The value of a series, written as in the exposition; 0 where it is absent.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Checks of this backend that have ended so far.
    pub fn checks(&self, backend: &str) -> f64 {
        self.metric(&format!(
            r#"rolegate_check_duration_seconds_count{{backend="{backend}",pool="main"}}"#
        ))
    }

    /// Waits until the backend is not checked any more, and tells how often it was.
    pub fn wait_idle(&self, backend: &str) -> f64 {
        eventually("no check is made", || {
            let before = self.checks(backend);
            thread::park_timeout(Duration::from_millis(100));
            (self.checks(backend) == before && before > 0.0).then_some(before)
        })
    }

    /// Bytes read from backends so far.
    pub fn bytes_out(&self) -> f64 {
        self.metric(r#"rolegate_listener_bytes_total{direction="out",listener="redis"}"#)
    }

    /// Waits until it has read more than so many bytes from backends.
    pub fn wait_bytes_out(&self, more_than: f64) {
        eventually(&format!("more than {more_than} bytes come from the backend"), || {
            (self.bytes_out() > more_than).then_some(())
        });
    }

    /// Waits until every buffer between backends and clients that do not read is full, and tells
    /// how many bytes have come.
    pub fn wait_full(&self) -> f64 {
        let (mut last, mut still) = (0.0, 0);
        eventually("nothing moves any more", || {
            let now = self.bytes_out();
            still = if now == last && now > 0.0 { still + 1 } else { 0 };
            last = now;
            thread::park_timeout(Duration::from_millis(100));
            (still == 5).then_some(now)
        })
    }

    /// Sessions that ended for this reason so far.
    pub fn closed(&self, reason: &str) -> f64 {
        self.metric(&format!(
            r#"rolegate_sessions_closed_total{{listener="redis",reason="{reason}"}}"#
        ))
    }

    /// Waits until so many sessions have ended for this reason.
    pub fn wait_closed(&self, reason: &str, count: f64) {
        eventually(&format!("{count} sessions end with {reason}"), || {
            (self.closed(reason) == count).then_some(())
        });
    }

    pub fn wait_no_sessions(&self) {
        eventually("no session is left", || {
            (self.metric(r#"rolegate_listener_sessions{listener="redis"}"#) == 0.0).then_some(())
        });
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many sockets each of its epoll instances watches.
    pub fn watched_sockets(&self) -> Vec<usize> {
        let info = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).unwrap();
        let texts = info.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
        texts.map(|text| text.matches("tfd:").count()).filter(|count| *count > 0).collect()
    }

    /// How many pipes it has besides standard input and output.
    pub fn pipes(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        let ends = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).filter(|entry| {
            let is_pipe = |link: &Path| link.to_string_lossy().starts_with("pipe:");
            let standard = ["0", "1", "2"].iter().any(|fd| entry.file_name() == *fd);
            !standard && fs::read_link(entry.path()).is_ok_and(|link| is_pipe(&link))
        });
        ends.count() / 2
    }

    /// The time that all its threads have spent on a processor.
    pub fn cpu(&self) -> Duration {
        cpu_time(self.process())
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Stops every thread of it, and returns when they stand still.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        eventually("all threads are stopped", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.process())).unwrap();
            let is_stopped = |task: fs::DirEntry| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap();
                stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
            };
            tasks.map(Result::unwrap).all(is_stopped).then_some(())
        });
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Takes open files from it while it runs.
    pub fn limit_descriptors(&self, limit: u64) {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// The processes that it has started to take over.
    pub fn successors(&self) -> Vec<u32> {
        let lines = self.log("a new process is to take over");
        lines.iter().map(|line| line["process"].as_u64().unwrap().try_into().unwrap()).collect()
    }

    /// Lets a new process take over, and waits until it has.
    pub fn upgrade(&self) -> u32 {
        let before = self.log("handed over").len();
        self.signal(Signal::USR2);
        eventually("it hands over", || (self.log("handed over").len() > before).then_some(()));
        self.successors().pop().unwrap()
    }

    /// Signals a process that took over.
    pub fn signal_successor(process: u32, signal: Signal) {
        assert!(is_rolegate(process));
        kill_process(as_pid(process), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end and gives the exit code.
    pub fn wait_exit(&mut self) -> Option<i32> {
        eventually("rolegate ends", || self.child.try_wait().unwrap()).code()
    }
}

/// Whether this is a process of the program under test.
fn is_rolegate(process: u32) -> bool {
    fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|exe| exe == Path::new(PROGRAM))
}

impl Drop for Rolegate {
    fn drop(&mut self) {
        for process in self.successors().into_iter().filter(|process| is_rolegate(*process)) {
            let _ = kill_process(as_pid(process), Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("rolegate's log:\n{}", self.output());
        }
    }
}

fn as_pid(process: u32) -> Pid {
    Pid::from_raw(process.try_into().unwrap()).unwrap()
}

/// Puts a configuration into a file of its own, which is gone with the folder.
pub fn write_config(config: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.yaml");
    fs::write(&file, config).unwrap();
    (folder, file)
}

/// Runs `rolegate check` on a file.
pub fn check_config(file: &Path, env: &[(&str, &str)]) -> Output {
    Command::new(PROGRAM)
        .arg("check")
        .arg("-f")
        .arg(file)
        .env_remove("REDIS_PASSWORD")
        .envs(env.iter().copied())
        .output()
        .unwrap()
}
