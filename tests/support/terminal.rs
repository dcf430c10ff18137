//! A command of orderd on a terminal of its own, on which a test types. `script` makes the terminal: it is on every Debian.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use super::test_env::{TestEnv, wait_until};

/// What Ctrl-C types.
pub const CTRL_C: &str = "\x03";
/// What Ctrl-D types: the end of the input.
pub const CTRL_D: &str = "\x04";

/// A running command and its terminal.
pub struct Terminal {
    script: Child,
    input: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a command, with further environment variables.
    pub fn start(env: &TestEnv<'_>, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let program = env.program(arguments);
        let words = [program.get_program()].into_iter().chain(program.get_args());
        let quoted: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"))).collect();
        // Wide enough for each line.
        let line = format!("stty cols 200 rows 50; exec {}", quoted.join(" "));
        let mut script = env.script("script");
        script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]).env("TERM", "xterm");
        script.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let (input, mut output) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let showing = Arc::clone(&shown);
        thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                showing.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
        });
        Terminal { script, input, shown }
    }

    /// All that it has shown so far, with what was typed.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until it has shown this text.
    pub fn await_text(&self, text: &str) {
        wait_until(&format!("{text:?} is shown"), || {
            let shown = self.shown();
            assert!(!shown.contains("panicked"), "{shown}");
            shown.contains(text)
        });
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &str) {
        self.input.write_all(keys.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// Waits until the command ends. Returns its exit code, and all that it has shown.
    pub fn end(mut self) -> (i32, String) {
        wait_until("the command on the terminal ends", || self.script.try_wait().unwrap().is_some());
        let exit = self.script.wait().unwrap().code().unwrap();
        // The thread that reads has all of it once it has ended.
        wait_until("all is shown", || Arc::strong_count(&self.shown) == 1);
        (exit, self.shown())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
        if thread::panicking() {
            eprintln!("on the terminal:\n{}", self.shown());
        }
    }
}
